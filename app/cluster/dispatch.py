"""In the place of :class:`app.runs.Runs` where other machines do the work: wait for a turn, send the job, see how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from app.admission.ticket import Ticket
from app.cluster.media import AsyncMedia, Media, earlier_results, folder_key, input_key, result_key
from app.cluster.queue import Queue
from app.cluster.rows import Sent, SharedStore
from app.cluster.sweep import Sweep
from app.desk.desk import Desk
from app.errors import CapacityError, DeadlineExceeded, NotFound, StenopoolError, by_code
from app.intake import Intake, Source, source_of
from app.jobs import Job, Status
from app.media.paths import remove_tree
from app.runs import TRANSIENT, Progress, Runs, Watcher, result_path
from app.settings import Settings
from app.store import AsyncStore

log = logging.getLogger("stenopool.cluster")

LOOK_S = 0.1
"""How often the rows of those that were sent are looked at, all in one query."""
AT_ONCE = 500
HERE = {"audio_file", "file"}
"""Sources that only this machine can read."""


@dataclass
class Away:
    """A job at the nodes: how far it is, and who waits for its end."""

    ticket: Ticket
    progress: Progress | None
    ended: asyncio.Future[Sent] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    seen: tuple[str, float] = ("queued", 0.0)


class Dispatch(Runs):
    """See the module. ``sync`` is the store behind ``store``. A node has the last word on when a job begins."""

    def __init__(
        self, settings: Settings, store: AsyncStore, sync: SharedStore, desk: Desk, intake: Intake, media: Media, queue: Queue
    ) -> None:
        super().__init__(settings, store, desk, intake)
        self._sync, self._media, self._queue = sync, AsyncMedia(media), queue
        self._away: dict[str, Away] = {}
        self._looking: asyncio.Task[None] | None = None

    def watchers(self) -> tuple[Watcher, ...]:
        """Beside the rest, what a killed API left in the shared media is looked for."""
        return (Sweep(self._store, self._sync, self._media),)

    # -- where inputs and results lie

    async def keep(self, job: Job, folder: Path, source: Source) -> dict[str, str]:
        """Make the input safe where the nodes can read it."""
        if source.url:
            return {"url": source.url}
        upload = await self._intake.fetch(job.owner, folder, source)
        key = input_key(job.id)
        await self._media.put(upload, key)
        return {"media": key}

    def source(self, job: Job, folder: Path) -> Source:
        """What a batch names is still here, in the media folder, and so is what came before there were nodes."""
        where = job.source or {}
        return source_of(where, folder) if where.keys() & HERE else Source()

    async def result(self, job: Job) -> Path:
        """The result file, fetched where it is not here yet."""
        path = result_path(self._settings.jobs_dir / job.id, job.attempts)
        if not await asyncio.to_thread(path.is_file):
            await asyncio.to_thread(path.parent.mkdir, 0o700, exist_ok=True)
            try:
                await self._media.get(result_key(job.id, job.attempts), path)
            except FileNotFoundError:
                raise NotFound("The result of this job is gone.") from None
        return path

    async def discard(self, job_id: str, kept: str = "") -> None:
        """Delete everything of a job but its result, here and there. What cannot be reached now goes with the row."""
        await super().discard(job_id, kept)
        for key in [input_key(job_id), *earlier_results(job_id, kept)] if kept else [folder_key(job_id)]:
            await self._forget_media(key)
        if not kept:  # its row may be gone already, as those of a batch are
            with contextlib.suppress(StenopoolError):
                await self._store.run(self._sync.forget_lease, job_id)

    # -- the run

    async def run(self, job: Job, folder: Path, source: Source, ticket: Ticket, progress: Progress | None = None) -> Path:
        """As :meth:`Runs.run`: whatever becomes of the job, the row says the same."""
        try:
            self.settle(ticket, job.options, ticket.audio_s)
            where = job.source
            if where is not None and where.keys() & HERE:  # once sent, it lies where the lease says, whatever became of it here
                where = await self._store.run(self._sync.source, job.id)
            if where is None:
                where = await self.keep(job, folder, source)
            if "file" not in (job.source or {}):  # that one may be needed again
                await asyncio.to_thread(remove_tree, folder)  # the nodes have what was uploaded. Not later: it is used again
            await asyncio.to_thread(folder.mkdir, 0o700, exist_ok=True)
            self._desk.disk.resize(ticket.name, 0)
            sent = await self._at_nodes(job, where, ticket, progress)
            if sent.job.status is not Status.SUCCEEDED:
                raise by_code(sent.job.error_code or "cancelled", sent.job.error_message or "The job was cancelled.")
            if sent.job.duration_s is not None and sent.worked_s:
                self._desk.prices.learn_seconds(job.options, sent.job.duration_s, sent.worked_s)
            return await self.result(sent.job)
        except StenopoolError as error:
            if not (job.background and type(error) in TRANSIENT):
                await asyncio.shield(self._store.run(self._sync.fail, job.id, error))
            raise
        finally:
            self._away.pop(job.id, None)
            if not job.background:
                await asyncio.shield(self._forget_media(folder_key(job.id)))

    async def _forget_media(self, key: str) -> None:
        with contextlib.suppress(StenopoolError):
            await self._media.delete(key)

    async def _at_nodes(self, job: Job, where: dict[str, str], ticket: Ticket, progress: Progress | None) -> Sent:
        """Its turn, its way to a node, its end."""
        line_s = math.inf if job.background else self._settings.queue_timeout_s
        left_s = max(0.0, line_s - (time.monotonic() - ticket.entered_at))
        await self._desk.turn(self._desk.jobs, ticket, left_s)
        self._away[job.id] = away = Away(ticket, progress)
        self._look_on()
        await self._store.run(self._sync.send, job.id, where)
        await self._queue.send(job.id)  # what gets lost here, nodes find in the rows
        if not job.background:
            left_s += self._settings.job_timeout_s + self._settings.job_timeout_factor * self._settings.max_audio_s
        done, _ = await asyncio.wait({away.ended}, timeout=None if job.background else left_s)
        if not done:
            raise DeadlineExceeded("No machine ended the job in time.")
        return away.ended.result()

    # -- how far they are

    def _look_on(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        """While any job is away."""
        while self._away:
            try:
                names = list(self._away)
                for first in range(0, len(names), AT_ONCE):
                    for sent in await self._store.run(self._sync.sent, names[first : first + AT_ONCE]):
                        self._see(sent)
            except CapacityError:
                log.warning("the store does not say how far the jobs are")
                await asyncio.sleep(1.0)
            except Exception:  # one bad look must not end all looking
                log.exception("looking at the jobs failed")
                await asyncio.sleep(1.0)
            await asyncio.sleep(LOOK_S)

    def _see(self, sent: Sent) -> None:
        away = self._away.get(sent.job.id)
        if away is None or away.ended.done():
            return
        if sent.job.status.final:
            away.ended.set_result(sent)
            return
        if sent.job.duration_s is not None and away.ticket.audio_s != sent.job.duration_s:
            with contextlib.suppress(StenopoolError):  # it runs: whether it should have been let in is no question any more
                self.settle(away.ticket, sent.job.options, sent.job.duration_s)
        if (sent.stage, sent.fraction) != away.seen:
            away.seen = (sent.stage, sent.fraction)
            if sent.stage == "transcribe" and sent.job.options.word_timestamps != "aligned":
                self._desk.jobs.progressed(away.ticket, sent.fraction)
            if away.progress is not None:
                away.progress(sent.stage, sent.fraction)
