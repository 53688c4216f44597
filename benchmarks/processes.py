"""The memory of processes, from ``/proc/PID``. Linux only.

own       bytes of a process that no other shares and no file backs: what its end would give back
anon      the same, and what it shares with the process it was forked from
pss       all that is resident, what k processes share counted as 1/k
pss_anon  ``anon``, what k processes share counted as 1/k: over a whole family, every page once
files     resident pages of files (libraries, mostly), over a group of processes each counted once
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import psutil


def memory_of(pids: list[int]) -> dict[str, int]:
    """Sums over processes, bytes; one that has ended counts as nothing."""
    sums = dict.fromkeys(("own", "anon", "pss_anon"), 0)
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue
        kb = {name.rstrip(":"): int(value) for name, value, *_ in map(str.split, lines)}
        found = {"own": kb["Private_Dirty"], "anon": kb["Anonymous"], "pss_anon": kb["Pss_Anon"]}
        sums = {name: sums[name] + 1024 * found[name] for name in sums}
    return sums


def by_file(pid: int, count: int = 12) -> dict[str, dict[str, int]]:
    """Where a process's memory lies: resident and anonymous bytes by mapped file, the ``count`` largest."""
    sums: dict[str, dict[str, int]] = {}
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            name = Path(fields[5]).name if len(fields) > 5 else "(no file)"
            sums.setdefault(name, {"rss": 0, "anon": 0})
        elif fields[0] in ("Rss:", "Anonymous:"):
            sums[name]["rss" if fields[0] == "Rss:" else "anon"] += 1024 * int(fields[1])
    largest = sorted(sums, key=lambda file: -sums[file]["rss"])[:count]
    return {file: sums[file] for file in largest}


def anonymous_of(pid: int) -> dict[str, int]:
    """``anon`` alone, bytes: a hundred times cheaper than :func:`memory_of`, which slows down what it looks at."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {"anon": 0}
    return {"anon": 1024 * int(status.split("RssAnon:")[1].split()[0])}


def pss_of(pid: int) -> dict[str, int]:
    """``pss`` and ``own`` of a process, bytes; 0 where it has ended."""
    names = {"Pss:": "pss", "Private_Dirty:": "own"}
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return dict.fromkeys(names.values(), 0)
    return {names[name]: 1024 * int(kb) for name, kb, *_ in map(str.split, lines) if name in names}


class Peak:
    """Samples in a thread while the block runs; ``high`` has the highest of each figure."""

    def __init__(self, sample: Callable[[], dict[str, int]], every_s: float) -> None:
        self._sample, self._every_s, self._over = sample, every_s, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.high: dict[str, int] = {}

    def _run(self) -> None:
        while True:
            self.high = {name: max(value, self.high.get(name, 0)) for name, value in self._sample().items()}
            if self._over.wait(self._every_s):
                return

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def files_of(pids: list[int]) -> int:
    """``files`` of a group, bytes. Of each mapping the process counts that has most of it resident; PSS would do, but its
    file part shrinks whenever anything else on the machine maps the same libraries."""
    most: dict[tuple[str, ...], int] = {}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
        except OSError:
            continue
        mapping: tuple[str, ...] = ()
        rss = 0
        for name, first, *rest in map(str.split, lines):
            if not name.endswith(":"):
                mapping = (*rest[:3], str(_length(name)))  # offset, device, inode
            elif name == "Rss:":
                rss = int(first)
            elif name == "Anonymous:" and mapping[2] != "0":
                most[mapping] = max(most.get(mapping, 0), 1024 * (rss - int(first)))
    return sum(most.values())


def group_of(pids: list[int]) -> dict[str, int]:
    """:func:`memory_of` and :func:`files_of`."""
    return memory_of(pids) | {"files": files_of(pids)}


def _length(addresses: str) -> int:
    start, end = (int(part, 16) for part in addresses.split("-"))
    return end - start
