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
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from app import catalogue
from app.admission import refusals
from app.admission.controller import Controller
from app.admission.ticket import Ask, Ticket
from app.background import Background
from app.batches import Batches
from app.desk.desk import Desk
from app.errors import InputError, by_code
from app.formats import Transcript
from app.intake import Intake, Source
from app.jobs import Job, Status, TranscribeOptions, new_id
from app.lock import claim
from app.media.download import Downloaded
from app.media.extract import Extracted, ExtractOptions, extract
from app.media.paths import discard_tree, free_bytes, remove_tree
from app.media.process import MB
from app.pool.interface import AnyPool
from app.retention import Retention
from app.runs import Progress, Runs, Watcher
from app.settings import Settings
from app.store import AsyncStore
from app.uploads.uploads import Uploads
from app.webhooks import Webhooks

log = logging.getLogger("stenopool.service")


@dataclass(frozen=True)
class Repeatable:
    """A request that may be sent again: under which key, and what it says (a hash)."""

    key: str
    request_hash: str


class Service:
    """Everything behind the routes. ``pool`` runs the engine, or knows who does; ``store`` keeps the rows."""

    def __init__(self, settings: Settings, store: AsyncStore, pool: AnyPool, desk: Desk, runs: Runs | None = None) -> None:
        self.settings, self.store, self.pool, self.desk = settings, store, pool, desk
        self._intake = Intake(settings, desk)
        self.runs = runs or Runs(settings, store, desk, self._intake)
        self.background = Background(settings, store, desk, self.runs)
        self.uploads = Uploads(settings, desk, self._intake)
        self._retention = Retention(settings, store, self.background.forget)
        self.webhooks = Webhooks(settings, store, self.background.view)
        self.background.on_end.append(self.webhooks.wake)
        self.batches = Batches(settings, store, desk, self.background, self.webhooks)
        self._watching: list[asyncio.Task[None]] = []
        self._stopping_since: float | None = None
        self._lock: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- life

    async def start(self) -> None:
        """Make the folders, clear what the last boot left behind, warm the models.

        Raises:
            StenopoolError: another running server uses the data folder.
        """
        self._loop = asyncio.get_running_loop()
        self._lock = claim(self.settings.data_dir)
        for folder in (self.settings.jobs_dir, self.settings.media_dir, self.settings.uploads_dir):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self.store.run(self.store.sync.create_schema)
        left = await self.store.run(self.store.sync.interrupt_all)
        if left:
            log.warning("jobs were interrupted by the last stop", extra={"count": len(left)})
        acknowledged = await self.background.reclaim()
        await asyncio.to_thread(_sweep, self.settings.jobs_dir, await self.background.kept())
        await self.uploads.recover()
        await self.desk.start()
        for model in catalogue.warm_models(self.settings):
            self.pool.warm(model)
        await self.background.resume(acknowledged)
        await self.batches.feeder.resume()
        own: tuple[Watcher, ...] = (self._retention, self.webhooks, self.batches.feeder, self.uploads)
        self._watching = [asyncio.create_task(one.watch()) for one in own + self.runs.watchers()]

    def drain(self) -> None:
        """Take and start no new work from now on; what runs may end. Background jobs that wait stay in line, on disk."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            self.desk.drain()
            self.background.drain()
            self.uploads.drain()

    def drain_soon(self) -> None:
        """:meth:`drain`, from a signal handler or another thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.drain)

    async def stop(self) -> None:
        """End everything. Background jobs that run may end within what is left of the grace time, others are cut off."""
        self.drain()
        assert self._stopping_since is not None
        await self.background.stop(self.settings.shutdown_grace_s - (time.monotonic() - self._stopping_since))
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await self.desk.stop()
        await self.pool.close()
        await self.store.close()
        if self._lock is not None:
            os.close(self._lock)

    def not_ready_because(self) -> list[str]:
        """Why no work can be taken now; empty where it can."""
        free = free_bytes(self.settings.jobs_dir) if self.settings.jobs_dir.is_dir() else 0
        reasons = {
            "shutting down": self._stopping_since is not None,
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
        if self._stopping_since is not None:
            raise refusals.stopping()
        ticket = self.desk.enter(controller, ask, upload_bytes)
        try:
            yield ticket
        finally:
            if not ticket.stays:
                self.desk.release(controller, ticket)

    # -- use cases

    @asynccontextmanager
    async def folder(self, ticket: Ticket | None = None) -> AsyncIterator[Path]:
        """A private folder that is gone at the end, unless ``ticket`` stays."""
        path = self.settings.jobs_dir / new_id()
        path.mkdir(0o700)  # not in a thread: a cancelled caller would leave behind what the thread still makes
        try:
            yield path
        finally:
            if ticket is None or not ticket.stays:
                await asyncio.shield(asyncio.to_thread(discard_tree, path))

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
            await self.store.run(self.store.passing.add, job)  # inside: a cancelled caller does not know whether it took place
            result = await self.runs.run(job, folder, source, ticket, progress)
        except asyncio.CancelledError:
            await asyncio.shield(self.store.run(self.store.passing.cancel, job.id))
            raise
        return await read_result(result)

    async def accept(
        self,
        owner: str,
        folder: Path,
        source: Source,
        options: TranscribeOptions,
        ticket: Ticket,
        response_format: str,
        repeatable: Repeatable | None = None,
        webhook_url: str | None = None,
    ) -> Job:
        """Take a transcription over that goes on without its caller; or the job of the same request, if that came first.

        Raises:
            StenopoolError: it was not taken over.
        """
        self.runs.settle(ticket, options, ticket.audio_s)  # the model may stand in the form
        if webhook_url is not None:
            await self.webhooks.check(webhook_url)
        now = self.store.sync.now()
        job = Job(folder.name, owner, options, now, response_format=response_format, webhook_url=webhook_url)
        if repeatable is None:
            return await self.background.accept(job, folder, source, ticket)
        job = replace(job, idempotency_key=repeatable.key, request_hash=repeatable.request_hash)
        try:
            return await self.background.accept(job, folder, source, ticket)
        except ValueError:  # both came at the same time
            if (first := await self.first(owner, repeatable)) is None:
                raise
            return first

    async def first(self, owner: str, repeatable: Repeatable) -> Job | None:
        """The job of the same request, if it came before; not one that was cancelled, or failed for a passing reason.

        Raises:
            InputError: another request came under this key.
        """
        job = await self.store.run(self.store.sync.by_key, owner, repeatable.key)
        if job is None:
            return None
        if job.request_hash != repeatable.request_hash:
            raise InputError("Another request was sent with this key before.", param="Idempotency-Key")
        failed_for_now = job.status is Status.FAILED and by_code(job.error_code or "", "").retryable
        if job.status is Status.CANCELLED or failed_for_now:
            await self.background.forget(job.id)
            return None
        return job

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


async def read_result(path: Path) -> Transcript:
    """A result file as the transcript it holds."""
    return Transcript.from_dict(json.loads(await asyncio.to_thread(path.read_bytes)))


def _sweep(jobs_dir: Path, kept: dict[str, str]) -> None:
    """Delete what the last boot left behind, but for the folders in ``kept``; where that names a file, all but this file."""
    for leftover in jobs_dir.iterdir():
        name = kept.get(leftover.name)
        if name is None or name:
            remove_tree(leftover, name or "")
