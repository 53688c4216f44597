"""What memory and cores there are, how much is in use, and how much of it is ours. Bytes everywhere.

psutil and /proc/meminfo know the machine, not the container, so the container's limits come from the control groups,
and operators may state one where neither can be seen. The smallest limit wins; the reading says which one that was.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

from app import cgroups
from app.cgroups import read_fields, read_text

OVERRIDE = "STENOPOOL_MEMORY_LIMIT_MB"
RAILWAY = "RAILWAY_RAM_MB"

_MACOS = platform.system() == "Darwin"
_MB = 1 << 20
_SMALLEST_SHARE_OF_CORES = 0.1
_LOOKS = 10
"""One of so many looks at the memory is exact."""
_STEADY, _TRIES = 32 * _MB, 3
# The guide's figures are decimal.
_GUIDE_RESERVE_HOST = 2_000_000_000
_GUIDE_RESERVE_CONTAINER = 500_000_000
_GUIDE_CONTAINER_CAP = 4


@dataclass(frozen=True)
class Reading:
    """One look at the memory; sizes in bytes.

    ``source`` is the limit that won, the smallest: "STENOPOOL_MEMORY_LIMIT_MB", "RAILWAY_RAM_MB", "cgroup v2",
    "cgroup v1", "host" or "macOS"; ``container``: it is not the machine's own. ``used`` is what counts against
    ``limit``. ``available`` could still be taken now: the least of what the limit, every cgroup around us and the
    machine leave. ``own`` is held by this process and its descendants. ``oom_kills`` is 0 where unknown. ``pressure``
    is macOS's level (1 normal, 2 warning, 4 critical), 0 elsewhere.
    """

    source: str
    container: bool
    limit: int
    used: int
    available: int
    own: int
    swap_used: int
    oom_kills: int
    pressure: int


@dataclass(frozen=True)
class Budget:
    """What admission may hand out, in bytes: ``static`` at most, ``now`` while other programs use what they use."""

    limit: int
    reserve: int
    static: int
    now: int


@dataclass(frozen=True)
class _Host:
    total: int
    available: int
    swap_used: int


class MemoryProbe:
    """Reads the memory. The overrides are in MB of 2^20 bytes and can only lower what else is known.

    ``root`` is where proc and sys lie; tests give a recorded tree.
    """

    def __init__(self, limit_mb: int | None = None, railway_mb: int | None = None, root: Path = Path("/")) -> None:
        stated = ((OVERRIDE, limit_mb), (RAILWAY, railway_mb))
        self._stated = [(name, size * _MB) for name, size in stated if size]
        self._root = root
        self._shares = _Shares()

    def read(self) -> Reading:
        """Look now. Takes milliseconds, a few more where workers hold much; blocks, so call it from a thread."""
        host, groups = _host(self._root), cgroups.memory(self._root)
        own = own_bytes(os.getpid(), self._root, self._shares)
        source, limit = self._smallest(host, groups)
        container = source != _machine()
        used = _used(source, limit, host, groups, own) if container else max(0, host.total - host.available)
        headroom = min(limit - used, host.available, *(group.headroom for group in groups.groups))
        # The machine's swap is its other tenants' business; ours is what the container's group counts.
        swap = groups.swap_used if container and groups.swap_used is not None else host.swap_used
        return Reading(source, container, limit, used, max(0, headroom), own, swap, groups.oom_kills, _pressure())

    def _smallest(self, host: _Host, groups: cgroups.Memory) -> tuple[str, int]:
        """The limit that wins and its source. Of equal ones what was stated goes first: it says that this is a container."""
        limits = list(self._stated)
        if (group := groups.smallest) is not None and group.limit < host.total:
            limits.append((f"cgroup v{group.version}", group.limit))
        limits.append((_machine(), host.total))
        return min(limits, key=lambda limit: limit[1])


class _Shares:
    """What the processes of a family hold. To ask the kernel exactly takes it 20 ms for each GB, so it is asked now and then.

    In between, the anonymous pages count that a process has more or fewer than when it was asked. Shared memory is left out,
    and shared pages that were written to since: they are a process's own then, and no page more. Where one comes or goes, all
    are asked: shared pages are divided among others then.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looks = 0
        self._exact: dict[int, tuple[int, int]] = {}

    def look(self, family: list[int], proc: Path) -> int:
        """Bytes of all."""
        with self._lock:
            if self._looks == _LOOKS or self._exact.keys() != set(family):
                self._looks = 0
                self._exact = {member: _steady(proc / str(member)) for member in family}
            self._looks += 1
            each = ((proc / str(member), *then) for member, then in self._exact.items())
            return sum(max(0, held + _anonymous(folder) - anonymous) for folder, anonymous, held in each)


def _steady(folder: Path) -> tuple[int, int]:
    """What one process has, by its pages and exactly; again where that changed much meanwhile, a few times."""
    after = _anonymous(folder)
    for _ in range(_TRIES):
        before, held, after = after, _proc_bytes(folder), _anonymous(folder)
        if abs(after - before) < _STEADY:
            break
    return after, held


def own_bytes(pid: int, root: Path = Path("/"), shares: _Shares | None = None) -> int:
    """Bytes that the process ``pid`` and all its descendants hold: anonymous and shared memory, no mapped files.

    Pages that a forkserver's children share with it are divided among them, not counted once for each. Processes that
    vanish meanwhile are left out. ``shares`` remembers what was exact at the last looks.
    """
    if (root / "proc").is_dir():
        return (shares or _Shares()).look(_family(pid, root / "proc"), root / "proc")
    return _psutil_bytes(pid)


def usable(reading: Reading, reserve_host: int, reserve_container: int, one_instance: int) -> Budget:
    """What may be handed out, from a reading, two reserves and the need of one default model, in bytes.

    The reserve gives way so that one instance fits (the guide: "at least 1"), as far as 92 % of the limit. What other
    programs take makes ``now`` smaller; our own use does not, and 8 % of the limit stay free.
    """
    limit = reading.limit
    reserve = reserve_container if reading.container else reserve_host
    static = max(limit - reserve, min(int(0.92 * limit), one_instance))
    now = max(0, min(static, reading.own + reading.available - int(0.08 * limit)))
    return Budget(limit, reserve, static, now)


def cores(root: Path = Path("/")) -> float:
    """Cores' worth of CPU time for this process: the fewer of its affinity and its cgroups' quota, at least 0.1."""
    # Not on macOS. os.cpu_count alone would count cores that taskset or a cpuset took away.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroups.cpu_quota(root)
    return max(_SMALLEST_SHARE_OF_CORES, float(allowed) if quota is None else min(float(allowed), quota))


def guide_table(
    limit_bytes: int, container: bool, models: dict[str, int], available_cores: float | None = None
) -> dict[str, dict[str, int]]:
    """The guide's own arithmetic, to be shown next to what admission does: per model, instances of its RAM (bytes).

    ``maximum`` is (limit − 2 GB) / RAM, in a container (limit − 0.5 GB) / RAM, there at least 1 and at most 4.
    ``recommended`` is one less, at most half the cores (default: this machine's), and at least 1 where one fits at all.
    That gives the guide's numbers for 8 GB and 8 cores: tiny 4 to 6, medium 2, turbo and large 1.
    """
    half = int((cores() if available_cores is None else available_cores) / 2)
    rest = max(0, limit_bytes - (_GUIDE_RESERVE_CONTAINER if container else _GUIDE_RESERVE_HOST))
    table = {}
    for name, ram in models.items():
        maximum = min(_GUIDE_CONTAINER_CAP, max(1, rest // ram)) if container else rest // ram
        table[name] = {"maximum": maximum, "recommended": min(maximum, max(1, min(maximum - 1, half)))}
    return table


def _used(source: str, limit: int, host: _Host, groups: cgroups.Memory, own: int) -> int:
    """Bytes that count against a container's limit. A stated limit is often that of a cgroup, which knows better."""
    if source not in (OVERRIDE, RAILWAY):
        return groups.smallest.used if groups.smallest else own
    return max((group.used for group in groups.groups if abs(group.limit - limit) <= _MB), default=own)


def _machine() -> str:
    return "macOS" if _MACOS else "host"


def _host(root: Path) -> _Host:
    kb = read_fields(root / "proc/meminfo")
    total, available = kb.get("MemTotal:"), kb.get("MemAvailable:")
    if not total or available is None:
        memory = psutil.virtual_memory()
        return _Host(int(memory.total), int(memory.available), int(psutil.swap_memory().used))
    return _Host(total * 1024, available * 1024, max(0, kb.get("SwapTotal:", 0) - kb.get("SwapFree:", 0)) * 1024)


def _family(pid: int, proc: Path) -> list[int]:
    """The process and its descendants."""
    children: dict[int, list[int]] = {}
    for member in (int(name) for name in os.listdir(proc) if name.isdecimal()):
        # "pid (name) state parent …", and the name may hold brackets and blanks.
        fields = read_text(proc / str(member) / "stat").rpartition(")")[2].split()
        if len(fields) > 1 and fields[1].isdecimal():
            children.setdefault(int(fields[1]), []).append(member)
    family = [pid]
    for member in family:
        # A list that is read at different moments can show a cycle.
        family += [child for child in children.get(member, []) if child not in family]
    return family


def _proc_bytes(folder: Path) -> int:
    """Bytes of one process, its share of shared pages; on old kernels statm, which knows no shares; 0 where it is gone."""
    kb = read_fields(folder / "smaps_rollup")
    if "Pss_Anon:" in kb:
        return (kb["Pss_Anon:"] + kb.get("Pss_Shmem:", 0)) * 1024
    return _anonymous(folder)


def _anonymous(folder: Path) -> int:
    """Resident bytes of one process that no file backs, shared ones too; 0 where it is gone."""
    pages = read_text(folder / "statm").split()
    if len(pages) < 3 or not all(page.isdecimal() for page in pages):
        return 0
    return max(0, int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


def _psutil_bytes(pid: int) -> int:
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    return sum(_held(process) for process in family)


def _held(process: psutil.Process) -> int:
    try:
        # macOS shows this of one's own process, and of others only to root.
        return int(process.memory_full_info().uss)
    except (psutil.Error, OSError):
        pass
    try:
        return int(process.memory_info().rss)
    except (psutil.Error, OSError):
        return 0


def _pressure() -> int:
    """macOS's memory pressure level; 0 elsewhere and where it cannot be had."""
    if not _MACOS:
        return 0
    try:
        level = ctypes.c_int(0)
        size = ctypes.c_size_t(ctypes.sizeof(level))
        name = b"kern.memorystatus_vm_pressure_level"
        failed = ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(level), ctypes.byref(size), None, ctypes.c_size_t(0))
    except (OSError, AttributeError):
        return 0
    return 0 if failed else level.value
