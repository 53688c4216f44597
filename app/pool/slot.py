"""The right to run one job in one worker."""

from __future__ import annotations

import asyncio
from typing import Protocol

from app.errors import DeadlineExceeded, StenopoolError
from app.pool.handle import Handle, Measured, Progress, Running, State, WorkerDied
from app.pool.lane import Lane
from app.work import Task

CANCEL_GRACE_S = 5.0


class Host(Protocol):
    """What a slot needs of its pool."""

    def changed(self, lane: Lane) -> None:
        """A place may have come free."""

    def kill(self, handle: Handle, reason: str, culprit: str | None = None) -> None:
        """End a worker; its jobs other than ``culprit`` see :class:`WorkerDied`."""


class Slot:
    """The right to run one job in one worker. Use as a context manager."""

    def __init__(self, host: Host, lane: Lane, handle: Handle, solo: bool) -> None:
        self._host, self._lane, self._handle, self._solo = host, lane, handle, solo
        self._held = True

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_up()
        if self._solo:
            self._handle.exclusive = False
        self._host.changed(self._lane)

    def _give_up(self) -> None:
        if self._held:
            self._held = False
            self._handle.reserved -= 1

    async def run(self, task: Task, timeout_s: float, progress: Progress | None = None) -> Measured:
        """Run one attempt; when it returns, the result file is on disk.

        Raises:
            WorkerDied: the process ended; the job may be tried again.
            DeadlineExceeded: it ran for more than ``timeout_s`` seconds (its worker was killed).
            StenopoolError: what the engine said of the job.
        """
        handle = self._handle
        self._give_up()
        if handle.state is State.DEAD:
            raise WorkerDied(alone=False)
        running = handle.begin(task, progress)
        try:
            return await asyncio.wait_for(asyncio.shield(running.done), timeout_s)
        except asyncio.TimeoutError:
            self._host.kill(handle, f"job {task.job_id} ran over its deadline", culprit=task.job_id)
            raise DeadlineExceeded("The transcription took longer than it may.") from None
        except asyncio.CancelledError:
            await self._cancel(running, timeout_s)
            raise

    async def _cancel(self, running: Running, timeout_s: float) -> None:
        """Ask the worker to stop at its next batch; kill it where it does not.

        Where it has other jobs, they matter more than the place: it may go on to its next batch or its deadline.
        """
        handle, job_id = self._handle, running.task.job_id
        handle.send("cancel", job_id=job_id)
        try:
            await asyncio.wait_for(asyncio.shield(running.done), CANCEL_GRACE_S)
        except asyncio.TimeoutError:
            if handle.load == 1:
                self._host.kill(handle, f"job {job_id} did not stop", culprit=job_id)
            else:
                late = asyncio.get_running_loop().call_later(timeout_s, self._kill_if_running, running)
                running.done.add_done_callback(lambda done: self._forget(done, late))
        except (StenopoolError, WorkerDied):
            return

    def _kill_if_running(self, running: Running) -> None:
        if not running.done.done():
            self._host.kill(self._handle, f"job {running.task.job_id} did not stop", culprit=running.task.job_id)

    def _forget(self, done: asyncio.Future[Measured], late: asyncio.TimerHandle) -> None:
        """An abandoned job has ended: nobody asks how, and its place is free."""
        late.cancel()
        if not done.cancelled():
            done.exception()
        self._host.changed(self._lane)
