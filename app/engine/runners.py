"""The threads that compute, and the windows and calls of all jobs that wait for them.

A job of its own holds no batch: it hands in windows and calls, and as many runners as there are engine calls at once take
them, fair between jobs. Windows of several jobs share a batch (continuous batching of requests, Orca, Yu et al., OSDI 2022,
at the level of whole windows). So N jobs at once take the working memory of the runners, not N times that of a batch, and
a short clip waits for a batch and not for a long file.

On a CPU it does not even wait for that: one more thread, the express, takes short jobs while all runners are at work on long
ones, and the system shares the cores between them. A batch is then of long jobs or of short ones: a short job that filled its
batch with windows of a long one would take as many times longer.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic

from app.engine.lease import Lease, Unit, W
from app.engine.spreading import Pace, own_part

EXPRESS = "express"
GIVE_WAY_S = 1.0
"""Seconds that a runner rests at most for the express' sake, before each of its windows."""
SOON_S = 0.003
"""Seconds that a batch waits at most for the windows of a job whose first calls have just ended: its thread must wake up."""


Run = Callable[[Sequence[Unit[W]]], Iterable[Any]]


class Runners(Generic[W]):
    """``run(units)`` computes the windows of one batch, at most ``size``; it is called in ``count`` threads.

    ``wait_s``: how long a batch that is not full waits for more windows where other jobs are about. ``express``: one thread
    more for short jobs, those whose windows fit into a batch, while the others have only long ones. ``on_rest()`` is called
    whenever no more windows are there, or nothing at all, before the last one's job hears of it.
    """

    def __init__(
        self,
        run: Run[W],
        count: int,
        size: int,
        wait_s: float = 0.0,
        *,
        express: bool = False,
        on_rest: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_rest = on_rest
        self._run, self._count, self._size, self._wait_s = run, count, size, wait_s
        self._changed = threading.Condition()
        self._ready: OrderedDict[Lease[W], None] = OrderedDict()
        self._jobs: set[Lease[W]] = set()
        self._idle = count
        self._windows = self._entered = self._hurrying = 0
        self._recognising = self._calling = 0
        self._resting = False
        self._express = express
        self._busy: list[Lease[W]] = []
        self._pace = Pace(clock)
        for number in range(count):
            threading.Thread(target=self._serve, name=f"runner-{number}", daemon=True).start()
        if express:
            threading.Thread(target=self._hurry, name=EXPRESS, daemon=True).start()

    def lease(self, cancelled: Callable[[], bool], size: int | None = None) -> Lease[W]:
        """A job's way in; to be used as a context. ``size``: windows of a batch that it leads, if fewer than usual."""
        return Lease(self, cancelled, min(size or self._size, self._size))

    def give_way(self) -> None:
        """For ``run``, between two windows: one of several runners with long jobs rests while the express is at work."""
        with self._changed:
            if self._resting or not self._crowded() or self._count < 2 or is_express():
                return
            self._resting, until = True, time.monotonic() + GIVE_WAY_S
            while self._changed.wait_for(lambda: not self._crowded(), until - time.monotonic()):
                if not self._changed.wait_for(self._crowded, SOON_S):
                    break
            self._resting = False

    def awaited(self) -> bool:
        """Whether windows or calls wait for a runner, or a job is there that has not brought its windows yet."""
        with self._changed:
            return any(job.pending or job.is_coming for job in self._jobs)

    def _crowded(self) -> bool:
        return bool(self._hurrying) and not self._idle and all(job.long for job in self._busy)

    # -- what leases do

    def enter(self, job: Lease[W]) -> None:
        with self._changed:
            self._entered += 1
            job.number = self._entered
            self._jobs.add(job)
            self._note(job)

    def leave(self, job: Lease[W]) -> None:
        with self._changed:
            job.pending.clear()
            self._ready.pop(job, None)
            self._jobs.discard(job)

    def add(self, job: Lease[W], units: Iterable[Unit[W]]) -> None:
        with self._changed:
            job.pending.extend(units)
            job.long = len(job.pending) > self._size
            self._queue(job)

    def release(self, job: Lease[W]) -> None:
        """Windows of a job that held back are free: what the first one had to tell is known."""
        with self._changed:
            job.holds = job.held = False
            self._queue(job)

    def _queue(self, job: Lease[W]) -> None:
        if job.pending and not job.held and job in self._jobs:
            self._ready.setdefault(job)
            self._changed.notify_all()

    # -- runners

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._ready:
                    self._changed.wait()
                self._idle -= 1
                units = self._take()
                self._busy.append(units[0].job)
                self._pace.began(threading.get_ident(), 0 if units[0].call else len(units))
                self._started(units)
                if self._express:
                    self._changed.notify_all()  # it looks who is at work now
            seconds = self._timed(units)
            self._settle(units)
            with self._changed:
                self._idle += 1
                self._busy.remove(units[0].job)
                self._pace.ended(threading.get_ident(), learn=all(unit.error is None for unit in units))
                self._finished(units, seconds)

    def _hurry(self) -> None:
        while True:
            with self._changed:
                while (job := self._short_behind_long()) is None:
                    self._changed.wait()
                units = [self._next_of(job)]
                self._hurrying = 1
                self._started(units)
            seconds = self._timed(units)
            self._settle(units)
            with self._changed:
                self._hurrying = 0
                self._finished(units, seconds)

    def _short_behind_long(self) -> Lease[W] | None:
        if self._idle or not all(job.long for job in self._busy):
            return None
        return next((job for job in self._ready if not job.long), None)

    def _timed(self, units: list[Unit[W]]) -> float:
        began = time.monotonic()
        if units[0].call is not None:
            _call(units[0])
        else:
            self._compute(units)
        return time.monotonic() - began

    def _take(self) -> list[Unit[W]]:
        """The next call, or the next windows: of one job after the other, one each, and round again.

        Half of a batch is for the oldest job: a long one among many that come and go would else take as many times longer.
        """
        job = next(iter(self._ready))
        first = self._next_of(job)
        if first.call is not None:
            return [first]
        units = [first]
        most = job.size if self._wait_s else self._fair_size(job)
        soon = any(one.is_coming and not one.calling and not one.pending for one in self._jobs)
        deadline = time.monotonic() + (self._wait_s or SOON_S * soon)
        while len(units) < most:
            following = [one for one in self._ready if self._goes_with(job, one)]
            oldest = min(following, key=lambda one: one.number, default=None)
            if oldest is not None:
                behind = sum(unit.job is oldest for unit in units) >= most // 2
                units.append(self._next_of(following[0] if behind else oldest))
            elif self._jobs <= {unit.job for unit in units} or not self._changed.wait_for(
                lambda: any(self._goes_with(job, one) for one in self._ready), deadline - time.monotonic()
            ):
                break
        return units

    def _goes_with(self, job: Lease[W], other: Lease[W]) -> bool:
        """Whether the next unit of ``other`` may share a batch with windows of ``job``."""
        return other.pending[0].call is None and (not self._express or other.long == job.long)

    def _fair_size(self, job: Lease[W]) -> int:
        """Windows of a batch: those that are there are spread over the runners that have nothing to do.

        The last ones of recordings of several windows are spread so that all runners end at about the same time; not where
        other jobs come and go: then full batches take less time in all.
        """
        others = [one for one in self._ready if self._goes_with(job, one)]
        waiting, coming = 1 + sum(len(one.pending) for one in others), sum(one.is_coming for one in self._jobs)
        size = min(job.size, -(-(waiting + coming) // (self._idle + 1)))
        if coming or waiting > job.size * self._count or any(one.brought <= 1 for one in (job, *others)):
            return size
        return min(job.size, own_part(waiting, [0.0] * self._idle + self._pace.ahead()))

    def _next_of(self, job: Lease[W]) -> Unit[W]:
        unit = job.pending.popleft()
        job.calling += unit.call is not None
        del self._ready[job]
        job.held = job.holds
        self._queue(job)  # behind the others
        return unit

    def _compute(self, units: Sequence[Unit[W]]) -> None:
        """One batch. Where it fails, each job's part is tried alone, so that none fails for another one's sake."""
        jobs = list(dict.fromkeys(unit.job for unit in units))
        try:
            for unit, result in zip(units, self._run(units), strict=True):
                unit.result = result
            return
        except BaseException as error:
            for unit in units if len(jobs) == 1 else []:
                unit.error = error
        for job in jobs if len(jobs) > 1 else []:  # what has failed is out of memory by now
            self._compute([unit for unit in units if unit.job is job])

    def _settle(self, units: Sequence[Unit[W]]) -> None:
        """What windows have freed is kept only while there are more of them; what calls have, while there is anything."""
        with self._changed:
            if units[0].call is None:
                self._recognising -= len(units)
                more = self._recognising > 0 or any(job.pending[0].call is None for job in self._ready)
            else:
                self._calling -= 1
                more = self._recognising + self._calling > 0 or bool(self._ready)
        if not more:
            self._on_rest()

    def _started(self, units: Sequence[Unit[W]]) -> None:
        self._windows += len(units)
        if units[0].call is None:
            self._recognising += len(units)
        else:
            self._calling += 1
        for job in self._jobs:
            self._note(job)

    def _note(self, job: Lease[W]) -> None:
        job.spent.calls = max(job.spent.calls, self._count - self._idle + self._hurrying)
        job.spent.windows = max(job.spent.windows, self._windows)

    def _finished(self, units: Sequence[Unit[W]], seconds: float) -> None:
        self._windows -= len(units)
        for unit in units:
            unit.job.spent.seconds += seconds / len(units)
            unit.job.holds = unit.job.held = False
            unit.job.calling -= unit.call is not None
            self._queue(unit.job)
            unit.done.set()
        self._changed.notify_all()  # the express looks who is at work now


def is_express() -> bool:
    """Whether this thread is the express."""
    return threading.current_thread().name == EXPRESS


def _call(unit: Unit[Any]) -> None:
    assert unit.call is not None
    try:
        unit.result = unit.call()
    except BaseException as error:
        unit.error = error
