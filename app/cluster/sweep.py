"""Deletes what a killed API left in the shared media: inputs that were copied, and whose jobs were never committed."""

from __future__ import annotations

import asyncio
import logging

from app.cluster.media import AsyncMedia, folder_key
from app.cluster.rows import SharedStore
from app.store import AsyncStore

log = logging.getLogger("stenopool.cluster")

EVERY_S = 3600.0


class Sweep:
    """Looks now and then. What has no row at two looks in a row belongs to no job: an acceptance is never that slow.

    So no clock of any machine decides.
    """

    def __init__(self, store: AsyncStore, sync: SharedStore, media: AsyncMedia) -> None:
        self._store, self._sync, self._media = store, sync, media
        self._suspects: frozenset[str] = frozenset()

    async def watch(self) -> None:
        """For ever."""
        while True:
            try:
                await self.look()
            except Exception:  # the store or the media may not answer now
                log.exception("the shared media could not be swept")
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """One look."""
        found = await self._media.folders()
        known = await self._store.run(self._sync.known, found)
        without = frozenset(found) - known
        for job_id in without & self._suspects:
            log.warning("files without a job were deleted from the shared media", extra={"job_id": job_id})
            await self._media.delete(folder_key(job_id))
        self._suspects = without
