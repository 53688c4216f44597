"""What has ended is forgotten: by age, by the size of the results, and not because a clock was set."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from app.jobs import Job, Status, TranscribeOptions
from app.retention import Retention
from app.store import AsyncStore, Store
from tests.fakes.clock import Clock
from tests.fakes.server import make_settings

NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)
DAY = 86_400.0


class Bench:
    """Ended jobs with results of a size, and who was forgotten."""

    def __init__(self, folder: Path) -> None:
        self.settings = make_settings(folder, result_ttl_s=DAY, results_mb=2)
        self.wall = Clock(NOW)
        self.store = Store(self.settings.store_url, now=self.wall)
        self.store.create_schema()
        self.seconds = 0.0
        self.gone: list[str] = []
        self.retention = Retention(self.settings, AsyncStore(self.store), self._forget, lambda: self.seconds)

    async def _forget(self, job_id: str) -> None:
        self.gone.append(job_id)
        self.store.delete(job_id)

    def add(self, name: str, age_s: float, size: int = 10, status: Status = Status.SUCCEEDED, background: bool = True) -> None:
        ended = NOW - timedelta(seconds=age_s)
        job = Job(name, "alice", TranscribeOptions("demo"), ended, status, background=background)
        self.store.add(replace(job, finished_at=ended if status.final else None))
        if background:
            folder = self.settings.jobs_dir / name
            folder.mkdir(parents=True)
            (folder / "result-1.json").write_bytes(b"x" * size)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


async def test_what_ended_longer_ago_than_the_setting_is_forgotten_and_nothing_else(bench: Bench) -> None:
    bench.add("old", DAY + 10)
    bench.add("old sync", DAY + 5, background=False)
    bench.add("young", DAY - 60)
    bench.add("runs", 9 * DAY, status=Status.RUNNING)
    await bench.retention.look()
    assert bench.gone == ["old", "old sync"]


async def test_time_that_passes_makes_older(bench: Bench) -> None:
    bench.add("young", 0)
    await bench.retention.look()
    assert bench.gone == []
    bench.seconds += DAY + 1
    bench.wall.moment += timedelta(seconds=DAY + 1)
    await bench.retention.look()
    assert bench.gone == ["young"]


@pytest.mark.parametrize("days", [-1, 1, 400])
async def test_wall_clock_that_jumps_makes_nothing_older(bench: Bench, days: int) -> None:
    bench.add("young", 60)
    bench.wall.moment = NOW + timedelta(days=days)
    await bench.retention.look()
    assert bench.gone == []


async def test_what_ends_after_the_clock_was_set_back_is_not_taken_for_old(bench: Bench) -> None:
    bench.wall.moment = NOW - timedelta(days=2)
    bench.add("young", 2 * DAY)
    await bench.retention.look()
    assert bench.gone == []
    bench.seconds, bench.wall.moment = DAY + 1, NOW - timedelta(days=1) + timedelta(seconds=1)
    await bench.retention.look()
    assert bench.gone == ["young"]


async def test_oldest_results_go_where_all_of_them_are_too_large(bench: Bench) -> None:
    for number in range(4):
        bench.add(f"{number}", 1000 - number, size=800_000)
    bench.add("failed", 2000, size=0, status=Status.FAILED)
    await bench.retention.look()
    assert bench.gone == ["0", "1"]


async def test_results_that_are_too_large_go_however_many_ended_jobs_there_are_without_one(bench: Bench) -> None:
    for number in range(600):
        bench.add(f"sync {number}", 5000, background=False)
    for number in range(4):
        bench.add(f"{number}", 1000 - number, size=800_000)
    await bench.retention.look()
    assert bench.gone == ["0", "1"]


async def test_sweeping_goes_on_after_a_folder_could_not_be_deleted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[None] = []

    def fail() -> None:
        tries.append(None)
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr("app.retention.SOON_S", 0.01)
    monkeypatch.setattr("app.retention.EVERY_S", 0.02)
    monkeypatch.setattr("app.retention.anything_late", lambda: True)
    monkeypatch.setattr("app.retention.discard_late", fail)
    bench.add("old", DAY + 10)
    watching = asyncio.create_task(bench.retention.watch())
    while len(tries) < 3:
        assert not watching.done(), watching.exception()
        await asyncio.sleep(0.01)
    watching.cancel()
    assert bench.gone == ["old"]
