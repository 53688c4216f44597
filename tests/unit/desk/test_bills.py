"""What workers on GPUs are billed, and how large their batches may be there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from app.admission import table
from app.catalogue import worker_setup
from app.desk.bills import UNKNOWN
from app.desk.report import capacity
from app.jobs import TranscribeOptions
from app.pool.handle import Measured
from app.work import DeviceMemory, WorkerSetup
from tests.unit.desk.conftest import GB, Bench

Make = Callable[..., Bench]
GPUS: dict[str, Any] = {"devices": ("cuda:0", "cuda:1"), "batch_size": 16, "runners": 1, "memory_limit_mb": 64000}


def sized(bench: Bench, model: str, device: str) -> WorkerSetup:
    return bench.desk.sized(replace(worker_setup(bench.settings, model), device=device))


def roomy(make: Make) -> Bench:
    bench = make(**GPUS)
    bench.desk.look(bench.probe.set(limit=64 * GB, available=60 * GB))
    return bench


def test_worker_on_a_gpu_is_billed_weights_stages_and_full_batches_there_and_one_on_a_cpu_nothing(make: Make) -> None:
    desk = roomy(make).desk
    row = table.MODELS["small"]
    weights = 2 * row["weights"]  # float16
    fixed = table.GPU["context"] + table.GPU["stages"] + weights
    assert desk.device_bytes("small", "cuda:1") == fixed + 16 * (row["first"] + row["slot"])
    assert desk.device_bytes("small", "cpu") == 0


def test_what_is_billed_is_what_the_worker_is_told(make: Make) -> None:
    bench = roomy(make)
    setup = sized(bench, "large-v3", "cuda:0")
    assert setup.gpu_bytes == bench.desk.device_bytes("large-v3", "cuda:0")
    assert sized(bench, "large-v3", "cpu").gpu_bytes == 0


def test_batches_shrink_to_a_device_that_is_known_and_only_there(make: Make) -> None:
    bench = roomy(make)
    bench.desk.device_memory("cuda:0").take("worker-1", 0)
    bench.desk.on_device("cuda:0", "worker-1", DeviceMemory(12 * GB, 12 * GB, 0))
    small, large = sized(bench, "large-v3", "cuda:0"), sized(bench, "large-v3", "cuda:1")
    assert (small.batch_size, large.batch_size) == (4, 16)
    assert small.gpu_bytes <= bench.desk.device_bytes("large-v3", "cuda:0") <= bench.desk.device_memory("cuda:0").budget


def test_budget_of_a_device_is_what_is_free_and_what_our_own_hold_less_a_reserve(make: Make) -> None:
    desk = make(**GPUS).desk
    ledger = desk.device_memory("cuda:0")
    assert ledger.budget == UNKNOWN
    ledger.take("worker-1", 3 * GB)
    ledger.take("worker-2", 3 * GB)
    desk.on_device("cuda:0", "worker-1", DeviceMemory(20 * GB, 10 * GB, 4 * GB))  # somebody else holds seven
    assert ledger.budget == 13 * GB - GB
    assert ledger.held("worker-1") == 4 * GB
    desk.on_device("cuda:0", "worker-2", DeviceMemory(20 * GB, 18 * GB, 3 * GB))
    assert ledger.budget == 20 * GB - GB


def test_device_that_no_worker_is_on_any_more_is_asked_anew(make: Make) -> None:
    desk = make(**GPUS).desk
    ledger = desk.device_memory("cuda:0")
    ledger.take("worker-1", GB)
    desk.on_device("cuda:0", "worker-1", DeviceMemory(2 * GB, 2 * GB, GB))
    assert capacity(desk, "a")["devices"] == {}  # the pool of this test has none
    assert desk.devices_shown()["cuda:0"]["reservations"] == {"worker-1": GB}
    desk.left_device("cuda:0", "worker-1")
    assert ledger.budget == UNKNOWN
    assert desk.devices_shown() == {}


def test_large_batches_on_a_gpu_take_little_of_the_machine(make: Make) -> None:
    desk = roomy(make).desk
    assert desk.working("large-v3", "cuda:0") < desk.working("large-v3", "cpu") / 5


def test_places_and_those_that_make_progress_count_on_every_device(make: Make) -> None:
    limits = make(devices=("cuda:0", "cuda:1"), streams=6, runners=2, workers_per_model=2).desk.jobs.limits
    assert (limits.running, limits.parallel) == (24, 8)


def test_what_one_device_took_does_not_make_the_other_kind_slower(make: Make) -> None:
    desk = make(devices=("cuda:0", "cpu")).desk
    before = desk.minute_s("demo", "cpu"), desk.minute_s("demo", "cuda:0")
    assert before[0] > before[1]
    for _ in range(5):
        desk.prices.learn_job(TranscribeOptions("demo"), 60.0, Measured(30 * before[1], 1, device="cuda:0"))
    assert desk.minute_s("demo", "cuda:0") > 3 * before[1]
    assert desk.minute_s("demo", "cpu") == before[0]
