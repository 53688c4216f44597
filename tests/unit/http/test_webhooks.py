"""Webhooks against a real receiver, which checks them with the official library of Standard Webhooks."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from standardwebhooks import Webhook

from app import webhooks
from app.batches_store import BatchRows
from tests.fakes.server import Live, fake_service, make_settings, serving, wav
from tests.unit.http.test_batches import echoes, reached
from tests.unit.http.test_batches import hand_in as hand_in_batch
from tests.unit.http.test_jobs import until
from tests.unit.http.test_middleware import shape

Start = Callable[..., Awaitable[Live]]
SECRET = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
LOOPBACK = ipaddress.ip_network("127.0.0.0/8")


@dataclass
class Receiver:
    """``statuses`` are its answers, in turn, the last one for ever; ``got`` what it was sent."""

    port: int = 0
    statuses: list[int] = field(default_factory=lambda: [204])
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        headers = {name.lower(): value for name, value in headers.items()}
        self.got.append((headers, await reader.readexactly(int(headers["content-length"]))))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        writer.write(f"HTTP/1.1 {status} X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        self.news.set()

    async def after(self, count: int) -> list[dict[str, Any]]:
        """What was sent, once there are so many, each with a signature that holds."""
        while len(self.got) < count:
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), 15)
        return [json.loads(body) for headers, body in self.got if Webhook(SECRET).verify(body, headers) is not None]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    await server.wait_closed()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(webhooks, "LOOK_S", 0.02)


async def begin(start: Start, receiver: Receiver, **settings: Any) -> Live:
    live = await start(fake=True, webhook_secret=SECRET, **settings)
    allow(live, receiver)
    return live


def allow(live: Live, receiver: Receiver) -> None:
    hooks = live.service.webhooks
    hooks.policy = replace(hooks.policy, allow=(LOOPBACK,), ports=(receiver.port,))


async def hand_in(live: Live, receiver: Receiver, content: bytes | None = None, **params: Any) -> str:
    params = {"wait": "false", "webhook_url": f"http://127.0.0.1:{receiver.port}/hook?x=1", **params}
    response = await live.client.post("/transcribe", params=params, content=wav() if content is None else content)
    assert response.status_code == 202, response.text
    job_id: str = response.json()["job_id"]
    return job_id


async def done(live: Live, job_id: str) -> None:
    """Nothing more will be sent for the job."""
    query = text("SELECT webhook_done FROM jobs WHERE id = :id")

    async def wait() -> None:
        while True:
            with live.service.store.sync.reading() as db:
                if db.execute(query, {"id": job_id}).scalar():
                    return
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), 10)


async def test_job_that_has_ended_is_told_once_signed_and_with_its_id(start: Start, receiver: Receiver) -> None:
    live = await begin(start, receiver)
    job_id = await hand_in(live, receiver)
    (told,) = await receiver.after(1)
    assert (told["type"], told["data"]["job_id"], told["data"]["status"]) == ("transcription.succeeded", job_id, "succeeded")
    assert receiver.got[0][0]["webhook-id"] == job_id
    await done(live, job_id)
    assert len(receiver.got) == 1


async def test_failure_is_told_too_with_its_error(start: Start, receiver: Receiver) -> None:
    live = await begin(start, receiver)
    await hand_in(live, receiver, content=b"no media")
    (told,) = await receiver.after(1)
    assert (told["type"], told["data"]["error"]["code"]) == ("transcription.failed", "not_media")


@pytest.mark.parametrize("status", [500, 302, 404])
async def test_what_is_not_taken_is_tried_again_under_the_same_id(
    start: Start, receiver: Receiver, quick: None, status: int
) -> None:
    receiver.statuses = [status, status, 200]
    live = await begin(start, receiver)
    job_id = await hand_in(live, receiver)
    told = await receiver.after(3)
    assert {one["data"]["job_id"] for one in told} == {headers["webhook-id"] for headers, _ in receiver.got} == {job_id}


async def test_nobody_tries_for_ever(start: Start, receiver: Receiver, quick: None) -> None:
    receiver.statuses = [503]
    live = await begin(start, receiver)
    job_id = await hand_in(live, receiver)
    await receiver.after(3)
    await done(live, job_id)
    assert len(receiver.got) == 3


async def test_address_inside_the_network_is_refused_at_once_and_nothing_is_kept(start: Start, receiver: Receiver) -> None:
    live = await start(fake=True, webhook_secret=SECRET)
    for address in (f"http://127.0.0.1:{receiver.port}/", "http://169.254.169.254/", "file:///etc/passwd"):
        answer = await live.client.post("/transcribe", params={"wait": "false", "webhook_url": address}, content=wav())
        assert (answer.status_code, shape(answer)["code"]) == (422, "url_refused")
    assert receiver.got == []
    await live.settled()


async def test_without_a_secret_or_without_an_async_job_there_are_no_webhooks(start: Start, receiver: Receiver) -> None:
    live = await start(fake=True)
    for wait in ("false", "true"):
        params = {"wait": wait, "webhook_url": "http://example.com/"}
        answer = await live.client.post("/transcribe", params=params, content=wav())
        assert (answer.status_code, shape(answer)["param"]) == (422, "webhook_url")
    await live.settled()


async def test_webhook_that_was_due_when_the_server_stopped_is_sent_by_the_next_one(
    start: Start, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.statuses = [500, 200]
    monkeypatch.setattr(webhooks, "PAUSES_S", (0.5,))
    live = await begin(start, receiver)
    job_id = await hand_in(live, receiver)
    await receiver.after(1)
    await until(live, job_id, "succeeded")
    due = live.service.store.sync
    later = webhooks.Webhooks(live.settings, live.service.store, live.service.background.view, live.service.webhooks.policy)
    while len(receiver.got) < 2:
        await asyncio.sleep(0.05)
        await later.look()
    assert due.webhooks_due(5) == []


# -- batches


async def test_end_of_a_batch_is_told_once_signed_with_what_failed(start: Start, receiver: Receiver) -> None:
    live = await begin(start, receiver)
    items = [*echoes(live, 3), {"audio_file": "nowhere.wav", "name": "lost"}]
    batch_id = await hand_in_batch(live, items, webhook_url=f"http://127.0.0.1:{receiver.port}/hook")
    (told,) = await receiver.after(1)
    assert (told["type"], told["data"]["batch_id"], told["data"]["percent"]) == ("batch.completed", batch_id, 100.0)
    assert told["data"]["counts"]["succeeded"] == 3
    assert [(one["label"], one["error"]["code"]) for one in told["data"]["failures"]] == [("lost", "media_not_found")]
    assert receiver.got[0][0]["webhook-id"] == batch_id
    rows = BatchRows(live.service.store.sync)
    while rows.webhooks_due(5):
        await asyncio.sleep(0.01)
    assert await live.service.webhooks.look() == 0
    assert len(receiver.got) == 1


async def test_webhook_of_a_batch_waits_for_its_last_item_and_is_tried_again(
    start: Start,
    receiver: Receiver,
    quick: None,
    tmp_path: Path,
) -> None:
    receiver.statuses = [500, 500, 200]
    live = await begin(start, receiver, streams=1)
    items = echoes(live, 2)
    items[1]["initial_prompt"] = f"until:{tmp_path}/go"
    batch_id = await hand_in_batch(live, items, webhook_url=f"http://127.0.0.1:{receiver.port}/hook")
    await reached(live, batch_id, lambda shown: shown["counts"]["succeeded"] == 1)
    assert await live.service.webhooks.look() == 0
    await live.client.delete(f"/batches/{batch_id}")
    told = await receiver.after(3)
    assert {one["type"] for one in told} == {"batch.cancelled"}
    assert {headers["webhook-id"] for headers, _ in receiver.got} == {batch_id}


async def test_webhook_of_a_batch_that_was_due_when_the_server_stopped_is_sent_by_the_next_one(
    tmp_path: Path,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver.statuses = [500, 200]
    monkeypatch.setattr(webhooks, "PAUSES_S", (0.5,))
    monkeypatch.setattr(webhooks, "LOOK_S", 0.05)
    settings = make_settings(tmp_path, webhook_secret=SECRET)

    async with serving(settings, fake_service) as live:
        allow(live, receiver)
        await hand_in_batch(live, echoes(live, 1), webhook_url=f"http://127.0.0.1:{receiver.port}/hook")
        await receiver.after(1)
    async with serving(settings, fake_service) as live:
        allow(live, receiver)
        told = await receiver.after(2)
    assert {one["type"] for one in told} == {"batch.completed"}
