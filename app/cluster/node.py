"""One machine that runs jobs for an API elsewhere: claims, leases, and the same desk, pool and runs as on one box."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from app.cluster.claims import NodeStore
from app.cluster.media import AsyncMedia, Media, result_key
from app.cluster.rows import Node
from app.desk.desk import Desk
from app.errors import Cancelled, CapacityError, StenopoolError
from app.intake import Intake, Source
from app.jobs import Job, Status
from app.lock import claim
from app.media.paths import remove_tree
from app.pool.handle import Measured
from app.pool.supervisor import Pool
from app.runs import TRANSIENT, Runs
from app.settings import Settings
from app.store import AsyncStore

log = logging.getLogger("stenopool.node")

BEATS_PER_LEASE = 5
PAUSE_S = 0.5


async def insisting(store: AsyncStore, change: Callable[[], bool], for_s: float) -> bool:
    """Make a change even if the store does not answer at once: work is worth more than a few seconds.

    Raises:
        CapacityError: it did not answer for ``for_s`` seconds.
    """
    end = time.monotonic() + for_s
    while True:
        try:
            return await store.run(change)
        except CapacityError:
            if time.monotonic() > end:
                raise
        await asyncio.sleep(PAUSE_S)


class NodeRuns(Runs):
    """Runs whose results go to the media that all machines share, before the row says that they are there."""

    def __init__(self, settings: Settings, store: AsyncStore, sync: NodeStore, desk: Desk, media: AsyncMedia) -> None:
        super().__init__(settings, store, desk, Intake(settings, desk))
        self._sync, self._media = sync, media

    async def _finish(self, job: Job, attempt: int, result: Path, measured: Measured) -> Path:
        key = result_key(job.id, attempt)
        await self._media.put(result, key)
        committing = asyncio.ensure_future(self._commit(job.id, attempt, key, measured.seconds))
        try:
            mine = await asyncio.shield(committing)
        except asyncio.CancelledError:  # the lease is lost, or we stop: either way the row decides whether the result stays
            await asyncio.wait({committing})
            raise
        if not mine:
            raise Cancelled("The job is not this machine's any more.")
        return result

    async def _commit(self, job_id: str, attempt: int, key: str, worked_s: float) -> bool:
        """Whether the row took the result; else it is deleted. Where the store does not answer, nobody knows, and it stays."""
        finish = partial(self._sync.finish, job_id, attempt, Status.SUCCEEDED, worked_s=worked_s)
        if await insisting(self._store, finish, self._settings.lease_s):
            return True
        await self._media.delete(key)
        return False


class WorkNode:
    """See the module. Everything but :meth:`offer` is to be called in its event loop."""

    def __init__(self, settings: Settings, store: NodeStore, pool: Pool, desk: Desk, media: Media) -> None:
        self._settings, self._pool, self._desk, self._media = settings, pool, desk, AsyncMedia(media)
        self._sync, self._store = store, AsyncStore(store)
        self._runs = NodeRuns(settings, self._store, store, desk, self._media)
        self._tasks: dict[str, asyncio.Task[None]] = {}  # of jobs that have a place, or wait for one
        self._free = asyncio.Semaphore(self.places)
        self._watching: list[asyncio.Task[None]] = []
        self._stopping = False
        self._lock: int | None = None

    @property
    def places(self) -> int:
        """Jobs that this node runs at once."""
        return self._desk.jobs.limits.running

    async def start(self, warm: tuple[str, ...]) -> None:
        """Clear what the last boot left behind, warm the models, and tell the others.

        Raises:
            StenopoolError: another process uses the data folder, or the database does not answer.
        """
        self._lock = claim(self._settings.data_dir)
        self._settings.jobs_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in self._settings.jobs_dir.iterdir():
            await asyncio.to_thread(remove_tree, leftover)
        await self._store.run(self._sync.create_schema)
        await self._desk.start()
        for model in warm:
            self._pool.warm(model)
        await self._beat()
        self._watching = [asyncio.create_task(self._beats()), asyncio.create_task(self._sweeps())]

    async def offer(self, job_id: str) -> None:
        """Run this job once a place is free, if it is to be had then; when this returns it is somebody else's, or has ended.

        Until then it is unclaimed, and any other node may have it. Celery's thread waits with it, and reads no more messages.
        """
        if self._stopping or job_id in self._tasks:
            return
        task = self._tasks[job_id] = asyncio.create_task(self._take(job_id))
        await asyncio.wait({task})

    async def stop(self, grace_s: float) -> None:
        """Take nothing more, let what runs end within ``grace_s`` seconds, give the rest back."""
        self._stopping = True
        with contextlib.suppress(StenopoolError):
            await self._store.run(self._sync.leave)
        if self._tasks and grace_s > 0:
            await asyncio.wait(list(self._tasks.values()), timeout=grace_s)
        for task in (*self._tasks.values(), *self._watching):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._watching, return_exceptions=True)
        for job_id in await self._store.run(list, self._sync.claims):  # claimed while its task was cancelled, and behind that
            await self._give_back(job_id)
        await self._desk.stop()
        await self._pool.close()
        await self._store.close()
        if self._lock is not None:
            os.close(self._lock)

    # -- one job

    async def _take(self, job_id: str) -> None:
        try:
            async with self._free:  # messages and the sweep together bring more jobs than there are places
                if not self._stopping:
                    await self._claim_and_run(job_id)
        finally:
            del self._tasks[job_id]

    async def _claim_and_run(self, job_id: str) -> None:
        try:
            claimed = await self._store.run(self._sync.claim, job_id)
            if claimed is not None:
                await self._run(*claimed)
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(job_id))
            raise
        except StenopoolError as error:
            log.warning("a job was left to its lease: %s", error.message, extra={"job_id": job_id})
        except Exception:
            log.exception("a job was left to its lease", extra={"job_id": job_id})
        finally:
            self._sync.claims.pop(job_id, None)

    async def _run(self, job: Job, where: dict[str, str]) -> None:
        """Until the row says that it has ended, or it is somebody else's."""
        folder = self._settings.jobs_dir / job.id
        folder.mkdir(mode=0o700, exist_ok=True)
        ticket = self._desk.jobs.join(self._desk.prices.transcription(job.owner, job.options, job.duration_s or 60.0))
        ticket.stays = True

        def progress(stage: str, fraction: float) -> None:
            if (claimed := self._sync.claims.get(job.id)) is not None:
                claimed.stage, claimed.fraction = stage, fraction

        try:
            source = await self._fetched(job, folder, where)
            await self._runs.run(replace(job, background=True), folder, source, ticket, progress)
        except TRANSIENT as error:
            log.warning("a job was given back: %s", error.message, extra={"job_id": job.id})
            await self._give_back(job.id)
        except StenopoolError as error:
            log.info("a job failed: %s", error.code, extra={"job_id": job.id})
        finally:
            self._desk.release(self._desk.jobs, ticket)
            await asyncio.shield(asyncio.to_thread(remove_tree, folder))

    async def _fetched(self, job: Job, folder: Path, where: dict[str, str]) -> Source:
        if "url" in where:
            return Source(url=where["url"])
        upload = folder / "upload"
        try:
            await self._media.get(where["media"], upload)
        except FileNotFoundError:
            log.error("the input of a job is gone", extra={"job_id": job.id})
            await self._store.run(self._sync.fail, job.id, StenopoolError())
            raise Cancelled("The input of the job is gone.") from None
        return Source(upload=upload)

    async def _give_back(self, job_id: str) -> None:
        claim = self._sync.claims.get(job_id)
        if claim is not None:
            with contextlib.suppress(StenopoolError):  # else the lease ends
                await insisting(self._store, partial(self._sync.give_back, job_id, claim), self._settings.lease_s)

    # -- what the others see, and what nobody else has seen

    def _state(self) -> Node:
        desk = self._desk
        model = self._settings.model_size
        workers = self._pool.stats()
        count = max(1, len(workers.get(model, {"workers": []})["workers"]))
        base, one = desk.memory.held("base"), desk.prices.worker(model).resident_bytes + desk.working(model)
        return Node(
            id=self._sync.node,
            places=self.places,
            runners=desk.jobs.limits.parallel,
            room_bytes=max(0, desk.memory.budget - base - count * one),
            most_bytes=desk.jobs.most_bytes,
            running=min(self.places, len(self._tasks)),
            ready=self._pool.ready,
            workers=workers,
        )

    async def _beat(self) -> None:
        for job_id in await self._store.run(self._sync.beat, self._state()):
            if (task := self._tasks.get(job_id)) is not None:
                log.warning("a job is not this machine's any more", extra={"job_id": job_id})
                task.cancel()

    async def _beats(self) -> None:
        pause_s = self._settings.lease_s / BEATS_PER_LEASE
        while True:
            began = time.monotonic()
            try:
                await self._beat()
            except StenopoolError:
                log.warning("the leases could not be renewed")
            except Exception:  # one failure must not end all renewing
                log.exception("the leases could not be renewed")
            await asyncio.sleep(max(pause_s / 2, pause_s - (time.monotonic() - began)))

    async def _sweeps(self) -> None:
        """Jobs that should have been claimed: their message was lost, or their node. Also where Celery itself is stuck."""
        while True:
            await asyncio.sleep(self._settings.lease_s / 2)
            try:
                free = self.places - len(self._tasks)
                found = await self._store.run(self._sync.overdue, free) if free > 0 else []
            except StenopoolError:
                continue
            except Exception:  # one failure must not end all looking
                log.exception("jobs that nobody claimed could not be looked for")
                continue
            for job_id in found:
                log.warning("a job was found unclaimed", extra={"job_id": job_id})
                offered: Any = asyncio.ensure_future(self.offer(job_id))
                offered.add_done_callback(lambda done: done.cancelled() or done.exception())
