"""Puts items of batches into the line: a few at a time, and the next one when one ends.

So a batch of any size takes no more of the line and of the memory than a few callers would. In line an item is a job like any
other, and turns stay fair between keys.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from app.admission.quotas import Quota
from app.background import Background
from app.batches_store import BatchRows
from app.desk.desk import Desk
from app.errors import QuotaExceeded
from app.jobs import Status
from app.keys import KeyRing
from app.rounds import rounds
from app.store import AsyncStore

log = logging.getLogger("stenopool.feeder")

LOOK_S = 5.0
GUESSED_S = 60.0
"""Seconds of audio that an item is taken for before it was read."""


@dataclass(eq=False)
class _Open:
    """A batch of which items may wait behind number ``after``."""

    id: str
    owner: str
    after: int = -1


class Feeder:
    """Knows which batches have items that wait; which these are, only the rows know."""

    def __init__(self, store: AsyncStore, rows: BatchRows, desk: Desk, background: Background) -> None:
        self._store, self._rows, self._desk, self._background = store, rows, desk, background
        self._open: list[_Open] = []
        self._quotas: dict[str, Quota] = {}
        self._feeding = asyncio.Lock()
        self._news = asyncio.Event()
        background.on_end.append(self._news.set)

    async def resume(self) -> None:
        """Go on with the batches of the last boot."""
        waiting = await self._store.run(self._rows.with_waiting)
        limits = {key.id: key.limits for key in await self._store.run(KeyRing(self._store.sync).list)} if waiting else {}
        for batch_id, owner in waiting:
            self.open(batch_id, owner, self._desk.prices.quota.with_own(limits.get(owner)))

    def open(self, batch_id: str, owner: str, quota: Quota) -> None:
        """Feed its items from now on. ``quota``: what its key may have."""
        self._open.append(_Open(batch_id, owner))
        self._quotas[owner] = quota
        self._news.set()

    @asynccontextmanager
    async def closing(self, batch_id: str) -> AsyncIterator[None]:
        """Feed no more of its items; none of them is on its way into the line meanwhile."""
        async with self._feeding:
            for one in [one for one in self._open if one.id == batch_id]:
                self._close(one)
            yield

    async def watch(self) -> None:
        """Feed, for ever. The store may not answer now, or the disk be full; what waits is still there."""
        await rounds(self.feed, self._news, LOOK_S, log, "items of batches could not be put into the line")

    async def feed(self) -> bool:
        """Put one item into the line, or find that a batch has none left; whether there was anything to do."""
        async with self._feeding:
            if self._background.stopping or (batch := self._next()) is None:
                return False
            found = await self._store.run(self._rows.next_waiting, batch.id, batch.after)
            if found is None:
                self._close(batch)
                return True
            number, job_id = found
            job = await self._store.run(self._store.sync.get, job_id)
            if job is not None and job.status is Status.QUEUED:
                await self._background.resume([job])
            batch.after = number
            self._open.remove(batch)
            self._open.append(batch)  # those that have equally many in line take turns
            return True

    def _next(self) -> _Open | None:
        """A batch of the key that has the fewest items in line, and of its batches the one that has; None: nobody may feed.

        Together they may have as many as there are places, and every key may have one; or as many as is set, and no more.
        """
        limits, inside, chosen = self._desk.jobs.limits, self._background.items(), self._desk.settings.batch_places
        most = chosen or max(
            1, limits.running if limits.queued else limits.running - 1
        )  # a place is free where nobody may wait
        mine = Counter(live.job.owner for live in inside)
        of_batch = Counter(live.job.batch_id for live in inside)
        owners = {one.owner for one in self._open if len(inside) < most or not (chosen or mine[one.owner])}
        allowed = {owner for owner in owners if self._has_quota(owner)}
        return min(
            (one for one in self._open if one.owner in allowed),
            key=lambda one: (mine[one.owner], of_batch[one.id]),
            default=None,
        )

    def _has_quota(self, owner: str) -> bool:
        """Whether the key may have one more job now; what it was promised when it was refused comes first."""
        jobs = self._desk.jobs
        try:
            jobs.quotas.check(owner, self._quotas[owner], GUESSED_S, partial(jobs.ends_of, owner), dry=True)
        except QuotaExceeded:
            return False
        return True

    def _close(self, batch: _Open) -> None:
        """Nothing of it waits any more."""
        self._open.remove(batch)
        if not any(one.owner == batch.owner for one in self._open):
            self._quotas.pop(batch.owner, None)
