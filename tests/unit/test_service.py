"""A job's whole way through the service, with the fake engine in real worker processes and the real ffmpeg.

``initial_prompt`` commands the engine (see :mod:`tests.fakes.engine`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.admission.controller import Controller
from app.admission.ticket import Ask, Phase, Ticket
from app.catalogue import warm_models, worker_setup
from app.errors import (
    Cancelled,
    DeadlineExceeded,
    DeadlineUnreachable,
    DiskFull,
    MediaNotFound,
    NeverFits,
    NotMedia,
    NotReady,
    OutOfMemory,
    QueueFull,
    QueueTimeout,
    StenopoolError,
    TooManyActive,
    WorkerLost,
    WorkError,
)
from app.intake import OWNED, Source
from app.jobs import Job, Status, TranscribeOptions
from app.media.extract import Extracted, ExtractOptions
from app.service import Service
from app.settings import Settings
from app.work import Blocked
from tests.fakes.pool import QuietPool, quiet_service
from tests.fakes.server import fake_service, held, make_settings, wav

OWNER = "owner-a"
Begin = Callable[..., Awaitable["Runner"]]


class Runner:
    """Runs jobs as a route does; ``began`` is set when an engine has begun one, ``tickets`` are all that were given out."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.began = asyncio.Event()
        self.count = 0
        self.tickets: list[Ticket] = []

    def ask(self, size: int | None, owner: str = OWNER, model: str = "demo", within_s: float | None = None) -> Ask:
        """What a route asks for before it knows more than the length of the body."""
        prices = self.service.desk.prices
        return prices.transcription(owner, TranscribeOptions(model), prices.costs.audio_s_of(owner, size), within_s=within_s)

    async def __call__(
        self,
        command: str = "echo",
        content: bytes | None = None,
        owner: str = OWNER,
        *,
        model: str = "demo",
        asked_model: str = "demo",
        announced: int | None = None,
        within_s: float | None = None,
        **source: Any,
    ) -> str:
        """The text, which is checked to be that of this very job's audio.

        ``asked_model`` and ``announced`` (bytes) are what is known when it arrives, where that is not the truth.
        """
        self.count += 1
        value = self.count
        options = TranscribeOptions(model, initial_prompt=command)
        data = wav(0.05, value) if content is None else content
        size = announced if announced is not None else 0 if source else len(data)
        service = self.service
        with service.admitted(service.desk.jobs, self.ask(size or None, owner, asked_model, within_s), size) as ticket:
            self.tickets.append(ticket)
            async with service.folder() as folder:
                if not source:
                    source = {"upload": folder / "upload"}
                    source["upload"].write_bytes(data)
                transcript = await service.transcribe(
                    owner, folder, Source(**source), options, ticket, lambda *_: self.began.set()
                )
        if content is None and "upload" in source:
            assert transcript.text == value.to_bytes(2, "little").hex() * 32
        return transcript.text

    async def extract(self, content: bytes, options: ExtractOptions | None = None) -> tuple[str, Extracted]:
        """Take the audio of an upload out, as a route does."""
        service, controller = self.service, self.service.desk.media
        with service.admitted(controller, service.desk.prices.media(OWNER, controller.what), len(content)) as ticket:
            async with service.folder() as folder:
                (folder / "upload").write_bytes(content)
                source = Source(upload=folder / "upload")
                return await service.extract_audio(OWNER, folder, source, options or ExtractOptions(), ticket)

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

    async def waiting(self, number: int) -> None:
        """Wait until so many jobs are in line."""
        while sum(ticket.phase is Phase.WAITING for ticket in self.service.desk.jobs.inside) != number:
            await asyncio.sleep(0.005)

    async def nothing_left(self) -> None:
        """No ticket, byte, folder or slot is held, every row has ended, and a healthy job succeeds."""
        service, desk = self.service, self.service.desk

        async def wait() -> None:
            while held(service) or os.listdir(service.settings.jobs_dir):
                await asyncio.sleep(0.005)

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(wait(), 10)
        assert held(service) == {}
        assert os.listdir(service.settings.jobs_dir) == []
        await self.running(0)
        for controller in (desk.jobs, desk.media, desk.downloads):
            assert not controller.inside
            assert not controller.running
            assert controller.bounds.total.count == 0
        assert all(name == "base" or name.startswith("worker-") for name in desk.memory.holders())
        assert desk.memory.reserved == sum(desk.memory.holders().values())
        assert desk.disk.reserved == 0
        assert all(row.status.final for row in self.rows), [row for row in self.rows if not row.status.final]
        handles = [handle for lane in service.pool._lanes.values() for handle in lane.workers]
        assert all((handle.reserved, handle.exclusive) == (0, False) for handle in handles)
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


async def test_second_attempt_runs_alone_with_more_memory_and_before_those_who_wait(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await begin(streams=2)
    desk = run.service.desk
    turns: list[tuple[Ticket, bool, bool, int]] = []
    turn = desk.turn

    async def seen(controller: Controller, ticket: Ticket, timeout_s: float) -> Any:
        slot = await turn(controller, ticket, timeout_s)
        if controller is desk.jobs:
            assert slot is not None
            turns.append((ticket, ticket.solo, slot._handle.exclusive, desk.memory.held(ticket.name)))
        return slot

    monkeypatch.setattr(desk, "turn", seen)
    end = tmp_path / "end"
    first, second = run.begin(f"until:{end}"), run.begin(f"until:{end}")
    await run.running(2)
    one, two = run.tickets[:2]
    others = [run.begin("echo") for _ in range(3)]
    while sum(ticket.phase is Phase.WAITING for ticket in desk.jobs.inside) < len(others):
        await asyncio.sleep(0.002)
    (worker,) = run.service.pool.stats()["demo"]["workers"]
    os.kill(worker["pid"], signal.SIGKILL)
    most = 0
    while not (first.done() and second.done()):
        alone = [handle for lane in run.service.pool._lanes.values() for handle in lane.workers if handle.exclusive]
        most = max(most, *(handle.load for handle in alone), 0)
        if one.solo and two.solo:  # both are back in line: until then the place of one that ended is free for others
            end.touch()
        await asyncio.sleep(0.002)
    await asyncio.gather(first, second, *others)
    assert most == 1
    assert {ticket for ticket, *_ in turns[:2]} == {ticket for ticket, *_ in turns[2:4]} == {one, two}
    assert {ticket for ticket, *_ in turns[4:]} == set(run.tickets[2:])
    for ticket, *how in turns[:2]:
        assert how == [False, False, ticket.ask.bytes]
    for ticket, *how in turns[2:4]:
        assert how == [True, True, int(ticket.ask.bytes * 1.5)]
    await run.nothing_left()


async def test_death_for_lack_of_memory_fails_as_out_of_memory_and_the_next_such_job_is_priced_higher(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await begin(max_deaths=2)
    desk = run.service.desk
    before = run.ask(1)

    async def yes() -> bool:
        return True

    with monkeypatch.context() as patch:
        patch.setattr(desk, "died_of_memory", yes)
        with pytest.raises(OutOfMemory, match="2 times"):
            await run("kill")
    assert (run.rows[0].status, run.rows[0].error_code) == (Status.FAILED, "out_of_memory")
    assert run.ask(1).worker_bytes > before.worker_bytes
    await run.nothing_left()


async def test_job_that_is_shed_again_and_again_fails_as_out_of_memory(begin: Begin) -> None:
    run = await begin(max_deaths=2)
    job = run.begin("sleep:60")
    while not job.done():
        run.service.pool.shed_newest()
        await asyncio.sleep(0.01)
    with pytest.raises(OutOfMemory, match="2 times"):
        await job
    (row,) = run.rows
    assert (row.error_code, run.service.store.sync.charged(row.id)) == ("out_of_memory", 2)
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
        patch.setattr("app.intake.in_place", broken)
        with pytest.raises(ZeroDivisionError):
            await run()
    assert (run.rows[0].status, run.rows[0].error_code) == (Status.FAILED, "internal")
    await run.nothing_left()


async def test_store_that_refuses_the_row_refuses_the_job(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await begin()

    def full(job: Job) -> None:
        raise DiskFull("The job store has no room left.")

    with monkeypatch.context() as patch:
        patch.setattr(run.service.store.passing, "add", full)
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
    jobs = [run.begin("sleep:0.5")]
    await run.running(1)
    jobs += [run.begin("sleep:0.1") for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as error:
        await run()
    assert error.value.retry_after_s is not None
    assert error.value.details is not None
    assert (error.value.details["reason"], error.value.details["waiting"]) == ("queue", 2)
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


async def test_disk_is_reserved_on_arrival_and_decoded_audio_waits_in_what_was_reserved(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await begin(streams=1)
    desk, mb = run.service.desk, 1_000_000
    monkeypatch.setattr("app.desk.desk.free_bytes", lambda folder: 71 * mb)  # 1 MB stays free
    jobs = [run.begin("sleep:1", announced=10 * mb) for _ in range(2)]
    await asyncio.sleep(0)
    assert desk.disk.holders() == {ticket.name: 10 * mb + int(ticket.audio_s * 32_000) for ticket in run.tickets}
    assert [ticket.audio_s for ticket in run.tickets] == [625, 625]
    with pytest.raises(DiskFull) as error:
        await run(announced=10 * mb)
    assert (error.value.status, error.value.retryable) == (507, True)
    assert error.value.details is not None
    assert error.value.details["reason"] == "disk"
    assert len(run.rows) <= 2  # it has never been begun
    while desk.disk.reserved:
        await asyncio.sleep(0.005)
    assert not any(job.done() for job in jobs)
    jobs.append(run.begin("echo", announced=10 * mb))  # what is decoded lies on the disk, and is seen there
    await asyncio.gather(*jobs)
    assert [row.status for row in run.rows] == [Status.SUCCEEDED] * 3
    await run.nothing_left()


async def test_what_waits_for_a_place_holds_no_memory_and_what_runs_holds_what_it_was_priced_at(begin: Begin) -> None:
    run = await begin(streams=1)
    jobs = [run.begin("sleep:0.4") for _ in range(4)]
    await run.running(1)
    await asyncio.sleep(0.1)
    desk = run.service.desk
    (running,) = desk.jobs.running
    names = {ticket.name: ticket.bytes for ticket in run.tickets}
    assert {name: size for name, size in desk.memory.holders().items() if name in names} == {running.name: running.bytes}
    await asyncio.gather(*jobs)
    await run.nothing_left()


async def test_length_of_the_audio_replaces_the_guess_as_soon_as_it_is_known(begin: Begin) -> None:
    run = await begin()
    await run("echo", content=wav(3.0), announced=500_000_000)
    (ticket,) = run.tickets
    assert (ticket.audio_s, ticket.ask.audio_s) == (3.0, 3.0)
    assert ticket.bytes < run.ask(500_000_000).bytes
    await run.nothing_left()


async def test_model_that_is_only_known_with_the_form_moves_the_ticket_to_its_lane(begin: Begin) -> None:
    run = await begin()
    await run(model="base.en", asked_model="demo")
    (ticket,) = run.tickets
    assert ticket.ask.lane == "base.en"
    assert ticket.ask.worker_bytes > run.ask(1).worker_bytes
    assert [worker["state"] for worker in run.service.pool.stats()["base.en"]["workers"]] == ["ready"]
    await run.nothing_left()


async def test_what_turns_out_to_be_larger_than_all_memory_fails_as_never_fits(begin: Begin) -> None:
    run = await begin(memory_limit_mb=2_000)
    with pytest.raises(NeverFits) as error:
        await run(model="large-v3", asked_model="demo", content=b"this is not even decoded")
    assert error.value.details is not None
    assert error.value.details["predicted_bytes"] > error.value.details["most_bytes"]
    assert (run.rows[0].status, run.rows[0].error_code, run.rows[0].attempts) == (Status.FAILED, "never_fits", 0)
    with pytest.raises(NeverFits):
        await run(model="large-v3", asked_model="large-v3")
    assert len(run.rows) == 1  # refused on arrival
    await run.nothing_left()


# -- deadlines of the caller


async def test_deadline_that_cannot_be_met_is_refused_on_arrival_and_nothing_is_kept(begin: Begin) -> None:
    run = await begin()
    with pytest.raises(DeadlineUnreachable) as error:
        await run(within_s=0.01)
    assert error.value.details is not None
    assert error.value.details["within_s"] == 0.01
    assert run.rows == []
    await run.nothing_left()


async def test_deadline_that_turns_out_to_be_out_of_reach_ends_the_job_before_it_runs(begin: Begin) -> None:
    run = await begin()
    await run.nothing_left()  # the worker is loaded
    slow = run.ask(1, model="large-v3")
    with pytest.raises(DeadlineUnreachable):
        await run(model="large-v3", within_s=(slow.seconds + slow.load_s) / 2)  # for the model that was asked for, plenty
    row = run.rows[-1]
    assert (row.status, row.error_code, row.attempts) == (Status.FAILED, "deadline_unreachable", 0)
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
    await run.waiting(2)
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
        job = run.begin("echo", content=wav(streamed=True))
        while not list(run.service.settings.jobs_dir.glob("*/upload")) or not _children():
            await asyncio.sleep(0)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
    await run.nothing_left()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("streamed", [False, True], ids=["in place", "decoded"])
async def test_cancelled_after_any_number_of_steps_nothing_leaks(begin: Begin, streamed: bool) -> None:
    run = await begin(ping_interval_s=5)
    await run.nothing_left()
    for steps in range(0, 40):
        job = run.begin("sleep:60", content=wav(streamed=streamed))
        for _ in range(steps):
            await asyncio.sleep(0)
        job.cancel()
        await asyncio.wait_for(asyncio.gather(job, return_exceptions=True), 10)
    await run.nothing_left()


class OneSeat(QuietPool):
    """A worker with one stream, and no process."""

    taken = False

    def take(self, lane: str, **how: Any) -> Any:
        if self.taken:
            return Blocked.BUSY
        self.taken = True
        return self

    def __enter__(self) -> OneSeat:
        return self

    def __exit__(self, *_: object) -> None:
        self.taken = False
        self.desk.changed()


class Line:
    """A desk with one seat, either for transcriptions or for extractions, and those who want it."""

    def __init__(self, settings: Settings, kind: str) -> None:
        self.service = quiet_service(settings)
        self.service.desk.pool = pool = OneSeat()  # type: ignore[assignment]
        self.service.desk.jobs._seats, pool.desk = pool, self.service.desk
        self.controller: Controller = getattr(self.service.desk, kind)

    async def work(self, until: asyncio.Event) -> None:
        desk = self.service.desk
        ask = desk.prices.transcription(OWNER, TranscribeOptions("demo"), 1.0)
        with self.service.admitted(self.controller, ask, 1) as ticket:
            try:
                seat = await desk.turn(self.controller, ticket, self.service.settings.queue_timeout_s)
                with seat or contextlib.nullcontext():
                    assert list(self.controller.running) == [ticket]
                    await until.wait()
            finally:
                for _ in range(4):  # the row says how it ended, before the ticket is given back
                    await asyncio.sleep(0)

    def begin(self, until: asyncio.Event | None = None) -> asyncio.Task[None]:
        return asyncio.create_task(self.work(until or asyncio.Event()))

    async def is_free(self) -> None:
        """Nothing is held, and the next one gets the seat at once."""
        assert held(self.service) == {}
        over = asyncio.Event()
        over.set()
        await asyncio.wait_for(self.work(over), 1)
        assert held(self.service) == {}


@pytest.fixture(params=["jobs", "media"])
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Line:
    return Line(make_settings(tmp_path, streams=1, max_media_jobs=1, queue_timeout_s=0.2), request.param)


@pytest.mark.parametrize("steps", range(8))
async def test_cancellation_on_the_way_to_a_free_seat_is_never_swallowed(line: Line, steps: int) -> None:
    job = line.begin()
    for _ in range(steps):
        await asyncio.sleep(0)
    job.cancel()
    await asyncio.wait({job}, timeout=2)
    assert job.cancelled()
    await line.is_free()


@pytest.mark.parametrize("cancelled_first", [False, True])
@pytest.mark.parametrize("between", range(10))
@pytest.mark.parametrize("steps", range(3))
async def test_cancellation_about_when_the_seat_comes_free_is_never_swallowed_and_the_next_one_gets_it(
    line: Line, steps: int, between: int, cancelled_first: bool
) -> None:
    over, over_too = asyncio.Event(), asyncio.Event()
    holder = line.begin(over)
    await asyncio.sleep(0)
    waiting, following = line.begin(), line.begin(over_too)
    for _ in range(steps):
        await asyncio.sleep(0)
    waiting.cancel() if cancelled_first else over.set()
    for _ in range(between):
        await asyncio.sleep(0)
    over.set() if cancelled_first else waiting.cancel()
    await asyncio.wait({waiting, holder}, timeout=2)
    assert waiting.cancelled()
    assert holder.exception() is None
    over_too.set()
    await asyncio.wait_for(following, 2)
    await line.is_free()


async def test_turn_that_does_not_come_in_time_is_a_queue_timeout_and_is_given_to_the_next(line: Line) -> None:
    over, over_too = asyncio.Event(), asyncio.Event()
    holder = line.begin(over)
    await asyncio.sleep(0)
    with pytest.raises(QueueTimeout):
        await asyncio.wait_for(line.work(asyncio.Event()), 2)
    following = line.begin(over_too)
    await asyncio.sleep(0)
    assert len(line.controller.inside) == 2
    over.set()
    await holder
    over_too.set()
    await following
    await line.is_free()


async def test_error_instead_of_a_turn_reaches_the_caller_and_frees_its_place(tmp_path: Path) -> None:
    line = Line(make_settings(tmp_path), "jobs")
    jobs = [line.begin() for _ in range(3)]
    await asyncio.sleep(0)
    line.service.desk.failed("demo", NotMedia("It cannot be loaded."))
    done, _ = await asyncio.wait(jobs, timeout=1)
    assert [type(job.exception()) for job in done] == [NotMedia, NotMedia]
    (running,) = line.controller.running
    assert running.phase is Phase.RUNNING
    jobs[0].cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    await line.is_free()


async def test_turn_that_does_not_come_within_the_queue_timeout_fails_the_row_as_queue_timeout(begin: Begin) -> None:
    run = await begin(streams=1, queue_timeout_s=3.0)
    first = run.begin("sleep:60")
    await run.running(1)
    with pytest.raises(QueueTimeout):
        await run()
    assert (run.rows[1].status, run.rows[1].error_code, run.rows[1].attempts) == (Status.FAILED, "queue_timeout", 0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await run.nothing_left()


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
    path, made = await run.extract(wav(0.2, 5))
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
    with pytest.raises(NotMedia):
        await run.extract(b"nonsense", ExtractOptions("mp3"))
    assert [path for path in run.service.settings.media_dir.rglob("*") if path.is_file()] == []
    await run.nothing_left()


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
    with pytest.raises(NotReady) as error, run.service.admitted(run.service.desk.jobs, run.ask(1), 1):
        pass
    assert error.value.retry_after_s == 5
    assert "shutting down" in run.service.not_ready_because()
    await job


async def test_stopping_ends_what_runs_and_what_waits(begin: Begin) -> None:
    run = await begin(streams=1)
    jobs = [run.begin("sleep:60")]
    await run.running(1)
    jobs.append(run.begin("echo"))  # only now: it must be the one that waits
    await run.waiting(1)
    await asyncio.wait_for(run.service.pool.close(), 5)
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    assert all(isinstance(outcome, NotReady) for outcome in outcomes), outcomes
    assert all(row.status is Status.FAILED for row in run.rows)
    assert os.listdir(run.service.settings.jobs_dir) == []


def test_default_model_is_warmed_where_it_is_on_disk_and_else_the_demo(tmp_path: Path) -> None:
    assert warm_models(make_settings(tmp_path, warm_models=(), model_size="tiny")) == ("demo",)
    assert warm_models(make_settings(tmp_path, warm_models=("base", "tiny"))) == ("base", "tiny")
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    for name in ("model.bin", "config.json"):
        (folder / name).touch()
    settings = make_settings(tmp_path, warm_models=(), model_size="tiny", models_dir=tmp_path / "models")
    assert warm_models(settings) == ("tiny",)
    assert worker_setup(settings, "tiny").model_path == str(folder)


def test_worker_of_the_demo_model_gets_its_own_aligner_and_others_none(tmp_path: Path) -> None:
    settings: Settings = make_settings(tmp_path)
    demo, tiny = worker_setup(settings, "demo"), worker_setup(settings, "tiny")
    assert demo.aligner_path is not None
    assert (tiny.aligner_path, tiny.model_path, tiny.repo) == (None, None, "Systran/faster-whisper-tiny")


def test_errors_of_the_service_are_all_in_the_tree() -> None:
    for error in (Cancelled, DeadlineExceeded, MediaNotFound, NotMedia, NotReady, TooManyActive, WorkerLost, WorkError):
        assert issubclass(error, StenopoolError)
