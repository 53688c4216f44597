"""What a killed API left in the shared media goes, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from app.cluster.media import AsyncMedia, Media, input_key, result_key
from app.cluster.rows import SharedStore
from app.cluster.sweep import Sweep
from app.jobs import Job, TranscribeOptions
from app.store import AsyncStore


class Bench:
    def __init__(self, folder: Path) -> None:
        self.rows = SharedStore(f"sqlite:///{folder}/jobs.db")
        self.rows.create_schema()
        self.store, self.media = AsyncStore(self.rows), Media(f"file://{folder}/shared")
        self.sweep = Sweep(self.store, self.rows, AsyncMedia(self.media))
        self._upload = folder / "upload"
        self._upload.write_bytes(b"audio")

    def put(self, key: str) -> None:
        self.media.put(self._upload, key)

    def add(self, job_id: str) -> None:
        self.rows.add(Job(job_id, "alice", TranscribeOptions("demo"), datetime.now(timezone.utc), background=True))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.store.close()


async def test_input_without_a_job_goes_at_the_second_look_and_those_of_jobs_stay(bench: Bench) -> None:
    for number in range(600):
        bench.add(f"job-{number}")
    bench.put(input_key("lost"))
    bench.put(input_key("job-7"))
    bench.put(result_key("job-599", 1))
    await bench.sweep.look()
    assert sorted(bench.media.folders()) == ["job-599", "job-7", "lost"]
    await bench.sweep.look()
    assert sorted(bench.media.folders()) == ["job-599", "job-7"]


async def test_input_whose_job_is_committed_between_two_looks_stays(bench: Bench) -> None:
    bench.put(input_key("coming"))
    await bench.sweep.look()
    bench.add("coming")
    await bench.sweep.look()
    await bench.sweep.look()
    assert bench.media.folders() == ["coming"]


async def test_media_in_which_nothing_was_ever_put_are_swept_without_a_word(bench: Bench) -> None:
    await bench.sweep.look()
    assert bench.media.folders() == []
