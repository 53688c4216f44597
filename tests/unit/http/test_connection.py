"""Clients that send their heads, or read their answers, slowly or not at all; and more of them than there may be."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import h11
import httpx
import pytest

from app.http import connection
from tests.fakes.server import KEY, Live, wav
from tests.unit.http.test_sockets import answer_of, head_of

Start = Callable[..., Awaitable[Live]]
Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HEALTH = b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n"


def head_of_request(first: str, *more: str) -> bytes:
    """With the key."""
    return "\r\n".join([f"{first} HTTP/1.1", "Host: test", f"X-API-Key: {KEY}", *more, "", ""]).encode()


async def opened(live: Live, data: bytes = b"", receive_buffer: int = 0) -> Opened:
    """A connection on which ``data`` was sent, of a client whose kernel keeps about ``receive_buffer`` bytes for it."""
    client = socket.socket()
    client.setblocking(False)
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", live.port))
    reader, writer = await asyncio.open_connection(sock=client, limit=max(receive_buffer, 1) if receive_buffer else 65_536)
    live.opened.append(writer)
    writer.write(data)
    return reader, writer


@asynccontextmanager
async def healthy(live: Live) -> AsyncIterator[None]:
    """Meanwhile ``/health`` must answer, quickly."""
    waits: list[float] = []

    async def ask() -> None:
        while True:
            began = time.monotonic()
            assert (await live.client.get("/health")).status_code == 200
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.01)

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        asking.cancel()
        assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], asyncio.CancelledError)
    assert waits
    assert max(waits) < 2.0, waits


async def dripping(writer: asyncio.StreamWriter, data: bytes, pause_s: float = 0.02) -> None:
    """Send byte by byte, as long as anybody takes it."""
    for byte in data:
        writer.write(bytes([byte]))
        await asyncio.sleep(pause_s)


async def ends(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server closes the connection, in order or not."""
    taken = b""
    try:
        while data := await asyncio.wait_for(reader.read(65_536), 10):
            taken += data
    except ConnectionResetError:
        pass
    return taken


async def reset(reader: asyncio.StreamReader, size: int = 65_536, pause_s: float = 0.0) -> bool:
    """Read to the end, ``size`` bytes at a time; whether it came by a reset and not in order."""
    try:
        while await asyncio.wait_for(reader.read(size), 10):
            await asyncio.sleep(pause_s)
    except ConnectionResetError:
        return True
    return False


async def finished(live: Live) -> None:
    """Until no request is being served."""
    assert live.server is not None
    deadline = time.monotonic() + 10
    while live.server.server_state.tasks:
        assert time.monotonic() < deadline, live.server.server_state.tasks
        await asyncio.sleep(0.01)


async def all_gone(live: Live) -> None:
    """Until the server has no request, and no connection but those of the test's own client."""
    await live.client.aclose()
    await finished(live)
    assert live.server is not None
    deadline = time.monotonic() + 5
    while live.server.server_state.connections:
        assert time.monotonic() < deadline, live.server.server_state.connections
        await asyncio.sleep(0.01)
    await live.settled()


# -- heads


async def test_headers_byte_by_byte_get_408_and_health_answers_meanwhile(start: Start) -> None:
    live = await start(header_timeout_s=1.0)
    reader, writer = await opened(live)
    began = time.monotonic()
    async with healthy(live):
        drip = asyncio.create_task(dripping(writer, b"GET /models HTTP/1.1\r\nX-Slow: " + 1000 * b"x"))
        status, body = await answer_of(reader)
        drip.cancel()
    assert (status, body["error"]["code"], body["error"]["retryable"]) == (408, "header_timeout", True)
    assert 0.9 < time.monotonic() - began < 5
    writer.close()
    await all_gone(live)


async def test_who_goes_on_sending_after_the_408_is_cut_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_LINGER_S", 0.2)
    live = await start(header_timeout_s=0.5)
    reader, writer = await opened(live)
    drip = asyncio.create_task(dripping(writer, 1000 * b"x"))
    assert await head_of(reader) == 408
    await all_gone(live)
    drip.cancel()


async def test_who_sends_nothing_is_cut_off_without_a_word(start: Start) -> None:
    live = await start(header_timeout_s=0.2)
    reader, _ = await opened(live)
    assert await ends(reader) == b""
    await all_gone(live)


async def test_headers_that_come_in_pieces_but_in_time_are_served(start: Start) -> None:
    live = await start(header_timeout_s=5.0)
    reader, writer = await opened(live)
    await dripping(writer, HEALTH, 0.002)
    assert await head_of(reader) == 200


async def test_second_request_of_a_connection_whose_headers_are_slow_gets_408(start: Start) -> None:
    live = await start(header_timeout_s=0.3)
    reader, writer = await opened(live, HEALTH)
    assert await head_of(reader) == 200
    await reader.readuntil(b"}")
    drip = asyncio.create_task(dripping(writer, HEALTH + 1000 * b"x", 0.05))
    assert await head_of(reader) == 408
    drip.cancel()
    writer.close()
    await all_gone(live)


async def test_rest_of_a_body_that_nobody_reads_does_not_keep_the_connection(start: Start) -> None:
    live = await start(header_timeout_s=0.3)
    reader, writer = await opened(live, HEALTH.replace(b"\r\n\r\n", b"\r\nContent-Length: 100000\r\n\r\n"))
    assert await head_of(reader) == 200
    drip = asyncio.create_task(dripping(writer, 100_000 * b"x"))
    await ends(reader)
    drip.cancel()
    await all_gone(live)


async def test_work_and_slow_bodies_may_take_longer_than_headers(start: Start) -> None:
    live = await start(fake=True, header_timeout_s=0.6)
    body = wav()
    head = head_of_request("POST /transcribe?initial_prompt=sleep:0.8", f"Content-Length: {len(body)}")
    reader, writer = await opened(live, head + body[:10])
    await asyncio.sleep(0.8)
    writer.write(body[10:])
    assert await head_of(reader) == 200


# -- no HTTP


@pytest.mark.parametrize("before", [b"", HEALTH], ids=["first", "pipelined"])
@pytest.mark.parametrize(
    "bad", [b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: test\r\nX: " + 70_000 * b"x"], ids=["line", "long"]
)
async def test_what_is_no_http_gets_400_in_the_one_shape_and_the_end(start: Start, before: bytes, bad: bytes) -> None:
    live = await start()
    reader, writer = await opened(live, before + bad)
    if before:
        assert await head_of(reader) == 200
        await reader.readuntil(b"}")
    status, body = await answer_of(reader)
    assert (status, body["error"]["code"], body["error"]["retryable"]) == (400, "not_http", False)
    assert await ends(reader) == b""
    writer.close()
    await all_gone(live)


async def test_body_that_is_no_http_gets_400_and_leaves_nothing_behind(start: Start) -> None:
    live = await start()
    head = head_of_request("POST /transcribe", "Transfer-Encoding: chunked")
    reader, writer = await opened(live, head + b"5\r\nhello\r\n")
    while not list(live.settings.jobs_dir.glob("*/upload")):
        await asyncio.sleep(0.01)
    writer.write(b"zz\r\n")
    status, body = await answer_of(reader)
    assert (status, body["error"]["code"]) == (400, "not_http")
    await all_gone(live)


async def test_body_that_is_no_http_after_a_refusal_ends_the_connection_without_a_failure(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    live = await start()
    head = b"POST /transcribe HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    reader, writer = await opened(live, head)
    assert await head_of(reader) == 401
    writer.write(b"zz\r\n")
    await ends(reader)
    await all_gone(live)
    assert not [one for one in caplog.records if one.name == "asyncio"]


# -- answers


async def big_answer(live: Live, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A request whose answer has megabytes, of a server that leaves little to the kernel."""
    monkeypatch.setattr(connection, "SEND_BUFFER", 4096)
    accepted = await live.client.post("/transcribe?wait=false", content=wav())
    job_id = accepted.json()["job_id"]
    while not (found := list(live.settings.jobs_dir.glob(f"{job_id}/result-1.json"))):
        await asyncio.sleep(0.01)
    while (await live.client.get(f"/transcribe/{job_id}")).status_code != 200:
        await asyncio.sleep(0.01)
    result = json.loads(found[0].read_text())
    found[0].write_text(json.dumps(result | {"segments": 10_000 * result["segments"]}))
    return head_of_request(f"GET /transcribe/{job_id}?response_format=verbose_json", "Connection: close")


def unsent(live: Live) -> int:
    """Bytes that the server holds for its clients."""
    assert live.server is not None
    return sum(one.transport.get_write_buffer_size() for one in live.server.server_state.connections)


async def begun(live: Live) -> None:
    """Until an answer has more bytes than the kernel takes."""
    while not unsent(live):
        await asyncio.sleep(0.005)


async def test_answer_that_is_not_read_is_dropped_with_its_connection_and_health_answers_meanwhile(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = await start(fake=True, send_idle_timeout_s=0.4)
    request = await big_answer(live, monkeypatch)
    reader, _ = await opened(live, request, 4096)
    await begun(live)
    assert unsent(live) > 1_000_000
    async with healthy(live):
        while unsent(live):
            await asyncio.sleep(0.01)
    assert await reset(reader)
    await live.client.delete(request.split()[1].decode().partition("?")[0])
    await all_gone(live)


async def reading(live: Live, monkeypatch: pytest.MonkeyPatch) -> asyncio.StreamReader:
    """A client with an answer that is more than the two kernels keep."""
    monkeypatch.setattr(connection, "SEND_BUFFER", 4096)
    reader, _ = await opened(live, b"GET /openapi.json HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n", 2048)
    await begun(live)
    return reader


async def test_answer_that_is_read_slowly_but_steadily_arrives_whole(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    live = await start(send_idle_timeout_s=1.0)
    reader = await reading(live, monkeypatch)
    taken, began = b"", time.monotonic()
    while data := await asyncio.wait_for(reader.read(1024), 10):
        taken += data
        await asyncio.sleep(0.03)
    assert time.monotonic() - began > 1.2
    assert json.loads(taken.partition(b"\r\n\r\n")[2])["openapi"]


async def test_reader_that_is_slower_than_the_kernel_asks_for_more_is_not_cut_off(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = await start(fake=True, send_idle_timeout_s=1.0)
    request = await big_answer(live, monkeypatch)
    monkeypatch.setattr(connection, "SEND_BUFFER", 256 * 1024)
    reader, _ = await opened(live, request, 4096)
    await begun(live)
    end = time.monotonic() + 3.0
    while time.monotonic() < end:  # 60 KB a second
        assert await asyncio.wait_for(reader.read(3000), 5)
        await asyncio.sleep(0.05)
    assert unsent(live)


async def test_answer_that_is_read_too_slowly_in_all_is_cut_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    live = await start(send_idle_timeout_s=5.0, send_timeout_s=0.3)
    reader = await reading(live, monkeypatch)
    began = time.monotonic()
    assert await reset(reader, 1024, 0.02)
    assert 0.2 < time.monotonic() - began < 3


async def test_events_that_are_not_read_end_with_their_task(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.background.HEARTBEAT_S", 0.0)
    monkeypatch.setattr(connection, "SEND_BUFFER", 4096)
    live = await start(fake=True, send_idle_timeout_s=0.3)
    job_id = (await live.client.post("/transcribe?wait=false&initial_prompt=sleep:20", content=wav())).json()["job_id"]
    reader, _ = await opened(live, head_of_request(f"GET /transcribe/{job_id}/events"), 4096)
    assert await head_of(reader) == 200
    await finished(live)
    assert await reset(reader)
    await live.client.delete(f"/transcribe/{job_id}")
    await all_gone(live)


# -- too many


async def test_newcomers_are_served_however_many_silent_connections_there_are(start: Start) -> None:
    live = await start(max_connections=20, header_timeout_s=60)
    silent = [await opened(live, b"GET /models HTTP/1.1\r\n") for _ in range(200)]
    for _ in range(3):
        async with httpx.AsyncClient(base_url=live.client.base_url, headers=live.client.headers, trust_env=False) as new:
            assert (await new.get("/health")).status_code == 200
            assert (await new.get("/models")).status_code == 200
    assert live.server is not None
    assert len(live.server.server_state.connections) <= 25
    assert await ends(silent[0][0]) == b""
    last, writer = silent[-1]
    writer.write(f"Host: test\r\nX-API-Key: {KEY}\r\n\r\n".encode())
    assert await head_of(last) == 200  # who came last is still heard


async def test_requests_at_work_are_never_cut_off_and_the_next_get_503_while_health_answers(start: Start) -> None:
    live = await start(max_connections=8)
    request = head_of_request("POST /transcribe", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n"
    working = [await opened(live, request) for _ in range(8)]
    while len(list(live.settings.jobs_dir.glob("*/upload"))) < 8:
        await asyncio.sleep(0.01)
    async with healthy(live):
        for _ in range(20):
            reader, writer = await opened(live, head_of_request("GET /models", "Connection: close"))
            status, body = await answer_of(reader)
            assert (status, body["error"]["code"], body["error"]["retryable"]) == (503, "unavailable", True)
            writer.close()
    for _, writer in working:
        writer.write(b"0\r\n\r\n")
    assert [await head_of(reader) for reader, _ in working] == [422] * 8  # no audio, but each was heard to its end
    for _, writer in working:
        writer.close()
    assert (await live.client.get("/models")).status_code == 200
    await all_gone(live)


# -- uploads


@pytest.mark.parametrize(
    ("together", "in_chunks", "most"), [(16 << 20, False, 2 << 20), (0, False, 1 << 18), (16 << 20, True, 1 << 18)]
)
async def test_uploads_at_once_share_one_place_and_arrive_whole_in_pieces_that_are_large_only_for_few_and_without_chunks(
    start: Start, monkeypatch: pytest.MonkeyPatch, together: int, in_chunks: bool, most: int
) -> None:
    live = await start(fake=True)
    monkeypatch.setattr(connection, "_ALL_RECEIVED_BYTES", together)
    offered: set[int] = set()
    parsed: list[int] = []
    offer, parse = connection.Connection.get_buffer, h11.Connection.receive_data

    def given(self: h11.Connection, data: bytes) -> None:
        if self.our_role is h11.SERVER:
            parsed.append(len(data))
        parse(self, data)

    monkeypatch.setattr(h11.Connection, "receive_data", given)

    def seen(self: connection.Connection, sizehint: int) -> memoryview:
        room = offer(self, sizehint)
        offered.add(len(room))
        return room

    monkeypatch.setattr(connection.Connection, "get_buffer", seen)

    async def chunks(content: bytes) -> AsyncIterator[bytes]:
        for first in range(0, len(content), 70_001):
            yield content[first : first + 70_001]

    async def upload(number: int) -> None:
        content = random.Random(number).randbytes(3_000_000 + number)
        checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
        said = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(content)), "Upload-Checksum": f"sha256 {checksum}"}
        said["Content-Type"] = "application/offset+octet-stream"
        answer = await live.client.post("/uploads", headers=said, content=chunks(content) if in_chunks else content)
        assert answer.status_code == 201, answer.text

    await asyncio.gather(*(upload(number) for number in range(4)))
    assert max(offered) == most
    assert min(offered) == 1 << 18  # for heads
    assert sum(parsed) > 12_000_000 if in_chunks else 0 < sum(parsed) < 9_000_000  # what only is body is not parsed


async def test_a_large_body_that_asks_to_go_on_arrives_whole_and_the_next_request_on_its_connection_is_heard(
    start: Start,
) -> None:
    live = await start(fake=True)
    content = random.Random(1).randbytes(5_000_001)
    checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
    upload = head_of_request(
        "POST /uploads",
        "Tus-Resumable: 1.0.0",
        f"Upload-Length: {len(content)}",
        f"Upload-Checksum: sha256 {checksum}",
        "Content-Type: application/offset+octet-stream",
        f"Content-Length: {len(content)}",
        "Expect: 100-continue",
    )
    reader, writer = await opened(live, upload)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    writer.write(content + head_of_request("GET /models", "Connection: close"))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
    status, body = await answer_of(reader)
    assert (status, body["default"]) == (200, "demo")
    writer.close()
    await all_gone(live)


async def test_the_end_of_a_body_is_not_received_together_with_megabytes_of_requests_to_be_parsed(start: Start) -> None:
    live = await start(fake=True)
    _, writer = await opened(live, head_of_request("POST /uploads", "Content-Length: 3000000") + bytes(10))
    assert live.server is not None
    connections: set[Any] = live.server.server_state.connections
    while not (heard := [(one, known) for one in connections if (known := one._known) is not None]):
        await asyncio.sleep(0.01)
    ((ours, known),) = heard
    assert len(ours.get_buffer(-1)) == 2 << 20
    known._remaining = 1
    assert len(ours.get_buffer(-1)) == 1 << 18
    writer.close()
    await all_gone(live)


async def test_a_client_that_ends_in_the_midst_of_a_large_body_leaves_nothing_behind(start: Start) -> None:
    live = await start(fake=True)
    request = head_of_request("POST /transcribe", "Content-Length: 9000000")
    _, writer = await opened(live, request)
    writer.write(bytes(4_000_000))
    await writer.drain()
    while sum(one.stat().st_size for one in live.settings.jobs_dir.glob("*/upload")) < 1_000_000:
        await asyncio.sleep(0.01)
    writer.close()
    while list(live.settings.jobs_dir.iterdir()):
        await asyncio.sleep(0.01)
    assert (await live.client.get("/models")).status_code == 200
    await all_gone(live)
