"""What a node leaves among the shared media: the result that its job's row knows, and no other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import update

from app.cluster.claims import NodeStore
from app.cluster.media import AsyncMedia, Media, result_key
from app.cluster.node import NodeRuns
from app.cluster.rows import SharedStore, leases
from app.errors import Cancelled
from app.jobs import Job, Status, TranscribeOptions, new_id
from app.pool.handle import Measured
from app.store import AsyncStore
from tests.fakes.server import make_settings

START = datetime(2026, 1, 2, tzinfo=timezone.utc)


class SlowStore(NodeStore):
    """Its commits of results wait until they may go on."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url, name, 15.0, 3, now=lambda: START)
        self.asked, self.go = threading.Event(), threading.Event()

    def finish(self, *what: object, **more: object) -> bool:
        self.asked.set()
        assert self.go.wait(30)
        return super().finish(*what, **more)  # type: ignore[arg-type]


class Late:
    """A job that a node has claimed and computed, with its result ready to be handed in."""

    def __init__(self, folder: Path) -> None:
        url = f"sqlite:///{folder}/jobs.db"
        self.api = SharedStore(url, now=lambda: START)
        self.store, self.other = SlowStore(url, "n1"), NodeStore(url, "n2", 15.0, 3, now=lambda: START)
        self.api.create_schema()
        self.job = Job(new_id(), "alice", TranscribeOptions("demo"), START, background=True)
        self.api.add(self.job)
        self.api.send(self.job.id, {"url": "https://host/talk"})
        assert self.store.claim(self.job.id)
        self.shared = folder / "shared"
        self._result = folder / "result-1.json"
        self._result.write_text("{}")
        settings = make_settings(folder)
        self.async_store = AsyncStore(self.store)
        self._runs = NodeRuns(settings, self.async_store, self.store, None, AsyncMedia(Media(f"file://{self.shared}")))  # type: ignore[arg-type]

    def hand_in(self) -> asyncio.Task[Path]:
        return asyncio.create_task(self._runs._finish(self.job, 1, self._result, Measured(1.0, 1)))

    def goes_elsewhere(self) -> None:
        """Its lease ends, and another node has it now."""
        with self.api.writing() as db:
            db.execute(update(leases).values(lease_until=START - timedelta(seconds=1)))
        assert self.other.claim(self.job.id)

    def files(self) -> list[str]:
        return [str(path.relative_to(self.shared)) for path in self.shared.rglob("*") if path.is_file()]


@pytest.fixture
def late(tmp_path: Path) -> Iterator[Late]:
    made = Late(tmp_path)
    yield made
    for store in (made.api, made.store, made.other):
        store.close()


async def asked(late: Late) -> None:
    assert await asyncio.to_thread(late.store.asked.wait, 30)


async def test_result_of_a_job_that_is_elsewhere_by_now_is_deleted(late: Late) -> None:
    handing_in = late.hand_in()
    await asked(late)
    assert late.files() == [result_key(late.job.id, 1)]
    late.goes_elsewhere()
    late.store.go.set()
    with pytest.raises(Cancelled):
        await handing_in
    assert late.files() == []


async def cancelled(handing_in: asyncio.Task[Path], late: Late) -> None:
    """The task is cancelled while the commit of the result is under way, which then goes on."""
    handing_in.cancel()
    await asyncio.sleep(0)
    late.store.go.set()
    with pytest.raises(asyncio.CancelledError):
        await handing_in


async def test_result_of_a_job_that_is_cancelled_for_its_lost_lease_while_it_is_handed_in_is_deleted(late: Late) -> None:
    handing_in = late.hand_in()
    await asked(late)
    late.goes_elsewhere()
    await cancelled(handing_in, late)
    assert late.files() == []


async def test_result_that_the_row_has_taken_stays_although_its_task_was_cancelled(late: Late) -> None:
    handing_in = late.hand_in()
    await asked(late)
    await cancelled(handing_in, late)
    found = late.api.get(late.job.id)
    assert found is not None
    assert (found.status, late.files()) == (Status.SUCCEEDED, [result_key(late.job.id, 1)])
