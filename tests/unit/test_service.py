"""A job's whole way through the service, with the fake engine in real worker processes and the real ffmpeg.

``initial_prompt`` commands the engine (see :mod:`tests.fakes.engine`).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.errors import (
    Cancelled,
    DeadlineExceeded,
    MediaNotFound,
    NotMedia,
    NotReady,
    QueueTimeout,
    StenopoolError,
    TooManyActive,
    WorkerLost,
    WorkError,
)
from app.jobs import Job, Status, TranscribeOptions
from app.media.extract import ExtractOptions
from app.service import OWNED, Service, Source, worker_setup
from app.settings import Settings
from tests.fakes.pool import quiet_service
from tests.fakes.server import fake_service, make_settings, wav

OWNER = "owner-a"
Begin = Callable[..., Awaitable["Runner"]]


class Runner:
    """Runs jobs as a route does; ``began`` is set when an engine has begun one."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.began = asyncio.Event()
        self.count = 0

    async def __call__(self, command: str = "echo", content: bytes | None = None, owner: str = OWNER, **source: Any) -> str:
        """The text, which is checked to be that of this very job's audio."""
        self.count += 1
        value = self.count
        options = TranscribeOptions("demo", initial_prompt=command)
        with self.service.admit(self.service.gate) as place:
            async with self.service.folder() as folder:
                if not source:
                    source = {"upload": folder / "upload"}
                    source["upload"].write_bytes(wav(0.05, value) if content is None else content)
                transcript = await self.service.transcribe(
                    owner, folder, Source(**source), options, place, lambda *_: self.began.set()
                )
        if content is None and "upload" in source:
            assert transcript.text == value.to_bytes(2, "little").hex() * 32
        return transcript.text

    def begin(self, command: str, **how: Any) -> asyncio.Task[str]:
        return asyncio.create_task(self(command, **how))

    @property
    def rows(self) -> list[Job]:
        """The rows, oldest first."""
        return self.service.store.sync.list(None)[::-1]

    def workers(self) -> list[dict[str, Any]]:
        return [worker for lane in self.service.pool.stats().values() for worker in lane["workers"]]

    async def running(self, number: int) -> None:
        """Wait until so many jobs are inside workers."""
        while sum(worker["running"] for worker in self.workers()) != number:
            await asyncio.sleep(0.005)

    async def nothing_left(self) -> None:
        """No place, folder, turn or slot is held, every row has ended, and a healthy job succeeds."""
        service = self.service

        async def wait() -> None:
            while service.gate.taken or os.listdir(service.settings.jobs_dir):
                await asyncio.sleep(0.005)

        await asyncio.wait_for(wait(), 10)
        await self.running(0)
        assert service.gate._turns._value == service.gate.running
        assert service._prepared._value == service.gate.running + 2
        assert service._media._value == service.settings.max_media_jobs
        assert service._downloads._value == service.settings.max_downloads
        assert all(row.status.final for row in self.rows), [row for row in self.rows if not row.status.final]
        assert all(handle.reserved == 0 for lane in service.pool._lanes.values() for handle in lane.workers)
        await asyncio.wait_for(self(), 20)
        assert self.rows[-1].status is Status.SUCCEEDED


def _children() -> list[psutil.Process]:
    """Children of this process that are no part of the pool: ffmpeg under its launcher."""
    return [child for child in psutil.Process().children() if "_exec.py" in " ".join(child.cmdline())]


@pytest.fixture
async def begin(tmp_path: Path) -> AsyncIterator[Begin]:
    """``run = await begin(**settings)``; afterwards nothing may be left."""
    async with AsyncExitStack() as stack:
        runners: list[Runner] = []

        async def start(**changes: Any) -> Runner:
            service = fake_service(make_settings(tmp_path, **changes))
            stack.push_async_callback(lambda: asyncio.wait_for(service.stop(), 10))
            await service.start()
            runners.append(Runner(service))
            return runners[-1]

        yield start


# -- success


async def test_a_job_succeeds_and_its_row_says_so(begin: Begin) -> None:
    run = await begin()
    await run()
    (row,) = run.rows
    assert (row.status, row.owner, row.attempts, row.duration_s, row.error_code) == (Status.SUCCEEDED, OWNER, 1, 0.05, None)
    assert row.finished_at is not None
    await run.nothing_left()


async def test_many_jobs_at_once_each_get_their_own_words(begin: Begin) -> None:
    run = await begin()
    texts = await asyncio.gather(*(run() for _ in range(12)))
    assert len(set(texts)) == 12
    await run.nothing_left()


# -- deaths


async def test_poison_job_fails_as_worker_lost_after_max_deaths_and_the_next_one_succeeds(begin: Begin) -> None:
    run = await begin(max_deaths=2)
    with pytest.raises(WorkerLost) as error:
        await run("kill")
    assert "2 times" in error.value.message
    (row,) = run.rows
    assert (row.status, row.error_code, row.attempts) == (Status.FAILED, "worker_lost", 2)
    await run.nothing_left()


async def test_job_whose_worker_dies_once_is_tried_again_and_succeeds(begin: Begin, tmp_path: Path) -> None:
    run = await begin()
    await run(f"kill-once:{tmp_path / 'killed'}")
    (row,) = run.rows
    assert (row.status, row.attempts) == (Status.SUCCEEDED, 2)
    assert run.service.store.sync.charged(row.id) == 2
    await run.nothing_left()


async def test_two_jobs_in_a_worker_that_is_killed_both_end_right_and_are_not_charged(begin: Begin) -> None:
    run = await begin()
    jobs = [run.begin("sleep:0.8"), run.begin("sleep:0.8")]
    await run.running(2)
    (worker,) = run.workers()
    os.kill(worker["pid"], signal.SIGKILL)
    await asyncio.wait_for(asyncio.gather(*jobs), 20)
    assert [(row.status, row.attempts) for row in run.rows] == [(Status.SUCCEEDED, 2)] * 2
    assert [run.service.store.sync.charged(row.id) for row in run.rows] == [1, 1]
    await run.nothing_left()


async def test_innocent_neighbour_of_a_poison_job_succeeds(begin: Begin) -> None:
    run = await begin()
    neighbour = run.begin("sleep:1")
    await run.running(1)
    with pytest.raises(WorkerLost):
        await run("kill")
    await asyncio.wait_for(neighbour, 20)
    assert [row.status for row in run.rows] == [Status.SUCCEEDED, Status.FAILED]
    await run.nothing_left()


async def test_frozen_worker_is_replaced_and_its_job_ends_as_worker_lost(begin: Begin) -> None:
    run = await begin(ping_interval_s=0.1, ping_timeout_s=0.4, max_deaths=1)
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(run("stop"), 20)
    await run.nothing_left()


async def test_garbage_on_the_pipe_counts_as_a_death(begin: Begin) -> None:
    run = await begin(max_deaths=1)
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(run("garbage"), 20)
    await run.nothing_left()


# -- deadline and errors


async def test_job_over_its_deadline_fails_as_deadline_exceeded_without_a_second_try(begin: Begin) -> None:
    run = await begin(job_timeout_s=0.4, job_timeout_factor=1)
    with pytest.raises(DeadlineExceeded):
        await run("hang")
    (row,) = run.rows
    assert (row.status, row.error_code, row.attempts) == (Status.FAILED, "deadline_exceeded", 1)
    await run.nothing_left()


async def test_deadline_grows_with_the_length_of_the_audio(begin: Begin) -> None:
    run = await begin(job_timeout_s=0.1, job_timeout_factor=20)
    await run("sleep:0.6", content=wav(0.5))
    await run.nothing_left()


async def test_engine_exception_fails_as_engine_failed_without_its_text(begin: Begin) -> None:
    run = await begin()
    with pytest.raises(WorkError) as error:
        await run("fail")
    assert error.value.code == "engine_failed"
    (row,) = run.rows
    assert (row.status, row.error_code, row.attempts) == (Status.FAILED, "engine_failed", 1)
    assert "secret" not in f"{error.value.message}{row.error_message}"
    await run.nothing_left()


async def test_error_of_the_tree_keeps_its_class_on_the_way_out_of_the_worker(begin: Begin) -> None:
    run = await begin()
    with pytest.raises(NotMedia, match="refused"):
        await run("refuse")
    assert run.rows[0].error_code == "not_media"
    await run.nothing_left()


@pytest.mark.parametrize("content", [b"", b"not media", wav()[:30]])
async def test_what_cannot_be_decoded_fails_and_leaves_no_folder(begin: Begin, content: bytes) -> None:
    run = await begin()
    with pytest.raises(NotMedia):
        await run(content=content)
    (row,) = run.rows
    assert (row.status, row.error_code, row.attempts) == (Status.FAILED, "not_media", 0)
    await run.nothing_left()


async def test_unknown_exception_fails_the_row_and_passes_through(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await begin()

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    with monkeypatch.context() as patch:
        patch.setattr("app.service.decode", broken)
        with pytest.raises(ZeroDivisionError):
            await run()
    assert (run.rows[0].status, run.rows[0].error_code) == (Status.FAILED, "internal")
    await run.nothing_left()


async def test_store_that_refuses_the_row_refuses_the_job(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await begin()
    from app.errors import DiskFull

    def full(job: Job) -> None:
        raise DiskFull("The job store has no room left.")

    with monkeypatch.context() as patch:
        patch.setattr(run.service.store.sync, "add", full)
        with pytest.raises(DiskFull):
            await run()
    assert run.rows == []
    await run.nothing_left()


async def test_result_of_a_job_that_was_cancelled_elsewhere_is_dropped(begin: Begin) -> None:
    run = await begin()
    job = run.begin("sleep:0.3")
    await run.running(1)
    run.service.store.sync.cancel(run.rows[0].id)
    with pytest.raises(Cancelled):
        await job
    assert run.rows[0].status is Status.CANCELLED
    await run.nothing_left()


async def test_job_that_was_cancelled_elsewhere_before_its_turn_never_runs(begin: Begin) -> None:
    run = await begin(streams=1)
    first = run.begin("sleep:0.5")
    await run.running(1)
    second = run.begin("fail")
    while len(run.rows) < 2:
        await asyncio.sleep(0.005)
    run.service.store.sync.cancel(run.rows[1].id)
    with pytest.raises(Cancelled):
        await second
    await first
    assert run.rows[1].attempts == 0
    await run.nothing_left()


# -- the gate


async def test_policy_reject_refuses_at_once_with_a_time_to_come_back(begin: Begin) -> None:
    run = await begin(overload_policy="reject", max_concurrent_transcriptions=1)
    first = run.begin("sleep:0.5")
    await run.running(1)
    with pytest.raises(TooManyActive) as error:
        await run()
    assert error.value.retry_after_s is not None
    assert 1 <= error.value.retry_after_s <= 120
    await first
    await run.nothing_left()


async def test_queue_is_bounded(begin: Begin) -> None:
    run = await begin(streams=1, max_queued=2)
    jobs = [run.begin("sleep:0.2") for _ in range(3)]
    await run.running(1)
    with pytest.raises(TooManyActive):
        await run()
    await asyncio.gather(*jobs)
    await run.nothing_left()


async def test_never_more_than_max_concurrent_transcriptions_run_however_many_workers_there_are(begin: Begin) -> None:
    run = await begin(streams=2, workers_per_model=2, max_concurrent_transcriptions=2)
    jobs = [run.begin("sleep:0.15") for _ in range(6)]
    most = 0
    while not all(job.done() for job in jobs):
        most = max(most, sum(worker["running"] for worker in run.workers()))
        await asyncio.sleep(0.005)
    await asyncio.gather(*jobs)
    assert most == 2
    await run.nothing_left()


async def test_only_a_few_waiting_jobs_are_decoded_and_the_others_stay_compressed(begin: Begin) -> None:
    run = await begin(streams=1)
    jobs = [run.begin("sleep:0.3") for _ in range(7)]
    most = 0
    while not all(job.done() for job in jobs):
        most = max(most, len(list(run.service.settings.jobs_dir.glob("*/audio.pcm"))))
        await asyncio.sleep(0.005)
    await asyncio.gather(*jobs)
    assert most <= run.service.gate.running + 2
    await run.nothing_left()


# -- cancellation


async def test_cancelled_while_it_runs_the_row_is_cancelled_and_the_worker_lives_on(begin: Begin) -> None:
    run = await begin(streams=1)
    job = run.begin("sleep:60")
    await run.running(1)
    before = run.workers()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert run.rows[0].status is Status.CANCELLED
    await run.nothing_left()
    assert [worker["pid"] for worker in run.workers()] == [worker["pid"] for worker in before]


async def test_cancelled_while_it_waits_the_row_is_cancelled_and_the_next_one_moves_up(begin: Begin) -> None:
    run = await begin(streams=1)
    first = run.begin("sleep:0.6")
    await run.running(1)
    second, third = run.begin("echo"), run.begin("echo")
    while len(list(run.service.settings.jobs_dir.glob("*/audio.pcm"))) < 3:
        await asyncio.sleep(0.005)
    second.cancel()
    await asyncio.gather(first, third)
    assert second.cancelled()
    assert sorted(row.status.value for row in run.rows) == ["cancelled", "succeeded", "succeeded"]
    await run.nothing_left()


async def test_cancelled_at_random_moments_nothing_leaks(begin: Begin) -> None:
    chance = random.Random(11)
    run = await begin(ping_interval_s=5)
    await run.nothing_left()
    for _ in range(10):
        jobs = [run.begin(chance.choice(["echo", "sleep:0.05", "sleep:60"])) for _ in range(4)]
        for job in jobs:
            await asyncio.sleep(chance.random() * 0.12)
            job.cancel()
        await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 10)
    await run.nothing_left()


async def test_cancelled_while_its_decoder_starts_no_descriptor_is_left(begin: Begin) -> None:
    run = await begin(ping_interval_s=5)
    await run.nothing_left()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(8):
        job = run.begin("echo")
        while not list(run.service.settings.jobs_dir.glob("*/upload")) or not _children():
            await asyncio.sleep(0)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
    await run.nothing_left()
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_cancelled_after_any_number_of_steps_nothing_leaks(begin: Begin) -> None:
    run = await begin(ping_interval_s=5)
    await run.nothing_left()
    for steps in range(0, 40):
        job = run.begin("sleep:60")
        for _ in range(steps):
            await asyncio.sleep(0)
        job.cancel()
        await asyncio.wait_for(asyncio.gather(job, return_exceptions=True), 10)
    await run.nothing_left()


@pytest.mark.parametrize("steps", range(8))
async def test_cancellation_while_waiting_for_a_turn_is_never_swallowed(tmp_path: Path, steps: int) -> None:
    service = quiet_service(make_settings(tmp_path))
    places = asyncio.Semaphore(1)

    async def work() -> None:
        async with service._waiting(places):
            await asyncio.sleep(60)

    job = asyncio.create_task(work())
    for _ in range(steps):
        await asyncio.sleep(0)
    job.cancel()
    await asyncio.wait({job}, timeout=2)
    assert job.cancelled()
    async with service._waiting(places):
        assert places.locked()
    assert not places.locked()


async def test_turn_that_does_not_come_in_time_is_a_queue_timeout_and_is_given_to_the_next(tmp_path: Path) -> None:
    service = quiet_service(make_settings(tmp_path, queue_timeout_s=0.05))
    places = asyncio.Semaphore(1)
    await places.acquire()
    with pytest.raises(QueueTimeout):
        async with service._waiting(places):
            pass
    places.release()
    async with service._waiting(places):
        pass
    assert not places.locked()


async def test_two_servers_on_one_data_folder_are_refused(begin: Begin, tmp_path: Path) -> None:
    run = await begin()
    second = quiet_service(make_settings(tmp_path))
    with pytest.raises(StenopoolError, match="Another running server"):
        await second.start()
    await second.stop()
    await run.nothing_left()


# -- whose media


async def test_media_of_one_key_does_not_exist_for_another(begin: Begin) -> None:
    run = await begin()
    service = run.service
    async with service.folder() as folder:
        (folder / "upload").write_bytes(wav(0.2, 5))
        path, made = await service.extract_audio(OWNER, folder, Source(upload=folder / "upload"), ExtractOptions())
    assert path.startswith(f"{OWNED}/{OWNER}/")
    assert made.duration_s == pytest.approx(0.2)
    assert await run(audio_file=path) == (5).to_bytes(2, "little").hex() * 32
    for owner in ("owner-b", "owner", f"{OWNER}x", ""):
        around = f"{OWNED}/{owner}/../{OWNER}/{path.rpartition('/')[2]}"
        for wanted in (path, f"/{path}", f"./{path}", path.replace("/", "//", 1), around):
            with pytest.raises(MediaNotFound):
                await run(owner=owner, audio_file=wanted)
    (service.settings.media_dir / "shared.wav").write_bytes(wav())
    await run(owner="owner-b", audio_file="shared.wav")
    await run.nothing_left()


async def test_extraction_that_fails_leaves_no_media_file(begin: Begin) -> None:
    run = await begin()
    service = run.service
    async with service.folder() as folder:
        (folder / "upload").write_bytes(b"nonsense")
        with pytest.raises(NotMedia):
            await service.extract_audio(OWNER, folder, Source(upload=folder / "upload"), ExtractOptions("mp3"))
    assert [path for path in service.settings.media_dir.rglob("*") if path.is_file()] == []


# -- start and stop


async def test_start_marks_what_the_last_boot_left_as_interrupted_and_sweeps_its_folders(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    before = quiet_service(settings)
    await before.start()
    queued, running, done = (Job(name, OWNER, TranscribeOptions("demo"), before.store.sync.now()) for name in "abc")
    for job in (queued, running, done):
        before.store.sync.add(job)
    before.store.sync.start("b")
    before.store.sync.start("c")
    before.store.sync.finish("c", 1, Status.SUCCEEDED)
    (settings.jobs_dir / "b" / "deep").mkdir(parents=True)
    (settings.jobs_dir / "b" / "deep" / "audio.pcm").write_bytes(b"x")
    await before.stop()

    after = quiet_service(settings)
    await after.start()
    rows = {row.id: row for row in after.store.sync.list(None)}
    assert os.listdir(settings.jobs_dir) == []
    await after.stop()
    assert [rows[name].status for name in "abc"] == [Status.FAILED, Status.FAILED, Status.SUCCEEDED]
    assert [rows[name].error_code for name in "abc"] == ["interrupted", "interrupted", None]


async def test_draining_refuses_new_work_and_lets_the_running_end(begin: Begin) -> None:
    run = await begin()
    job = run.begin("sleep:0.3")
    await run.running(1)
    run.service.drain()
    with pytest.raises(NotReady) as error:
        run.service.admit(run.service.gate)
    assert error.value.retry_after_s == 5
    assert "shutting down" in run.service.not_ready_because()
    await job


async def test_stopping_ends_what_runs_and_what_waits(begin: Begin) -> None:
    run = await begin(streams=1)
    jobs = [run.begin("sleep:60")]
    await run.running(1)
    jobs.append(run.begin("echo"))  # only now: it must be the one that waits
    while len(list(run.service.settings.jobs_dir.glob("*/audio.pcm"))) < 2:
        await asyncio.sleep(0.005)
    await asyncio.wait_for(run.service.pool.close(), 5)
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    assert all(isinstance(outcome, NotReady) for outcome in outcomes), outcomes
    assert all(row.status is Status.FAILED for row in run.rows)
    assert os.listdir(run.service.settings.jobs_dir) == []


def test_default_model_is_warmed_where_it_is_on_disk_and_else_the_demo(tmp_path: Path) -> None:
    assert quiet_service(make_settings(tmp_path, warm_models=(), model_size="tiny")).warm_models() == ("demo",)
    assert quiet_service(make_settings(tmp_path, warm_models=("base", "tiny"))).warm_models() == ("base", "tiny")
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    for name in ("model.bin", "config.json"):
        (folder / name).touch()
    settings = make_settings(tmp_path, warm_models=(), model_size="tiny", models_dir=tmp_path / "models")
    assert quiet_service(settings).warm_models() == ("tiny",)
    assert worker_setup(settings, "tiny").model_path == str(folder)


def test_worker_of_the_demo_model_gets_its_own_aligner_and_others_none(tmp_path: Path) -> None:
    settings: Settings = make_settings(tmp_path)
    demo, tiny = worker_setup(settings, "demo"), worker_setup(settings, "tiny")
    assert demo.aligner_path is not None
    assert (tiny.aligner_path, tiny.model_path, tiny.repo) == (None, None, "Systran/faster-whisper-tiny")


def test_errors_of_the_service_are_all_in_the_tree() -> None:
    for error in (Cancelled, DeadlineExceeded, MediaNotFound, NotMedia, NotReady, TooManyActive, WorkerLost, WorkError):
        assert issubclass(error, StenopoolError)
