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

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every start

_ONE_AT_A_TIME = threading.Lock()
"""Alembic keeps the running upgrade in a global."""


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(Path(__file__).parent))


def upgrade(connection: Connection) -> None:
    """Make or change the tables, in the transaction of ``connection``; nothing where they are up to date.

    Raises:
        alembic.util.CommandError: the database was made by a later version of this program.
    """
    scripts = _scripts()
    if MigrationContext.configure(connection).get_current_revision() == scripts.get_current_head():
        return

    def steps(revision: Any, context: MigrationContext) -> Any:
        return scripts._upgrade_revs("head", revision)

    with _ONE_AT_A_TIME, EnvironmentContext(Config(), scripts, fn=steps, destination_rev="head") as environment:
        environment.configure(connection=connection)
        environment.run_migrations()
