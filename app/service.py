"""The use cases: transcribe, extract audio, download. Knows the way of a job; knows nothing of HTTP.

A transcription: a folder of its own → a committed row → decode → its turn → a slot in a worker, once per attempt → the
result file → the row is finished if the attempt still matches → the folder is gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from app import catalogue
from app.admission.controller import Gate, Place
from app.errors import Cancelled, NotReady, QueueTimeout, StenopoolError, WorkerLost
from app.formats import Transcript
from app.jobs import Job, Status, TranscribeOptions, new_id
from app.lock import claim
from app.media.decode import Decoded, decode
from app.media.download import Downloaded, download
from app.media.extract import Extracted, ExtractOptions, extract
from app.media.paths import copy_inside, free_bytes, new_name
from app.media.process import MB
from app.pool.handle import WorkerDied
from app.pool.supervisor import Pool
from app.settings import Settings
from app.store import AsyncStore
from app.work import Task, WorkerSetup

log = logging.getLogger("stenopool.service")

Progress = Callable[[str, float], None]
OWNED = "by-key"


@dataclass(frozen=True)
class Source:
    """Where the audio comes from: exactly one of an upload that is already in the folder, a media path, a URL."""

    upload: Path | None = None
    audio_file: str | None = None
    url: str | None = None


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
    )


class Service:
    """Everything behind the routes. ``pool`` runs the engine; ``store`` keeps the rows."""

    def __init__(self, settings: Settings, store: AsyncStore, pool: Pool) -> None:
        self.settings, self.store, self.pool = settings, store, pool
        streams = settings.stream_count * settings.workers_per_model
        running = min(streams, settings.max_concurrent_transcriptions or streams)
        self.gate = Gate(running, settings.max_queued, settings.overload_policy)
        self.extractions = Gate(settings.max_media_jobs, settings.max_queued, settings.overload_policy, "extractions")
        self.downloads = Gate(settings.max_downloads, settings.max_queued, settings.overload_policy, "downloads")
        self._media = asyncio.Semaphore(settings.max_media_jobs)
        self._downloads = asyncio.Semaphore(settings.max_downloads)
        self._prepared = asyncio.Semaphore(running + 2)  # decoded audio on disk is bounded, waiting uploads stay compressed
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
            "the queue is full": self.gate.taken >= self.gate.places,
        }
        failed = [f"{model}: {error.message}" for model, error in self.pool.failures().items()]
        return [reason for reason, holds in reasons.items() if holds] + (failed if not self.pool.ready else [])

    def admit(self, gate: Gate) -> Place:
        """Take a place at one of the gates, before the request's body is read.

        Raises:
            TooManyActive, NotReady: the caller must come back later.
        """
        if self._stopping:
            raise NotReady("The server is shutting down.", retry_after_s=5)
        return gate.enter()

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
        place: Place,
        progress: Progress | None = None,
    ) -> Transcript:
        """Run one transcription to its end.

        Raises:
            StenopoolError: what went wrong; the row says the same.
        """
        job = Job(folder.name, owner, options, self.store.sync.now())
        try:
            await self.store.run(self.store.sync.add, job)  # inside: a cancelled caller does not know whether it took place
            input_file = await self._fetch(owner, folder, source)
            async with self._waiting(self._prepared):
                decoded = await self._decode(input_file, folder)
                await self.store.run(self.store.sync.set_duration, job.id, decoded.duration_s)
                async with self._waiting(place.turn()):
                    return await self._attempts(job, folder, decoded, progress)
        except asyncio.CancelledError:
            await asyncio.shield(self.store.run(self.store.sync.cancel, job.id))
            raise
        except StenopoolError as error:
            await asyncio.shield(self.store.run(self.store.sync.fail, job.id, error))
            raise
        except Exception:
            await asyncio.shield(self.store.run(self.store.sync.fail, job.id, StenopoolError()))
            raise

    async def extract_audio(self, owner: str, folder: Path, source: Source, options: ExtractOptions) -> tuple[str, Extracted]:
        """Make an audio file in the owner's media folder; its media path, and what it is."""
        media_path, target = await self._new_media(owner, f".{options.format}")
        input_file = await self._fetch(owner, folder, source)
        async with self._media:
            return media_path, await extract(input_file, target, options, self.settings)

    async def download(self, owner: str, folder: Path, url: str) -> tuple[str, Downloaded]:
        """Fetch media from elsewhere into the owner's media folder; its media path, and what it is."""
        found = await self._download(url, folder)
        media_path, target = await self._new_media(owner, found.path.suffix)
        await asyncio.to_thread(shutil.move, found.path, target)  # a rename, or a copy to another file system
        return media_path, found

    # -- steps

    async def _decode(self, input_file: Path, folder: Path) -> Decoded:
        async with self._media:
            decoded = await decode(input_file, folder / "audio.pcm", self.settings)
        await asyncio.to_thread(input_file.unlink, missing_ok=True)
        return decoded

    async def _fetch(self, owner: str, folder: Path, source: Source) -> Path:
        """The input as a file in ``folder``."""
        if source.upload:
            return source.upload
        if source.url:
            return (await self._download(source.url, folder)).path
        target = folder / "input"
        wanted = self._visible(owner, source.audio_file or "")
        await copy_inside(self.settings.media_dir, wanted, target, reserve_mb=self.settings.disk_reserve_mb)
        return target

    async def _download(self, url: str, folder: Path) -> Downloaded:
        async with self._downloads:
            return await download(url, folder, self.settings)

    def _visible(self, owner: str, path: str) -> str:
        """What other keys downloaded looks as if it were not there."""
        first, _, rest = path.partition("/")
        hidden = first == OWNED and rest.partition("/")[0] != owner
        return "" if hidden else path

    async def _new_media(self, owner: str, suffix: str) -> tuple[str, Path]:
        folder = self.settings.media_dir / OWNED / owner
        for part in (folder.parent, folder):  # one by one: parents made by mkdir would be open to all
            await asyncio.to_thread(part.mkdir, 0o700, exist_ok=True)
        name = new_name(suffix)
        return f"{OWNED}/{owner}/{name}", folder / name

    @asynccontextmanager
    async def _waiting(self, places: asyncio.Semaphore) -> AsyncIterator[None]:
        """A place of ``places``, waited for no longer than the queue timeout."""
        # not wait_for: before Python 3.12 it swallows a cancellation that comes together with its result
        turn = asyncio.ensure_future(places.acquire())
        try:
            if not (await asyncio.wait({turn}, timeout=self.settings.queue_timeout_s))[0]:
                raise QueueTimeout("The request waited in line for too long.")
            yield
        finally:
            if turn.done() and not turn.cancelled():
                places.release()
            turn.cancel()

    async def _attempts(self, job: Job, folder: Path, decoded: Decoded, progress: Progress | None) -> Transcript:
        """Try until it works, fails, or has ended its worker ``max_deaths`` times.

        After the first death the job runs in a worker of its own, so that it is clear who is to blame; a death that
        others may have caused is not counted.
        """
        timeout_s = self.settings.job_timeout_s + self.settings.job_timeout_factor * decoded.duration_s
        deaths, died = 0, False
        while deaths < self.settings.max_deaths:
            with await self.pool.acquire(job.options.model, solo=died, front=died) as slot:
                started = await self.store.run(self.store.sync.start, job.id)
                if started is None:
                    raise Cancelled("The job was cancelled.")
                result = folder / f"result-{started.attempts}.json"
                task = Task(job.id, started.attempts, str(decoded.path), str(result), job.options)
                try:
                    await slot.run(task, timeout_s, progress)
                    return await self._finish(job.id, started.attempts, result)
                except WorkerDied as death:
                    died = True
                    deaths += death.alone
                    await self.store.run(self.store.sync.requeue, job.id, started.attempts, charge=death.alone)
        raise WorkerLost(
            f"This audio ended its worker process {deaths} times.",
            hint="The audio is damaged or too large; try another encoding.",
        )

    async def _finish(self, job_id: str, attempt: int, result: Path) -> Transcript:
        transcript = Transcript.from_dict(json.loads(await asyncio.to_thread(result.read_bytes)))
        if not await self.store.run(self.store.sync.finish, job_id, attempt, Status.SUCCEEDED):
            raise Cancelled("The job was cancelled.")
        return transcript


def _sweep(jobs_dir: Path) -> None:
    for leftover in jobs_dir.iterdir():
        shutil.rmtree(leftover, ignore_errors=True)
