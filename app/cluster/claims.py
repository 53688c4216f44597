"""What a node may do to the rows of jobs: claim, keep, end, give back. The attempt is the fencing number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Update, and_, delete, insert, or_, select, update

from app.cluster.rows import Node, SharedStore, leases, nodes
from app.errors import NeverFits, StenopoolError, WorkerLost
from app.jobs import Job, Status
from app.store import _ending, _one, jobs

NODE_KEPT = timedelta(days=1)


@dataclass
class Claim:
    """A job that this node runs: which attempt, how far it is, and whether that attempt has not begun."""

    attempt: int
    stage: str = "queued"
    fraction: float = 0.0
    fresh: bool = True


class NodeStore(SharedStore):
    """The store of one node, as :class:`app.runs.Runs` uses it. It changes only jobs in ``claims``, as of the attempt claimed.

    A lease is ``lease_s`` seconds long and renewed by :meth:`beat`. To be called from one thread at a time.
    """

    def __init__(self, url: str, node: str, lease_s: float, max_deaths: int, **more: Any) -> None:
        super().__init__(url, **more)
        self.node, self._lease, self._max_deaths = node, timedelta(seconds=lease_s), max_deaths
        self.claims: dict[str, Claim] = {}
        self._left = False
        self._most_bytes = 0
        self._too_large: set[str] = set()

    # -- leases

    def claim(self, job_id: str) -> tuple[Job, dict[str, str]] | None:
        """Begin the next attempt of a job that waits, or whose node is gone; None where it is not to be had (any more).

        One that has ended too many nodes or workers fails instead.
        """
        if job_id in self._for_larger():
            return None
        with self.writing() as db:
            now = self.clock(db)
            db.execute(select(jobs.c.id).where(jobs.c.id == job_id).with_for_update())  # jobs before leases, as everywhere
            lease = db.execute(select(leases).where(leases.c.job_id == job_id)).mappings().one_or_none()
            job = _one(db, job_id)
            if lease is None or job is None or not _is_free(job, lease["lease_until"], now):
                return None
            where = (jobs.c.id == job_id, jobs.c.status == job.status.value, jobs.c.attempts == job.attempts)
            if job.status is Status.RUNNING and self._charged(db, job_id) >= self._max_deaths:
                lost = WorkerLost("Each machine that ran this job was lost.")
                failed = {"status": Status.FAILED.value, **_ending(now, lost.code, lost.message)}
                db.execute(update(jobs).where(*where).values(**failed))
                return None
            attempt = job.attempts + 1
            running = {"status": Status.RUNNING.value, "attempts": attempt, "started_at": now}
            if not db.execute(update(jobs).where(*where).values(**running)).rowcount:
                return None
            held = {"node": self.node, "lease_until": now + self._lease, "stage": "queued", "fraction": 0.0}
            db.execute(update(leases).where(leases.c.job_id == job_id).values(**held))
        self.claims[job_id] = Claim(attempt)
        return replace(job, status=Status.RUNNING, attempts=attempt, started_at=now), lease["source"]

    def overdue(self, limit: int) -> list[str]:
        """Jobs that somebody should have claimed by now, oldest first: what Redis lost, and what lost nodes had."""
        others = self._for_larger()
        with self.reading() as db:
            now = self.clock(db)
            unclaimed = and_(jobs.c.status == Status.QUEUED.value, leases.c.sent_at < now - self._lease)
            over = or_(leases.c.lease_until < now, and_(leases.c.lease_until.is_(None), leases.c.sent_at < now - self._lease))
            left = and_(jobs.c.status == Status.RUNNING.value, over)
            query = (
                select(jobs.c.id)
                .join(leases, leases.c.job_id == jobs.c.id)
                .where(or_(unclaimed, left), jobs.c.id.not_in(others))
            )
            return list(db.execute(query.order_by(jobs.c.created_at).limit(limit)).scalars())

    def beat(self, node: Node) -> list[str]:
        """Say that this node lives, and keep its leases; the jobs in ``claims`` that are not ours any more."""
        lost = []
        self._most_bytes = node.most_bytes
        with self.writing() as db:
            now = self.clock(db)
            db.execute(delete(nodes).where(nodes.c.seen_at < now - NODE_KEPT))
            said = {"seen_at": now, "state": node.to_dict()}
            alive = self._left or db.execute(update(nodes).where(nodes.c.id == self.node).values(**said)).rowcount
            if not alive:
                db.execute(insert(nodes).values(id=self.node, **said))
            for job_id, claim in list(self.claims.items()):  # the event loop takes out meanwhile what has ended
                kept = {"lease_until": now + self._lease, "stage": claim.stage, "fraction": claim.fraction}
                mine = (leases.c.job_id == job_id, leases.c.node == self.node)
                running = select(jobs.c.id).where(*_mine(job_id, claim.attempt)).exists()
                if not db.execute(update(leases).where(*mine, running).values(**kept)).rowcount:
                    lost.append(job_id)
        return lost

    def give_back(self, job_id: str, claim: Claim | None = None) -> bool:
        """Back in line without charge: this node stops, or cannot run it now; and whether it was ours."""
        claim = claim or self.claims[job_id]
        with self.writing() as db:
            back = {"status": Status.QUEUED.value, "started_at": None, "forgiven": jobs.c.forgiven + 1}
            if not db.execute(_change(job_id, claim.attempt).values(**back)).rowcount:
                return False
            free = {"node": None, "lease_until": None, "sent_at": self.clock(db), "stage": "queued", "fraction": 0.0}
            db.execute(update(leases).where(leases.c.job_id == job_id).values(**free))
        return True

    def leave(self) -> None:
        """This node is on its way out: nobody should count on it. What it still runs it keeps, by :meth:`beat`."""
        self._left = True
        with self.writing() as db:
            db.execute(delete(nodes).where(nodes.c.id == self.node))

    # -- what Runs does with rows, fenced

    def start(self, job_id: str, duration_s: float | None = None) -> Job | None:
        """Begin the attempt that was claimed, or one more after a worker's death; None where the job is not ours any more.

        Raises:
            WorkerLost: it has ended too many workers, here and elsewhere.
        """
        claim = self.claims[job_id]
        with self.writing() as db:
            if not claim.fresh:
                if self._charged(db, job_id) >= self._max_deaths:
                    raise WorkerLost("This audio ended its worker process too often.")
                if not db.execute(_change(job_id, claim.attempt).values(attempts=claim.attempt + 1)).rowcount:
                    return None
                claim.attempt += 1
            claim.fresh = False
            job = _one(db, job_id)
        return job if job is not None and (job.status, job.attempts) == (Status.RUNNING, claim.attempt) else None

    def requeue(self, job_id: str, attempt: int, *, charge: bool = True) -> bool:
        """An attempt has failed, and the next one will be made here."""
        with self.writing() as db:
            forgiven = jobs.c.forgiven + (0 if charge else 1)
            return db.execute(_change(job_id, attempt).values(forgiven=forgiven)).rowcount == 1

    def finish(
        self, job_id: str, attempt: int, status: Status, *, error: StenopoolError | None = None, worked_s: float = 0.0
    ) -> bool:
        """End the attempt that is ours; ``worked_s``: seconds of engine calls. False where it is not: drop the result then.

        A second call is true too: the first may have been committed although its answer got lost.
        """
        with self.writing() as db:
            ended = _ending(self.clock(db), error.code if error else None, error.message if error else None)
            if not db.execute(_change(job_id, attempt).values(status=status.value, **ended)).rowcount:
                job = _one(db, job_id)
                return job is not None and (job.status, job.attempts) == (status, attempt)
            done = {"lease_until": None, "fraction": 1.0, "worked_s": worked_s}
            db.execute(update(leases).where(leases.c.job_id == job_id).values(**done))
        return True

    def fail(self, job_id: str, error: StenopoolError) -> bool:
        """End the attempt that is ours with ``error``; where it is only too large for this node, it is for a larger one."""
        if isinstance(error, NeverFits):
            self._too_large.add(job_id)
            if self._for_larger():
                return self.give_back(job_id)
        return self.finish(job_id, self.claims[job_id].attempt, Status.FAILED, error=error)

    def _for_larger(self) -> set[str]:
        """Jobs that are too large for this node, while there is a larger one."""
        if self._too_large and any(one.most_bytes > self._most_bytes for one in self.seen(self._lease.total_seconds())):
            return self._too_large
        return set()

    def _charged(self, db: Connection, job_id: str) -> int:
        charged: int = db.execute(select(jobs.c.attempts - jobs.c.forgiven).where(jobs.c.id == job_id)).scalar_one()
        return charged


def _mine(job_id: str, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return jobs.c.id == job_id, jobs.c.status == Status.RUNNING.value, jobs.c.attempts == attempt


def _change(job_id: str, attempt: int) -> Update:
    return update(jobs).where(*_mine(job_id, attempt))


def _is_free(job: Job, lease_until: datetime | None, now: datetime) -> bool:
    """Whether anybody may claim it: it waits, or its lease is over, or it ran before there were nodes."""
    return job.status is Status.QUEUED or (job.status is Status.RUNNING and (lease_until is None or lease_until < now))
