"""The pool: warm worker processes, one kind per model, that may die without anybody losing a job.

Why not a library: ``concurrent.futures`` is broken for ever by one abrupt death, pebble can deadlock on a lock that a
killed worker held, Celery cannot route to a warm model. Here every worker has a pipe of its own, the parent knows which
jobs each one holds, and nothing is shared, so a worker can be killed at any moment.

A caller takes a :class:`Slot` (waiting in line where all are busy), runs one attempt in it, and gives it back. Whether a
job whose worker died is tried again is the caller's business (:mod:`app.service`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from app import logs
from app.errors import Cancelled, ModelUnavailable, NotReady, StenopoolError, WorkerLost, by_code
from app.pool.handle import Handle, State
from app.pool.lane import Lane, PoolLimits, Waiter
from app.pool.slot import Slot
from app.pool.spawn import Spawner
from app.work import WorkerSetup

log = logging.getLogger("stenopool.pool")

MAX_BACKOFF_S = 30.0
MAX_SETUP_DEATHS = 3


class Pool:
    """See the module. ``setup_for(model)`` describes the worker of a model; ``now`` is a monotonic clock in seconds."""

    def __init__(
        self,
        spawner: Spawner,
        setup_for: Callable[[str], WorkerSetup],
        limits: PoolLimits,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spawner, self._setup_for, self._limits, self._now = spawner, setup_for, limits, now
        self._lanes: dict[str, Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # -- what callers use

    def warm(self, model: str) -> None:
        """Start the workers of ``model`` now and keep them."""
        lane = self._lane(model)
        lane.keep_warm = True
        self.pump(lane)

    async def acquire(self, model: str, *, solo: bool = False, front: bool = False) -> Slot:
        """Wait in line for a place in a worker of ``model``.

        Raises:
            NotReady: the pool is closed.
            StenopoolError: the model cannot be loaded.
        """
        if self._closed:
            raise NotReady("The server is shutting down.")
        lane = self._lane(model)
        if lane.failure is not None and not lane.workers and self._now() < lane.not_before:
            # it was tried a moment ago, and will be tried again soon
            raise by_code(lane.failure.code, lane.failure.message, lane.failure.hint)
        waiter = Waiter(solo, asyncio.get_running_loop().create_future())
        (lane.waiting.appendleft if front else lane.waiting.append)(waiter)
        self.pump(lane)
        try:
            handle = await waiter.granted
        except asyncio.CancelledError:
            self._withdraw(lane, waiter)
            raise
        return Slot(self, lane, handle, solo)

    def stats(self) -> dict[str, Any]:
        """What runs where, for ``/ready`` and tests."""
        return {
            name: {
                "workers": [
                    {"pid": w.child.pid, "state": w.state.value, "device": w.device, "running": len(w.running)}
                    for w in lane.workers
                ],
                "waiting": len(lane.waiting),
                "starting": lane.starting,
            }
            for name, lane in self._lanes.items()
        }

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
            self._fail_waiting(lane, NotReady("The server is shutting down."))
            for handle in lane.workers:
                handle.send("stop")
                self.kill(handle, "the pool closes")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._spawner.close()

    # -- the line

    def _lane(self, model: str) -> Lane:
        if model not in self._lanes:
            self._lanes[model] = Lane(self._setup_for(model))
        return self._lanes[model]

    def pump(self, lane: Lane) -> None:
        """Hand free places to those who wait, in order, and start workers that are missing."""
        if self._closed:
            return
        while lane.waiting:
            waiter = lane.waiting[0]
            free = [w for w in lane.workers if w.can_take(waiter.solo)]
            if not free:
                break
            lane.waiting.popleft()
            self._grant(lane, waiter, min(free, key=lambda w: w.load))
        self._refill(lane)

    def _grant(self, lane: Lane, waiter: Waiter, handle: Handle) -> None:
        if waiter.granted.done():
            return
        handle.reserved += 1
        handle.exclusive = waiter.solo
        lane.last_used = self._now()
        waiter.granted.set_result(handle)

    def _withdraw(self, lane: Lane, waiter: Waiter) -> None:
        if waiter in lane.waiting:
            lane.waiting.remove(waiter)
        elif waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
            Slot(self, lane, waiter.granted.result(), waiter.solo).__exit__()
        self.pump(lane)

    def _fail_waiting(self, lane: Lane, error: StenopoolError) -> None:
        while lane.waiting:
            waiter = lane.waiting.popleft()
            if not waiter.granted.done():
                waiter.granted.set_exception(error)

    # -- the workers

    def _refill(self, lane: Lane) -> None:
        wanted = self._limits.workers_per_model if (lane.waiting or lane.keep_warm) else 0
        missing = wanted - len(lane.workers) - lane.starting
        if missing <= 0:
            return
        self._evict_for(lane)
        for _ in range(missing):
            lane.starting += 1
            task = asyncio.create_task(self._live(lane))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _evict_for(self, lane: Lane) -> None:
        """End idle workers of other models, least recently used first; only a process's end gives memory back."""
        resident = [other for other in self._lanes.values() if other is not lane and (other.workers or other.starting)]
        surplus = len(resident) + 1 - self._limits.max_resident_models
        idle = sorted((other for other in resident if other.idle), key=lambda other: other.last_used)
        for other in idle[: max(0, surplus)]:
            other.keep_warm = False
            for handle in other.workers:
                self.kill(handle, f"evicted for {lane.setup.model}")

    async def _live(self, lane: Lane) -> None:
        """One worker's whole life; its end starts the next one where one is wanted."""
        logs.request_id.set(None)  # it lives longer than the request that made it necessary
        handle: Handle | None = None
        watchdog: asyncio.Task[None] | None = None
        error: StenopoolError | None = None
        try:
            await asyncio.sleep(max(0.0, lane.not_before - self._now()))
            lane.setup = self._setup_for(lane.setup.model)  # afresh: a missing model may have been put there since
            child = await self._spawner.start(lane.setup)
            handle = Handle(lane.setup.model, lane.setup.streams, child, last_pong=self._now())
            lane.workers.append(handle)
            lane.starting -= 1
            watchdog = asyncio.create_task(self._watch(lane, handle))
            await handle.listen(self._now)
            error = _setup_error(handle)
        except Exception:  # OSError, EOFError (the forkserver is gone), RuntimeError (no thread can be started) ...
            log.exception("a worker could not be started", extra={"model": lane.setup.model})
        finally:
            if handle is None:
                lane.starting -= 1
            else:
                await self._end(lane, handle, watchdog)
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
            error = WorkerLost("The model's worker process ends while it loads.", hint="See the server's log.")
        if error is not None and not any(worker.state is State.READY for worker in lane.workers):
            lane.failure = error
            self._fail_waiting(lane, error)
        self.pump(lane)

    async def _watch(self, lane: Lane, handle: Handle) -> None:
        """Deadline for set-up, then pings until the worker's end."""
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
        self.pump(lane)
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

    def kill(self, handle: Handle, reason: str, culprit: str | None = None) -> None:
        """SIGKILL. Jobs other than ``culprit`` see :class:`WorkerDied` and are tried again."""
        log.warning("killing worker: %s", reason, extra={"model": handle.model, "pid": handle.child.pid})
        running = handle.running.pop(culprit, None) if culprit else None
        if running is not None and not running.done.done():
            running.done.set_exception(Cancelled("The job was stopped."))
            running.done.exception()  # seen: nobody else will look
        handle.bury(blame=culprit is None)
        handle.child.kill()


def _setup_error(handle: Handle) -> StenopoolError | None:
    if handle.ready.done() and not handle.ready.cancelled():
        error = handle.ready.exception()
        return error if isinstance(error, StenopoolError) else None
    handle.ready.cancel()
    return None
