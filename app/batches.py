"""Many recordings that are handed in at once: accepted together, watched and cancelled as one. Each item is a job.

Items wait as rows, and :mod:`app.feeder` puts a few at a time into the line.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.admission import refusals
from app.admission.quotas import Quota
from app.background import Background
from app.batches_store import Batch, BatchRows, Item
from app.desk.desk import Desk
from app.errors import InputError, NotFound, QuotaExceeded, StenopoolError
from app.feeder import GUESSED_S, Feeder
from app.jobs import Job, Status, TranscribeOptions, new_id
from app.settings import Settings
from app.store import AsyncStore
from app.webhooks import Letter, Webhooks

FAILURES_SHOWN = 100
LONGEST_RETRY_S = 120.0


@dataclass(frozen=True)
class Wanted:
    """One item as it was asked for; ``source`` is ``{"url": address}`` or ``{"audio_file": path}``."""

    source: dict[str, str]
    options: TranscribeOptions
    response_format: str
    label: str | None = None


@dataclass(frozen=True)
class Order:
    """A whole batch as it was asked for. Sent again under its ``idempotency_key`` it gets the first one's batch."""

    items: Sequence[Wanted]
    webhook_url: str | None = None
    idempotency_key: str | None = None
    request_hash: str | None = None


class Batches:
    """Accepts batches, shows and ends them; ``feeder`` is to be resumed and watched."""

    def __init__(self, settings: Settings, store: AsyncStore, desk: Desk, background: Background, webhooks: Webhooks) -> None:
        self._settings, self._store, self._desk, self._background = settings, store, desk, background
        self._webhooks, self._rows = webhooks, BatchRows(store.sync)
        self.feeder = Feeder(store, self._rows, desk, background)
        webhooks.others.append(self._letters)

    # -- in

    async def check_room(self, owner: str) -> None:
        """Refuse one whose key has no room for a single item, before the body is read.

        Raises:
            QuotaExceeded: as many items as may be have not ended. NotReady: the server stops.
        """
        if self._background.stopping:
            raise refusals.stopping()
        most = self._settings.key_batch_items
        if most and (left := await self._store.run(self._rows.unfinished_of, owner)) >= most:
            raise self._too_many(left + 1 - most)

    async def accept(self, owner: str, order: Order, quota: Quota) -> Batch:
        """Take a batch over, or the batch of the same request, if that came first. When this returns, every item will end.

        Raises:
            StenopoolError: nothing was taken over.
        """
        if self._background.stopping:
            raise refusals.stopping()
        if (first := await self._first(owner, order)) is not None:
            return first
        self._check_sizes(owner, order)
        if order.webhook_url is not None:
            await self._webhooks.check(order.webhook_url)
        now, batch_id = self._store.sync.now(), new_id()
        batch = Batch(
            batch_id, owner, now, len(order.items), order.idempotency_key, order.request_hash, webhook_url=order.webhook_url
        )
        jobs = [_job(batch, number, wanted) for number, wanted in enumerate(order.items)]
        try:
            over = await self._store.run(self._rows.add, batch, jobs, self._settings.key_batch_items)
        except ValueError:  # both came at the same time
            if (first := await self._first(owner, order)) is None:
                raise
            return first
        except BaseException:  # nobody knows whether it took place, and nobody is told that it did
            with contextlib.suppress(StenopoolError):
                await asyncio.shield(self._store.run(self._rows.forget, batch_id))
            raise
        if over:
            if (first := await self._first(owner, order)) is not None:  # that one was counted
                return first
            raise self._too_many(over)
        self.feeder.open(batch_id, owner, quota)
        return await self.get(batch_id, owner)

    async def _first(self, owner: str, order: Order) -> Batch | None:
        """The batch of the same request.

        Raises:
            InputError: another request came under its key.
        """
        if order.idempotency_key is None:
            return None
        batch = await self._store.run(self._rows.by_key, owner, order.idempotency_key)
        if batch is not None and batch.request_hash != order.request_hash:
            raise InputError("Another request was sent with this key before.", param="Idempotency-Key")
        return batch

    def _check_sizes(self, owner: str, order: Order) -> None:
        """Refuse models that could never run here.

        Raises:
            NeverFits: with the number of the first such item.
        """
        seen: set[str] = set()
        for number, wanted in enumerate(order.items):
            if wanted.options.model in seen:
                continue
            seen.add(wanted.options.model)
            ask = self._desk.prices.transcription(owner, wanted.options, GUESSED_S)
            try:
                self._desk.jobs.check_size(ask.worker_bytes + ask.bytes)
            except StenopoolError as error:
                raise of_item(number, error, "model_size") from None

    def _too_many(self, over: int) -> QuotaExceeded:
        most = self._settings.key_batch_items
        one_s = self._desk.prices.transcription("", TranscribeOptions(self._settings.model_size), GUESSED_S).seconds
        wait_s = min(LONGEST_RETRY_S, max(1.0, over * one_s / self._desk.jobs.streams()))
        details = {"reason": "key_quota", "limit": "unfinished batch items", "most": most, "over": over}
        message = f"This key may have {most} batch items that have not ended, and this would be {over} too many."
        return QuotaExceeded(message, retry_after_s=wait_s, details=details)

    # -- out

    async def get(self, batch_id: str, owner: str) -> Batch:
        """A batch of ``owner``.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        batch = await self._store.run(self._rows.get, batch_id)
        if batch is None or batch.owner != owner:
            raise NotFound("There is no such batch.", hint="It may have been deleted, or be too old.")
        return batch

    async def page(self, owner: str, limit: int, after: str | None) -> list[Batch]:
        """Batches of ``owner``, newest first."""
        return await self._store.run(self._rows.page, owner, limit, after)

    def view(self, batch: Batch) -> dict[str, Any]:
        """How far it is, as JSON values. ``percent`` counts items, those that run by how far they are."""
        done = batch.total - batch.unfinished
        part = 100 * (done + sum(self._fractions(batch.id).values())) / batch.total
        counts = {status.value: batch.counts.get(status, 0) for status in Status}
        return {
            "batch_id": batch.id,
            "status": batch.state,
            "percent": min(99.9, round(part, 1)) if batch.unfinished else 100.0,
            "total": batch.total,
            "counts": counts | {"deleted": batch.total - sum(counts.values())},
            "created_at": batch.created_at.isoformat(),
            "finished_at": batch.finished_at.isoformat() if batch.finished_at else None,
        }

    async def failures(self, batch: Batch) -> list[dict[str, Any]]:
        """The first items that failed, and why."""
        if not batch.counts.get(Status.FAILED):
            return []
        found = await self._store.run(self._rows.items, batch.id, FAILURES_SHOWN, status=Status.FAILED)
        return [_shown(item) for item in found]

    async def items(self, batch: Batch, limit: int, after: int, status: Status | None) -> list[dict[str, Any]]:
        """Items behind number ``after``, in the order in which they were handed in."""
        fractions = self._fractions(batch.id)
        found = await self._store.run(self._rows.items, batch.id, limit, after, status)
        return [_shown(item, fractions.get(item.job_id)) for item in found]

    def _fractions(self, batch_id: str) -> dict[str, float]:
        """How far the items are that run now."""
        return {live.job.id: live.fraction for live in self._background.items() if live.job.batch_id == batch_id}

    async def cancel(self, batch: Batch) -> None:
        """End what has not ended; results stay."""
        async with self.feeder.closing(batch.id):
            ids = await self._store.run(self._rows.cancel, batch.id)
        await self._background.cut_off(ids)
        self._webhooks.wake()

    async def forget(self, batch: Batch) -> None:
        """End what has not ended, and delete all of it, with its results."""
        await self.cancel(batch)
        ids = await self._store.run(self._rows.forget, batch.id)
        await self._background.discard(ids)

    async def _letters(self, limit: int) -> list[Letter]:
        """What callers are to be told now."""
        return [await self._letter(batch) for batch in await self._store.run(self._rows.webhooks_due, limit)]

    async def _letter(self, batch: Batch) -> Letter:
        data = self.view(batch) | {"failures": await self.failures(batch)}
        url = batch.webhook_url or ""
        return Letter(batch.id, url, batch.webhook_tries, f"batch.{batch.state}", data, self._rows.webhook_tried)


def of_item(number: int, error: StenopoolError, param: str | None = None) -> StenopoolError:
    """The same error, with the number of the item that is to blame."""
    name = param or error.param
    where = f"items[{number}].{name}" if name else f"items[{number}]"
    return type(error)(f"Item {number}: {error.message}", hint=error.hint, param=where, details=error.details)


def _job(batch: Batch, number: int, wanted: Wanted) -> Job:
    return Job(
        new_id(),
        batch.owner,
        wanted.options,
        batch.created_at,
        background=True,
        source=wanted.source,
        response_format=wanted.response_format,
        batch_id=batch.id,
        batch_index=number,
        label=wanted.label,
    )


def _shown(item: Item, fraction: float | None = None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "index": item.batch_index,
        "label": item.label,
        "job_id": item.job_id,
        "status": item.status.value,
        "duration": item.duration_s,
    }
    if item.status is Status.RUNNING and fraction is not None:
        shown["percent"] = round(100 * fraction, 1)
    if item.status is Status.FAILED:
        shown["error"] = {"code": item.error_code, "message": item.error_message}
    return shown
