"""The pool: warm worker processes, one kind per model, that may die without anybody losing a job.

Why not a library: ``concurrent.futures`` is broken for ever by one abrupt death, pebble can deadlock on a lock that a
killed worker held, Celery cannot route to a warm model. Here every worker has a pipe of its own, the parent knows which
jobs each one holds, and nothing is shared, so a worker can be killed at any moment.

A caller takes a :class:`Slot`, runs one attempt in it, and gives it back. Who may take one, and when, is decided elsewhere
(:mod:`app.admission`), and whether a job whose worker died is tried again too (:mod:`app.service`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from app import logs
from app.errors import Cancelled, NotReady, StenopoolError, by_code
from app.pool import shown, sites
from app.pool.handle import Handle, State
from app.pool.lane import Desk, Lane, PoolLimits
from app.pool.residency import Residency
from app.pool.sites import Site
from app.pool.slot import Slot
from app.pool.spawn import Spawner
from app.pool.watch import set_up, setup_error, until_silent
from app.work import Blocked, WorkerSetup

log = logging.getLogger("stenopool.pool")


class Pool:
    """See the module. ``setup_for(model)`` describes the worker of a model; ``now`` is a monotonic clock in seconds.

    ``desk`` must be set before anything is started: it holds the memory ledger and hears of every change.
    """

    def __init__(
        self,
        spawner: Spawner,
        setup_for: Callable[[str], WorkerSetup],
        limits: PoolLimits,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spawner, self._setup_for, self._limits, self._now = spawner, setup_for, limits, now
        self.desk: Desk
        self._lanes: dict[str, Lane] = {}
        self._residency = Residency(self._lanes, limits, self._evict, self.kill, lambda: self.desk, now)
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = 0
        self._closed = False

    # -- what callers use

    def warm(self, model: str) -> None:
        """Start the workers of ``model`` now, or as soon as there is memory, and keep them."""
        lane = self._lane(model)
        lane.keep_warm = True
        self._fill(lane, frozenset({model}))

    def take(self, model: str, *, solo: bool = False, keep: frozenset[str] = frozenset()) -> Slot | Blocked | StenopoolError:
        """A place in a worker of ``model`` (``solo``: that no other job shares), or why there is none now, or ever.

        Where no worker is loaded, loading begins if it fits, at the cost of idle models that are not in ``keep``.
        """
        if self._closed:
            return NotReady("The server is shutting down.")
        lane = self._lane(model)
        lane.last_used = self._now()
        free = sites.least_loaded(lane, self._lanes.values(), solo, self.desk.minute_s)
        for handle in free:
            if self._residency.wake(handle, keep):
                self._spread(lane, handle)
                handle.reserved += 1
                handle.exclusive = solo
                return Slot(self, lane, handle, solo)
        if free:
            return Blocked.MEMORY
        failure = lane.failure
        if failure is not None and not lane.alive and all(self._now() < site.not_before for site in lane.sites):
            return by_code(failure.code, failure.message, failure.hint)  # it was tried a moment ago, and will be again soon
        lane.wanted = True
        for site in lane.sites:
            site.parked = False
        return self._fill(lane, keep | {model})

    def make_room(self, amount: int, keep: frozenset[str]) -> None:
        """End idle workers of models that are not in ``keep`` until ``amount`` bytes come back, which takes a moment."""
        self._residency.make_room(amount, keep)

    def tick(self, *, evict_idle: bool = False) -> None:
        """What time brings: idle models are unloaded, all of them under pressure; models to keep warm come back."""
        self._residency.tick(everything=evict_idle)
        for lane in self._lanes.values():
            if lane.keep_warm and not evict_idle:
                self._fill(lane, frozenset(self._lanes))

    def shed_newest(self) -> bool:
        """Kill the worker of the job that began last; its jobs see :class:`WorkerDied`. False where nothing runs.

        Nobody is to blame, but for a job that filled the memory although it had its worker to itself: it would go on for ever.
        """
        workers = [worker for lane in self._lanes.values() for worker in lane.workers if worker.running]
        if workers:
            newest = max(workers, key=lambda worker: max(one.since for one in worker.running.values()))
            self.kill(newest, "memory is nearly full", blame=newest.exclusive, of_memory=True)
        return bool(workers)

    def stats(self) -> dict[str, Any]:
        """What runs where, for ``/capacity`` and tests."""
        return shown.lanes(self._lanes)

    def devices(self) -> dict[str, Any]:
        """What each device does, and what fails there."""
        return shown.devices(self._lanes, self._limits.devices, self._now())

    def others(self) -> list[dict[str, Any]]:
        """Nobody else works for this machine."""
        return []

    def failures(self) -> dict[str, StenopoolError]:
        """Why models cannot be loaded, by model, as of the last try."""
        return {name: failure for name, lane in self._lanes.items() if (failure := lane.failure) is not None}

    @property
    def ready(self) -> bool:
        """Whether at least one worker can take a job."""
        return any(w.state is State.READY for lane in self._lanes.values() for w in lane.workers)

    async def close(self) -> None:
        """Kill every worker and wait for their ends; jobs that still run see :class:`WorkerDied`."""
        self._closed = True
        for lane in self._lanes.values():
            for site in lane.sites:
                if site.retry is not None:
                    site.retry.cancel()
            for handle in lane.workers:
                handle.send("stop")
                self.kill(handle, "the pool closes")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.desk.changed()
        self._spawner.close()

    def changed(self, lane: Lane) -> None:
        """A place of ``lane`` may have come free."""
        lane.last_used = self._now()
        for worker in lane.alive:
            self._residency.bill(worker)
        self.desk.changed()

    # -- the workers

    def _lane(self, model: str) -> Lane:
        if model not in self._lanes:
            self._lanes[model] = Lane(self._setup_for(model), tuple(Site(device) for device in self._limits.devices))
        return self._lanes[model]

    def _evict(self, lane: Lane, reason: str) -> None:
        lane.keep_warm = lane.wanted = False
        for handle in lane.alive:
            self.kill(handle, f"evicted, {reason}")

    def _spread(self, lane: Lane, handle: Handle) -> None:
        """A job is about to join another in a worker: have the model on another device soon, if that costs no other model."""
        if handle.load and any(not (site.starting or site.parked or site.taken(lane.workers)) for site in lane.sites):
            self._fill(lane, frozenset(self._lanes))

    def _fill(self, lane: Lane, keep: frozenset[str]) -> Blocked:
        """Start one missing worker if there is memory and nothing else is loading; why a job cannot start in the lane."""
        found, full = Blocked.LOADING if lane.loading else Blocked.BUSY, None
        for site in sites.openings(lane, self._lanes.values(), 0 if self._closed else self._limits.workers_per_model):
            if (pause_s := site.not_before - self._now()) > 0:  # it backs off, and holds no memory meanwhile
                if site.retry is None:
                    site.retry = asyncio.get_running_loop().call_later(pause_s, self._retry, lane, site)
                found = Blocked.LOADING
            elif sites.others_load(site.device, lane, self._lanes.values()):
                found = Blocked.LOADING
            elif (begun := self._begin(lane, site, frozenset(self._lanes))) is Blocked.LOADING:
                return begun
            else:
                full = full or site
        return found if full is None else self._begin(lane, full, keep)  # room is made on one device only

    def _begin(self, lane: Lane, site: Site, keep: frozenset[str]) -> Blocked:
        name = f"worker-{self._number + 1}"
        if not self._residency.has_place(lane, keep) or not self._residency.admit(name, lane.setup.model, site.device, keep):
            return Blocked.MEMORY
        self._number += 1
        site.starting += 1
        task = asyncio.create_task(self._live(lane, site, name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Blocked.LOADING

    def _retry(self, lane: Lane, site: Site) -> None:
        site.retry = None
        self._refill(lane)

    def _refill(self, lane: Lane) -> None:
        """Start what is missing of a model that is wanted, at no other one's cost."""
        if lane.keep_warm or lane.wanted:
            self._fill(lane, frozenset(self._lanes))

    async def _live(self, lane: Lane, site: Site, name: str) -> None:
        """One worker's whole life; its end starts the next one where one is wanted."""
        logs.request_id.set(None)  # it lives longer than the request that made it necessary
        handle: Handle | None = None
        watchdog: asyncio.Task[None] | None = None
        error: StenopoolError | None = None
        try:
            # afresh: a missing model may have been put there since, and prices change
            lane.setup = self.desk.sized(replace(self._setup_for(lane.setup.model), device=site.device))
            child = await self._spawner.start(lane.setup)
            handle = Handle(lane.setup.model, lane.setup.streams, child, site, name, self._idles, last_pong=self._now())
            lane.workers.append(handle)
            site.starting -= 1
            watchdog = asyncio.create_task(self._watch(lane, handle))
            await handle.listen(self._now)
            error = setup_error(handle)
        except Exception:  # OSError, EOFError (the forkserver is gone), RuntimeError (no thread) ...
            log.exception("a worker could not be started", extra={"model": lane.setup.model, "device": site.device})
        finally:
            if handle is None:
                site.starting -= 1
            else:
                await self._end(lane, handle, watchdog)
            self.desk.memory.drop(name)
            self.desk.left_device(site.device, name)
        self._after_death(lane, site, handle, error)

    async def _end(self, lane: Lane, handle: Handle, watchdog: asyncio.Task[None] | None) -> None:
        lane.workers.remove(handle)
        handle.bury()
        handle.child.kill()
        if watchdog is not None:
            watchdog.cancel()
        code = await asyncio.shield(handle.child.reap())
        log.warning("worker ended", extra={"model": handle.model, "pid": handle.child.pid, "exit_code": code})

    def _after_death(self, lane: Lane, site: Site, handle: Handle | None, error: StenopoolError | None) -> None:
        """Back off where workers die without finishing anything; give up on a model that cannot be set up on any device."""
        elsewhere = any(worker.state is State.READY for worker in lane.workers)
        error = site.ended(handle, error, self._now(), sites.MAX_SPARE_BACKOFF_S if elsewhere else sites.MAX_BACKOFF_S)
        if error is not None and len(lane.sites) > 1:
            pause_s = round(site.not_before - self._now(), 1)
            log.error("a device fails: %s", error.message, extra={"device": site.device, "pause_s": pause_s})
        if error is not None and not lane.loading and (failure := lane.failure) is not None:
            lane.wanted = False
            self.desk.failed(lane.setup.model, failure)
        self._refill(lane)
        self.desk.changed()

    def _idles(self, handle: Handle, kept: int) -> None:
        """It has nothing to do, and keeps so many bytes."""
        handle.kept_bytes = kept
        self._residency.bill(handle, self.desk.idles(handle.model, handle.site.device, kept))

    async def _watch(self, lane: Lane, handle: Handle) -> None:
        """Deadline for set-up, then pings until the worker's end."""
        began = self._now()
        reason = await set_up(handle, self._limits)
        if reason is None:
            self._ready(lane, handle, self._now() - began)
            await until_silent(handle, self._limits, self._now)
            reason = "no answer to pings"
        if reason:
            self.kill(handle, reason)

    def _ready(self, lane: Lane, handle: Handle, seconds: float) -> None:
        log.info("worker ready", extra={"model": handle.model, "pid": handle.child.pid, "device": handle.device})
        handle.site.ready()
        if handle.device_memory is not None:
            self.desk.on_device(handle.site.device, handle.name, handle.device_memory)
        billed = self.desk.loaded(handle.model, handle.site.device, handle.kept_bytes, handle.peak_bytes, seconds)
        self._residency.bill(handle, billed)
        self.changed(lane)
        if lane.keep_warm:  # on the next device
            self._refill(lane)

    def kill(
        self, handle: Handle, reason: str, culprit: str | None = None, *, blame: bool = True, of_memory: bool = False
    ) -> None:
        """SIGKILL. Jobs but ``culprit`` see :class:`WorkerDied` and are tried again; ``blame`` none if that is false."""
        log.warning("killing worker: %s", reason, extra={"model": handle.model, "pid": handle.child.pid})
        running = handle.running.pop(culprit, None) if culprit else None
        if running is not None and not running.done.done():
            running.done.set_exception(Cancelled("The job was stopped."))
            running.done.exception()  # seen: nobody else will look
        handle.bury(blame=blame and culprit is None, of_memory=of_memory)
        handle.child.kill()
