"""The schema of the database, version by version (Alembic): an old database is brought up to date when it is opened.

A version that has landed is never changed; a change of a table is a new file in ``versions``, and a test compares where they
lead with the tables in the code.
"""

from __future__ import annotations

import logging
import threading
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text

logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every start

_ONE_AT_A_TIME = threading.Lock()
"""Alembic keeps the running upgrade in a global."""


_LOCK = 0x57E40


class LaterVersion(Exception):
    """The database was made by a later version of this program."""


@cache
def _scripts() -> Any:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(__file__).parent))


@cache
def _revisions() -> list[str]:
    """All of them, in order: the files begin with their numbers."""
    return sorted(path.name.split("_")[0] for path in (Path(__file__).parent / "versions").glob("[0-9]*.py"))


def upgrade(connection: Connection) -> None:
    """Make or change the tables, in the transaction of ``connection``; nothing where they are up to date.

    Alembic is imported only where there is something to do: it takes half a second.

    Raises:
        LaterVersion: a later version of this program made them.
    """
    if connection.dialect.name == "postgresql":  # several machines may start at once
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    current = None
    if inspect(connection).has_table("alembic_version"):
        current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if current == _revisions()[-1]:
        return
    if current is not None and current not in _revisions():
        raise LaterVersion
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext

    scripts = _scripts()

    def steps(revision: Any, context: Any) -> Any:
        return scripts._upgrade_revs("head", revision)

    with _ONE_AT_A_TIME, EnvironmentContext(Config(), scripts, fn=steps, destination_rev="head") as environment:
        environment.configure(connection=connection)
        environment.run_migrations()
