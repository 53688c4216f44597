"""A job's place at the runners (:mod:`app.engine.runners`): it hands in windows and calls, and waits for their results."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

W = TypeVar("W")
R = TypeVar("R")

LOOK_S = 0.2
"""Seconds after which a job that waits for its turn looks whether it has been cancelled."""


@dataclass(eq=False)
class Unit(Generic[W]):
    """One window, or one call, of a job. ``done`` is set when ``result`` or ``error`` is there."""

    job: Lease[W]
    window: W | None
    call: Callable[[], Any] | None = None
    result: Any = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


@dataclass
class Spent:
    """What a job took: seconds of a runner, and the most engine calls and windows that were at work at once meanwhile."""

    seconds: float = 0.0
    calls: int = 1
    windows: int = 1


class Seats(Protocol[W]):
    """What a lease needs of the runners."""

    def enter(self, job: Lease[W]) -> None:
        """A job is there."""

    def leave(self, job: Lease[W]) -> None:
        """It is gone, and what it had not got back yet is not computed."""

    def add(self, job: Lease[W], units: Iterable[Unit[W]]) -> None:
        """Units of a job that is there."""


class Lease(Generic[W]):
    """One job's place among the others. Only the thread of the job may use it.

    ``calling``: how many calls of it are at work; ``is_coming``: it has not brought its windows yet; ``brought``: how many they
    were.
    """

    def __init__(self, runners: Seats[W], cancelled: Callable[[], bool], size: int) -> None:
        self._runners, self._cancelled = runners, cancelled
        self.size = size
        self.number = self.brought = 0
        self.pending: deque[Unit[W]] = deque()
        self.spent = Spent()
        self.holds = self.held = self.long = False
        self.calling = 0
        self.is_coming = True

    def __enter__(self) -> Lease[W]:
        self._runners.enter(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._runners.leave(self)

    def calls(self, functions: Iterable[Callable[[], R]]) -> Iterator[R]:
        """Results of all of them, in order; they may run at the same time."""
        return self._results([Unit(self, None, function) for function in functions])

    def windows(self, windows: Iterable[W], *, hold: bool = False) -> Iterator[Any]:
        """Results of all windows, in order. ``hold``: the others wait until the first has told something to them.

        That is when it has ended, or earlier when :meth:`app.engine.runners.Runners.release` is called.
        """
        units = [Unit(self, window) for window in windows]
        self.holds, self.is_coming, self.brought = hold, False, len(units)
        return self._results(units)

    def _results(self, units: list[Unit[W]]) -> Iterator[Any]:
        self._runners.add(self, units)
        for unit in units:
            while not unit.done.wait(LOOK_S):
                if self._cancelled():
                    raise Stopped
            if unit.error is not None:
                raise unit.error
            yield unit.result


class Stopped(Exception):
    """The job was cancelled while it waited for its turn."""
