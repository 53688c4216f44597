"""What only a real socket shows: slow bodies, hang-ups, answers to clients that still send."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from uvicorn.protocols.http import h11_impl

from app.admission.ticket import Phase
from app.jobs import Status, TranscribeOptions
from tests.fakes.server import KEY, Live, wav
from tests.unit.http.test_middleware import shape

Start = Callable[..., Awaitable[Live]]
MB = 1_000_000


async def head_of(reader: asyncio.StreamReader, timeout_s: float = 10.0) -> int:
    """The status of the next answer."""
    line = await asyncio.wait_for(reader.readline(), timeout_s)
    assert line.startswith(b"HTTP/1.1 "), line
    return int(line.split()[1])


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer after which the connection ends."""
    status = await head_of(reader)
    rest = await asyncio.wait_for(reader.read(), 10)
    body = rest.partition(b"\r\n\r\n")[2]
    if b"transfer-encoding: chunked" in rest.lower():
        body = body.partition(b"\r\n")[2].partition(b"\r\n")[0]
    return status, json.loads(body)


async def pieces(total: int, size: int = 65_536) -> AsyncIterator[bytes]:
    """A chunked body."""
    for _ in range(total // size):
        yield b"x" * size


# -- no key


async def test_client_without_a_key_gets_its_401_while_it_still_holds_its_body_open(quiet: Live) -> None:
    reader, _ = await quiet.raw("POST /transcribe HTTP/1.1\nTransfer-Encoding: chunked", b"5\r\nhello\r\n")
    assert await head_of(reader, 2.0) == 401


async def test_unauthenticated_chunked_gigabyte_is_answered_before_a_byte_is_read_and_then_cut_off(
    quiet: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, taken_at_answer, ended = [0], [], asyncio.Event()
    receive_of_server, send_of_server = h11_impl.RequestResponseCycle.receive, h11_impl.RequestResponseCycle.send

    async def receive(self: Any) -> Any:
        message: Any = await receive_of_server(self)
        taken[0] += len(message.get("body", b""))
        return message

    async def send(self: Any, message: Any) -> None:
        taken_at_answer.append(taken[0])
        await send_of_server(self, message)

    monkeypatch.setattr(h11_impl.RequestResponseCycle, "receive", receive)
    monkeypatch.setattr(h11_impl.RequestResponseCycle, "send", send)
    reader, writer = await quiet.raw("POST /transcribe HTTP/1.1\nTransfer-Encoding: chunked")

    async def flood() -> int:
        sent = 0
        try:
            while sent < 1000 * MB:
                writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                await writer.drain()
                sent += 4096
        except OSError:
            ended.set()
        return sent

    flooding = asyncio.create_task(flood())
    assert await head_of(reader) == 401
    sent = await asyncio.wait_for(flooding, 20)
    assert ended.is_set()
    assert sent < 20 * MB  # the rest is what the two kernels hold
    assert taken_at_answer[0] == 0
    assert taken[0] < 1 * MB  # what the server had in its buffers, dropped after the answer


async def test_socket_handshake_gets_401_over_http(quiet: Live) -> None:
    upgrade = "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    reader, _ = await quiet.raw(f"GET /transcribe HTTP/1.1\n{upgrade}")
    assert await head_of(reader) in (401, 403)


@pytest.mark.parametrize("header", ["X-API-Key: \xff\xfe", "X-API-Key: " + "k" * 30_000, "Authorization: Bearer \x80"])
async def test_odd_keys_get_401_over_a_socket(quiet: Live, header: str) -> None:
    reader, _ = await quiet.raw(f"GET /models HTTP/1.1\n{header}")
    assert await head_of(reader) == 401


# -- answers to clients that still send


@pytest.mark.parametrize(
    ("path", "headers", "chunked", "status"),
    [
        ("/nope", {}, False, 404),
        ("/models", {}, False, 405),
        ("/transcribe", {"Content-Encoding": "gzip"}, False, 415),
        ("/transcribe", {}, False, 413),
        ("/transcribe", {}, True, 413),
        ("/nope", {}, True, 404),
    ],
)
async def test_refused_upload_of_megabytes_gets_an_answer_that_can_be_read(
    start: Start, path: str, headers: dict[str, str], chunked: bool, status: int
) -> None:
    live = await start(max_upload_mb=3 if status == 413 else 100)
    for _ in range(3):
        content: Any = pieces(8 * MB) if chunked else b"x" * 8 * MB
        response = await live.client.post(path, content=content, headers=headers)
        assert response.status_code == status
        shape(response)
        assert response.headers["connection"] == "close"
    await live.settled()


async def test_upload_with_a_second_file_gets_its_answer_while_megabytes_follow(quiet: Live) -> None:
    files = [("file", ("a.wav", b"1" * MB)), ("file", ("b.wav", b"2" * 6 * MB))]
    response = await quiet.client.post("/transcribe", files=files)
    assert response.status_code == 422
    assert "more than one file" in shape(response)["message"]
    await quiet.settled()


async def test_full_house_answers_429_to_an_upload_of_megabytes(start: Start) -> None:
    live = await start(overload_policy="reject")
    desk = live.service.desk
    ask = desk.prices.transcription("somebody", TranscribeOptions("demo"), 10.0)
    with ExitStack() as places:
        for _ in range(desk.jobs.limits.running):
            places.enter_context(live.service.admitted(desk.jobs, ask, 1))
        response = await live.client.post("/transcribe", content=b"x" * 6 * MB)
        assert response.status_code == 429
        error = shape(response)
        assert (error["code"], error["retryable"]) == ("too_many_active", True)
        assert 1 <= int(response.headers["retry-after"]) <= 120
        assert live.folders() == []
    await live.settled()


async def test_lingering_ends_by_itself_where_the_client_never_stops(quiet: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.http.middleware._LINGER_S", 0.3)
    head = f"POST /nope HTTP/1.1\nX-API-Key: {KEY}\nContent-Length: 1000"
    reader, _ = await quiet.raw(head, b"x")
    assert await head_of(reader) == 404
    await asyncio.wait_for(reader.read(), 5)  # the server closes


async def test_a_connection_serves_on_after_an_error_whose_body_was_read(quiet: Live) -> None:
    head = f"POST /transcribe?model=no&x=1 HTTP/1.1\nX-API-Key: {KEY}\nContent-Length: 0"
    reader, writer = await quiet.raw(head)
    assert await head_of(reader) == 422
    await reader.readuntil(b"}}")
    writer.write(b"GET /health HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    assert await head_of(reader) == 200


# -- slow clients


@pytest.mark.parametrize(
    ("settings", "pause_s"), [({"body_idle_timeout_s": 0.3}, 60.0), ({"body_idle_timeout_s": 5.0, "body_timeout_s": 0.5}, 0.05)]
)
async def test_slow_body_gets_408_and_health_answers_meanwhile(
    start: Start, settings: dict[str, float], pause_s: float
) -> None:
    live = await start(**settings)
    head = f"POST /transcribe HTTP/1.1\nX-API-Key: {KEY}\nTransfer-Encoding: chunked"
    reader, writer = await live.raw(head, b"1\r\nx\r\n")

    async def drip() -> None:
        while True:
            await asyncio.sleep(pause_s)
            writer.write(b"1\r\nx\r\n")

    dripping = asyncio.create_task(drip())
    began = time.monotonic()
    waiting = asyncio.create_task(head_of(reader))
    while not waiting.done():
        assert (await live.client.get("/health")).status_code == 200
        await asyncio.sleep(0.02)
    assert await waiting == 408
    assert time.monotonic() - began < 4
    dripping.cancel()
    writer.close()
    await live.settled()


async def test_408_says_that_a_retry_makes_sense(start: Start) -> None:
    live = await start(body_idle_timeout_s=0.1)
    reader, _ = await live.raw(f"POST /transcribe HTTP/1.1\nX-API-Key: {KEY}\nContent-Length: 10", b"x")
    status, body = await answer_of(reader)
    assert (status, body["error"]["code"], body["error"]["retryable"]) == (408, "body_timeout", True)


# -- hang-ups


async def uploading(live: Live) -> asyncio.StreamWriter:
    """A client in the middle of its upload: its folder exists and holds the beginning of the file."""
    head = f"POST /transcribe HTTP/1.1\nX-API-Key: {KEY}\nTransfer-Encoding: chunked"
    _, writer = await live.raw(head, b"5\r\nhello\r\n")
    while not list(live.settings.jobs_dir.glob("*/upload")):
        await asyncio.sleep(0.005)
    return writer


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_client_that_goes_during_its_upload_leaves_no_folder_and_no_place(quiet: Live, how: str) -> None:
    writer = await uploading(quiet)
    assert len(quiet.service.desk.jobs.inside) == 1
    assert quiet.service.desk.disk.reserved > 0
    writer.close() if how == "close" else writer.transport.abort()
    await quiet.settled()


async def test_client_that_goes_while_its_job_runs_cancels_it_and_the_slot_is_free(start: Start) -> None:
    live = await start(fake=True, streams=1)
    query = "?initial_prompt=sleep:60&vad_method=none"
    body = wav()
    head = f"POST /transcribe{query} HTTP/1.1\nX-API-Key: {KEY}\nContent-Length: {len(body)}"
    _, writer = await live.raw(head, body)
    while not any(worker["running"] for lane in live.service.pool.stats().values() for worker in lane["workers"]):
        await asyncio.sleep(0.01)
    writer.close()
    await live.settled()
    (row,) = live.service.store.sync.list(None)
    assert row.status is Status.CANCELLED
    response = await live.client.post("/transcribe", content=body)
    assert response.status_code == 200


async def test_client_that_goes_while_its_job_waits_in_line_is_taken_out_of_it(start: Start) -> None:
    live = await start(fake=True, streams=1)
    first = asyncio.create_task(live.client.post("/transcribe?initial_prompt=sleep:60", content=wav()))
    while not live.busy():
        await asyncio.sleep(0.01)
    body = wav()
    _, writer = await live.raw(f"POST /transcribe HTTP/1.1\nX-API-Key: {KEY}\nContent-Length: {len(body)}", body)
    while {ticket.phase for ticket in live.service.desk.jobs.inside} != {Phase.RUNNING, Phase.WAITING}:
        await asyncio.sleep(0.01)
    writer.close()
    while len(live.service.desk.jobs.inside) > 1:
        await asyncio.sleep(0.01)
    assert live.service.store.sync.counts()[Status.CANCELLED] == 1
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await live.settled()
    assert live.service.store.sync.counts()[Status.CANCELLED] == 2


# -- the whole way, once


async def test_upload_in_every_form_reaches_the_engine_whole(start: Start) -> None:
    live = await start(fake=True)
    content, expected = wav(0.1, 7), (7).to_bytes(2, "little").hex() * 32
    file = {"file": ("a.wav", content)}
    for kwargs in ({"content": content}, {"files": file}, {"files": file, "data": {"response_format": "json"}}):
        response = await live.client.post("/transcribe", **kwargs)
        assert response.status_code == 200, response.text
        assert response.json()["text"] == expected
    await live.settled()
    assert live.service.store.sync.counts()[Status.SUCCEEDED] == 3


async def test_of_a_wav_neither_its_head_nor_what_is_behind_its_samples_reaches_the_engine(start: Start) -> None:
    live = await start(fake=True)
    short = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 60, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16, b"data", 16)
    samples, tags = b"\7\0" * 8, b"LIST\x08\0\0\0INFOxxxx"
    response = await live.client.post("/transcribe", content=short + samples + tags)
    assert (response.status_code, response.json()["text"]) == (200, samples.hex())
    await live.settled()


@pytest.mark.parametrize(("path", "code"), [("/transcribe", "disk_full"), ("/extract-audio", "disk_full")])
async def test_upload_that_touches_the_disk_reserve_gets_507(start: Start, path: str, code: str) -> None:
    live = await start(disk_reserve_mb=1 << 40)
    response = await live.client.post(path, content=b"x" * 3 * MB)
    assert response.status_code == 507
    assert shape(response)["code"] == code
    assert (await live.client.get("/ready")).json()["reasons"] == ["too little free disk"]
    await live.settled()


async def test_extracted_audio_of_one_key_cannot_be_read_with_another(start: Start, tmp_path: Path) -> None:
    from tests.fakes.server import OTHER_KEY

    live = await start(fake=True)
    made = (await live.client.post("/extract-audio", content=wav(0.2))).json()
    other = {"X-API-Key": OTHER_KEY}
    path = made["audio_file"]
    for wanted in (path, f"./{path}", path.replace("by-key/", "by-key//"), path.replace("by-key", "by-key/."), f"x/../{path}"):
        response = await live.client.post("/transcribe", params={"audio_file": wanted}, headers=other)
        assert response.status_code == 404
        missing = shape(response)
    absent = shape(await live.client.post("/transcribe", params={"audio_file": "by-key/nobody/x.wav"}, headers=other))
    assert {**absent, "request_id": ""} == {**missing, "request_id": ""}
    assert (await live.client.post("/extract-audio", params={"audio_file": path}, headers=other)).status_code == 404
    assert (await live.client.post("/transcribe", params={"audio_file": path})).status_code == 200
    await live.settled()


async def test_a_timeout_of_the_client_itself_frees_everything(start: Start) -> None:
    live = await start(fake=True)
    with pytest.raises(httpx.ReadTimeout):
        await live.client.post("/transcribe?initial_prompt=sleep:60", content=wav(), timeout=1.0)
    await live.settled()
