"""The desk acts on what it sees: budget, pressure, disk, deadlines, and what was learned outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from app.admission.cost import Batches
from app.admission.pressure import Step
from app.catalogue import worker_setup
from app.errors import DiskFull, MemoryLow, NeverFits, QueueTimeout
from app.jobs import TranscribeOptions, VadOptions
from app.pool.handle import Measured
from tests.unit.desk.conftest import GB, Bench

Make = Callable[..., Bench]
OPTIONS = TranscribeOptions("demo", vad=VadOptions(chunk_s=10.0))
MB = 1 << 20


def test_the_budget_is_the_limit_less_the_reserve_while_there_is_room(make: Make) -> None:
    bench = make(container_reserve_mb=500)
    bench.desk.look(bench.probe.set(available=7 * GB, own=1 * GB))
    assert bench.desk.memory.budget == 8 * GB - 8 * GB * 8 // 100  # 8 % of the limit are never promised
    bench.desk.look(bench.probe.set(limit=5 * GB, available=4 * GB + GB // 2, own=GB // 2))
    assert bench.desk.memory.budget == 5 * GB - 500 * MB


def test_other_programs_make_the_budget_smaller_and_give_it_back(make: Make) -> None:
    bench = make()
    whole = bench.desk.memory.budget
    bench.desk.look(bench.probe.set(used=6 * GB, available=2 * GB))
    assert bench.desk.memory.budget < 3 * GB
    bench.desk.look(bench.probe.set(used=1 * GB, available=7 * GB))
    assert bench.desk.memory.budget == whole


def test_the_server_itself_is_billed_from_the_first_moment(make: Make) -> None:
    assert make().desk.memory.held("base") > 100_000_000


def test_the_base_is_measured_while_nothing_else_changes(make: Make) -> None:
    bench = make()
    bench.pool.workers["demo"] = [{"state": "ready", "rested": True, "bytes": 100_000_000, "device": "cpu"}]
    bench.desk.look(bench.probe.set(own=400_000_000))
    assert bench.desk.memory.held("base") == 300_000_000
    for change in ({"state": "starting"}, {"rested": False}):
        bench.pool.workers["demo"] = [{"state": "ready", "rested": True, "bytes": 100_000_000, "device": "cpu"} | change]
        bench.desk.look(bench.probe.set(own=900_000_000))
        assert bench.desk.memory.held("base") == 300_000_000


@pytest.mark.parametrize(
    ("used", "step", "evicts", "sheds", "paused"),
    [
        (0.50, Step.CALM, False, 0, False),
        (0.72, Step.SMALLER_BATCHES, False, 0, False),
        (0.76, Step.EVICT_IDLE, True, 0, False),
        (0.81, Step.STOP_STARTING, True, 0, True),
        (0.93, Step.SHED_NEWEST, True, 1, True),
    ],
)
def test_every_step_of_the_ladder_does_what_the_one_before_does_and_more(
    make: Make, used: float, step: Step, evicts: bool, sheds: int, paused: bool
) -> None:
    bench = make()
    bench.desk.look(bench.probe.set(used=int(used * 8 * GB)))
    assert (bench.desk.step, bench.pool.ticks, bench.pool.shed) == (step, [evicts], sheds)
    assert all(one.paused is paused for one in bench.desk.controllers)


def test_nobody_comes_in_while_memory_is_low_and_everybody_afterwards(make: Make) -> None:
    bench = make()
    ask = bench.desk.prices.transcription("a", OPTIONS, 10.0)
    bench.desk.look(bench.probe.set(used=int(0.85 * 8 * GB)))
    with pytest.raises(MemoryLow) as error:
        bench.desk.enter(bench.desk.jobs, ask, 0)
    assert error.value.retry_after_s is not None
    bench.desk.look(bench.probe.set(used=1 * GB))
    bench.desk.release(bench.desk.jobs, bench.desk.enter(bench.desk.jobs, ask, 0))


def test_batches_are_halved_under_pressure(make: Make) -> None:
    bench = make(batch_size=8)
    assert bench.desk.batch_size("demo") == 8
    bench.desk.look(bench.probe.set(used=int(0.72 * 8 * GB)))
    assert bench.desk.batch_size("demo") == 4


def test_a_worker_for_which_only_small_batches_fit_gets_small_batches_and_is_priced_so(make: Make) -> None:
    bench = make(batch_size=64)
    roomy = bench.desk.prices.transcription("a", OPTIONS, 3600.0)
    setup = worker_setup(bench.desk.settings, "demo")
    assert bench.desk.sized(setup).batch_size == 64
    bench.desk.look(bench.probe.set(limit=13 * GB // 10, used=GB // 2, available=8 * GB // 10))
    tight, small = bench.desk.prices.transcription("a", OPTIONS, 3600.0), bench.desk.sized(setup)
    assert 1 <= small.batch_size == bench.desk.batch_size("demo") < 64
    assert small.work_bytes == bench.desk.working("demo")
    assert tight.worker_bytes < roomy.worker_bytes
    bench.desk.jobs.check_size(tight.bytes + tight.worker_bytes)


def test_where_even_single_windows_do_not_fit_at_once_there_is_one_runner(make: Make) -> None:
    bench = make(runners=2, streams=4)
    assert bench.desk.prices.batches("demo") == Batches(2, 8)
    bench.desk._ledger.resize("base", 1)
    bench.desk.jobs.most_bytes = bench.desk.prices.worker("demo").resident_bytes + 200_000_000
    assert bench.desk.prices.batches("demo") == Batches(1, 1)


def test_more_jobs_run_at_once_than_make_progress(make: Make) -> None:
    limits = make(runners=2, streams=6).desk.jobs.limits
    assert (limits.running, limits.parallel) == (6, 2)


def test_a_model_that_can_never_fit_is_refused_with_413(make: Make) -> None:
    bench = make()
    bench.desk.look(bench.probe.set(limit=2 * GB, used=GB // 2, available=GB + GB // 2))
    ask = bench.desk.prices.transcription("a", TranscribeOptions("large-v3"), 10.0)
    with pytest.raises(NeverFits):
        bench.desk.enter(bench.desk.jobs, ask, 0)
    assert bench.desk.disk.reserved == 0


def test_disk_is_reserved_for_the_upload_and_its_decoded_audio_and_given_back(make: Make) -> None:
    bench = make()
    ask = bench.desk.prices.transcription("a", OPTIONS, 100.0)
    ticket = bench.desk.enter(bench.desk.jobs, ask, 5_000_000)
    assert bench.desk.disk.reserved == 5_000_000 + 3_200_000
    bench.desk.release(bench.desk.jobs, ticket)
    assert bench.desk.disk.reserved == 0


def test_uploads_that_together_would_fill_the_disk_are_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()
    monkeypatch.setattr("app.desk.desk.free_bytes", lambda folder: 20_000_000)
    ask = bench.desk.prices.transcription("a", OPTIONS, 10.0)
    bench.desk.enter(bench.desk.jobs, ask, 10_000_000)
    with pytest.raises(DiskFull) as error:
        bench.desk.enter(bench.desk.jobs, ask, 10_000_000)
    assert error.value.details is not None
    assert len(bench.desk.jobs.inside) == 1


async def test_a_turn_that_does_not_come_is_a_queue_timeout_and_leaves_the_line(make: Make) -> None:
    bench = make()
    desk = bench.desk
    first, second = (desk.media.join(desk.prices.media("a", "extractions")) for _ in range(2))
    for controller in desk.controllers:
        controller.paused = True
    with pytest.raises(QueueTimeout):
        await desk.turn(desk.media, first, 0.01)
    desk.release(desk.media, first)
    for controller in desk.controllers:
        controller.paused = False
    await asyncio.wait_for(desk.turn(desk.media, second, 5), 5)
    desk.release(desk.media, second)
    assert not desk.media.inside


async def test_what_was_learned_outlives_the_server(make: Make) -> None:
    bench = make()
    await bench.desk.start()
    for _ in range(30):
        bench.desk.prices.learn_job(OPTIONS, 60.0, Measured(6.0, 400_000_000, 2, 8))
    learned = bench.desk.prices.transcription("a", OPTIONS, 60.0)
    await bench.desk.stop()
    later = bench.again()
    assert later.prices.transcription("a", OPTIONS, 60.0).seconds != pytest.approx(learned.seconds, rel=0.2)
    await later.start()
    assert later.prices.transcription("a", OPTIONS, 60.0).seconds == pytest.approx(learned.seconds, rel=0.05)
    await later.stop()


async def test_a_kill_by_the_kernel_is_noticed_for_some_seconds(make: Make) -> None:
    bench = make()
    assert not await bench.desk.died_of_memory()
    bench.probe.set(oom_kills=1)
    assert await bench.desk.died_of_memory()
    bench.clock.now += 1
    assert await bench.desk.died_of_memory()
    bench.clock.now += 60
    assert not await bench.desk.died_of_memory()


async def test_one_bad_look_does_not_end_all_looking(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.desk.desk.LOOK_S", 0.001)
    bench = make()
    looks: list[int] = []

    def look(reading: object) -> None:
        looks.append(len(looks))
        if len(looks) == 1:
            raise ZeroDivisionError

    monkeypatch.setattr(bench.desk, "look", look)
    await bench.desk.start()
    while len(looks) < 3:
        await asyncio.sleep(0.001)
    await bench.desk.stop()
