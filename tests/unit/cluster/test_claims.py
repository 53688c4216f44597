"""Leases and fencing: of several nodes one has a job, and whoever comes back late changes nothing.

Runs on SQLite; with STENOPOOL_TEST_DATABASE_URL (an empty database) on that one instead, whose clock cannot be moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import update

from app.cluster.claims import NodeStore
from app.cluster.rows import Node, SharedStore, leases
from app.errors import NotMedia, WorkerLost
from app.jobs import Job, Status, TranscribeOptions, new_id
from tests.fakes.database import OTHER_URL, emptied

START = datetime(2026, 1, 2, tzinfo=timezone.utc)
LEASE_S = 15.0

Make = Callable[..., NodeStore]


def state(name: str, places: int = 2) -> Node:
    return Node(name, places, 1, 10**9, 2 * 10**9)


class Rows:
    """An API's store and nodes' stores of one database."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.moment = START
        self.api = SharedStore(url, now=lambda: self.moment)
        self.opened: list[SharedStore] = [self.api]

    def node(self, name: str, max_deaths: int = 3) -> NodeStore:
        self.opened.append(NodeStore(self._url, name, LEASE_S, max_deaths, now=lambda: self.moment))
        return self.opened[-1]  # type: ignore[return-value]

    def sent(self, **changes: object) -> str:
        """A job that the API has sent."""
        job = Job(new_id(), "alice", TranscribeOptions("demo"), START, background=True, **changes)  # type: ignore[arg-type]
        self.api.add(job)
        self.api.send(job.id, {"media": f"jobs/{job.id}/input"})
        return job.id

    def expire(self) -> None:
        """All leases and messages are older than a lease now."""
        past = timedelta(seconds=LEASE_S + 1)
        with self.api.writing() as db:
            db.execute(update(leases).values(sent_at=self.api.clock(db) - past))
            db.execute(update(leases).where(leases.c.node.is_not(None)).values(lease_until=self.api.clock(db) - past))


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Rows]:
    made = Rows(OTHER_URL or f"sqlite:///{tmp_path}/jobs.db")
    made.api.create_schema()
    yield made
    emptied(made.api)
    for store in made.opened:
        store.close()


def test_claim_begins_an_attempt_and_tells_where_the_input_is(rows: Rows) -> None:
    job_id = rows.sent()
    claimed = rows.node("a").claim(job_id)
    assert claimed is not None
    job, source = claimed
    assert (job.status, job.attempts, source) == (Status.RUNNING, 1, {"media": f"jobs/{job_id}/input"})
    assert rows.api.sent([job_id])[0].node == "a"


def test_of_two_nodes_with_the_same_message_one_gets_the_job(rows: Rows) -> None:
    job_id = rows.sent()
    first, second = rows.node("a"), rows.node("b")
    assert first.claim(job_id) is not None
    assert second.claim(job_id) is None
    assert first.claim(job_id) is None, "a message that comes twice is none"


def test_of_eight_nodes_that_claim_in_the_same_moment_one_gets_each_job(rows: Rows) -> None:
    nodes = [rows.node(f"n{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(10):
            claims = threads.map(NodeStore.claim, nodes, [rows.sent()] * 8)
            assert sum(one is not None for one in claims) == 1


def test_job_that_was_never_sent_or_has_ended_is_not_to_be_had(rows: Rows) -> None:
    never = Job(new_id(), "alice", TranscribeOptions("demo"), START)
    rows.api.add(never)
    ended = rows.sent()
    rows.api.cancel(ended)
    node = rows.node("a")
    assert [node.claim(one) for one in (never.id, ended, "unknown")] == [None, None, None]


def test_node_that_comes_back_after_its_lease_cannot_end_what_another_has_taken(rows: Rows) -> None:
    job_id = rows.sent()
    late, other = rows.node("late"), rows.node("other")
    late.claim(job_id)
    late.start(job_id)
    assert other.claim(job_id) is None
    rows.expire()
    assert other.overdue(10) == [job_id]
    assert other.claim(job_id) is not None
    other.start(job_id)
    assert not late.finish(job_id, 1, Status.SUCCEEDED)
    assert not late.fail(job_id, NotMedia("bad"))
    assert not late.requeue(job_id, 1)
    assert not late.give_back(job_id)
    assert late.beat(state("late")) == [job_id]
    assert other.beat(state("other")) == []
    assert other.finish(job_id, 2, Status.SUCCEEDED, worked_s=1.5)
    sent = rows.api.sent([job_id])[0]
    assert (sent.job.status, sent.job.attempts, sent.node, sent.worked_s) == (Status.SUCCEEDED, 2, "other", 1.5)


def test_beat_keeps_the_lease_and_tells_of_progress(rows: Rows) -> None:
    job_id = rows.sent()
    node = rows.node("a")
    node.claim(job_id)
    rows.expire()
    node.claims[job_id].stage, node.claims[job_id].fraction = "transcribe", 0.25
    assert node.beat(state("a")) == []
    assert rows.node("b").overdue(10) == []
    sent = rows.api.sent([job_id])[0]
    assert (sent.stage, sent.fraction) == ("transcribe", 0.25)


def test_cancelled_job_is_lost_to_its_node_at_the_next_beat(rows: Rows) -> None:
    job_id = rows.sent()
    node = rows.node("a")
    node.claim(job_id)
    rows.api.cancel(job_id)
    assert node.beat(state("a")) == [job_id]


def test_job_that_is_given_back_is_free_at_once_and_not_charged(rows: Rows) -> None:
    job_id = rows.sent()
    first, second = rows.node("a"), rows.node("b")
    first.claim(job_id)
    assert first.give_back(job_id)
    assert second.claim(job_id) is not None
    assert second.charged(job_id) == 1


def test_message_that_got_lost_is_found_after_a_lease_and_not_before(rows: Rows) -> None:
    job_id = rows.sent()
    node = rows.node("a")
    assert node.overdue(10) == []
    rows.expire()
    assert node.overdue(10) == [job_id]
    assert node.overdue(0) == []


def test_worker_that_dies_makes_a_new_attempt_under_the_same_lease(rows: Rows) -> None:
    job_id = rows.sent()
    node = rows.node("a")
    node.claim(job_id)
    assert node.start(job_id).attempts == 1  # type: ignore[union-attr]
    assert node.requeue(job_id, 1)
    assert node.start(job_id).attempts == 2  # type: ignore[union-attr]
    assert not rows.node("b").claim(job_id)
    assert not node.finish(job_id, 1, Status.SUCCEEDED)
    assert node.finish(job_id, 2, Status.SUCCEEDED)


def test_job_that_ends_every_machine_fails_after_so_many(rows: Rows) -> None:
    job_id = rows.sent()
    for name in ("a", "b"):
        assert rows.node(name, max_deaths=2).claim(job_id) is not None
        rows.expire()
    assert rows.node("c", max_deaths=2).claim(job_id) is None
    job = rows.api.get(job_id)
    assert job is not None
    assert (job.status, job.error_code) == (Status.FAILED, "worker_lost")


def test_attempts_on_other_machines_count_when_a_worker_dies(rows: Rows) -> None:
    job_id = rows.sent()
    rows.node("gone", max_deaths=2).claim(job_id)
    rows.expire()
    node = rows.node("a", max_deaths=2)
    node.claim(job_id)
    node.start(job_id)
    node.requeue(job_id, 2)
    with pytest.raises(WorkerLost):
        node.start(job_id)


def test_nodes_are_seen_until_they_leave_or_fall_silent(rows: Rows) -> None:
    first, second = rows.node("a"), rows.node("b")
    first.beat(state("a", places=2))
    second.beat(state("b", places=4))
    first.beat(state("a", places=3))
    assert [(one.id, one.places) for one in rows.api.seen(LEASE_S)] == [("a", 3), ("b", 4)]
    second.leave()
    assert [one.id for one in rows.api.seen(LEASE_S)] == ["a"]
    assert rows.api.seen(0) == []


def test_restart_of_an_api_touches_no_job(rows: Rows) -> None:
    waiting, running = rows.sent(), rows.sent()
    node = rows.node("a")
    node.claim(running)
    assert {job.id for job in rows.api.recover(3)} == {waiting, running}
    assert rows.api.interrupt_all() == []
    assert not rows.api.hand_back(running)
    assert node.beat(state("a")) == []


def test_waiting_caller_of_an_api_that_is_gone_is_forgotten_after_a_while(rows: Rows) -> None:
    old = Job(new_id(), "alice", TranscribeOptions("demo"), START - timedelta(days=365))
    rows.api.add(old)
    sent = rows.sent()
    rows.api.drop_forgotten(3600.0)
    assert rows.api.get(old.id).error_code == "interrupted"  # type: ignore[union-attr]
    assert rows.api.get(sent).status is Status.QUEUED  # type: ignore[union-attr]


def test_deleted_job_leaves_no_lease(rows: Rows) -> None:
    job_id = rows.sent()
    assert rows.api.delete(job_id)
    rows.expire()
    assert rows.node("a").overdue(10) == []
