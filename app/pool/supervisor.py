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
from typing import Any

from app import logs
from app.errors import Cancelled, CapacityError, ModelUnavailable, NotReady, StenopoolError, WorkerLost, by_code
from app.pool.handle import Handle, State
from app.pool.lane import Desk, Lane, PoolLimits
from app.pool.residency import Residency
from app.pool.slot import Slot
from app.pool.spawn import Spawner
from app.work import Blocked, WorkerSetup

log = logging.getLogger("stenopool.pool")

MAX_BACKOFF_S = 30.0
MAX_SETUP_DEATHS = 3


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
        self._residency = Residency(self._lanes, limits, self._evict, lambda: self.desk, now)
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
        free = sorted((worker for worker in lane.workers if worker.can_take(solo)), key=lambda worker: worker.load)
        for handle in free:
            if self._residency.wake(handle, keep):
                handle.reserved += 1
                handle.exclusive = solo
                return Slot(self, lane, handle, solo)
        if free:
            return Blocked.MEMORY
        if lane.failure is not None and not lane.alive and self._now() < lane.not_before:
            failure = lane.failure  # it was tried a moment ago, and will be tried again soon
            return by_code(failure.code, failure.message, failure.hint)
        lane.wanted = True
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
        return {
            name: {"workers": [worker.stats() for worker in lane.workers], "starting": lane.starting}
            for name, lane in self._lanes.items()
        }

    def others(self) -> list[dict[str, Any]]:
        """Nobody else works for this machine."""
        return []

    def failures(self) -> dict[str, StenopoolError]:
        """Why models cannot be loaded, by model, as of the last try."""
        return {name: lane.failure for name, lane in self._lanes.items() if lane.failure is not None}

    @property
    def ready(self) -> bool:
        """Whether at least one worker can take a job."""
        return any(w.state is State.READY for lane in self._lanes.values() for w in lane.workers)

    async def close(self) -> None:
        """Kill every worker and wait for their ends; jobs that still run see :class:`WorkerDied`."""
        self._closed = True
        for lane in self._lanes.values():
            if lane.retry is not None:
                lane.retry.cancel()
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
            self._lanes[model] = Lane(self._setup_for(model))
        return self._lanes[model]

    def _evict(self, lane: Lane, reason: str) -> None:
        lane.keep_warm = lane.wanted = False
        for handle in lane.alive:
            self.kill(handle, f"evicted, {reason}")

    def _fill(self, lane: Lane, keep: frozenset[str]) -> Blocked:
        """Start one missing worker if there is memory and nothing else is loading; why a job cannot start in the lane."""
        if self._closed or len(lane.workers) + lane.starting >= self._limits.workers_per_model:
            return Blocked.LOADING if lane.loading else Blocked.BUSY
        if (pause_s := lane.not_before - self._now()) > 0:  # it backs off, and holds no memory meanwhile
            if lane.retry is None:
                lane.retry = asyncio.get_running_loop().call_later(pause_s, self._retry, lane)
            return Blocked.LOADING
        others = [other for other in self._lanes.values() if other is not lane and other.loading]
        if any(other.setup.model_path is not None for other in others):
            return Blocked.LOADING  # one at a time; a model that is being fetched does not count
        amount = self.desk.load_bytes(lane.setup.model)
        if not self._residency.has_place(lane, keep):
            return Blocked.MEMORY
        self._number += 1
        name = f"worker-{self._number}"
        if not self.desk.memory.take(name, amount):
            self._residency.make_room(amount - self.desk.memory.free, keep)
            return Blocked.MEMORY
        lane.starting += 1
        task = asyncio.create_task(self._live(lane, name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Blocked.LOADING

    def _retry(self, lane: Lane) -> None:
        lane.retry = None
        if lane.keep_warm or lane.wanted:
            self._fill(lane, frozenset(self._lanes))

    async def _live(self, lane: Lane, name: str) -> None:
        """One worker's whole life; its end starts the next one where one is wanted."""
        logs.request_id.set(None)  # it lives longer than the request that made it necessary
        handle: Handle | None = None
        watchdog: asyncio.Task[None] | None = None
        error: StenopoolError | None = None
        try:
            # afresh: a missing model may have been put there since, and prices change
            lane.setup = self.desk.sized(self._setup_for(lane.setup.model))
            child = await self._spawner.start(lane.setup)
            handle = Handle(lane.setup.model, lane.setup.streams, child, name, self._idles, last_pong=self._now())
            lane.workers.append(handle)
            lane.starting -= 1
            watchdog = asyncio.create_task(self._watch(lane, handle))
            await handle.listen(self._now)
            error = _setup_error(handle)
        except Exception:  # OSError, EOFError (the forkserver is gone), RuntimeError (no thread) ...
            log.exception("a worker could not be started", extra={"model": lane.setup.model})
        finally:
            if handle is None:
                lane.starting -= 1
            else:
                await self._end(lane, handle, watchdog)
            self.desk.memory.drop(name)
        self._after_death(lane, handle, error)

    async def _end(self, lane: Lane, handle: Handle, watchdog: asyncio.Task[None] | None) -> None:
        lane.workers.remove(handle)
        handle.bury()
        handle.child.kill()
        if watchdog is not None:
            watchdog.cancel()
        code = await asyncio.shield(handle.child.reap())
        log.warning("worker ended", extra={"model": handle.model, "pid": handle.child.pid, "exit_code": code})

    def _after_death(self, lane: Lane, handle: Handle | None, error: StenopoolError | None) -> None:
        """Back off where workers die without finishing anything; give up on a model that cannot be set up."""
        useful = handle is not None and handle.finished > 0
        lane.deaths = 0 if useful else lane.deaths + 1
        pause = min(MAX_BACKOFF_S, 0.25 * 2.0 ** (lane.deaths - 1)) if lane.deaths > 1 else 0.0
        lane.not_before = self._now() + pause
        if handle is None or not handle.device:
            lane.setup_deaths += 1
        if error is None and lane.setup_deaths >= MAX_SETUP_DEATHS:
            lost = WorkerLost("The model's worker process ends while it loads.", hint="See the server's log.")
            error = lost if handle else CapacityError("No worker can be started now.")  # not for good: nobody is to blame
        if error is not None and not any(worker.state is State.READY for worker in lane.workers):
            lane.failure, lane.wanted = error, False
            self.desk.failed(lane.setup.model, error)
        if lane.keep_warm or lane.wanted:
            self._fill(lane, frozenset(self._lanes))
        self.desk.changed()

    def _idles(self, handle: Handle, kept: int) -> None:
        """It has nothing to do, and keeps so many bytes."""
        handle.kept_bytes = kept
        self._residency.bill(handle, self.desk.idles(handle.model, kept))

    async def _watch(self, lane: Lane, handle: Handle) -> None:
        """Deadline for set-up, then pings until the worker's end."""
        began = self._now()
        try:
            await asyncio.wait_for(asyncio.shield(handle.ready), self._limits.setup_timeout_s)
        except asyncio.TimeoutError:
            error = ModelUnavailable(
                f"The model {handle.model!r} took too long to load.", hint="Raise STENOPOOL_SETUP_TIMEOUT_S."
            )
            handle.ready.set_exception(error)
            self.kill(handle, "set-up took too long")
            return
        except StenopoolError:
            return
        log.info("worker ready", extra={"model": handle.model, "pid": handle.child.pid, "device": handle.device})
        lane.failure, lane.setup_deaths = None, 0
        billed = self.desk.loaded(handle.model, handle.kept_bytes, handle.peak_bytes, self._now() - began)
        self._residency.bill(handle, billed)
        self.changed(lane)
        await self._ping(handle)
        self.kill(handle, "no answer to pings")

    async def _ping(self, handle: Handle) -> None:
        """Return when pings stay unanswered. Counted in pings, so that a paused server does not kill healthy workers."""
        number = missed = 0
        while missed * self._limits.ping_interval_s < self._limits.ping_timeout_s:
            sent_at, number = self._now(), number + 1
            handle.send("ping", n=number)
            await asyncio.sleep(self._limits.ping_interval_s)
            missed = 0 if handle.last_pong >= sent_at else missed + 1

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


def _setup_error(handle: Handle) -> StenopoolError | None:
    if handle.ready.done() and not handle.ready.cancelled():
        error = handle.ready.exception()
        return error if isinstance(error, StenopoolError) else None
    handle.ready.cancel()
    return None
