"""What has ended is forgotten after a while: jobs by age, and the oldest results where they take too much of the disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from app.batches_store import BatchRows
from app.media.paths import anything_late, discard_late
from app.media.process import MB
from app.settings import Settings
from app.store import AsyncStore

log = logging.getLogger("stenopool.retention")

EVERY_S, SOON_S = 60.0, 1.0


class Retention:
    """``forget(job_id)`` deletes a job's row and folder. ``now`` is a monotonic clock in seconds.

    Old is what is old by the wall clock and by the wall clock at the start plus the time since: a clock that is set ahead makes
    nothing older, and a clock that was set back does not make what ends from then on look as if it had ended long ago.
    """

    def __init__(
        self,
        settings: Settings,
        store: AsyncStore,
        forget: Callable[[str], Awaitable[None]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._store, self._forget, self._now = settings, store, forget, now
        self._batches = BatchRows(store.sync)
        self._began, self._began_at = store.sync.now(), now()

    async def watch(self) -> None:
        """Look now and then, for ever."""
        while True:
            try:
                await self.look()
            except Exception:  # one failure must not end all sweeping
                log.exception("ended jobs could not be swept")
            for _ in range(round(EVERY_S / SOON_S)):
                await asyncio.sleep(SOON_S)
                if anything_late():
                    await self._discard_late()

    async def _discard_late(self) -> None:
        try:
            await asyncio.to_thread(discard_late)
        except RuntimeError:
            pass  # there is still no thread for it
        except Exception:
            log.exception("what is no longer needed could not be deleted")

    async def look(self) -> None:
        """Forget what is too old, then the oldest results while all of them are too large; and batches that have no item left.

        The items of a batch are too old together, when the last one is.
        """
        clocks = self._began + timedelta(seconds=self._now() - self._began_at), self._store.sync.now()
        for job_id in await self._store.run(self._batches.old, min(clocks) - timedelta(seconds=self._settings.result_ttl_s)):
            await self._forget(job_id)
        await self._shrink()
        await self._store.run(self._batches.forget_empty)

    async def _shrink(self) -> None:
        results = await asyncio.to_thread(_results, self._settings.jobs_dir)
        surplus = sum(size for _, _, size in results) - self._settings.results_mb * MB
        for _, job_id, size in sorted(results):
            if surplus <= 0:
                return
            job = await self._store.run(self._store.sync.get, job_id)
            if job is not None and job.background and job.status.final:
                await self._forget(job_id)
                surplus -= size


def _results(jobs_dir: Path) -> list[tuple[float, str, int]]:
    """Every result on the disk: when it was written, its job, its bytes."""
    found = []
    for path in jobs_dir.glob("*/result-*.json"):
        with contextlib.suppress(FileNotFoundError):  # it may go meanwhile
            kept = path.stat()
            found.append((kept.st_mtime, path.parent.name, kept.st_size))
    return found
