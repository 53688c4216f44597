"""The places of a node: in this process, with real workers and a database of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import update

from app.cluster.build import build_node
from app.cluster.claims import NodeStore
from app.cluster.media import Media, input_key
from app.cluster.node import WorkNode
from app.cluster.rows import SharedStore, leases
from app.jobs import Job, Status, TranscribeOptions, new_id
from tests.fakes.server import make_settings, wav

LEASE_S = 1.0


class Bench:
    """A node with two places, and the API's side of the rows and media."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"sqlite:///{folder}/jobs.db"
        settings = make_settings(
            folder,
            engine="celery",
            redis_url=SecretStr("redis://127.0.0.1:1/0"),
            database_url=SecretStr(self.url),
            media_url=SecretStr(f"file://{folder}/shared"),
            lease_s=LEASE_S,
        )
        self.rows, self._media = SharedStore(self.url), Media(f"file://{folder}/shared")
        self.rows.create_schema()
        self.node: WorkNode = build_node(settings, "here", "tests.fakes.engine", ())
        self._stopped = False

    def sent(self, age_s: float = 0.0) -> str:
        """A job that ends once there is a file "gate", and whose message was sent so long ago."""
        options = TranscribeOptions("demo", initial_prompt=f"until:{self.folder}/gate")
        job = Job(new_id(), "alice", options, datetime.now(timezone.utc), background=True)
        self.rows.add(job)
        (self.folder / "input").write_bytes(wav())
        self._media.put(self.folder / "input", input_key(job.id))
        self.rows.send(job.id, {"media": input_key(job.id)})
        with self.rows.writing() as db:
            sent_at = self.rows.clock(db) - timedelta(seconds=age_s)
            db.execute(update(leases).where(leases.c.job_id == job.id).values(sent_at=sent_at))
        return job.id

    def row(self, job_id: str) -> Job:
        job = self.rows.get(job_id)
        assert job is not None
        return job

    def running(self, *job_ids: str) -> int:
        return sum(self.row(job_id).status is Status.RUNNING for job_id in job_ids)

    def open(self) -> None:
        (self.folder / "gate").touch()

    async def everything_was_looked_at(self) -> None:
        """All that was offered has asked for its claim, if it wants one at all: the store's calls are made in order."""
        for _ in range(10):
            await asyncio.sleep(0)
        await self.node._store.run(lambda: None)

    async def stop(self, grace_s: float = 10.0) -> None:
        if not self._stopped:
            self._stopped = True
            await self.node.stop(grace_s)


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.node.start(("demo",))
    yield made
    made.open()
    await made.stop()
    made.rows.close()


async def test_node_whose_messages_and_sweep_bring_jobs_together_holds_no_more_than_its_places(bench: Bench) -> None:
    found = [bench.sent(age_s=10 * LEASE_S) for _ in range(2)]
    await until(lambda: bench.running(*found) == 2)  # by the sweep
    told = [bench.sent() for _ in range(2)]
    offers = [asyncio.create_task(bench.node.offer(job_id)) for job_id in told]  # as Celery's threads do, which are all free
    await bench.everything_was_looked_at()
    assert (bench.running(*told), len(bench.node._sync.claims)) == (0, 2)
    other = NodeStore(bench.url, "other", 3600.0, 3)
    assert other.claim(told[0]) is not None, "what no place is free for is for others"
    other.close()
    bench.open()
    await asyncio.gather(*offers)
    await until(lambda: all(bench.row(job_id).status is Status.SUCCEEDED for job_id in (*found, told[1])))
    assert (bench.row(told[0]).status, bench.row(told[0]).attempts) == (Status.RUNNING, 1)


async def full(bench: Bench) -> tuple[list[str], str, list[asyncio.Task[None]]]:
    """The jobs that have the node's places, one that waits for a place, and the offers of all three."""
    held = [bench.sent() for _ in range(2)]
    offers = [asyncio.create_task(bench.node.offer(job_id)) for job_id in held]
    await until(lambda: bench.running(*held) == 2)
    waits = bench.sent()
    offers.append(asyncio.create_task(bench.node.offer(waits)))
    await bench.everything_was_looked_at()
    return held, waits, offers


async def test_node_takes_the_next_job_as_soon_as_one_is_not_its_own_any_more(bench: Bench) -> None:
    held, waits, offers = await full(bench)
    assert bench.running(waits) == 0
    bench.rows.cancel(held[0])  # a beat sees it
    await until(lambda: bench.running(waits) == 1)
    assert not offers[1].done()


@pytest.mark.parametrize(("grace_s", "ended"), [(10.0, Status.SUCCEEDED), (0.0, Status.QUEUED)])
async def test_node_that_stops_takes_nothing_although_its_places_become_free(
    bench: Bench, grace_s: float, ended: Status
) -> None:
    held, waits, offers = await full(bench)
    stopping = asyncio.create_task(bench.stop(grace_s))
    await asyncio.sleep(0)
    if grace_s:
        bench.open()
    await asyncio.gather(stopping, *offers)
    assert [bench.row(job_id).status for job_id in held] == [ended] * 2
    assert (bench.row(waits).status, bench.row(waits).attempts) == (Status.QUEUED, 0)
