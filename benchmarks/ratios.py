"""Ratios of sides that were measured in turns, and whether they keep what was promised.

A machine's speed drifts by a quarter within minutes, so no two figures of different minutes are compared: in every round each
side runs once, a ratio is taken within the round, and what counts is the median over the rounds.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import cpu

ROUNDS = 5
"""Rounds that a median is taken of, unless told otherwise."""


@dataclass(frozen=True)
class Target:
    """What a figure must be: at least ``bound``, or at most."""

    bound: float
    at_most: bool = False
    unit: str = "x"

    def met(self, value: float) -> bool:
        """Whether a figure keeps it; one that is no number does not."""
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self.bound:g}{self.unit}"


@dataclass(frozen=True)
class Found:
    """One figure: its value in every round, and what it must be (None: it is only told)."""

    what: str
    values: tuple[float, ...]
    target: Target | None = None

    @property
    def median(self) -> float:
        """The figure; NaN where nothing was measured."""
        return statistics.median(self.values) if self.values else float("nan")

    @property
    def ok(self) -> bool:
        """Whether it is as it must be."""
        return self.target is None or self.target.met(self.median)

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or nothing where there is no target."""
        return "" if self.target is None else "met" if self.ok else "missed"

    def row(self) -> list[str]:
        """Of the table: what, median, range, target, verdict."""
        unit = self.target.unit if self.target else "x"
        spread = f"{min(self.values):.2f} to {max(self.values):.2f}" if self.values else ""
        return [self.what, f"{self.median:.2f}{unit}", spread, str(self.target or ""), self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        bound = {"target": str(self.target), "met": self.ok} if self.target else {}
        return {"what": self.what, "median": self.median, "rounds": list(self.values), **bound}


def per_round(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    """``above / below`` of every round.

    Raises:
        ValueError: the two were not measured in the same rounds.
    """
    return tuple(a / b for a, b in zip(above, below, strict=True))


def in_turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """A figure of every side in every round: A B A B and so on."""
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            figures[name].append(side())
    return figures


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def last_line(found: Sequence[Found]) -> str:
    """All ratios in one line."""
    return "ratios: " + "; ".join(f"{one.what} {one.median:.2f}{f' ({one.verdict})' if one.target else ''}" for one in found)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def conditions() -> dict[str, Any]:
    """Where, when and how a measurement was made."""
    main: Any = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", "") or Path(sys.argv[0]).stem
    command = shlex.join(["python", "-m", name if "." in name else f"benchmarks.{name}", *sys.argv[1:]])
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": cpu.name(),
        "cores": cores(),
        "load_at_start": round(load, 2),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def show(given: dict[str, Any]) -> None:
    """Print the conditions."""
    print(", ".join(f"{name}: {value}" for name, value in given.items()), flush=True)


def finish(found: Sequence[Found]) -> int:
    """Print the table and, last, the ratios; the exit status: 1 where one falls short."""
    print()
    print(table(["what", "median", "rounds", "must be", ""], [one.row() for one in found]))
    print()
    print(last_line(found))
    return 0 if all(one.ok for one in found) else 1


def save(into: Path | None, name: str, result: dict[str, Any]) -> None:
    """Write ``into/name.json``; nothing where there is no folder."""
    if into is not None:
        into.mkdir(parents=True, exist_ok=True)
        (into / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
