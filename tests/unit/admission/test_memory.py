"""Which limit wins, what counts as used, what may be handed out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.admission import memory
from app.admission.memory import MemoryProbe, Reading, cores, guide_table, own_bytes, usable
from app.catalogue import MODELS

PROJECT = Path(__file__).parents[3]
GB = 1 << 30
MB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
GUIDE = {name: MODELS[name].ram_bytes for name in ("tiny", "small", "medium", "turbo", "large-v2")}
V2 = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


def process(root: Path, pid: int, parent: int, anonymous_mb: int | None = None, name: str = "python") -> Path:
    """Record one process; without ``anonymous_mb`` it has no smaps_rollup."""
    folder = root / "proc" / str(pid)
    write(folder / "stat", f"{pid} ({name}) S {parent} 1 1 0 -1")
    if anonymous_mb is not None:
        sizes = f"Pss: {9 * GB} kB\nPss_Anon: {anonymous_mb * 1024} kB\nPss_File: 77 kB\nPss_Shmem: 1024 kB"
        write(folder / "smaps_rollup", f"55829d528000-7ffe99f91000 ---p 00000000 00:00 0 [rollup]\n{sizes}")
    return folder


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with 16 GB, 10 of them available, 50 MB of swap in use; this process holds 201 MB."""
    kb = {"MemTotal": 16 << 20, "MemFree": 1, "MemAvailable": 10 << 20, "SwapTotal": 150 << 10, "SwapFree": 100 << 10}
    write(tmp_path / "proc/meminfo", "\n".join(f"{name}: {size} kB" for name, size in kb.items()))
    process(tmp_path, os.getpid(), 1, 200)
    return tmp_path


def limit_to(root: Path, limit: int, used: int, group: str = "app") -> None:
    """Put this process into a v2 group."""
    write(root / "proc/self/cgroup", f"0::/{group}")
    write(root / "proc/self/mountinfo", V2)
    folder = root / "sys/fs/cgroup" / group
    write(folder / "memory.max", limit)
    write(folder / "memory.current", used)
    write(folder / "memory.swap.current", 5 * MB)
    write(folder / "memory.events", "oom_kill 3")


def test_machine_without_limits_is_measured_as_a_whole(machine: Path) -> None:
    assert MemoryProbe(root=machine).read() == Reading(
        source=memory._machine(),
        container=False,
        limit=16 * GB,
        used=6 * GB,
        available=10 * GB,
        own=201 * MB,
        swap_used=50 * MB,
        oom_kills=0,
        pressure=0,
    )


def test_cgroup_below_the_machines_memory_wins_and_brings_its_own_use_swap_and_kills(machine: Path) -> None:
    limit_to(machine, 4 * GB, 1 * GB)
    assert MemoryProbe(root=machine).read() == Reading(
        source="cgroup v2",
        container=True,
        limit=4 * GB,
        used=1 * GB,
        available=3 * GB,
        own=201 * MB,
        swap_used=5 * MB,
        oom_kills=3,
        pressure=0,
    )


def test_cgroup_above_the_machines_memory_is_no_container_but_its_headroom_still_counts(machine: Path) -> None:
    limit_to(machine, 20 * GB, 15 * GB)
    reading = MemoryProbe(root=machine).read()
    assert (reading.container, reading.limit, reading.available, reading.swap_used) == (False, 16 * GB, 5 * GB, 50 * MB)


def test_little_free_memory_on_the_machine_is_all_that_a_container_can_take(machine: Path) -> None:
    limit_to(machine, 14 * GB, 1 * GB)
    assert MemoryProbe(root=machine).read().available == 10 * GB


def test_group_over_its_limit_leaves_nothing_rather_than_less(machine: Path) -> None:
    limit_to(machine, 1 * GB, 2 * GB)
    assert MemoryProbe(root=machine).read().available == 0


@pytest.mark.parametrize(
    ("limit_mb", "railway_mb", "source", "limit_gb"),
    [
        (2048, None, "STENOPOOL_MEMORY_LIMIT_MB", 2),
        (None, 3072, "RAILWAY_RAM_MB", 3),
        (2048, 3072, "STENOPOOL_MEMORY_LIMIT_MB", 2),
        (3072, 2048, "RAILWAY_RAM_MB", 2),
        (2048, 2048, "STENOPOOL_MEMORY_LIMIT_MB", 2),
        (4096, None, "STENOPOOL_MEMORY_LIMIT_MB", 4),
        (5120, 8192, "cgroup v2", 4),
        (1 << 20, 1 << 20, "cgroup v2", 4),
        (0, 0, "cgroup v2", 4),
    ],
)
def test_smallest_of_what_is_stated_and_known_wins(
    machine: Path, limit_mb: int | None, railway_mb: int | None, source: str, limit_gb: int
) -> None:
    limit_to(machine, 4 * GB, 1 * GB)
    reading = MemoryProbe(limit_mb, railway_mb, machine).read()
    assert (reading.source, reading.limit, reading.container) == (source, limit_gb * GB, True)


def test_stated_limit_above_the_machines_memory_does_not_raise_it(machine: Path) -> None:
    reading = MemoryProbe(64 * 1024, 32 * 1024, machine).read()
    assert (reading.limit, reading.container) == (16 * GB, False)


def test_stated_limit_without_a_cgroup_counts_our_own_use(machine: Path) -> None:
    reading = MemoryProbe(railway_mb=1024, root=machine).read()
    assert (reading.used, reading.available) == (201 * MB, 823 * MB)


def test_stated_limit_that_is_the_cgroups_counts_the_cgroups_use(machine: Path) -> None:
    limit_to(machine, 1 * GB + 4096, 700 * MB)
    reading = MemoryProbe(railway_mb=1024, root=machine).read()
    assert (reading.source, reading.used, reading.available) == ("RAILWAY_RAM_MB", 700 * MB, 324 * MB)


def test_stated_limit_below_the_cgroups_counts_our_own_use_and_both_headrooms(machine: Path) -> None:
    limit_to(machine, 4 * GB, 4 * GB - 100 * MB)
    reading = MemoryProbe(limit_mb=1024, root=machine).read()
    assert (reading.used, reading.available) == (201 * MB, 100 * MB)


@pytest.mark.parametrize("content", ["", "garbage", "MemTotal: 8 kB", "MemTotal: x kB\nMemAvailable: 5 kB"])
def test_unusable_meminfo_falls_back_to_psutil(tmp_path: Path, content: str) -> None:
    write(tmp_path / "proc/meminfo", content)
    assert MemoryProbe(root=tmp_path).read().limit == psutil.virtual_memory().total


def test_macos_whose_pressure_cannot_be_read_reports_none(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MACOS", True)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    reading = MemoryProbe(root=machine).read()
    assert (reading.source, reading.container, reading.pressure) == ("macOS", False, 0)


def test_pressure_of_macos_is_what_its_kernel_says(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel:
        def sysctlbyname(self, name: bytes, value: Any, *_: object) -> int:
            value._obj.value = 4 if name == b"kern.memorystatus_vm_pressure_level" else 0
            return 0

    monkeypatch.setattr(memory, "_MACOS", True)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Kernel())
    assert MemoryProbe(root=machine).read().pressure == 4


def test_own_bytes_are_the_shares_of_the_process_and_all_its_descendants(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, 100)
    process(tmp_path, 11, 10, 20, name="fork) S 99 (server")
    process(tmp_path, 12, 11, 3)
    process(tmp_path, 13, 1, 1000)
    assert own_bytes(10, tmp_path) == (100 + 20 + 3 + 3) * MB


def test_process_without_rollup_is_read_from_statm(tmp_path: Path) -> None:
    write(process(tmp_path, 10, 1) / "statm", "9000 1000 300 1 0 1 0")
    assert own_bytes(10, tmp_path) == 700 * PAGE


@pytest.mark.parametrize("statm", [None, "", "garbage", "1 2", "1 x 3"])
def test_process_that_vanishes_is_skipped(tmp_path: Path, statm: str | None) -> None:
    process(tmp_path, 10, 1, 5)
    gone = process(tmp_path, 11, 10)
    if statm is not None:
        write(gone / "statm", statm)
    (tmp_path / "proc/12").mkdir()
    assert own_bytes(10, tmp_path) == 6 * MB


def test_parents_that_form_a_cycle_do_not_hang(tmp_path: Path) -> None:
    process(tmp_path, 10, 11, 1)
    process(tmp_path, 11, 10, 1)
    assert own_bytes(10, tmp_path) == 4 * MB


def test_machine_without_proc_is_asked_through_psutil(tmp_path: Path) -> None:
    assert own_bytes(os.getpid(), tmp_path) > MB
    assert own_bytes(2**31 - 1, tmp_path) == 0


class Family:
    """A server with a worker; how often each was asked what it holds."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.asked = root, {10: 0, 11: 0}
        self.probe = memory._Shares()
        real = memory._proc_bytes

        def counted(folder: Path) -> int:
            self.asked[int(folder.name)] += 1
            return real(folder)

        monkeypatch.setattr(memory, "_proc_bytes", counted)
        for pid, parent in ((10, 1), (11, 10)):
            folder = process(root, pid, parent, 100)
            write(folder / "statm", f"999999 {100 * MB // PAGE + 300} 300 1 0 1 0")

    def look(self) -> int:
        return own_bytes(10, self.root, self.probe) // MB


def test_processes_are_asked_exactly_in_every_tenth_look_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(tmp_path, monkeypatch)
    assert [family.look() for _ in range(10)] == [202] * 10
    assert family.asked == {10: 1, 11: 1}
    process(tmp_path, 11, 10, 150)  # it has written to pages that it shared: no page more
    assert [family.look() for _ in range(2)] == [252, 252]
    assert family.asked == {10: 2, 11: 2}


@pytest.mark.parametrize(("pages", "expected"), [(100 * MB // PAGE + 300 * MB // PAGE, 502), (50 * MB // PAGE, 152), (0, 102)])
def test_in_between_what_a_process_has_more_or_fewer_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int, expected: int
) -> None:
    family = Family(tmp_path, monkeypatch)
    family.look()
    write(tmp_path / "proc/11/statm", f"999999 {pages + 300} 300 1 0 1 0")
    assert family.look() == expected
    assert family.asked == {10: 1, 11: 1}


def test_process_that_gives_memory_back_while_it_is_asked_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = Family(tmp_path, monkeypatch)
    real, shrunk = memory._proc_bytes, []

    def shrinking(folder: Path) -> int:
        held = real(folder)
        if folder.name == "11" and not shrunk:
            shrunk.append(held)
            write(process(tmp_path, 11, 10, 40) / "statm", f"999999 {40 * MB // PAGE + 300} 300 1 0 1 0")
        return held

    monkeypatch.setattr(memory, "_proc_bytes", shrinking)
    assert [family.look() for _ in range(2)] == [142, 142]
    assert family.asked == {10: 1, 11: 2}


def test_where_a_process_comes_or_goes_all_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(tmp_path, monkeypatch)
    family.look()
    shutil.rmtree(tmp_path / "proc/11")
    process(tmp_path, 10, 1, 300)  # what both shared is its own now
    assert family.look() == 301
    assert family.asked == {10: 2, 11: 1}


def test_pages_shared_with_forked_children_are_counted_once() -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("no smaps_rollup: shares of pages are not known here")
    script = (
        "import os, sys; from app.admission.memory import own_bytes; before = own_bytes(os.getpid())\n"
        "block = b'x' * (80 << 20); read, write = os.pipe()\n"
        "for _ in range(4):\n"
        "    if not os.fork(): os.close(write); os.read(read, 1); os._exit(0)\n"
        "print(own_bytes(os.getpid()) - before); os.close(write)\n"
    )
    grown = int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=PROJECT, timeout=60).stdout)
    assert 80 * MB < grown < 120 * MB


def reading(limit: int, available: int, own: int = 0, container: bool = False) -> Reading:
    return Reading("host", container, limit, limit - available, available, own, 0, 0, 0)


def test_budget_of_a_machine_keeps_the_machines_reserve_and_of_a_container_the_containers() -> None:
    assert usable(reading(16 * GB, 16 * GB), 2 * GB, 500 * MB, GB).static == 14 * GB
    budget = usable(reading(16 * GB, 16 * GB, container=True), 2 * GB, 500 * MB, GB)
    assert (budget.limit, budget.reserve, budget.static) == (16 * GB, 500 * MB, 16 * GB - 500 * MB)


def test_reserve_gives_way_so_that_one_instance_fits() -> None:
    assert usable(reading(2 * GB, 2 * GB), 2 * GB, 0, GB).static == GB
    assert usable(reading(2 * GB, 2 * GB), 2 * GB, 0, 5 * GB).static == int(0.92 * 2 * GB)


def test_budget_now_shrinks_by_what_others_use_and_not_by_what_we_use() -> None:
    idle = usable(reading(16 * GB, 8 * GB), 2 * GB, 0, GB)
    busy = usable(reading(16 * GB, 5 * GB, own=3 * GB), 2 * GB, 0, GB)
    assert idle.now == busy.now == 8 * GB - int(0.08 * 16 * GB)
    assert usable(reading(16 * GB, 2 * GB, own=3 * GB), 2 * GB, 0, GB).now == 5 * GB - int(0.08 * 16 * GB)


def test_budget_now_is_neither_above_the_static_one_nor_below_zero() -> None:
    assert usable(reading(16 * GB, 16 * GB, own=4 * GB), 2 * GB, 0, GB).now == 14 * GB
    assert usable(reading(16 * GB, 1 * GB), 2 * GB, 0, GB).now == 0


@pytest.mark.parametrize("limit", [8 * 10**9, 8 * GB])
def test_table_gives_the_guides_numbers_for_8_gb_and_8_cores(limit: int) -> None:
    table = guide_table(limit, False, GUIDE, 8.0)
    recommended = {name: row["recommended"] for name, row in table.items()}
    assert 4 <= recommended.pop("tiny") <= 6
    assert recommended.pop("small") < table["small"]["maximum"]
    assert recommended == {"medium": 2, "turbo": 1, "large-v2": 1}
    maxima = {name: row["maximum"] for name, row in table.items() if name != "tiny"}
    assert maxima == {"small": 6, "medium": 3, "turbo": 2, "large-v2": 1}


def test_table_of_a_container_is_at_least_one_and_at_most_four() -> None:
    table = guide_table(1 * GB, True, GUIDE, 1.0)
    assert {row["maximum"] for row in table.values()} == {1}
    assert {row["recommended"] for row in table.values()} == {1}
    table = guide_table(8 * GB, True, GUIDE, 8.0)
    assert [row["maximum"] for row in table.values()] == [4, 4, 4, 3, 2]
    assert [row["recommended"] for row in table.values()] == [3, 3, 3, 2, 1]


def test_table_of_a_machine_too_small_for_a_model_says_none() -> None:
    assert guide_table(1 * GB, False, GUIDE, 8.0)["tiny"] == {"maximum": 0, "recommended": 0}


def test_table_without_cores_takes_this_machines() -> None:
    assert guide_table(64 * GB, False, GUIDE) == guide_table(64 * GB, False, GUIDE, cores())


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 4.0), ("150000 100000", 1.5), ("900000 100000", 4.0), ("1000 100000", 0.1)]
)
def test_cores_are_the_fewer_of_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: float
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 4, 6}, raising=False)
    write(tmp_path / "proc/self/cgroup", "0::/")
    write(tmp_path / "proc/self/mountinfo", V2)
    write(tmp_path / "sys/fs/cgroup/cpu.max", quota)
    assert cores(tmp_path) == expected


def test_cores_without_affinity_are_those_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert cores(tmp_path) == 8.0
