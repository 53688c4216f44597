"""What an API keeps for the nodes, and what it leaves behind: nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select

from app.admission.ticket import Phase
from app.cluster.build import build_api
from app.cluster.media import input_key
from app.cluster.rows import SharedStore, leases
from app.intake import Source
from app.jobs import Job, Status, TranscribeOptions, new_id
from app.service import Service
from tests.fakes.server import make_settings

OPTIONS = TranscribeOptions("demo")
START = datetime(2026, 1, 2, tzinfo=timezone.utc)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Service]:
    """An API whose nodes are elsewhere, and whose Redis is not there."""
    settings = make_settings(
        tmp_path,
        engine="celery",
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
        database_url=SecretStr(f"sqlite:///{tmp_path}/jobs.db"),
        media_url=SecretStr(f"file://{tmp_path}/shared"),
        max_concurrent_transcriptions=3,
    )
    made = build_api(settings)
    await made.start()
    yield made
    await made.stop()


def rows(api: Service) -> SharedStore:
    assert isinstance(api.store.sync, SharedStore)
    return api.store.sync


async def test_job_that_was_not_taken_over_leaves_no_input(api: Service, tmp_path: Path) -> None:
    first, second = (Job(new_id(), "alice", OPTIONS, START, idempotency_key="again", request_hash="x") for _ in range(2))
    rows(api).add(first)
    folder = tmp_path / "data" / "jobs" / second.id
    folder.mkdir()
    (folder / "upload").write_bytes(b"audio")
    ticket = api.desk.jobs.join(api.desk.prices.transcription("alice", OPTIONS, 1.0))
    with pytest.raises(ValueError):
        await api.background.accept(second, folder, Source(upload=folder / "upload"), ticket)
    assert [path for path in (tmp_path / "shared").rglob("*") if path.is_file()] == []


async def test_batch_that_is_deleted_leaves_no_lease(api: Service) -> None:
    job = Job(new_id(), "alice", OPTIONS, START, background=True, source={"url": "https://host/?token=secret"})
    rows(api).add(job)
    rows(api).send(job.id, {"url": "https://host/?token=secret"})
    await api.background.discard([job.id])
    with rows(api).reading() as db:
        assert db.execute(select(func.count()).select_from(leases)).scalar_one() == 0


async def test_no_more_jobs_run_than_the_operator_allows_however_many_places_there_are(api: Service) -> None:
    api.desk.resize(8, 4, 1 << 40)
    assert api.desk.jobs.limits.running == 3
    api.desk.resize(2, 1, 1 << 40)
    assert api.desk.jobs.limits.running == 2


async def test_jobs_of_the_last_boot_come_in_order_behind_those_at_the_nodes(api: Service) -> None:
    ages = [timedelta(hours=hours) for hours in (1, 3, 2)]
    young, old, running = (Job(new_id(), "alice", OPTIONS, START - age, background=True) for age in ages)
    for job in (young, running, old):
        rows(api).add(job)
    rows(api)._moved(running.id, Status.RUNNING)
    assert [job.id for job in rows(api).recover(3)] == [running.id, old.id, young.id]


async def test_upload_from_before_there_were_nodes_is_put_where_they_can_read_it(api: Service, tmp_path: Path) -> None:
    job = Job(new_id(), "alice", OPTIONS, START, background=True, source={"file": "upload"})
    rows(api).add(job)
    upload = tmp_path / "data" / "jobs" / job.id / "upload"
    upload.parent.mkdir()
    upload.write_bytes(b"audio")
    await api.background.resume([job])
    shared = tmp_path / "shared" / input_key(job.id)
    end = time.monotonic() + 10
    while not shared.exists() and time.monotonic() < end:
        await asyncio.sleep(0.01)
    assert (shared.read_bytes(), upload.exists()) == (b"audio", True)


async def test_item_at_a_node_goes_on_after_a_restart_although_its_recording_is_gone_here(api: Service) -> None:
    job = Job(new_id(), "alice", OPTIONS, START, background=True, source={"audio_file": "gone.wav"})
    rows(api).add(job)
    rows(api).send(job.id, {"media": input_key(job.id)})
    rows(api).start(job.id)
    await api.background.resume([job])
    end = time.monotonic() + 10
    while (live := api.background._live.get(job.id)) and live.ticket.phase is Phase.ENTERED and time.monotonic() < end:
        await asyncio.sleep(0.01)
    found = rows(api).get(job.id)
    assert found is not None
    assert found.status is Status.RUNNING


async def test_results_of_earlier_attempts_go_when_a_job_has_ended_well(api: Service, tmp_path: Path) -> None:
    shared = tmp_path / "shared" / "jobs" / "a"
    shared.mkdir(parents=True)
    for name in ("input", "result-1.json", "result-2.json", "result-3.json"):
        (shared / name).touch()
    await api.background._runs.discard("a", "result-3.json")
    assert [path.name for path in shared.iterdir()] == ["result-3.json"]
