"""The rows of batches. How far a batch is, is not stored: it is counted from its items, which are rows of ``jobs``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    String,
    Table,
    and_,
    delete,
    exists,
    false,
    func,
    insert,
    or_,
    select,
    update,
)

from app.database import Database, UtcDateTime, is_due, metadata
from app.jobs import Job, Status
from app.store import jobs

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("total", Integer, nullable=False),
    Column("idempotency_key", String(255)),
    Column("request_hash", String(64)),
    Column("webhook_url", String(2048)),
    Column("webhook_tries", Integer, nullable=False, server_default="0"),
    Column("webhook_at", UtcDateTime),
    Column("webhook_done", Boolean, nullable=False, server_default=false()),
    Index("batches_by_owner", "owner", "created_at"),
    Index("batches_by_idempotency_key", "owner", "idempotency_key", unique=True),
)

_UNFINISHED = jobs.c.status.in_([status.value for status in Status if not status.final])
_ITEM = (
    jobs.c.batch_index,
    jobs.c.label,
    jobs.c.id.label("job_id"),
    jobs.c.status,
    jobs.c.duration_s,
    jobs.c.error_code,
    jobs.c.error_message,
)


@dataclass(frozen=True)
class Batch:
    """``total`` items that were handed in together. ``counts`` and ``finished_at`` (of the last one) are read from them."""

    id: str
    owner: str
    created_at: datetime
    total: int
    idempotency_key: str | None = None
    request_hash: str | None = None
    webhook_url: str | None = None
    webhook_tries: int = 0
    counts: dict[Status, int] = field(default_factory=dict)
    finished_at: datetime | None = None

    @property
    def unfinished(self) -> int:
        """Items that have not ended."""
        return sum(count for status, count in self.counts.items() if not status.final)

    @property
    def state(self) -> str:
        """``queued`` until an item begins, then ``running``; at the end ``completed``, or ``cancelled`` where any item was."""
        if self.unfinished:
            return "queued" if self.counts.get(Status.QUEUED) == self.total else "running"
        return "cancelled" if self.counts.get(Status.CANCELLED) else "completed"


_COLUMNS = [batches.c[one.name] for one in fields(Batch) if one.name in batches.c]


@dataclass(frozen=True)
class Item:
    """What is to be told of one item."""

    batch_index: int
    label: str | None
    job_id: str
    status: Status
    duration_s: float | None
    error_code: str | None
    error_message: str | None


class BatchRows:
    """Batches in a database. Methods may raise what :class:`app.database.Database` lists; blocking, safe from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, batch: Batch, items: Iterable[Job], most: int) -> int:
        """Keep a batch and all its items, or nothing.

        Answers by how many the owner's unfinished items would be over ``most`` (0: no limit); then nothing is kept.

        Raises:
            ValueError: the id, or the owner's idempotency key, is taken.
        """
        with self._database.writing() as db:
            over = _unfinished_of(db, batch.owner) + batch.total - most if most else 0
            if over > 0:
                return over
            db.execute(insert(batches).values({column.name: getattr(batch, column.name) for column in _COLUMNS}))
            db.execute(insert(jobs), [_values(job) for job in items])
        return 0

    def unfinished_of(self, owner: str) -> int:
        """How many items of ``owner`` have not ended."""
        with self._database.reading() as db:
            return _unfinished_of(db, owner)

    def get(self, batch_id: str) -> Batch | None:
        """The batch, whoever's it is."""
        return next(iter(self._find(batches.c.id == batch_id)), None)

    def by_key(self, owner: str, idempotency_key: str) -> Batch | None:
        """The batch that ``owner`` handed in under this key."""
        return next(iter(self._find(batches.c.owner == owner, batches.c.idempotency_key == idempotency_key)), None)

    def page(self, owner: str, limit: int, after: str | None = None) -> list[Batch]:
        """At most ``limit`` batches of ``owner``, newest first, from the one behind batch ``after`` on."""
        wanted = [batches.c.owner == owner]
        if after is not None:
            last = select(batches.c.created_at).where(batches.c.id == after).scalar_subquery()
            same = and_(batches.c.created_at == last, batches.c.id < after)
            wanted.append(or_(batches.c.created_at < last, same))
        return self._find(*wanted, limit=limit)

    def items(self, batch_id: str, limit: int, after: int = -1, status: Status | None = None) -> list[Item]:
        """At most ``limit`` items of a batch behind number ``after``, in the order in which they were handed in."""
        query = select(*_ITEM).where(jobs.c.batch_id == batch_id, jobs.c.batch_index > after)
        if status is not None:
            query = query.where(jobs.c.status == status.value)
        with self._database.reading() as db:
            rows = db.execute(query.order_by(jobs.c.batch_index).limit(limit)).mappings().all()
        return [Item(**(dict(row) | {"status": Status(row["status"])})) for row in rows]

    def next_waiting(self, batch_id: str, after: int) -> tuple[int, str] | None:
        """Number and job id of the first item behind number ``after`` that waits; None where there is no more."""
        waits = (jobs.c.batch_id == batch_id, jobs.c.batch_index > after, jobs.c.status == Status.QUEUED.value)
        query = select(jobs.c.batch_index, jobs.c.id).where(*waits).order_by(jobs.c.batch_index).limit(1)
        with self._database.reading() as db:
            row = db.execute(query).one_or_none()
        return None if row is None else (row[0], row[1])

    def with_waiting(self) -> list[tuple[str, str]]:
        """Id and owner of each batch of which items wait, oldest first."""
        waits = exists().where(jobs.c.batch_id == batches.c.id, jobs.c.status == Status.QUEUED.value)
        with self._database.reading() as db:
            rows = db.execute(select(batches.c.id, batches.c.owner).where(waits).order_by(batches.c.created_at, batches.c.id))
            return [(row.id, row.owner) for row in rows]

    def cancel(self, batch_id: str) -> list[str]:
        """End every item that has not ended; their job ids."""
        left = and_(jobs.c.batch_id == batch_id, _UNFINISHED)
        with self._database.writing() as db:
            ids = list(db.execute(select(jobs.c.id).where(left).with_for_update()).scalars())
            values = {"status": Status.CANCELLED.value, "finished_at": self._database.now()}
            db.execute(update(jobs).where(left).values(**values))
        return ids

    def forget(self, batch_id: str) -> list[str]:
        """Delete a batch with its items, whatever their state; their job ids."""
        with self._database.writing() as db:
            ids = list(db.execute(select(jobs.c.id).where(jobs.c.batch_id == batch_id)).scalars())
            db.execute(delete(jobs).where(jobs.c.batch_id == batch_id))
            db.execute(delete(batches).where(batches.c.id == batch_id))
        return ids

    def forget_empty(self) -> int:
        """Delete the batches of which no item is left; how many."""
        with self._database.writing() as db:
            return db.execute(delete(batches).where(~exists().where(jobs.c.batch_id == batches.c.id))).rowcount

    def old(self, moment: datetime, limit: int = 500) -> list[str]:
        """Jobs that ended before ``moment``, oldest first; those of a batch only where all of it did."""
        other = jobs.alias()
        young = exists().where(
            other.c.batch_id == jobs.c.batch_id, or_(other.c.finished_at.is_(None), other.c.finished_at >= moment)
        )
        query = select(jobs.c.id).where(jobs.c.finished_at < moment, ~young).order_by(jobs.c.finished_at).limit(limit)
        with self._database.reading() as db:
            return list(db.execute(query).scalars())

    def webhooks_due(self, limit: int) -> list[Batch]:
        """Batches that have ended and whose callers are to be told now."""
        due = is_due(batches.c.webhook_at, self._database.now())
        goes_on = exists().where(jobs.c.batch_id == batches.c.id, _UNFINISHED)
        return self._find(batches.c.webhook_url.is_not(None), ~batches.c.webhook_done, due, ~goes_on, limit=limit)

    def webhook_tried(self, batch_id: str, again: timedelta | None) -> None:
        """A caller was told, or will be told again so much later (None: nothing more is to be done)."""
        values = {"webhook_tries": batches.c.webhook_tries + 1, "webhook_done": again is None}
        at = None if again is None else self._database.now() + again
        with self._database.writing() as db:
            db.execute(update(batches).where(batches.c.id == batch_id).values(**values, webhook_at=at))

    def _find(self, *wanted: ColumnElement[bool], limit: int = 1) -> list[Batch]:
        query = select(*_COLUMNS).where(*wanted).order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit)
        with self._database.reading() as db:
            found = [Batch(**row) for row in db.execute(query).mappings()]
            return _counted(db, found)


def _counted(db: Connection, found: list[Batch]) -> list[Batch]:
    query = (
        select(jobs.c.batch_id, jobs.c.status, func.count().label("count"), func.max(jobs.c.finished_at).label("last"))
        .where(jobs.c.batch_id.in_([batch.id for batch in found]))
        .group_by(jobs.c.batch_id, jobs.c.status)
    )
    counts: dict[str, dict[Status, int]] = {batch.id: {} for batch in found}
    last: dict[str, datetime] = {}
    for row in db.execute(query).mappings():
        counts[row["batch_id"]][Status(row["status"])] = row["count"]
        if row["last"] is not None:
            last[row["batch_id"]] = max(row["last"], last.get(row["batch_id"], row["last"]))
    counted = [replace(batch, counts=counts[batch.id]) for batch in found]
    return [batch if batch.unfinished else replace(batch, finished_at=last.get(batch.id)) for batch in counted]


def _unfinished_of(db: Connection, owner: str) -> int:
    query = select(func.count()).where(jobs.c.owner == owner, jobs.c.batch_id.is_not(None), _UNFINISHED)
    return db.execute(query).scalar() or 0


def _values(job: Job) -> dict[str, Any]:
    values = {one.name: getattr(job, one.name) for one in fields(job)}
    return values | {"options": job.options.to_dict(), "status": job.status.value}
