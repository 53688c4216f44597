"""Jobs that were acknowledged before their end: they go on without their caller, and after a restart of the server.

The row is the truth; what is kept here (progress, who listens) may be lost at any moment. A job's folder holds its input until
it has ended, and then its result until that is too old.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from app.admission.ticket import Phase, Ticket
from app.desk.desk import Desk
from app.errors import NotFound, StenopoolError
from app.intake import Source
from app.jobs import Job, Status
from app.rounds import happens
from app.runs import Progress, Runs, result_path
from app.settings import Settings
from app.store import AsyncStore

log = logging.getLogger("stenopool.background")

HEARTBEAT_S = 15.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0


@dataclass(eq=False)
class Live:
    """A background job that has not ended, in this process. ``changed`` is replaced whenever something changes."""

    job: Job
    ticket: Ticket
    task: asyncio.Task[None] | None = None
    stage: str = "queued"
    fraction: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Wake everybody who listens."""
        self.changed.set()
        self.changed = asyncio.Event()


class Background:
    """Takes jobs over (:meth:`accept`), goes on with those of the last boot (:meth:`resume`), shows and ends them."""

    def __init__(self, settings: Settings, store: AsyncStore, desk: Desk, runs: Runs) -> None:
        self._settings, self._store, self._desk, self._runs = settings, store, desk, runs
        self._live: dict[str, Live] = {}
        self._stopping = False
        self.on_end: list[Callable[[], None]] = []
        self._begun = asyncio.Event()

    # -- in

    async def accept(self, job: Job, folder: Path, source: Source, ticket: Ticket) -> Job:
        """Take over a job with its folder and its ticket. When this returns, the job will end, come what may.

        Raises:
            StenopoolError: it was not taken over.
        """
        job = replace(job, background=True, source=await self._runs.keep(job, folder, source))
        try:
            await self._store.run(self._store.sync.add, job)
        except BaseException:  # nobody knows whether it took place, and nobody is told that it did
            with contextlib.suppress(StenopoolError):
                await asyncio.shield(self._store.run(self._store.sync.cancel, job.id))
            await asyncio.shield(self._runs.discard(job.id))
            raise
        self._begin(job, folder, self._runs.source(job, folder), ticket)
        return job

    async def kept(self) -> dict[str, str]:
        """Folders that must stay: of jobs that go on ("": all of it), and of those that ended well the name of the result.

        Not of items of a batch that go on: they fetch their audio again.
        """
        jobs = await self._store.run(self._store.sync.of_background)
        return {job.id: _result_of(job) for job in jobs if job.batch_id is None or job.status.final}

    async def reclaim(self) -> list[Job]:
        """What the last boot had acknowledged and not ended; back in line, by its rows."""
        left = await self._store.run(self._store.sync.recover, self._settings.max_deaths)
        if left:
            log.warning("going on with the jobs of the last boot", extra={"count": len(left)})
        return left

    async def resume(self, left: list[Job]) -> None:
        """Go on with these jobs. They were let in once, so they are not asked again whether they fit."""
        for job in left:
            folder = self._settings.jobs_dir / job.id
            if self._stopping:
                return
            ask = self._desk.prices.transcription(job.owner, job.options, job.duration_s or 60.0)
            self._begin(job, folder, self._runs.source(job, folder), self._desk.jobs.join(ask))

    def _begin(self, job: Job, folder: Path, source: Source, ticket: Ticket) -> None:
        ticket.stays, ticket.ask = True, replace(ticket.ask, within_s=None)  # who comes back for it is never too late
        live = self._live[job.id] = Live(job, ticket)
        live.task = asyncio.create_task(self._run(live, folder, source))
        live.task.add_done_callback(lambda task: self._ended(live, task))  # also where it is cancelled before it begins
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        """Wake those who listen to items of a batch that are not in line yet."""
        self._begun.set()
        self._begun = asyncio.Event()

    def _ended(self, live: Live, task: asyncio.Task[None]) -> None:
        del self._live[live.job.id]
        self._desk.release(self._desk.jobs, live.ticket)
        live.tell()
        for tell in self.on_end:
            tell()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background job was left to the next start", exc_info=error, extra={"job_id": live.job.id})

    async def _run(self, live: Live, folder: Path, source: Source) -> None:
        """Until the row says that the job has ended; what fails for lack of disk, or in the store, is tried again."""
        job, pause_s = live.job, FIRST_PAUSE_S
        ended: bool | None = False

        def progress(stage: str, fraction: float) -> None:
            live.stage, live.fraction = stage, fraction
            live.tell()

        while True:
            if ended is None:
                ended = await self._settle(job)
            if ended is False:
                ended = await self._once(job, folder, source, live.ticket, progress)
            if ended:
                return
            self._desk.release(self._desk.jobs, live.ticket)  # its seat and its memory are for others while it pauses
            live.ticket = self._desk.jobs.join(live.ticket.ask)
            live.ticket.stays = True
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _once(self, job: Job, folder: Path, source: Source, ticket: Ticket, progress: Progress) -> bool | None:
        """Run it; then as :meth:`_settle`."""
        try:
            await self._runs.tidy(job, folder)
            result = await self._runs.run(job, folder, source, ticket, progress)
            await self._runs.discard(job.id, result.name)
            return True
        except asyncio.CancelledError:
            if self._stopping:
                await asyncio.shield(self._store.run(self._store.sync.hand_back, job.id))
            raise
        except Exception as error:
            if not isinstance(error, StenopoolError):
                log.exception("a background job failed", extra={"job_id": job.id})
        return await self._settle(job)

    async def _settle(self, job: Job) -> bool | None:
        """Whether the job has ended, one way or the other: only then its input may go; if not, it is back in line.

        None where the store cannot say: it must not be run before it is back in line, or it would look as if it was cancelled.
        """
        try:
            row = await self._store.run(self._store.sync.get, job.id)
            if row is None or row.status.final:  # it may have succeeded, although it looked otherwise
                await self._runs.discard(job.id, _result_of(row) if row is not None else "")
                return True
            await self._store.run(self._store.sync.hand_back, job.id)
            return False
        except StenopoolError:
            log.warning("the store cannot say how a job ended", extra={"job_id": job.id})
            return None

    # -- out

    async def get(self, job_id: str, owner: str) -> Job:
        """A job of ``owner``.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        job = await self._store.run(self._store.sync.get, job_id, owner)
        if job is None or not job.background:
            raise NotFound("There is no such job.", hint="It may have been deleted, or be too old.")
        return job

    def view(self, job: Job) -> dict[str, Any]:
        """What its owner may see of it, as JSON values. Times are seconds, or ISO 8601."""
        live = self._live.get(job.id)
        shown = job.to_wire()
        if live is not None and not job.status.final:
            waiting = live.ticket.phase is not Phase.RUNNING
            shown["stage"] = "queued" if waiting else live.stage
            shown["percent"] = 0.0 if waiting else round(100 * live.fraction, 1)
            shown |= self._desk.jobs.estimate(live.ticket).to_dict()
        return shown

    def items(self) -> list[Live]:
        """The items of batches that are in line or run now."""
        return [live for live in self._live.values() if live.job.batch_id is not None]

    async def wait(self, job_id: str) -> None:
        """Wait for the end of a job, or of this server."""
        while not self._stopping and (live := self._live.get(job_id)) is not None:
            await live.changed.wait()

    async def events(self, job: Job, last_id: str | None) -> AsyncIterator[tuple[str, dict[str, Any]] | None]:
        """What is to be seen of the job, with an id that says how far it is, whenever that changes and to its end.

        Every event is the whole picture, so whoever resumes behind ``last_id`` has missed nothing. None: nothing new.
        """
        while True:
            live = self._live.get(job.id)
            changed = live.changed if live is not None else self._begun if job.batch_id else None
            job = await self.get(job.id, job.owner)
            shown = self.view(job)
            number = f"{job.attempts}-{job.status.value}-{shown.get('stage', '')}-{shown.get('percent', '')}"
            if number != last_id:
                last_id = number
                yield number, shown
            if job.status.final or changed is None or self._stopping:
                return
            if not await happens(changed, HEARTBEAT_S):
                yield None

    async def list(self, owner: str, status: Status | None, limit: int, after: str | None) -> list[Job]:
        """Jobs of ``owner``, newest first."""
        return await self._store.run(self._store.sync.list, owner, status, limit, after, True)

    async def cancel(self, job: Job) -> None:
        """End a job that has not ended, and its engine call with it; forget one that has."""
        if job.status.final:
            await self.forget(job.id)
            return
        if not await self._store.run(self._store.sync.cancel, job.id):
            return  # it has just ended by itself
        await self.cut_off([job.id])

    async def cut_off(self, ids: Sequence[str]) -> None:
        """End the work of jobs whose rows were cancelled."""
        tasks = {live.task for live in map(self._live.get, ids) if live is not None and live.task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=HEARTBEAT_S)
        self._tell_waiting()
        await self.discard(ids)

    async def discard(self, ids: Sequence[str]) -> None:
        """Delete the files of jobs."""
        for job_id in ids:
            await self._runs.discard(job_id)

    async def forget(self, job_id: str) -> None:
        """Delete a job that has ended, with its result."""
        await self._store.run(self._store.sync.delete, job_id)
        await self._runs.discard(job_id)

    # -- the end of the server

    @property
    def stopping(self) -> bool:
        """Whether nobody new is started any more."""
        return self._stopping

    def drain(self) -> None:
        """Nobody new is started; listeners are let go."""
        self._stopping = True
        self._tell_waiting()
        for live in self._live.values():
            live.tell()

    async def stop(self, grace_s: float) -> None:
        """Let what runs end within ``grace_s`` seconds; the rest goes back into the line, on disk."""
        self.drain()
        running = {live.task for live in self._live.values() if live.task and live.ticket.phase is Phase.RUNNING}
        if running and grace_s > 0:
            await asyncio.wait(running, timeout=grace_s)
        left = [live.task for live in self._live.values() if live.task is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _result_of(job: Job) -> str:
    """The name of its result file; "" where there is none."""
    return result_path(Path(), job.attempts).name if job.status is Status.SUCCEEDED else ""
