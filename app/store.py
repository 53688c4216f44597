"""Job rows in a database: SQLite by default, PostgreSQL by URL. Every change is committed when its call returns.

A change of state is one conditional UPDATE, so of two callers who want the same change one gets it. ``attempts`` never
goes down: it numbers the runs of a job, and a result that carries an older number is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import datetime, timedelta
from functools import partial
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Double,
    Index,
    Integer,
    RowMapping,
    String,
    Table,
    Text,
    and_,
    delete,
    false,
    func,
    insert,
    or_,
    select,
    update,
)

from app.database import Database, UtcDateTime, is_due, metadata
from app.errors import StenopoolError
from app.jobs import TRANSITIONS, Job, Status, TranscribeOptions

P = ParamSpec("P")
T = TypeVar("T")

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("options", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("forgiven", Integer, nullable=False, server_default="0"),
    Column("duration_s", Double),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("background", Boolean, nullable=False, server_default=false()),
    Column("source", JSON(none_as_null=True)),
    Column("response_format", String(16), nullable=False, server_default="json"),
    Column("idempotency_key", String(255)),
    Column("request_hash", String(64)),
    Column("webhook_url", String(2048)),
    Column("webhook_tries", Integer, nullable=False, server_default="0"),
    Column("webhook_at", UtcDateTime),
    Column("webhook_done", Boolean, nullable=False, server_default=false()),
    Column("batch_id", String(64)),
    Column("batch_index", Integer),
    Column("label", String(200)),
    Index("jobs_by_owner", "owner", "created_at"),
    Index("jobs_by_status", "status"),
    Index("jobs_by_idempotency_key", "owner", "idempotency_key", unique=True),
    Index("jobs_by_webhook", "webhook_done", "webhook_at"),
    Index("jobs_by_batch", "batch_id", "batch_index", unique=True),
)

_JOB_COLUMNS = [jobs.c[field.name] for field in fields(Job)]
Jobs = list[Job]


class Store(Database):
    """The job rows. Every method may raise what :class:`app.database.Database` lists; blocking, safe from any thread."""

    def add(self, job: Job) -> None:
        """Keep a new job.

        Raises:
            ValueError: the id, or the owner's idempotency key, is taken.
        """
        values = {field.name: getattr(job, field.name) for field in fields(job)}
        with self.writing() as db:
            db.execute(insert(jobs).values(values | {"options": job.options.to_dict(), "status": job.status.value}))

    def get(self, job_id: str, owner: str | None = None) -> Job | None:
        """The job, or None where there is none or it is not ``owner``'s (None: anyone's)."""
        with self.reading() as db:
            job = _one(db, job_id)
        return None if job is None or owner not in (None, job.owner) else job

    def by_key(self, owner: str, idempotency_key: str) -> Job | None:
        """The job that ``owner`` handed in under this key."""
        query = select(*_JOB_COLUMNS).where(jobs.c.owner == owner, jobs.c.idempotency_key == idempotency_key)
        with self.reading() as db:
            row = db.execute(query).mappings().one_or_none()
        return None if row is None else _job(row)

    def start(self, job_id: str, duration_s: float | None = None) -> Job | None:
        """Begin the next attempt of a queued job, whose audio is so long; None where it is not queued (any more)."""
        values = {"attempts": jobs.c.attempts + 1, "started_at": self.now()}
        length = {} if duration_s is None else {"duration_s": duration_s}
        with self.writing() as db:
            return _one(db, job_id) if self._move(db, job_id, Status.RUNNING, **values, **length) else None

    def finish(self, job_id: str, attempt: int, status: Status, *, error: StenopoolError | None = None) -> bool:
        """End attempt number ``attempt``. False where that attempt is not the running one: drop its result then."""
        if not status.final:
            raise ValueError(f"{status.value} does not finish a job")
        values = _ending(self.now(), error.code if error else None, error.message if error else None)
        return self._moved(job_id, status, *_attempt(attempt), **values)

    def fail(self, job_id: str, error: StenopoolError) -> bool:
        """End a job that has not ended yet with ``error``, whether an attempt was made or not."""
        return self._moved(job_id, Status.FAILED, **_ending(self.now(), error.code, error.message))

    def requeue(self, job_id: str, attempt: int, *, charge: bool = True) -> bool:
        """Put attempt number ``attempt`` back in line. Without ``charge`` :meth:`charged` does not count it."""
        values = {"started_at": None, "forgiven": jobs.c.forgiven + (0 if charge else 1)}
        return self._moved(job_id, Status.QUEUED, *_attempt(attempt), **values)

    def cancel(self, job_id: str) -> bool:
        """End a job that has not ended yet."""
        return self._moved(job_id, Status.CANCELLED, **_ending(self.now()))

    def hand_back(self, job_id: str) -> bool:
        """Put a running job back in line without charge, whichever attempt it is: the server stops, not for its sake."""
        return self._moved(job_id, Status.QUEUED, started_at=None, forgiven=jobs.c.forgiven + 1)

    def charged(self, job_id: str) -> int:
        """How many attempts count against the job: all but those that were requeued without charge."""
        with self.reading() as db:
            found = db.execute(select(jobs.c.attempts - jobs.c.forgiven).where(jobs.c.id == job_id)).scalar()
        return found or 0

    def interrupt_all(
        self,
        *,
        code: str = "interrupted",
        message: str = "The server was restarted before this job had ended.",
        statuses: tuple[Status, ...] = (Status.QUEUED, Status.RUNNING),
    ) -> Jobs:
        """Fail what the last boot left behind, and say what that was (with its new state). Call before any work starts.

        Background jobs are not failed: :meth:`recover` is for them.
        """
        left = and_(~jobs.c.background, jobs.c.status.in_([status.value for status in statuses if not status.final]))
        with self.writing() as db:
            ids = list(db.execute(select(jobs.c.id).where(left).order_by(jobs.c.created_at).with_for_update()).scalars())
            db.execute(update(jobs).where(left).values(status=Status.FAILED.value, **_ending(self.now(), code, message)))
            return [job for job in (_one(db, job_id) for job_id in ids) if job is not None]

    def recover(self, max_attempts: int) -> Jobs:
        """Put the background jobs of the last boot back in line, and give those that wait and are in no batch, oldest first.

        Their last attempt counts against them: it may be what ended the server. Those that have had ``max_attempts`` fail.
        """
        running = and_(jobs.c.background, jobs.c.status == Status.RUNNING.value)
        failed = _ending(self.now(), "worker_lost", "The server ended each time while this job ran.")
        queued = (jobs.c.background, jobs.c.batch_id.is_(None), jobs.c.status == Status.QUEUED.value)
        with self.writing() as db:
            used_up = and_(running, jobs.c.attempts - jobs.c.forgiven >= max_attempts)
            db.execute(update(jobs).where(used_up).values(status=Status.FAILED.value, **failed))
            db.execute(update(jobs).where(running).values(status=Status.QUEUED.value, started_at=None))
            waiting = select(*_JOB_COLUMNS).where(*queued).order_by(jobs.c.created_at, jobs.c.id)
            return [_job(row) for row in db.execute(waiting).mappings()]

    def of_background(self) -> Jobs:
        """Background jobs whose folder is needed: those that have not ended, and those that have a result."""
        needed = [status.value for status in Status if not status.final or status is Status.SUCCEEDED]
        with self.reading() as db:
            query = select(*_JOB_COLUMNS).where(jobs.c.background, jobs.c.status.in_(needed))
            return [_job(row) for row in db.execute(query).mappings()]

    def webhooks_due(self, limit: int) -> Jobs:
        """Jobs that have ended and whose callers are to be told now."""
        ended = jobs.c.status.in_([status.value for status in Status if status.final])
        due = is_due(jobs.c.webhook_at, self.now())
        query = select(*_JOB_COLUMNS).where(jobs.c.webhook_url.is_not(None), ~jobs.c.webhook_done, ended, due)
        with self.reading() as db:
            return [_job(row) for row in db.execute(query.order_by(jobs.c.finished_at).limit(limit)).mappings()]

    def webhook_tried(self, job_id: str, again: timedelta | None) -> None:
        """A caller was told, or will be told again so much later (None: nothing more is to be done)."""
        values = {"webhook_tries": jobs.c.webhook_tries + 1, "webhook_done": again is None}
        at = None if again is None else self.now() + again
        with self.writing() as db:
            db.execute(update(jobs).where(jobs.c.id == job_id).values(**values, webhook_at=at))

    def set_duration(self, job_id: str, seconds: float) -> bool:
        """Note the length of the audio, in seconds."""
        with self.writing() as db:
            return db.execute(update(jobs).where(jobs.c.id == job_id).values(duration_s=seconds)).rowcount == 1

    def list(
        self,
        owner: str | None,
        status: Status | None = None,
        limit: int = 100,
        after: str | None = None,
        background: bool | None = None,
    ) -> Jobs:
        """At most ``limit`` jobs of ``owner`` (None: anyone's), newest first, from the one behind job ``after`` on.

        The page behind a job that is not there is empty.
        """
        query = select(*_JOB_COLUMNS).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        if after is not None:
            last = select(jobs.c.created_at).where(jobs.c.id == after).scalar_subquery()
            query = query.where(or_(jobs.c.created_at < last, and_(jobs.c.created_at == last, jobs.c.id < after)))
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        if status is not None:
            query = query.where(jobs.c.status == status.value)
        if background is not None:
            query = query.where(jobs.c.background == background)
        with self.reading() as db:
            return [_job(row) for row in db.execute(query).mappings()]

    def counts(self) -> dict[Status, int]:
        """How many jobs are in each status; every status is there."""
        with self.reading() as db:
            found = db.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status)).all()
        return dict.fromkeys(Status, 0) | {Status(status): count for status, count in found}

    def delete(self, job_id: str) -> bool:
        """Forget a job, whatever its state."""
        with self.writing() as db:
            return db.execute(delete(jobs).where(jobs.c.id == job_id)).rowcount == 1

    def _moved(self, job_id: str, status: Status, *conditions: ColumnElement[bool], **values: Any) -> bool:
        with self.writing() as db:
            return self._move(db, job_id, status, *conditions, **values)

    def _move(self, db: Connection, job_id: str, status: Status, *conditions: ColumnElement[bool], **values: Any) -> bool:
        """Whether the job was in a state that leads to ``status``, and met the conditions: now it is there."""
        allowed = [source.value for source, targets in TRANSITIONS.items() if status in targets]
        row = update(jobs).where(jobs.c.id == job_id, jobs.c.status.in_(allowed), *conditions)
        return db.execute(row.values(status=status.value, **values)).rowcount == 1


def _attempt(number: int) -> tuple[ColumnElement[bool], ...]:
    return jobs.c.status == Status.RUNNING.value, jobs.c.attempts == number


def _ending(moment: datetime, code: str | None = None, message: str | None = None) -> dict[str, Any]:
    return {"finished_at": moment, "error_code": code, "error_message": message}


def _one(db: Connection, job_id: str) -> Job | None:
    row = db.execute(select(*_JOB_COLUMNS).where(jobs.c.id == job_id)).mappings().one_or_none()
    return None if row is None else _job(row)


def _job(row: RowMapping | dict[str, Any]) -> Job:
    return Job(**(dict(row) | {"options": TranscribeOptions.from_dict(row["options"]), "status": Status(row["status"])}))


class AsyncStore:
    """Calls a store's methods in order on one thread of its own, so that the event loop never waits for the disk.

    ``passing`` is the same store for jobs whose caller waits for them: nobody asks for those after a power cut.

    ::

        store = AsyncStore(Store(settings.store_url))
        job = await store.run(store.sync.get, job_id, owner)

    A caller that is cancelled while it waits does not know whether its call took place; it is never done by halves.
    """

    def __init__(self, store: Store) -> None:
        self.sync, self.passing = store, store.passing()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

    async def run(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of ``method``, called on the store's thread; what it raises is raised here.

        Raises:
            RuntimeError: the store was closed.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(method, *args, **kwargs))

    async def close(self) -> None:
        """Finish the calls that were made, then close every connection."""
        await self.run(self.sync.close)
        self._thread.shutdown()
