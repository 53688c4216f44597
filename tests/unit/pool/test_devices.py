"""One model on several devices, with real processes and invented devices: where work goes, and what fails alone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.jobs import TranscribeOptions
from app.pool import sites
from app.pool.handle import WorkerDied
from app.pool.lane import PoolLimits
from app.pool.spawn import Spawner
from app.pool.supervisor import Pool
from app.work import Blocked, Task
from tests.fakes.pool import OpenDesk
from tests.unit.pool.test_residency import loaded, until
from tests.unit.pool.test_supervisor import LIMITS, setup_for

TWO = ("cuda:0", "cuda:1")


class Box:
    """A pool on invented devices, and jobs in it."""

    def __init__(self, folder: Path, devices: tuple[str, ...], limits: PoolLimits, streams: int) -> None:
        self.folder, self.count = folder, 0
        own = {"engine": "tests.fakes.devices", "hub_dir": str(folder)}
        self.pool = Pool(Spawner(()), lambda model: replace(setup_for(model, streams), **own), replace(limits, devices=devices))
        self.desk = OpenDesk(self.pool)

    def says(self, device: str, behaviour: str) -> None:
        (self.folder / device).write_text(behaviour)

    def tries(self, device: str) -> int:
        path = self.folder / f"{device}.tries"
        return len(path.read_text()) if path.exists() else 0

    def state(self, device: str) -> str:
        return str(self.pool.devices()[device]["state"])

    async def warm(self, *devices: str) -> None:
        self.pool.warm("demo")
        await until(lambda: all(self.state(device) == "ready" for device in devices))

    async def run(self, command: str = "echo", model: str = "demo", began: asyncio.Event | None = None, **how: Any) -> str:
        """The device that the job ran on."""
        self.count += 1
        pcm = self.folder / f"{self.count}.pcm"
        pcm.write_bytes(b"audio")
        task = Task(f"job{self.count}", 1, str(pcm), f"{pcm}.json", TranscribeOptions(model, initial_prompt=command))
        with await self.desk.acquire(model, **how) as slot:
            return (await slot.run(task, 20.0, lambda *_: began.set() if began else None)).device

    async def busy(self, release: Path, **how: Any) -> asyncio.Task[str]:
        """A job that has begun, and ends once there is the file."""
        began = asyncio.Event()
        task = asyncio.create_task(self.run(f"until:{release}", began=began, **how))
        await began.wait()
        return task

    def pid(self, device: str, model: str = "demo") -> int:
        (pid,) = [one["pid"] for one in self.pool.stats()[model]["workers"] if one["device"] == device]
        return int(pid)


Make = Callable[..., Box]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    boxes: list[Box] = []

    def begin(devices: tuple[str, ...] = TWO, limits: PoolLimits = LIMITS, streams: int = 8) -> Box:
        boxes.append(Box(tmp_path, devices, limits, streams))
        return boxes[-1]

    yield begin
    for box in boxes:
        await asyncio.wait_for(box.pool.close(), 10)


async def test_warm_model_gets_a_worker_on_every_device_and_as_many_on_each_as_are_set(make: Make) -> None:
    box = make(limits=replace(LIMITS, workers_per_model=2))
    box.pool.warm("demo")
    await until(lambda: [one["workers"] for one in box.pool.devices().values()] == [2, 2])
    await until(lambda: all(one["state"] == "ready" for one in box.pool.stats()["demo"]["workers"]))
    assert box.pool.stats()["demo"]["devices"] == {"cuda:0": "ready", "cuda:1": "ready"}


async def test_jobs_go_to_the_worker_with_the_fewest_whoever_came_first(make: Make, tmp_path: Path) -> None:
    box = make()
    await box.warm(*TWO)
    release = tmp_path / "go"
    jobs = [await box.busy(release) for _ in range(6)]
    assert {name: one["running"] for name, one in box.pool.devices().items()} == {"cuda:0": 3, "cuda:1": 3}
    release.touch()
    assert Counter(await asyncio.gather(*jobs)) == {"cuda:0": 3, "cuda:1": 3}
    first, only_one = tmp_path / "first", tmp_path / "second"
    jobs = [await box.busy(first), await box.busy(only_one), await box.busy(first)]
    first.touch()
    there = await jobs[0]
    assert await jobs[2] == there
    assert {await box.run() for _ in range(3)} == {there}
    only_one.touch()
    assert await jobs[1] != there


async def test_of_equally_loaded_workers_the_one_whose_device_does_less_for_other_models_is_taken(
    make: Make, tmp_path: Path
) -> None:
    box = make()
    await box.warm(*TWO)
    release = tmp_path / "go"
    other = await box.busy(release, model="medium")
    there = next(name for name, one in box.pool.devices().items() if one["running"])
    assert await box.run() != there
    release.touch()
    await other


async def test_slow_device_of_a_mixed_list_gets_a_job_only_when_the_fast_one_is_as_much_behind(
    make: Make, tmp_path: Path
) -> None:
    box = make(("cpu", "cuda:0"))
    box.desk.minutes = {"cpu": 3.5, "cuda:0": 1.0}
    await box.warm("cpu", "cuda:0")
    release = tmp_path / "go"
    jobs = [await box.busy(release) for _ in range(5)]
    release.touch()
    assert await asyncio.gather(*jobs) == ["cuda:0", "cuda:0", "cuda:0", "cpu", "cuda:0"]


async def test_model_that_is_loaded_on_demand_comes_to_the_second_device_with_the_second_job(
    make: Make, tmp_path: Path
) -> None:
    box = make()
    release = tmp_path / "go"
    jobs = [await box.busy(release)]
    assert box.state("cuda:1") == "unloaded"
    jobs.append(await box.busy(release))
    await until(lambda: box.state("cuda:1") == "ready")
    jobs.append(await box.busy(release))
    release.touch()
    assert await asyncio.gather(*jobs) == ["cuda:0", "cuda:0", "cuda:1"]


async def test_worker_that_dies_is_started_again_on_its_own_device(make: Make) -> None:
    box = make()
    await box.warm(*TWO)
    dead, other = box.pid("cuda:1"), box.pid("cuda:0")
    os.kill(dead, signal.SIGKILL)
    await until(lambda: box.state("cuda:1") == "ready" and box.pid("cuda:1") != dead)
    assert box.pid("cuda:0") == other


@pytest.mark.parametrize("behaviour", ["missing", "broken"])
async def test_device_that_cannot_be_set_up_leaves_the_model_on_the_other_and_is_tried_with_growing_pauses(
    make: Make, behaviour: str
) -> None:
    box = make()
    box.says("cuda:1", behaviour)
    box.pool.warm("demo")
    (demo,) = box.pool._lanes.values()
    await until(lambda: demo.sites[1].deaths >= 3 and demo.sites[1].retry is not None)  # it pauses, and will try again
    assert box.state("cuda:1") == "failing"
    assert box.pool.failures() == {}
    shown = box.pool.devices()["cuda:1"]["failures"]["demo"]
    assert shown["code"] == ("model_unavailable" if behaviour == "missing" else "worker_lost")
    assert {await box.run() for _ in range(5)} == {"cuda:0"}
    assert box.tries("cuda:0") == 1
    box.says("cuda:1", "")
    await until(lambda: box.state("cuda:1") == "ready")
    await until(lambda: box.pool.devices()["cuda:1"]["failures"] == {})


@pytest.mark.parametrize(("hanging", "other"), [TWO, TWO[::-1]])
async def test_device_that_hangs_keeps_no_other_model_from_being_loaded_on_the_others(
    make: Make, hanging: str, other: str
) -> None:
    box = make()
    on_disk = box.pool._setup_for
    box.pool._setup_for = lambda model: replace(on_disk(model), model_path="/there")
    box.says(hanging, "hanging")
    box.pool.warm("demo")
    box.pool.tick()
    await until(lambda: box.tries(hanging) == 1 and box.state(other) == "ready")
    assert await box.run(model="medium") == other
    assert await box.run() == other
    assert box.state(hanging) == "loading"


async def test_pause_of_a_failing_device_is_bounded_higher_where_the_model_is_served_elsewhere() -> None:
    site = sites.Site("cuda:1")
    pauses = []
    for _ in range(16):
        site.ended(None, None, 0.0, sites.MAX_SPARE_BACKOFF_S)
        pauses.append(site.not_before)
    assert pauses == sorted(pauses)
    assert pauses[:3] == [0.0, 0.5, 1.0]
    assert pauses[-1] == sites.MAX_SPARE_BACKOFF_S > sites.MAX_BACKOFF_S


async def test_waiters_are_told_only_once_every_device_has_failed(make: Make) -> None:
    box = make()
    box.says("cuda:0", "missing")
    box.says("cuda:1", "missing")
    with pytest.raises(Exception, match="is not there"):
        await box.run()
    assert min(box.tries("cuda:0"), box.tries("cuda:1")) >= 1
    assert box.pool.failures()["demo"].code == "model_unavailable"


async def test_device_that_is_lost_under_a_job_ends_its_worker_and_the_job_runs_on_another(make: Make, tmp_path: Path) -> None:
    box = make()
    await box.warm(*TWO)
    (tmp_path / "cuda:0.lost").touch()
    box.says("cuda:0", "missing")
    with pytest.raises(WorkerDied) as death:
        await box.run()
    assert death.value.alone
    assert await box.run(solo=True) == "cuda:1"
    await until(lambda: box.state("cuda:0") == "failing")
    assert {await box.run() for _ in range(3)} == {"cuda:1"}


# -- memory of the devices


async def test_model_that_does_not_fit_a_device_takes_the_place_of_an_idle_one_there_and_only_there(make: Make) -> None:
    box = make()
    box.desk.gpu_bytes = 60
    for device in TWO:
        box.desk.device_memory(device).budget = 100
    await box.warm(*TWO)
    kept = box.pid("cuda:1")
    assert await box.run(model="medium") == "cuda:0"
    assert box.pid("cuda:1") == kept
    assert loaded(box.pool) == {"demo", "medium"}
    assert box.pool.stats()["demo"]["devices"] == {"cuda:0": "unloaded", "cuda:1": "ready"}
    assert [box.desk.device_memory(device).peak for device in TWO] == [60, 60]
    box.pool.tick()  # a warm model does not fight for the place
    assert box.pool.stats()["demo"]["starting"] == 0
    os.kill(box.pid("cuda:0", "medium"), signal.SIGKILL)
    box.pool._lanes["medium"].wanted = False
    await until(lambda: box.desk.device_memory("cuda:0").reserved == 0)
    box.pool.tick()  # but takes it when it is free
    await until(lambda: box.pool.stats()["demo"]["devices"]["cuda:0"] == "ready")


async def test_model_waits_while_every_device_is_full_of_one_that_works(make: Make, tmp_path: Path) -> None:
    box = make(("cuda:0",))
    box.desk.gpu_bytes = 60
    box.desk.device_memory("cuda:0").budget = 100
    release = tmp_path / "go"
    job = await box.busy(release)
    assert box.pool.take("medium") is Blocked.MEMORY
    release.touch()
    assert await job == "cuda:0"
    assert await box.run(model="medium") == "cuda:0"
    assert box.desk.device_memory("cuda:0").peak == 60


async def test_what_a_worker_says_of_its_device_reaches_the_desk(make: Make) -> None:
    box = make(("cuda:0",))
    box.says("cuda:0", "24000")
    await box.warm("cuda:0")
    await until(lambda: bool(box.desk.seen))
    ((device, memory),) = box.desk.seen
    assert (device, memory.total, memory.free, memory.taken) == ("cuda:0", 24000, 24000, 0)
