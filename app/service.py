"""The use cases: transcribe, extract audio, download. Knows the way of a job; knows nothing of HTTP.

A transcription: a ticket at the desk → a folder of its own → a committed row → decode → its turn in a worker, once per
attempt → the result file → the row is finished if the attempt still matches → the folder is gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

from app import catalogue
from app.admission.controller import Controller
from app.admission.ticket import Ask, Ticket
from app.desk.desk import Desk
from app.errors import Cancelled, NotReady, OutOfMemory, StenopoolError, WorkerLost
from app.formats import Transcript
from app.intake import Intake, Source
from app.jobs import Job, Status, TranscribeOptions, new_id
from app.lock import claim
from app.media.decode import Decoded
from app.media.download import Downloaded
from app.media.extract import Extracted, ExtractOptions, extract
from app.media.paths import free_bytes
from app.media.process import MB
from app.pool.handle import WorkerDied
from app.pool.supervisor import Pool
from app.settings import Settings
from app.store import AsyncStore
from app.work import Task, WorkerSetup

log = logging.getLogger("stenopool.service")

Progress = Callable[[str, float], None]


def worker_setup(settings: Settings, model: str, engine: str = "app.engine.pipeline") -> WorkerSetup:
    """What the worker of ``model`` must know."""
    spec = catalogue.MODELS[model]
    path = catalogue.local_path(model, settings)
    return WorkerSetup(
        model=model,
        engine=engine,
        model_path=str(path) if path else None,
        repo=spec.repo,
        aligner_path=str(catalogue.DEMO_ALIGNER) if model == "demo" else None,
        hub_dir=str(catalogue.hub_cache(settings)),
        models_dir=str(settings.models_dir.resolve()) if settings.models_dir else None,
        offline=settings.offline,
        device=settings.device,
        align_device=settings.align_device,
        compute_type=settings.compute_type,
        streams=settings.stream_count,
        threads=settings.thread_count,
        batch_size=settings.batch_size,
        runners=settings.runner_count,
        batch_wait_s=settings.batch_wait_ms / 1000,
    )


class Service:
    """Everything behind the routes. ``pool`` runs the engine; ``store`` keeps the rows."""

    def __init__(self, settings: Settings, store: AsyncStore, pool: Pool, desk: Desk) -> None:
        self.settings, self.store, self.pool, self.desk = settings, store, pool, desk
        self._intake = Intake(settings, desk)
        self._stopping = False
        self._lock: int | None = None

    # -- life

    async def start(self) -> None:
        """Make the folders, clear what the last boot left behind, warm the models.

        Raises:
            StenopoolError: another running server uses the data folder.
        """
        self._lock = claim(self.settings.data_dir)
        for folder in (self.settings.jobs_dir, self.settings.media_dir):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self.store.run(self.store.sync.create_schema)
        left = await self.store.run(self.store.sync.interrupt_all)
        if left:
            log.warning("jobs were interrupted by the last stop", extra={"count": len(left)})
        await asyncio.to_thread(_sweep, self.settings.jobs_dir)
        await self.desk.start()
        for model in self.warm_models():
            self.pool.warm(model)

    def warm_models(self) -> tuple[str, ...]:
        """The models to load at start."""
        if self.settings.warm_models:
            return self.settings.warm_models
        wanted = self.settings.model_size
        return (wanted if catalogue.local_path(wanted, self.settings) else "demo",)

    def drain(self) -> None:
        """Take no new work from now on."""
        self._stopping = True

    async def stop(self) -> None:
        """End everything; what still runs is cut off."""
        self.drain()
        await self.desk.stop()
        await self.pool.close()
        await self.store.close()
        if self._lock is not None:
            os.close(self._lock)

    def not_ready_because(self) -> list[str]:
        """Why no work can be taken now; empty where it can."""
        free = free_bytes(self.settings.jobs_dir) if self.settings.jobs_dir.is_dir() else 0
        reasons = {
            "shutting down": self._stopping,
            "no worker is ready yet": not self.pool.ready,
            "too little free disk": free < self.settings.disk_reserve_mb * MB,
            "the queue is full": self.desk.jobs.is_full,
            "memory is low": self.desk.jobs.closed_because is not None,
        }
        failed = [f"{model}: {error.message}" for model, error in self.pool.failures().items()]
        return [reason for reason, holds in reasons.items() if holds] + (failed if not self.pool.ready else [])

    @contextmanager
    def admitted(self, controller: Controller, ask: Ask, upload_bytes: int | None) -> Iterator[Ticket]:
        """Let a request in at one of the desk's controllers, before its body is read, until it ends.

        Raises:
            StenopoolError: the caller must go away, or come back later.
        """
        if self._stopping:
            raise NotReady("The server is shutting down.", retry_after_s=5)
        ticket = self.desk.enter(controller, ask, upload_bytes)
        try:
            yield ticket
        finally:
            self.desk.release(controller, ticket)

    # -- use cases

    @asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """A private folder that is gone at the end."""
        path = self.settings.jobs_dir / new_id()
        path.mkdir(0o700)  # not in a thread: a cancelled caller would leave behind what the thread still makes
        try:
            yield path
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, path, True))

    async def transcribe(
        self,
        owner: str,
        folder: Path,
        source: Source,
        options: TranscribeOptions,
        ticket: Ticket,
        progress: Progress | None = None,
    ) -> Transcript:
        """Run one transcription to its end.

        Raises:
            StenopoolError: what went wrong; the row says the same.
        """
        job = Job(folder.name, owner, options, self.store.sync.now())
        try:
            await self.store.run(self.store.sync.add, job)  # inside: a cancelled caller does not know whether it took place
            self._settle(ticket, options, ticket.audio_s)  # the model may stand in the form
            input_file = await self._intake.fetch(owner, folder, source)
            decoded = await self._intake.decode(owner, input_file, folder)
            await self.store.run(self.store.sync.set_duration, job.id, decoded.duration_s)
            self._settle(ticket, options, decoded.duration_s)
            self.desk.disk.resize(ticket.name, 0)  # it is on the disk now
            return await self._attempts(job, folder, decoded, ticket, progress)
        except asyncio.CancelledError:
            await asyncio.shield(self.store.run(self.store.sync.cancel, job.id))
            raise
        except StenopoolError as error:
            await asyncio.shield(self.store.run(self.store.sync.fail, job.id, error))
            raise
        except Exception:
            await asyncio.shield(self.store.run(self.store.sync.fail, job.id, StenopoolError()))
            raise

    async def extract_audio(
        self, owner: str, folder: Path, source: Source, options: ExtractOptions, ticket: Ticket
    ) -> tuple[str, Extracted]:
        """Make an audio file in the owner's media folder; its media path, and what it is."""
        media_path, target = await self._intake.new_media(owner, f".{options.format}")
        input_file = await self._intake.fetch(owner, folder, source)
        async with self._intake.turn(self.desk.media, ticket):
            return media_path, await extract(input_file, target, options, self.settings)

    async def download(self, owner: str, folder: Path, url: str, ticket: Ticket) -> tuple[str, Downloaded]:
        """Fetch media from elsewhere into the owner's media folder; its media path, and what it is."""
        found = await self._intake.download(url, folder, ticket)
        media_path, target = await self._intake.new_media(owner, found.path.suffix)
        await asyncio.to_thread(shutil.move, found.path, target)  # a rename, or a copy to another file system
        return media_path, found

    # -- steps

    def _settle(self, ticket: Ticket, options: TranscribeOptions, audio_s: float) -> None:
        asked, ask = ticket.ask, self.desk.prices.transcription(ticket.key, options, audio_s)
        ask = replace(ask, within_s=asked.within_s, fingerprint=asked.fingerprint, quota=asked.quota)
        self.desk.jobs.settle(ticket, ask)

    async def _attempts(
        self, job: Job, folder: Path, decoded: Decoded, ticket: Ticket, progress: Progress | None
    ) -> Transcript:
        """Try until it works, fails, or has ended its worker ``max_deaths`` times.

        After the first death the job runs in a worker of its own, so that it is clear who is to blame; a death that
        others may have caused is not counted.
        """
        timeout_s = self.settings.job_timeout_s + self.settings.job_timeout_factor * decoded.duration_s
        line_s = self.settings.queue_timeout_s
        deaths, of_memory = 0, False
        while deaths < self.settings.max_deaths:
            waited_s = time.monotonic() - ticket.entered_at
            slot = await self.desk.turn(self.desk.jobs, ticket, line_s if ticket.solo else max(0.0, line_s - waited_s))
            assert slot is not None
            with slot:
                started = await self.store.run(self.store.sync.start, job.id)
                if started is None:
                    raise Cancelled("The job was cancelled.")
                result, batch = folder / f"result-{started.attempts}.json", self.desk.batch_size(job.options.model)
                path = str(decoded.path)
                task = Task(job.id, started.attempts, path, str(result), job.options, ticket.bytes, batch)
                try:
                    measured = await slot.run(task, timeout_s, self._watched(ticket, job.options, progress))
                    self.desk.prices.learn_job(job.options, decoded.duration_s, measured)
                    return await self._finish(job.id, started.attempts, result)
                except WorkerDied as death:
                    deaths += death.alone
                    of_memory = await self._died(job, death)
                    await self.store.run(self.store.sync.requeue, job.id, started.attempts, charge=death.alone)
            self.desk.again(ticket)
        kind = OutOfMemory if of_memory else WorkerLost
        raise kind(
            f"This audio ended its worker process {deaths} times.",
            hint=None if of_memory else "The audio is damaged or too large; try another encoding.",
        )

    def _watched(self, ticket: Ticket, options: TranscribeOptions, progress: Progress | None) -> Progress:
        """Tells the desk how far the job is, where that says how long it will take (alignment comes on top)."""

        def report(stage: str, fraction: float) -> None:
            if stage == "transcribe" and not options.word_timestamps:
                self.desk.jobs.progressed(ticket, fraction)
            if progress is not None:
                progress(stage, fraction)

        return report

    async def _died(self, job: Job, death: WorkerDied) -> bool:
        """Whether it was for lack of memory; the next such job is billed more then."""
        of_memory = await self.desk.died_of_memory()
        if of_memory and death.alone:
            self.desk.prices.learn_death(job.options.model)
        return of_memory

    async def _finish(self, job_id: str, attempt: int, result: Path) -> Transcript:
        transcript = Transcript.from_dict(json.loads(await asyncio.to_thread(result.read_bytes)))
        if not await self.store.run(self.store.sync.finish, job_id, attempt, Status.SUCCEEDED):
            raise Cancelled("The job was cancelled.")
        return transcript


def _sweep(jobs_dir: Path) -> None:
    for leftover in jobs_dir.iterdir():
        shutil.rmtree(leftover, ignore_errors=True)
