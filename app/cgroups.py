"""What the kernel's control groups (v1 and v2) let this process use: memory and cores.

A limit on any ancestor holds for everything below it, so every group from this process's own up to the top of what is
mounted counts. Files can be missing, unreadable, garbage, or vanish between two calls: that group then does not count,
and nothing here raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# v1 says "no limit" with the largest multiple of a page below 2^63; nobody has an exbibyte.
_UNLIMITED = 1 << 60
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Group:
    """A cgroup that limits memory. ``used`` (bytes) leaves out page cache that the kernel would give up first."""

    version: int
    folder: Path
    limit: int
    used: int

    @property
    def headroom(self) -> int:
        """Bytes until the limit; below 0 where a limit was lowered or ``memory.high`` is exceeded."""
        return self.limit - self.used


@dataclass(frozen=True)
class Memory:
    """The limited groups around this process, its own first, with what its own group counts.

    ``oom_kills`` is 0 where unknown. ``swap_used`` (bytes) is None where no group counts swap.
    """

    groups: tuple[Group, ...]
    oom_kills: int
    swap_used: int | None

    @property
    def tightest(self) -> Group | None:
        """The group with the smallest headroom."""
        return min(self.groups, key=lambda group: group.headroom, default=None)

    @property
    def smallest(self) -> Group | None:
        """The group with the smallest limit; of equal ones that with the most in use."""
        return min(self.groups, key=lambda group: (group.limit, -group.used), default=None)


def memory(root: Path = Path("/")) -> Memory:
    """Memory limits of this process. ``root`` is where its proc and sys lie: for tests, a recorded tree."""
    folders = _folders(root, "memory")
    groups = [_group(version, folder) for version, folder in folders]
    kills = (_oom_kills(version, folder) for version, folder in folders)
    swaps = (_swap(version, folder) for version, folder in folders)
    return Memory(
        groups=tuple(group for group in groups if group),
        oom_kills=next((count for count in kills if count is not None), 0),
        swap_used=next((size for size in swaps if size is not None), None),
    )


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of CPU time that the smallest quota grants (1.5: one and a half); None where there is no quota."""
    quotas = (_cores(version, folder) for version, folder in _folders(root, "cpu"))
    return min((quota for quota in quotas if quota is not None), default=None)


def read_text(path: Path) -> str:
    """A file of proc or sys, or "" where it cannot be read."""
    try:
        return path.read_text("utf-8", errors="surrogateescape")
    except (OSError, ValueError):  # ValueError: a garbled path with a zero in it
        return ""


def read_fields(path: Path) -> dict[str, int]:
    """A file of lines "name number", with or without a unit behind; other lines are left out."""
    pairs = (line.split() for line in read_text(path).split("\n"))
    numbers = {pair[0]: _parse(pair[1]) for pair in pairs if len(pair) >= 2}
    return {name: number for name, number in numbers.items() if number is not None}


def _group(version: int, folder: Path) -> Group | None:
    stat = read_fields(folder / "memory.stat")
    if version == 2:
        limits = [_number(folder / "memory.max"), _number(folder / "memory.high")]
        current, idle = _number(folder / "memory.current"), stat.get("inactive_file", 0)
    else:
        # The second knows ancestors that are not mounted here, as in a container.
        limits = [_number(folder / "memory.limit_in_bytes"), stat.get("hierarchical_memory_limit")]
        current, idle = _number(folder / "memory.usage_in_bytes"), stat.get("total_inactive_file", 0)
    limit = min((size for size in limits if size and size < _UNLIMITED), default=None)
    if limit is None or current is None:
        return None
    return Group(version, folder, limit, max(0, current - idle))


def _oom_kills(version: int, folder: Path) -> int | None:
    return read_fields(folder / ("memory.events" if version == 2 else "memory.oom_control")).get("oom_kill")


def _swap(version: int, folder: Path) -> int | None:
    if version == 2:
        return _number(folder / "memory.swap.current")
    return read_fields(folder / "memory.stat").get("total_swap")


def _cores(version: int, folder: Path) -> float | None:
    if version == 2:
        words = read_text(folder / "cpu.max").split()
        quota, period = map(_parse, words) if len(words) == 2 else (None, None)
    else:
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _folders(root: Path, controller: str) -> list[tuple[int, Path]]:
    """(version, folder) of every group that this process is in and that may have the controller; its own group first.

    In a namespace, or where only a part is mounted, the process's path may lie outside of the mount's top: the mount's
    top is then the only group that is surely an ancestor. Folders that do not exist are harmless.
    """
    found: list[tuple[int, Path]] = []
    paths = _paths(root, controller)
    mounts = [mount for mount in _mounts(root) if mount[0] == 2 or controller in mount[3]]
    for version, path in paths.items():
        own = [(_inside(path, top), point) for kind, top, point, _ in mounts if kind == version]
        # A second mount can show a foreign part of the tree; it only counts where no mount shows ours.
        known = [(inner, point) for inner, point in own if inner is not None]
        for inner, point in known or [((), point) for _, point in own]:
            found += [(version, point.joinpath(*inner[:depth])) for depth in range(len(inner), -1, -1)]
    return found


def _paths(root: Path, controller: str) -> dict[int, str]:
    """This process's path in the v2 hierarchy and in the controller's v1 hierarchy, as far as there are such."""
    paths: dict[int, str] = {}
    for line in read_text(root / "proc/self/cgroup").split("\n"):
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            paths[2] = path
        elif controller in names.split(","):
            paths[1] = path
    return paths


def _mounts(root: Path) -> Iterator[tuple[int, str, Path, list[str]]]:
    """(version, top, mount point, v1 controllers) of every mounted hierarchy. ``top`` is the group that is mounted."""
    for line in read_text(root / "proc/self/mountinfo").split("\n"):
        before, _, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(tail) < 2 or tail[0] not in ("cgroup", "cgroup2"):
            continue
        top, point = (_ESCAPE.sub(lambda code: chr(int(code[1], 8)), field) for field in fields[3:5])
        yield (2 if tail[0] == "cgroup2" else 1), top, root / point.lstrip("/"), tail[-1].split(",")


def _inside(path: str, top: str) -> tuple[str, ...] | None:
    """The components of ``path`` below ``top``; None where it is not below."""
    try:
        parts = PurePosixPath(path).relative_to(top).parts
    except ValueError:
        return None
    return None if ".." in parts else parts


def _number(path: Path) -> int | None:
    return _parse(read_text(path))


def _parse(text: str) -> int | None:
    """A count; None for "max", -1 and garbage."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if 0 <= number < 1 << 64 else None
