"""What was learned survives a restart; what is broken is as good as nothing.

Runs on SQLite; with STENOPOOL_TEST_DATABASE_URL (an empty database) on that one instead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text

from app.database import Database
from app.errors import CapacityError
from app.measurements import Measurements, measurements
from tests.fakes.clock import Clock
from tests.fakes.database import OTHER_URL, emptied

START = datetime(2026, 1, 2, tzinfo=timezone.utc)
sqlite_only = pytest.mark.skipif(OTHER_URL is not None, reason="about SQLite")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(OTHER_URL or f"sqlite:///{tmp_path}/jobs.db", now=Clock(START))
    opened.create_schema()
    yield opened
    emptied(opened)
    opened.close()


def rows(database: Database) -> list[tuple[str, datetime]]:
    with database.reading() as db:
        return [(row.name, row.updated_at) for row in db.execute(select(measurements).order_by(measurements.c.name))]


def test_what_was_saved_is_loaded(database: Database) -> None:
    data = {"version": 1, "list": [1, 2.5, None, "ü"], "nested": {"a": [[]]}}
    Measurements(database).save("cost", data)
    assert Measurements(database).load("cost") == data


def test_a_second_save_replaces_the_first_and_is_stamped(database: Database) -> None:
    kept = Measurements(database)
    kept.save("cost", {"n": 1})
    kept.save("other", {})
    kept.save("cost", {"n": 2})
    assert kept.load("cost") == {"n": 2}
    assert kept.load("other") == {}
    assert rows(database) == [("cost", START + timedelta(seconds=3)), ("other", START + timedelta(seconds=2))]


def test_what_was_never_saved_is_none(database: Database) -> None:
    assert Measurements(database).load("cost") is None


@pytest.mark.parametrize("data", [[], [1], 3, "text", True])
def test_a_document_that_is_not_an_object_is_none(database: Database, data: object) -> None:
    with database.writing() as db:
        db.execute(insert(measurements).values(name="cost", data=data, updated_at=START))
    assert Measurements(database).load("cost") is None


@sqlite_only
@pytest.mark.parametrize("garbage", ["", "{", "{'a': 1}", "[" * 100_000], ids=["empty", "cut", "quotes", "deep"])
def test_a_column_that_is_not_json_is_none_and_can_be_saved_over(
    database: Database, garbage: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Measurements(database)
    kept.save("cost", {})
    with database.writing() as db:
        db.execute(text("UPDATE measurements SET data = :garbage"), {"garbage": garbage})
    assert kept.load("cost") is None
    assert "cannot be read" in caplog.text
    kept.save("cost", {"n": 1})
    assert kept.load("cost") == {"n": 1}


def test_many_that_save_at_once_leave_one_row(database: Database) -> None:
    together = threading.Barrier(4)

    def save(number: int) -> None:
        together.wait(timeout=30)
        Measurements(database).save("cost", {"n": number})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(save, range(4)))
    assert len(rows(database)) == 1
    assert Measurements(database).load("cost") in [{"n": number} for number in range(4)]


def test_a_row_that_appears_between_update_and_insert_is_updated(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Measurements(database)
    tries = []
    put = kept._put

    def late(name: str, data: dict[str, object]) -> None:
        tries.append(name)
        if len(tries) == 1:
            put(name, {"by": "another"})
            raise ValueError("the row breaks a constraint; its id may be taken")
        put(name, data)

    monkeypatch.setattr(kept, "_put", late)
    kept.save("cost", {"by": "me"})
    assert kept.load("cost") == {"by": "me"}
    assert len(tries) == 2


def test_a_database_that_is_down_is_said_to_be(tmp_path: Path) -> None:
    empty = Database(f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(CapacityError):
        Measurements(empty).load("cost")
    with pytest.raises(CapacityError):
        Measurements(empty).save("cost", {})
    empty.close()
