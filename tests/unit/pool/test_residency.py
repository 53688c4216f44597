"""Which models stay loaded, with real worker processes and a ledger that the test fills."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.pool.handle import WorkerDied
from app.pool.lane import PoolLimits
from app.pool.slot import Slot
from app.pool.spawn import Spawner
from app.pool.supervisor import Pool
from app.work import Blocked
from tests.fakes.pool import OpenDesk
from tests.unit.pool.test_supervisor import LIMITS, Runner, setup_for

NOBODY: frozenset[str] = frozenset()


class Clock:
    """Monotonic seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


Make = Callable[..., tuple[Pool, OpenDesk, Clock]]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    pools: list[Pool] = []

    def begin(
        limits: PoolLimits = LIMITS, budget: int = 100, worker_bytes: int = 60, work_bytes: int = 0
    ) -> tuple[Pool, OpenDesk, Clock]:
        clock = Clock()
        pools.append(Pool(Spawner(()), setup_for, limits, clock))
        return pools[-1], OpenDesk(pools[-1], budget, worker_bytes, work_bytes), clock

    yield begin
    for pool in pools:
        await asyncio.wait_for(pool.close(), 10)


def loaded(pool: Pool) -> set[str]:
    return {name for name, lane in pool.stats().items() if any(worker["state"] == "ready" for worker in lane["workers"])}


async def until(holds: Callable[[], bool]) -> None:
    async def wait() -> None:
        while not holds():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(wait(), 15)


async def test_a_model_that_does_not_fit_beside_an_idle_one_takes_its_memory(make: Make, tmp_path: Path) -> None:
    pool, desk, _ = make(budget=100, worker_bytes=60)
    run = Runner(pool, tmp_path)
    await run(model="demo")
    (pid,) = run.pids("demo")
    await run(model="medium")
    assert loaded(pool) == {"medium"}
    assert desk.memory.peak <= 100
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_model_that_does_not_fit_beside_a_busy_one_waits_for_its_end(make: Make, tmp_path: Path) -> None:
    pool, desk, _ = make(budget=100, worker_bytes=60)
    run = Runner(pool, tmp_path)
    began = asyncio.Event()
    busy = asyncio.create_task(run("sleep:0.4", began=began))
    await began.wait()
    assert pool.take("medium") is Blocked.MEMORY
    assert loaded(pool) == {"demo"}
    await run(model="medium")
    await busy
    assert desk.memory.peak <= 100


async def test_a_model_that_somebody_waits_for_is_not_evicted(make: Make, tmp_path: Path) -> None:
    pool, _, _ = make(budget=100, worker_bytes=60)
    await Runner(pool, tmp_path)(model="demo")
    assert pool.take("medium", keep=frozenset({"demo", "medium"})) is Blocked.MEMORY
    assert loaded(pool) == {"demo"}


async def test_the_least_recently_used_model_is_evicted_first_and_no_more_than_needed(make: Make, tmp_path: Path) -> None:
    pool, _, clock = make(budget=190, worker_bytes=60)
    run = Runner(pool, tmp_path)
    for model in ("demo", "medium", "large-v2"):
        clock.now += 10
        await run(model=model)
    clock.now += 10
    await run(model="demo")
    pool.make_room(50, NOBODY)
    await until(lambda: "medium" not in pool.stats() or not pool.stats()["medium"]["workers"])
    assert loaded(pool) == {"demo", "large-v2"}


async def test_asking_twice_for_room_does_not_evict_twice(make: Make, tmp_path: Path) -> None:
    pool, _, _ = make(budget=190, worker_bytes=60)
    run = Runner(pool, tmp_path)
    await run(model="demo")
    await run(model="medium")
    pool.make_room(50, NOBODY)
    pool.make_room(50, NOBODY)  # the first one is still ending
    await until(lambda: len(loaded(pool)) == 1)


async def test_loads_happen_one_at_a_time(make: Make) -> None:
    pool, _, _ = make(budget=1000)
    pool._setup_for = lambda model: setup_for(model).__class__(**{**vars(setup_for(model)), "model_path": "/there"})
    assert pool.take("demo") is Blocked.LOADING
    assert pool.take("medium") is Blocked.LOADING
    assert pool.stats()["medium"]["starting"] == 0
    assert pool.stats()["demo"]["starting"] == 1
    await until(lambda: loaded(pool) == {"demo"})
    assert pool.take("medium") is Blocked.LOADING
    await until(lambda: loaded(pool) == {"demo", "medium"})


async def test_a_load_is_billed_before_it_begins_and_its_memory_comes_back_at_the_end_of_the_process(
    make: Make, tmp_path: Path
) -> None:
    pool, desk, _ = make(budget=100, worker_bytes=60)
    pool.take("demo")
    assert desk.memory.reserved == 60
    await until(lambda: loaded(pool) == {"demo"})
    pool.make_room(1, NOBODY)
    assert desk.memory.reserved == 60
    await until(lambda: desk.memory.reserved == 0)


async def test_an_idle_model_is_unloaded_after_its_time_and_a_warm_one_stays(make: Make, tmp_path: Path) -> None:
    pool, _, clock = make(PoolLimits(idle_ttl_s=100), budget=1000)
    pool.warm("demo")
    await until(lambda: loaded(pool) == {"demo"})
    await Runner(pool, tmp_path)(model="medium")
    clock.now += 99
    pool.tick()
    assert loaded(pool) == {"demo", "medium"}
    clock.now += 2
    pool.tick()
    await until(lambda: loaded(pool) == {"demo"})


async def test_under_pressure_every_idle_model_goes_and_no_busy_one(make: Make, tmp_path: Path) -> None:
    pool, _, _ = make(budget=1000)
    run = Runner(pool, tmp_path)
    await run(model="medium")
    began = asyncio.Event()
    busy = asyncio.create_task(run("sleep:0.5", began=began))
    await began.wait()
    pool.tick(evict_idle=True)
    await until(lambda: loaded(pool) == {"demo"})
    await busy


async def test_one_model_too_many_is_evicted_when_it_falls_idle(make: Make, tmp_path: Path) -> None:
    pool, _, _ = make(PoolLimits(max_resident_models=2), budget=1000)
    run = Runner(pool, tmp_path)
    await run(model="medium")
    await run(model="demo")
    pool._limits = pool._residency._limits = PoolLimits(max_resident_models=1)
    pool.tick()
    await until(lambda: loaded(pool) == {"demo"})


async def test_the_newest_job_is_shed_and_nobody_is_blamed(make: Make, tmp_path: Path) -> None:
    pool, _, _ = make(budget=1000)
    run = Runner(pool, tmp_path)
    began = [asyncio.Event(), asyncio.Event()]
    old = asyncio.create_task(run("sleep:0.8", began=began[0], model="demo"))
    await began[0].wait()
    new = asyncio.create_task(run("sleep:30", began=began[1], model="medium"))
    await began[1].wait()
    assert pool.shed_newest()
    with pytest.raises(WorkerDied) as death:
        await new
    assert not death.value.alone
    await old
    assert not pool.shed_newest()


async def test_job_that_fills_the_memory_alone_in_its_worker_is_shed_and_blamed(make: Make, tmp_path: Path) -> None:
    pool, _, _ = make(budget=1000)
    began = asyncio.Event()
    job = asyncio.create_task(Runner(pool, tmp_path)("sleep:30", began=began, solo=True))
    await began.wait()
    assert pool.shed_newest()
    with pytest.raises(WorkerDied) as death:
        await job
    assert (death.value.alone, death.value.of_memory) == (True, True)


async def test_an_idle_worker_is_billed_for_work_with_its_first_job_and_not_again_for_the_second(
    make: Make, tmp_path: Path
) -> None:
    pool, desk, _ = make(budget=100, worker_bytes=40, work_bytes=50)
    run = Runner(pool, tmp_path)
    await run()
    assert desk.memory.reserved == 40
    first, second = pool.take("demo"), pool.take("demo")
    assert isinstance(first, Slot)
    assert isinstance(second, Slot)
    assert desk.memory.reserved == 90
    with first:
        pass
    assert desk.memory.reserved == 90
    with second:
        pass
    assert desk.memory.reserved == 40


async def test_where_there_is_no_memory_for_work_the_idle_worker_takes_no_job(make: Make, tmp_path: Path) -> None:
    pool, desk, _ = make(budget=100, worker_bytes=40, work_bytes=50)
    await Runner(pool, tmp_path)()
    assert desk.memory.take("other", 20)
    assert pool.take("demo") is Blocked.MEMORY
    assert desk.memory.reserved == 60
    desk.memory.drop("other")
    slot = pool.take("demo")
    assert isinstance(slot, Slot)
    with slot:
        assert desk.memory.reserved == 90


async def test_work_of_one_model_takes_the_memory_of_an_idle_other_one(make: Make, tmp_path: Path) -> None:
    pool, desk, _ = make(budget=100, worker_bytes=40, work_bytes=50)
    run = Runner(pool, tmp_path)
    await run(model="demo")
    await run(model="medium")
    await run(model="demo")
    assert loaded(pool) == {"demo"}
    assert desk.memory.peak <= 100
