"""The rows that several machines share: leases of jobs, and the nodes. All times are those of the database's clock."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import JSON, Column, Connection, Double, Index, String, Table, delete, func, insert, select, update

from app.database import UtcDateTime, metadata
from app.errors import Interrupted
from app.jobs import Job, Status
from app.store import _JOB_COLUMNS, Jobs, Store, _ending, _job, jobs

leases = Table(
    "leases",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("source", JSON, nullable=False),
    Column("sent_at", UtcDateTime, nullable=False),
    Column("node", String(64)),
    Column("lease_until", UtcDateTime),
    Column("stage", String(16), nullable=False, server_default="queued"),
    Column("fraction", Double, nullable=False, server_default="0"),
    Column("worked_s", Double, nullable=False, server_default="0"),
    Index("leases_by_end", "lease_until"),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("seen_at", UtcDateTime, nullable=False),
    Column("state", JSON, nullable=False),
)

FORGOTTEN_S = 86_400.0


@dataclass(frozen=True)
class Node:
    """What a node says of itself.

    ``places``: jobs at once, ``runners`` of them make progress at a time; ``room_bytes``: memory for jobs beside one worker,
    ``most_bytes``: for a worker and its job; ``workers``: those of each model, as the pool shows them.
    """

    id: str
    places: int
    runners: int
    room_bytes: int
    most_bytes: int
    running: int = 0
    ready: bool = False
    workers: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Node:
        """The inverse of :meth:`to_dict`; what it does not know it ignores."""
        return cls(**{one.name: data[one.name] for one in fields(cls) if one.name in data})


@dataclass(frozen=True)
class Sent:
    """How far a job is that was sent to the nodes."""

    job: Job
    node: str | None
    stage: str
    fraction: float
    worked_s: float


class SharedStore(Store):
    """The store of an API whose jobs run elsewhere. A restart of the API interrupts nothing there."""

    def clock(self, db: Connection) -> datetime:
        """The database's clock, which all machines have in common (SQLite has none: ours)."""
        if db.dialect.name == "sqlite":
            return self.now()
        moment: datetime = db.execute(select(func.clock_timestamp(type_=UtcDateTime))).scalar_one()
        return moment

    def passing(self) -> SharedStore:
        """Itself: others act on every row."""
        return self

    def send(self, job_id: str, source: dict[str, str]) -> None:
        """From now on any node may claim the job; ``source`` says where its audio is."""
        with self.writing() as db:
            again = update(leases).where(leases.c.job_id == job_id).values(sent_at=self.clock(db))
            if not db.execute(again).rowcount:
                db.execute(insert(leases).values(job_id=job_id, source=source, sent_at=self.clock(db)))

    def source(self, job_id: str) -> dict[str, str] | None:
        """Where the audio of a job is that was sent."""
        with self.reading() as db:
            found: dict[str, str] | None = db.execute(select(leases.c.source).where(leases.c.job_id == job_id)).scalar()
        return found

    def sent(self, job_ids: list[str]) -> list[Sent]:
        """How far these jobs are."""
        columns = (leases.c.node, leases.c.stage, leases.c.fraction, leases.c.worked_s)
        query = select(*_JOB_COLUMNS, *columns).outerjoin(leases, leases.c.job_id == jobs.c.id).where(jobs.c.id.in_(job_ids))
        with self.reading() as db:
            return [_sent(dict(row)) for row in db.execute(query).mappings()]

    def seen(self, within_s: float) -> list[Node]:
        """The nodes that were heard of in the last seconds."""
        with self.reading() as db:
            since = self.clock(db) - timedelta(seconds=within_s)
            query = select(nodes.c.state).where(nodes.c.seen_at > since).order_by(nodes.c.id)
            return [Node.from_dict(state) for state in db.execute(query).scalars()]

    def known(self, job_ids: list[str]) -> frozenset[str]:
        """Those of which there is a row."""
        found: set[str] = set()
        with self.reading() as db:
            for first in range(0, len(job_ids), 500):
                query = select(jobs.c.id).where(jobs.c.id.in_(job_ids[first : first + 500]))
                found.update(db.execute(query).scalars())
        return frozenset(found)

    def delete(self, job_id: str) -> bool:
        """Forget a job, whatever its state, with its lease."""
        self.forget_lease(job_id)
        return super().delete(job_id)

    def forget_lease(self, job_id: str) -> None:
        """Nobody is to run it any more, or its row is gone: where its audio was (an address may hold a secret) is forgotten."""
        with self.writing() as db:
            db.execute(delete(leases).where(leases.c.job_id == job_id))

    # -- what one box does at its start and end, and an API of several machines must not

    def interrupt_all(self, **_: Any) -> Jobs:
        """Only what is older than anybody waits: the callers of other APIs may still be there."""
        self.drop_forgotten(FORGOTTEN_S)
        return []

    def recover(self, max_attempts: int) -> Jobs:
        """The background jobs that have not ended, those at nodes first, then by age; of batches only what is at a node."""
        left = [job for job in self.of_background() if not job.status.final]
        left = [job for job in left if job.batch_id is None or job.status is Status.RUNNING]
        return sorted(left, key=lambda job: (job.status is not Status.RUNNING, job.created_at, job.id))

    def hand_back(self, job_id: str) -> bool:
        """Not ours to hand back: the node has it, or its lease ends."""
        return False

    def drop_forgotten(self, older_than_s: float) -> None:
        """Fail jobs whose caller waited at an API that is gone, and that were never sent."""
        left = (~jobs.c.background, jobs.c.status == Status.QUEUED.value, jobs.c.id.not_in(select(leases.c.job_id)))
        error = Interrupted("The server was restarted before this job had ended.")
        with self.writing() as db:
            moment = self.clock(db)
            old = jobs.c.created_at < moment - timedelta(seconds=older_than_s)
            failed = {"status": Status.FAILED.value, **_ending(moment, error.code, error.message)}
            db.execute(update(jobs).where(*left, old).values(**failed))


def _sent(row: dict[str, Any]) -> Sent:
    node, stage, fraction, worked_s = (row.pop(name) for name in ("node", "stage", "fraction", "worked_s"))
    return Sent(_job(row), node, stage or "queued", fraction or 0.0, worked_s or 0.0)
