"""The pool with a fake engine: real processes, real signals, real deadlines."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from app.errors import DeadlineExceeded, ModelUnavailable, NotMedia, NotReady, WorkerLost, WorkError
from app.jobs import TranscribeOptions
from app.pool.handle import WorkerDied
from app.pool.lane import PoolLimits
from app.pool.spawn import Spawner
from app.pool.supervisor import Pool
from app.work import Task, WorkerSetup
from tests.fakes.pool import OpenDesk

LIMITS = PoolLimits(ping_interval_s=0.1, ping_timeout_s=0.5, setup_timeout_s=20.0)


def setup_for(model: str, streams: int = 2) -> WorkerSetup:
    return WorkerSetup(
        model, "tests.fakes.engine", None, None, None, "/nonexistent", None, True, "cpu", "cpu", "auto", streams, 1, 4
    )


@pytest.fixture
async def make_pool() -> AsyncIterator[Callable[..., Pool]]:
    pools: list[Pool] = []

    def make(limits: PoolLimits = LIMITS, streams: int = 2) -> Pool:
        pools.append(Pool(Spawner(()), lambda model: setup_for(model, streams), limits))
        OpenDesk(pools[-1])
        return pools[-1]

    yield make
    for pool in pools:
        await asyncio.wait_for(pool.close(), 10)


class Runner:
    """Runs commands in a pool; ``progress`` is set when the engine has begun."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self.pool, self.folder, self.count = pool, folder, 0

    async def __call__(
        self, command: str = "echo", timeout_s: float = 20.0, began: asyncio.Event | None = None, **how: Any
    ) -> str:
        self.count += 1
        name = f"job{self.count}"
        pcm, result = self.folder / f"{name}.pcm", self.folder / f"{name}.json"
        pcm.write_bytes(name.encode())
        options = TranscribeOptions(how.pop("model", "demo"), initial_prompt=command)
        with await self.pool.desk.acquire(options.model, **how) as slot:  # type: ignore[attr-defined]
            task = Task(name, 1, str(pcm), str(result), options)
            await slot.run(task, timeout_s, lambda *_: began.set() if began else None)
        text: str = json.loads(result.read_text())["segments"][0]["text"]
        assert bytes.fromhex(text) == name.encode()
        return text

    def pids(self, model: str = "demo") -> list[int]:
        return [worker["pid"] for worker in self.pool.stats()[model]["workers"]]


async def test_worker_that_could_not_be_looked_at_when_it_started_is_alive_and_can_be_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spawner = Spawner(())
    with monkeypatch.context() as patched:
        patched.setattr("app.pool.spawn.psutil.Process", Mock(side_effect=OSError(errno.EMFILE, "too many open files")))
        child = await spawner.start(setup_for("small"))  # it hangs while it loads
    assert child.alive
    child.kill()
    assert await child.reap() == -signal.SIGKILL
    assert not child.alive
    spawner.close()


async def test_many_jobs_at_once_each_get_their_own_result(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    run = Runner(make_pool(), tmp_path)
    assert len(set(await asyncio.gather(*(run() for _ in range(30))))) == 30


async def test_jobs_of_one_worker_share_a_process_and_never_exceed_its_streams(
    make_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    run = Runner(make_pool(streams=3), tmp_path)
    jobs = [asyncio.create_task(run("sleep:0.3")) for _ in range(7)]
    most = 0
    while not all(job.done() for job in jobs):
        lanes = run.pool.stats().get("demo", {"workers": []})
        most = max([most, *(worker["running"] for worker in lanes["workers"])])
        assert len(lanes["workers"]) <= 1
        await asyncio.sleep(0.01)
    assert most == 3


async def test_worker_killed_while_idle_is_replaced_and_the_next_job_succeeds(
    make_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    run = Runner(make_pool(), tmp_path)
    await run()
    (before,) = run.pids()
    os.kill(before, signal.SIGKILL)
    while before in run.pids():
        await asyncio.sleep(0.01)
    await run()
    assert run.pids() != [before]


async def test_worker_killed_with_one_job_blames_it(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    run = Runner(make_pool(), tmp_path)
    with pytest.raises(WorkerDied) as death:
        await run("kill")
    assert death.value.alone
    await run()


async def test_worker_killed_with_two_jobs_blames_neither(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    run = Runner(make_pool(), tmp_path)
    began = [asyncio.Event(), asyncio.Event()]
    jobs = [asyncio.create_task(run("sleep:30", began=event)) for event in began]
    await asyncio.gather(*(event.wait() for event in began))
    os.kill(run.pids()[0], signal.SIGKILL)
    for outcome in await asyncio.gather(*jobs, return_exceptions=True):
        assert isinstance(outcome, WorkerDied)
        assert not outcome.alone


async def test_solo_job_shares_its_worker_with_no_other(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    run = Runner(make_pool(), tmp_path)
    began = asyncio.Event()
    solo = asyncio.create_task(run("sleep:0.4", began=began, solo=True))
    await began.wait()
    other = asyncio.create_task(run())
    await asyncio.sleep(0.1)
    assert not other.done()
    await solo
    await other


async def test_solo_job_waits_until_its_worker_is_empty(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    run = Runner(make_pool(), tmp_path)
    began = asyncio.Event()
    first = asyncio.create_task(run("sleep:0.4", began=began))
    await began.wait()
    solo = asyncio.create_task(run(solo=True, front=True))
    late = asyncio.create_task(run())
    await asyncio.sleep(0.1)
    assert not solo.done()
    assert not late.done()
    await asyncio.gather(first, solo, late)


async def test_stopped_process_is_killed_by_missing_pings(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    run = Runner(make_pool(), tmp_path)
    with pytest.raises(WorkerDied):
        await asyncio.wait_for(run("stop"), 10)
    await run()


async def test_job_over_its_deadline_fails_and_its_neighbour_is_not_blamed(
    make_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    run = Runner(make_pool(), tmp_path)
    began = asyncio.Event()
    neighbour = asyncio.create_task(run("sleep:30", began=began))
    await began.wait()
    with pytest.raises(DeadlineExceeded):
        await run("hang", timeout_s=0.3)
    with pytest.raises(WorkerDied) as death:
        await neighbour
    assert not death.value.alone
    await run()


async def test_garbage_on_the_pipe_ends_the_worker(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    run = Runner(make_pool(), tmp_path)
    with pytest.raises(WorkerDied):
        await asyncio.wait_for(run("garbage"), 10)
    await run()


async def test_engine_exception_is_reported_without_its_text(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    run = Runner(make_pool(), tmp_path)
    with pytest.raises(WorkError) as error:
        await run("fail")
    assert "secret" not in error.value.message
    with pytest.raises(NotMedia, match="refused"):
        await run("refuse")


async def test_cancelled_job_stops_at_its_next_batch_and_the_worker_lives_on(
    make_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    run = Runner(make_pool(), tmp_path)
    began = asyncio.Event()
    job = asyncio.create_task(run("sleep:30", began=began))
    await began.wait()
    before = run.pids()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    await run()
    assert run.pids() == before


async def test_cancelled_job_that_does_not_stop_is_killed(
    make_pool: Callable[..., Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.pool.slot.CANCEL_GRACE_S", 0.2)
    run = Runner(make_pool(), tmp_path)
    began = asyncio.Event()
    job = asyncio.create_task(run("hang", began=began))
    await began.wait()
    before = run.pids()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    await run()
    assert run.pids() != before


async def test_cancelled_while_waiting_in_line_leaves_the_place_to_the_next(
    make_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    run = Runner(make_pool(streams=1), tmp_path)
    began = asyncio.Event()
    first = asyncio.create_task(run("sleep:0.3", began=began))
    await began.wait()
    second, third = asyncio.create_task(run()), asyncio.create_task(run())
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(first, third)
    assert second.cancelled()
    assert run.pool.desk.waiting == []  # type: ignore[attr-defined]


async def test_model_that_cannot_be_set_up_fails_its_waiters_with_the_reason(
    make_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    run = Runner(make_pool(), tmp_path)
    outcomes = await asyncio.gather(run(model="tiny"), run(model="tiny"), return_exceptions=True)
    assert all(isinstance(outcome, ModelUnavailable) for outcome in outcomes)
    await run()


async def test_worker_that_dies_during_set_up_fails_its_waiters_after_three_tries(
    make_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    run = Runner(make_pool(), tmp_path)
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(run(model="base"), 15)


async def test_set_up_that_hangs_is_killed_at_its_deadline_and_not_tried_again(
    make_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    run = Runner(make_pool(PoolLimits(setup_timeout_s=0.3)), tmp_path)
    with pytest.raises(ModelUnavailable, match="too long"):
        await asyncio.wait_for(run(model="small"), 5)
    assert run.pool.failures()["small"].code == "model_unavailable"


async def test_warm_model_that_failed_is_loaded_once_it_can_be(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    pool = make_pool()
    working, broken = pool._setup_for("demo"), pool._setup_for("tiny")
    setups = [broken, broken, working]
    pool._setup_for = lambda model: setups.pop(0) if len(setups) > 1 else setups[0]
    pool.warm("demo")
    while not pool.ready:
        await asyncio.sleep(0.01)
    await Runner(pool, tmp_path)()
    assert pool.failures() == {}


async def test_hang_up_of_one_job_that_does_not_stop_does_not_kill_its_neighbour(
    make_pool: Callable[..., Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.pool.slot.CANCEL_GRACE_S", 0.1)
    run = Runner(make_pool(), tmp_path)
    began = [asyncio.Event(), asyncio.Event()]
    neighbour = asyncio.create_task(run("sleep:0.8", began=began[0]))
    await began[0].wait()
    stuck = asyncio.create_task(run("hang", timeout_s=1.5, began=began[1]))
    await began[1].wait()
    before = run.pids()
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck
    await neighbour
    assert run.pids() == before
    while run.pids() == before:  # its own deadline ends it
        await asyncio.sleep(0.01)
    await run()


async def test_idle_model_is_evicted_when_another_one_needs_the_room(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    run = Runner(make_pool(PoolLimits(max_resident_models=1)), tmp_path)
    await run(model="demo")
    (pid,) = run.pids("demo")
    await run(model="medium")
    while run.pids("demo"):
        await asyncio.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_worker_ends_when_its_pipe_closes(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    run = Runner(make_pool(), tmp_path)
    await run()
    (handle,) = run.pool._lanes["demo"].workers
    handle.child.writer.close()
    while handle.child.alive:
        await asyncio.sleep(0.01)
    await run()


async def test_closing_the_pool_ends_workers_and_refuses_waiters(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    run = Runner(make_pool(streams=1), tmp_path)
    began = asyncio.Event()
    running = asyncio.create_task(run("sleep:30", began=began))
    await began.wait()
    waiting = asyncio.create_task(run())
    await asyncio.sleep(0)
    (pid,) = run.pids()
    await asyncio.wait_for(run.pool.close(), 10)
    with pytest.raises(WorkerDied):
        await running
    with pytest.raises(NotReady):
        await waiting
    assert isinstance(run.pool.take("demo"), NotReady)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_no_descriptor_is_left_after_many_deaths(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    run = Runner(make_pool(), tmp_path)
    await run()

    async def deaths(number: int) -> int:
        for _ in range(number):
            with pytest.raises(WorkerDied):
                await run("kill")
            await run()
        return len(os.listdir("/proc/self/fd"))

    before = await deaths(2)
    assert await deaths(5) <= before
