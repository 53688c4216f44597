"""One job's way from its input to its result: decode → its turn in a worker, once per attempt → the row is finished."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from app.admission.ticket import Ticket
from app.desk.desk import Desk
from app.durable import keep_safe, room
from app.errors import Cancelled, CapacityError, DiskFull, NotFound, OutOfMemory, StenopoolError, WorkerLost
from app.intake import Intake, Source, source_of
from app.jobs import Job, Status, TranscribeOptions
from app.media.decode import Decoded
from app.media.paths import discard_tree, remove_tree
from app.pool.handle import Measured, WorkerDied
from app.settings import Settings
from app.store import AsyncStore, Store
from app.work import Task

Progress = Callable[[str, float], None]

TRANSIENT = (CapacityError, DiskFull)
"""The store does not answer, the disk is full, or there are no descriptors or processes: not the job's fault, and soon over."""


def result_path(folder: Path, attempt: int) -> Path:
    """Where the result of an attempt lies in the job's folder."""
    return folder / f"result-{attempt}.json"


class Watcher(Protocol):
    """Something that looks after something else, for ever."""

    async def watch(self) -> None:
        """To be cancelled at the end."""
        ...


class Runs:
    """Runs jobs whose row is committed and whose ticket was let in."""

    def __init__(self, settings: Settings, store: AsyncStore, desk: Desk, intake: Intake) -> None:
        self._settings, self._store, self._desk, self._intake = settings, store, desk, intake

    async def run(self, job: Job, folder: Path, source: Source, ticket: Ticket, progress: Progress | None = None) -> Path:
        """Run one job to its end; its result, in ``folder``. A caller that is cancelled has to say what becomes of the row.

        Raises:
            StenopoolError: what went wrong; the row says the same. But a background job does not end for ``TRANSIENT``
                errors: it may be run again.
        """
        try:
            self.settle(ticket, job.options, ticket.audio_s)  # the model may stand in the form
            keep = job.background and source.upload is not None  # others are fetched again
            with room():
                input_file = await self._intake.fetch(job.owner, folder, source)
                decoded = await self._intake.decode(job.owner, input_file, folder, keep=keep)
                if job.background:  # somebody may look at it while it waits
                    await self._store.run(self._store.sync.set_duration, job.id, decoded.duration_s)
                self.settle(ticket, job.options, decoded.duration_s)
                self._desk.disk.resize(ticket.name, 0)  # it is on the disk now
                return await self._attempts(job, folder, decoded, ticket, progress)
        except StenopoolError as error:
            if not (job.background and type(error) in TRANSIENT):
                await asyncio.shield(self._store.run(self._rows(job).fail, job.id, error))
            raise
        except Exception:
            await asyncio.shield(self._store.run(self._rows(job).fail, job.id, StenopoolError()))
            raise

    def _rows(self, job: Job) -> Store:
        """For rows that must survive a power cut, or not: a caller who waits is told of one by its connection."""
        return self._store.sync if job.background else self._store.passing

    def watchers(self) -> tuple[Watcher, ...]:
        """What is to be watched beside the jobs."""
        return ()

    # -- where inputs and results lie

    async def keep(self, job: Job, folder: Path, source: Source) -> dict[str, str]:
        """Make the input of a job safe, before it is acknowledged; where it is, as the row keeps it.

        Raises:
            StenopoolError: it is not to be had, or there is no room for it.
        """
        if source.url:
            return {"url": source.url}
        upload = await self._intake.fetch(job.owner, folder, source)
        await asyncio.to_thread(keep_safe, upload)
        return {"file": upload.name}

    def source(self, job: Job, folder: Path) -> Source:
        """The input that :meth:`keep` has kept."""
        return source_of(job.source or {}, folder)

    async def tidy(self, job: Job, folder: Path) -> None:
        """A folder for another try, with nothing in it but the input: a full disk needs the room."""
        await asyncio.to_thread(remove_tree, folder, (job.source or {}).get("file", ""))
        folder.mkdir(0o700, exist_ok=True)  # noqa: ASYNC240  (in a thread, what a cancelled job still makes would stay)

    async def result(self, job: Job) -> Path:
        """The result file of a job that has succeeded.

        Raises:
            NotFound: it is gone.
        """
        path = result_path(self._settings.jobs_dir / job.id, job.attempts)
        if not await asyncio.to_thread(path.is_file):
            raise NotFound("The result of this job is gone.")
        return path

    async def discard(self, job_id: str, kept: str = "") -> None:
        """Delete everything of a job but the result file of that name."""
        await asyncio.to_thread(discard_tree, self._settings.jobs_dir / job_id, kept)

    # -- the run

    def settle(self, ticket: Ticket, options: TranscribeOptions, audio_s: float) -> None:
        """Correct the price, now that more is known.

        Raises:
            StenopoolError: as :meth:`app.admission.controller.Controller.settle`.
        """
        asked, ask = ticket.ask, self._desk.prices.transcription(ticket.key, options, audio_s)
        ask = replace(ask, within_s=asked.within_s, fingerprint=asked.fingerprint, quota=asked.quota)
        self._desk.jobs.settle(ticket, ask)

    async def _attempts(self, job: Job, folder: Path, decoded: Decoded, ticket: Ticket, progress: Progress | None) -> Path:
        """Try until it works, fails, or has ended its worker ``max_deaths`` times.

        After the first death the job runs in a worker of its own, so that it is clear who is to blame; a death that
        others may have caused is not counted.
        """
        timeout_s = self._settings.job_timeout_s + self._settings.job_timeout_factor * decoded.duration_s
        line_s = math.inf if job.background else self._settings.queue_timeout_s
        deaths, of_memory = 0, False
        while deaths < self._settings.max_deaths:
            waited_s = time.monotonic() - ticket.entered_at
            slot = await self._desk.turn(self._desk.jobs, ticket, line_s if ticket.solo else max(0.0, line_s - waited_s))
            assert slot is not None
            with slot:
                started = await self._store.run(self._rows(job).start, job.id, decoded.duration_s)
                if started is None:
                    raise Cancelled("The job was cancelled.")
                result, batch = result_path(folder, started.attempts), self._desk.batch_size(job.options.model)
                task = Task(
                    job.id,
                    started.attempts,
                    str(decoded.path),
                    str(result),
                    job.options,
                    reserved_bytes=ticket.bytes,
                    batch_size=batch,
                    lasting=job.background,
                    pcm_start=decoded.start,
                    pcm_bytes=decoded.length,
                )
                try:
                    measured = await slot.run(task, timeout_s, self._watched(ticket, job.options, progress))
                    self._desk.prices.learn_job(job.options, decoded.duration_s, measured)
                    return await self._finish(job, started.attempts, result, measured)
                except WorkerDied as death:
                    deaths += death.alone
                    of_memory = await self._died_of_memory(job, death)
                    await self._store.run(self._rows(job).requeue, job.id, started.attempts, charge=death.alone)
            self._desk.again(ticket)
        kind = OutOfMemory if of_memory else WorkerLost
        raise kind(
            f"This audio ended its worker process {deaths} times.",
            hint=None if of_memory else "The audio is damaged or too large; try another encoding.",
        )

    def _watched(self, ticket: Ticket, options: TranscribeOptions, progress: Progress | None) -> Progress:
        """Tells the desk how far the job is, where that says how long it will take (alignment comes on top)."""

        def report(stage: str, fraction: float) -> None:
            if stage == "transcribe" and options.word_timestamps != "aligned":
                self._desk.jobs.progressed(ticket, fraction)
            if progress is not None:
                progress(stage, fraction)

        return report

    async def _died_of_memory(self, job: Job, death: WorkerDied) -> bool:
        """Whether it was for lack of memory; the next such job is billed more then."""
        of_memory = death.of_memory or await self._desk.died_of_memory()
        if of_memory and death.alone:
            self._desk.prices.learn_death(job.options.model)
        return of_memory

    async def _finish(self, job: Job, attempt: int, result: Path, measured: Measured) -> Path:
        if not await self._store.run(self._rows(job).finish, job.id, attempt, Status.SUCCEEDED):
            raise Cancelled("The job was cancelled.")
        return result
