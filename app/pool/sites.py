"""One model on one device: what has been tried there, and when it may be tried again; and where to start, or to run, what.

A device that fails takes no other one with it: each has its own count of failures and its own pause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.errors import CapacityError, StenopoolError, WorkerLost
from app.work import kind_of

if TYPE_CHECKING:
    from app.pool.handle import Handle
    from app.pool.lane import Lane

MAX_BACKOFF_S = 30.0
MAX_SPARE_BACKOFF_S = 600.0
"""Longest pause where the model is there on another device: nobody waits for this one."""
MAX_SETUP_DEATHS = 3


@dataclass(eq=False)
class Site:
    """A model on ``device``. ``parked``: evicted from there, and not to come back before there is room, or a job asks for it.

    ``deaths``: ends of workers, one after the other, that had finished no job; ``setup_deaths``: of those, during set-up.
    """

    device: str
    starting: int = 0
    deaths: int = 0
    setup_deaths: int = 0
    not_before: float = 0.0
    parked: bool = False
    failure: StenopoolError | None = None
    retry: asyncio.TimerHandle | None = None

    @property
    def kind(self) -> str:
        """``cuda``, ``cpu`` or ``auto``."""
        return kind_of(self.device)

    def ready(self) -> None:
        """A worker is there."""
        self.failure, self.setup_deaths = None, 0

    def ended(self, handle: Handle | None, error: StenopoolError | None, now: float, most_s: float) -> StenopoolError | None:
        """Back off where workers end without finishing anything; what to tell those who wait, once it is given up.

        ``handle`` is None where no process could be started at all; ``error`` is what set-up said.
        """
        self.deaths = 0 if handle is not None and handle.finished > 0 else self.deaths + 1
        self.not_before = now + (min(most_s, 0.25 * 2.0 ** (self.deaths - 1)) if self.deaths > 1 else 0.0)
        if handle is None or not handle.device:
            self.setup_deaths += 1
        if error is None and self.setup_deaths >= MAX_SETUP_DEATHS:
            lost = WorkerLost("The model's worker process ends while it loads.", hint="See the server's log.")
            error = lost if handle else CapacityError("No worker can be started now.")  # not for good: nobody is to blame
        self.failure = error or self.failure
        return error

    def taken(self, workers: Iterable[Handle]) -> bool:
        """Whether a worker is here."""
        return any(worker.site is self for worker in workers)

    def state(self, workers: Iterable[Handle]) -> str:
        """``ready``, ``loading``, ``failing`` (it is tried again after a pause) or ``unloaded``."""
        states = {worker.state.value for worker in workers if worker.site is self}
        if "ready" in states:
            return "ready"
        if self.failure is not None:
            return "failing"
        return "loading" if self.starting or "starting" in states else "unloaded"


def openings(lane: Lane, lanes: Iterable[Lane], most: int) -> list[Site]:
    """Where another worker of the model may be started, ``most`` on each: the emptiest device first, then as listed."""

    def own(site: Site) -> int:
        return site.starting + sum(worker.site is site for worker in lane.workers)

    def everybody(site: Site) -> int:
        return sum(worker.site.device == site.device for other in lanes for worker in other.alive)

    found = [site for site in lane.sites if own(site) < most and not site.parked]
    return sorted(found, key=lambda site: (own(site), everybody(site)))


def others_load(device: str, lane: Lane, lanes: Iterable[Lane]) -> bool:
    """Whether another model loads there: one at a time on each device. One that is being fetched does not count."""
    others = [other for other in lanes if other is not lane and other.loading_on(device)]
    return any(other.setup.model_path is not None for other in others)


def least_loaded(lane: Lane, lanes: Iterable[Lane], solo: bool, minute_s: Callable[[str, str], float]) -> list[Handle]:
    """Workers that can take a job, the one first that would be done with it first; equal ones by what else their device does.

    The jobs of a worker share it, so one more of them takes as many times longer as there are. ``minute_s(model, device)``:
    predicted seconds on a device, which matter only where devices differ.
    """
    free = [worker for worker in lane.workers if worker.can_take(solo)]
    if len(free) < 2:
        return free
    one_kind = len({worker.site.kind for worker in free}) == 1
    at_work: dict[str, int] = {}
    for worker in (worker for other in lanes for worker in other.workers):
        at_work[worker.site.device] = at_work.get(worker.site.device, 0) + worker.load

    def burden(worker: Handle) -> tuple[float, int]:
        job_s = 1.0 if one_kind else minute_s(worker.model, worker.site.device)
        return (worker.load + 1) * job_s, at_work[worker.site.device]

    return sorted(free, key=burden)
