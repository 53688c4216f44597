"""The schema: what the migrations make is what the code expects, and an old database opens in a new version."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text

import app.batches_store
import app.cluster.rows
import app.keys
import app.measurements  # noqa: F401  (their tables)
from app import migrations
from app.database import metadata
from app.errors import StenopoolError
from app.jobs import Status
from app.store import Store

OLD_ROW = text(
    "INSERT INTO jobs (id, owner, options, created_at, status, attempts) VALUES "
    "('old', 'alice', '{\"model\": \"demo\"}', '2026-01-02 03:04:05', 'running', 2)"
)


def up_to(url: str, revision: str) -> None:
    scripts = migrations._scripts()
    engine = create_engine(url)
    with (
        engine.begin() as connection,
        EnvironmentContext(Config(), scripts, fn=lambda now, _: scripts._upgrade_revs(revision, now)) as environment,  # type: ignore[arg-type]
    ):
        environment.configure(connection=connection)
        environment.run_migrations()
    engine.dispose()


def test_migrations_lead_to_the_tables_in_the_code(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/jobs.db")
    store.create_schema()
    with store.reading() as db:
        assert compare_metadata(MigrationContext.configure(db), metadata) == []
    store.close()


def test_versions_follow_each_other_in_one_line() -> None:
    assert len(migrations._scripts().get_heads()) == 1


def test_database_of_the_time_before_migrations_is_brought_up_to_date_with_its_rows(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    up_to(url, "0001")
    engine = create_engine(url)
    with engine.begin() as db:
        db.execute(text("DROP TABLE alembic_version"))
        db.execute(OLD_ROW)
    engine.dispose()
    store = Store(url)
    store.create_schema()
    store.create_schema()  # nothing to do any more
    old = store.get("old")
    assert old is not None
    assert (old.owner, old.attempts, old.background, old.response_format) == ("alice", 2, False, "json")
    assert [(one.id, one.status) for one in store.interrupt_all()] == [("old", Status.FAILED)]
    store.close()


def test_database_of_a_later_version_is_refused_in_plain_words_and_left_alone(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/jobs.db")
    store.create_schema()
    with store.writing() as db:
        db.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StenopoolError, match="later version"):
        store.create_schema()
    with store.reading() as db:
        assert db.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
    store.close()
