"""Job rows: states, ownership, conditional changes, durability settings, errors.

Runs on SQLite; with STENOPOOL_TEST_DATABASE_URL (an empty database) on that one instead.
"""

from __future__ import annotations

import asyncio
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from app.errors import CapacityError, DeadlineExceeded, DiskFull, StenopoolError
from app.jobs import Job, Status, TranscribeOptions, VadOptions, new_id
from app.store import AsyncStore, Store
from tests.fakes.clock import Clock
from tests.fakes.database import OTHER_URL, emptied

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
sqlite_only = pytest.mark.skipif(OTHER_URL is not None, reason="about SQLite")


def job(owner: str = "alice", **changes: object) -> Job:
    return replace(Job(new_id(), owner, TranscribeOptions("demo"), START), **changes)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(OTHER_URL or f"sqlite:///{tmp_path}/data/jobs.db", now=Clock(START))
    opened.create_schema()
    yield opened
    emptied(opened)
    opened.close()


@pytest.fixture
def running(store: Store) -> Job:
    """A job in its first attempt."""
    added = job()
    store.add(added)
    started = store.start(added.id)
    assert started is not None
    return started


# -- one caller


def test_a_job_comes_back_as_it_went(store: Store) -> None:
    vienna = timezone(timedelta(hours=2))
    options = TranscribeOptions("demo", "de", initial_prompt="Grüße 🎙", vad=VadOptions(onset=0.25))
    added = job(
        options=options,
        created_at=START.astimezone(vienna),
        status=Status.FAILED,
        attempts=3,
        duration_s=1.25,
        started_at=START,
        finished_at=START,
        error_code="worker_lost",
        error_message="x",
    )
    store.add(added)
    found = store.get(added.id)
    assert found == added
    assert found.created_at.utcoffset() == timedelta(0)


def test_an_id_is_taken_once(store: Store) -> None:
    added = job()
    store.add(added)
    with pytest.raises(ValueError, match="taken"):
        store.add(added)


def test_another_owner_sees_nothing(store: Store) -> None:
    added = job("alice")
    store.add(added)
    assert store.get(added.id, "alice") == added
    assert store.get(added.id) == added
    assert store.get(added.id, "bob") is None
    assert store.get(added.id, "") is None
    assert store.get("nothing", "alice") is None
    assert store.list("bob") == []


def test_a_job_goes_through_its_life(store: Store) -> None:
    added = job()
    store.add(added)
    started = store.start(added.id)
    assert started is not None
    assert (started.status, started.attempts, started.started_at) == (Status.RUNNING, 1, START + timedelta(seconds=1))
    assert store.start(added.id) is None
    assert store.set_duration(added.id, 2.5)
    assert store.finish(added.id, 1, Status.SUCCEEDED)
    ended = store.get(added.id)
    assert ended is not None
    assert (ended.status, ended.duration_s, ended.error_code) == (Status.SUCCEEDED, 2.5, None)
    assert ended.finished_at > ended.started_at


def test_an_error_is_kept_by_its_code(store: Store, running: Job) -> None:
    assert store.finish(running.id, 1, Status.FAILED, error=DeadlineExceeded("Too slow."))
    ended = store.get(running.id)
    assert (ended.error_code, ended.error_message) == ("deadline_exceeded", "Too slow.")


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING])
def test_a_job_finishes_only_in_a_final_status(store: Store, running: Job, status: Status) -> None:
    with pytest.raises(ValueError, match="does not finish"):
        store.finish(running.id, 1, status)


def test_a_late_result_of_an_earlier_attempt_is_refused(store: Store, running: Job) -> None:
    assert store.requeue(running.id, 1)
    assert not store.finish(running.id, 1, Status.SUCCEEDED)
    assert store.start(running.id).attempts == 2
    assert not store.finish(running.id, 1, Status.SUCCEEDED)
    assert not store.requeue(running.id, 1)
    assert store.finish(running.id, 2, Status.FAILED)
    assert not store.finish(running.id, 2, Status.SUCCEEDED)
    assert store.get(running.id).status is Status.FAILED


def test_an_attempt_that_was_not_the_jobs_fault_is_not_charged_and_its_number_is_not_used_again(
    store: Store, running: Job
) -> None:
    assert store.charged(running.id) == 1
    assert store.requeue(running.id, 1, charge=False)
    assert store.charged(running.id) == 0
    assert store.get(running.id).started_at is None
    assert store.start(running.id).attempts == 2
    assert store.charged(running.id) == 1
    assert not store.finish(running.id, 1, Status.SUCCEEDED)
    assert store.requeue(running.id, 2)
    assert store.charged(running.id) == 1
    assert store.charged("nothing") == 0


def test_a_job_is_cancelled_until_it_has_ended(store: Store, running: Job) -> None:
    waiting = job()
    store.add(waiting)
    assert store.cancel(waiting.id)
    assert store.cancel(running.id)
    assert not store.cancel(running.id)
    assert not store.finish(running.id, 1, Status.SUCCEEDED)
    assert store.start(waiting.id) is None
    assert store.get(running.id).status is Status.CANCELLED
    assert store.get(running.id).finished_at is not None
    assert not store.cancel("nothing")


def test_a_restart_fails_what_was_left_and_says_what_it_was(store: Store, running: Job) -> None:
    waiting = job(created_at=START + timedelta(seconds=1))
    done = job(status=Status.SUCCEEDED)
    store.add(waiting)
    store.add(done)
    left = store.interrupt_all()
    assert [one.id for one in left] == [running.id, waiting.id]
    assert {(one.status, one.error_code) for one in left} == {(Status.FAILED, "interrupted")}
    assert left == [store.get(one.id) for one in left]
    assert store.get(done.id) == done
    assert store.interrupt_all() == []


def test_a_restart_may_leave_the_queue_alone(store: Store, running: Job) -> None:
    waiting = job()
    store.add(waiting)
    left = store.interrupt_all(code="worker_lost", message="Gone.", statuses=(Status.RUNNING, Status.SUCCEEDED))
    assert [(one.id, one.error_code, one.error_message) for one in left] == [(running.id, "worker_lost", "Gone.")]
    assert store.get(waiting.id) == waiting


def test_a_restart_puts_background_jobs_back_in_line_oldest_first_and_leaves_the_others_alone(store: Store) -> None:
    jobs = [job(background=True, created_at=START + timedelta(seconds=n), source={"file": "upload"}) for n in (2, 1, 3)]
    for one in [*jobs, job(id="sync")]:
        store.add(one)
    store.start(jobs[0].id)
    store.start("sync")
    assert [one.id for one in store.interrupt_all()] == ["sync"]
    left = store.recover(3)
    assert [one.id for one in left] == [jobs[1].id, jobs[0].id, jobs[2].id]
    assert [(one.status, one.attempts) for one in left] == [(Status.QUEUED, 0), (Status.QUEUED, 1), (Status.QUEUED, 0)]
    assert left[1].source == {"file": "upload"}
    assert store.recover(3) == left


def test_a_background_job_that_ran_at_every_end_of_the_server_is_given_up(store: Store) -> None:
    added = job(background=True)
    store.add(added)
    for _ in range(2):
        store.start(added.id)
        assert [one.id for one in store.recover(3)] == [added.id]
    store.start(added.id)
    assert store.recover(3) == []
    ended = store.get(added.id)
    assert ended is not None
    assert (ended.status, ended.error_code, ended.attempts) == (Status.FAILED, "worker_lost", 3)


def test_a_job_that_is_handed_back_is_not_charged_and_one_that_waits_or_has_ended_stays_as_it_is(store: Store) -> None:
    added = job(background=True)
    store.add(added)
    assert not store.hand_back(added.id)
    store.start(added.id)
    assert store.hand_back(added.id)
    assert (store.charged(added.id), store.get(added.id).attempts) == (0, 1)
    store.cancel(added.id)
    assert not store.hand_back(added.id)


def test_folders_of_background_jobs_are_needed_until_they_fail_or_are_cancelled(store: Store) -> None:
    kinds = [(True, status) for status in Status] + [(False, Status.SUCCEEDED)]
    for number, (background, status) in enumerate(kinds):
        store.add(job(id=f"{number}", background=background, status=status))
    needed = {one.status for one in store.of_background()}
    assert needed == {Status.QUEUED, Status.RUNNING, Status.SUCCEEDED}
    assert len(store.of_background()) == 3
    assert {one.background for one in store.list("alice", background=True)} == {True}


def test_pages_follow_each_other_without_gap_or_repeat(store: Store) -> None:
    # Several jobs share a moment, so that the id must break the tie.
    added = [job(created_at=START + timedelta(seconds=i // 3)) for i in range(10)]
    for one in [*added, job("bob")]:
        store.add(one)
    expected = sorted(added, key=lambda one: (one.created_at, one.id), reverse=True)
    assert store.list("alice") == expected
    pages, after = [], None
    while page := store.list("alice", limit=3, after=after):
        pages.append(page)
        after = page[-1].id
    assert [len(page) for page in pages] == [3, 3, 3, 1]
    assert [one for page in pages for one in page] == expected
    assert store.list("alice", after="nothing") == []
    assert len(store.list(None)) == 11


def test_a_list_takes_one_status(store: Store, running: Job) -> None:
    store.add(job())
    assert [one.id for one in store.list("alice", Status.RUNNING)] == [running.id]
    assert store.list("alice", Status.FAILED) == []


def test_counts_name_every_status(store: Store, running: Job) -> None:
    store.add(job())
    store.add(job("bob"))
    assert store.counts() == {
        Status.QUEUED: 2,
        Status.RUNNING: 1,
        Status.SUCCEEDED: 0,
        Status.FAILED: 0,
        Status.CANCELLED: 0,
    }


def test_a_deleted_job_is_gone(store: Store, running: Job) -> None:
    assert store.delete(running.id)
    assert not store.delete(running.id)
    assert store.get(running.id) is None
    assert not store.set_duration(running.id, 1.0)
    assert not store.finish(running.id, 1, Status.SUCCEEDED)


# -- several callers


def at_once(calls: list[Callable[[], object]]) -> list[object]:
    """The results of ``calls``, all let go at the same moment."""
    gate = threading.Barrier(len(calls))

    def wait_and(call: Callable[[], object]) -> object:
        gate.wait(10)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(30) for future in [pool.submit(wait_and, call) for call in calls]]


def test_of_many_starters_one_wins(store: Store) -> None:
    added = job()
    store.add(added)
    started = at_once([lambda: store.start(added.id)] * 8)
    assert sum(one is not None for one in started) == 1
    assert store.get(added.id).attempts == 1


finals = st.sampled_from([Status.SUCCEEDED, Status.FAILED, Status.CANCELLED])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ends=st.lists(finals, min_size=2, max_size=4), cancel=st.booleans(), requeue=st.booleans())
def test_of_several_finishers_exactly_one_wins(store: Store, ends: list[Status], cancel: bool, requeue: bool) -> None:
    added = job()
    store.add(added)
    assert store.start(added.id)
    calls: list[Callable[[], object]] = [lambda end=end: store.finish(added.id, 1, end) for end in ends]
    results = list(ends)
    if cancel:
        calls.append(lambda: store.cancel(added.id))
        results.append(Status.CANCELLED)
    if requeue and not cancel:  # A job that was put back may be cancelled after it, so not both.
        calls.append(lambda: store.requeue(added.id, 1))
        results.append(Status.QUEUED)
    won = at_once(calls)
    assert won.count(True) == 1
    assert store.get(added.id).status is results[won.index(True)]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["start", "finish", "stale", "requeue", "forgive", "cancel", "interrupt"]), max_size=14))
def test_no_order_of_calls_ends_a_job_twice_or_reuses_an_attempt(store: Store, calls: list[str]) -> None:
    added = job()
    store.add(added)
    attempts: list[int] = []
    ended = 0
    for call in calls:
        attempt = attempts[-1] if attempts else 0
        if call == "start" and (started := store.start(added.id)):
            attempts.append(started.attempts)
        elif call == "finish":
            ended += store.finish(added.id, attempt, Status.SUCCEEDED)
        elif call == "stale":
            assert not store.finish(added.id, attempt - 1, Status.SUCCEEDED)
        elif call in {"requeue", "forgive"}:
            store.requeue(added.id, attempt, charge=call == "requeue")
        elif call == "cancel":
            ended += store.cancel(added.id)
        elif call == "interrupt":
            ended += added.id in [one.id for one in store.interrupt_all()]
    assert ended == store.get(added.id).status.final
    assert attempts == list(range(1, len(attempts) + 1))
    assert 0 <= store.charged(added.id) <= len(attempts)
    store.interrupt_all()


def test_writers_on_many_threads_lose_nothing(store: Store) -> None:
    def work() -> None:
        for _ in range(5):
            added = job()
            store.add(added)
            assert store.finish(added.id, store.start(added.id).attempts, Status.SUCCEEDED)

    at_once([work] * 8)
    assert store.counts()[Status.SUCCEEDED] == 40


# -- SQLite


@sqlite_only
def test_the_database_is_durable_and_private(tmp_path: Path, store: Store) -> None:
    with store.writing() as db:
        pragmas = {
            name: db.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
    store.add(job())
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").iterdir()} == {0o600}


@sqlite_only
def test_what_was_committed_is_there_after_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    first, second = Store(url), Store(url)
    first.create_schema()
    second.create_schema()
    added = job()
    first.add(added)
    assert second.get(added.id) == added
    first.close()
    second.close()
    third = Store(url)
    assert third.get(added.id) == added
    third.close()


@sqlite_only
def test_rows_of_a_caller_who_waits_are_not_waited_for_on_the_disk_and_all_others_are(store: Store) -> None:
    for one, expected in ((store.passing(), 1), (store, 2), (store.passing(), 1)):
        with one.writing() as db:
            assert db.exec_driver_sql("PRAGMA synchronous").scalar() == expected


def test_what_was_written_in_passing_is_seen_by_all(store: Store) -> None:
    added = job()
    store.passing().add(added)
    assert store.get(added.id) == added
    assert store.start(added.id) is not None
    assert store.passing().finish(added.id, 1, Status.SUCCEEDED)
    found = store.get(added.id)
    assert found is not None
    assert found.status is Status.SUCCEEDED


@sqlite_only
def test_a_reader_does_not_wait_for_a_writer(store: Store, running: Job) -> None:
    with store.writing() as db:
        db.execute(text("DELETE FROM jobs"))
        began = time.monotonic()
        assert store.get(running.id) == running
        assert time.monotonic() - began < 5


@sqlite_only
def test_a_change_that_fails_half_way_leaves_nothing(store: Store, running: Job) -> None:
    def fail() -> None:
        with store.writing() as db:
            db.execute(text("DELETE FROM jobs"))
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        fail()
    assert store.get(running.id) == running


@sqlite_only
def test_a_full_disk_is_called_so_and_nothing_is_kept(store: Store) -> None:
    with store.reading() as db:
        db.exec_driver_sql("PRAGMA max_page_count=1")  # As many pages as there are.
    large = job(options=TranscribeOptions("demo", initial_prompt="secret" * 100_000))
    with pytest.raises(DiskFull) as caught:
        store.add(large)
    assert_clean(caught.value)
    assert store.get(large.id) is None


@sqlite_only
def test_a_database_that_is_no_database_is_an_error_for_the_caller(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"not a database" * 1000)
    broken = Store(f"sqlite:///{tmp_path}/jobs.db")
    with pytest.raises(CapacityError) as caught:
        broken.create_schema()
    assert_clean(caught.value)
    broken.close()


@sqlite_only
def test_a_missing_table_is_an_error_without_sql(tmp_path: Path) -> None:
    empty = Store(f"sqlite:///{tmp_path}/jobs.db")
    with pytest.raises(CapacityError) as caught:
        empty.add(job(options=TranscribeOptions("demo", initial_prompt="secret")))
    assert_clean(caught.value)
    assert "secret" not in str(caught.value.__cause__)
    empty.close()


@sqlite_only
def test_a_writer_that_never_ends_is_not_waited_for_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.database.BUSY_TIMEOUT_S", 0.05)
    with store.writing(), pytest.raises(CapacityError):
        store.add(job())
    store.add(job())


@sqlite_only
def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CapacityError) as caught:
        Store(f"sqlite:///{tmp_path}/file/jobs.db")
    assert str(tmp_path) not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("url", ["", "not a url", "postgresql+nothing://u:hunter2@h/d", "oracle+nothing://u:hunter2@h/d"])
def test_a_url_that_cannot_be_used_is_named_without_its_password(url: str) -> None:
    with pytest.raises(StenopoolError, match="database URL") as caught:
        Store(url)
    assert "hunter2" not in f"{caught.value.message} {caught.value.hint} {caught.value.__cause__}"


def assert_clean(error: StenopoolError) -> None:
    shown = f"{error.message} {error.hint}".lower()
    assert not any(word in shown for word in ("sqlite", "insert", "secret", "table", "/", ".db"))


# -- from the event loop


async def test_calls_run_in_order_on_one_other_thread(store: Store) -> None:
    calls = AsyncStore(store)
    seen: list[tuple[int, str]] = []

    def note(number: int) -> int:
        seen.append((number, threading.current_thread().name))
        return number

    assert await asyncio.gather(*(calls.run(note, i) for i in range(20))) == list(range(20))
    assert [number for number, _ in seen] == list(range(20))
    assert {name for _, name in seen} == {"store_0"}
    added = job()
    await calls.run(calls.sync.add, added)
    assert await calls.run(calls.sync.get, added.id, owner="alice") == added
    await calls.close()
    with pytest.raises(RuntimeError):
        await calls.run(note, 1)


async def test_the_loop_goes_on_while_the_store_works(store: Store) -> None:
    calls = AsyncStore(store)
    release = threading.Event()
    waiting = asyncio.ensure_future(calls.run(release.wait, 10))
    await asyncio.sleep(0)
    assert not waiting.done()
    release.set()
    assert await waiting
    with pytest.raises(CapacityError):
        await calls.run(fail_with, CapacityError("x"))
    await calls.close()


def fail_with(error: Exception) -> None:
    raise error
