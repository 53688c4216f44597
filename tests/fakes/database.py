"""Databases of tests: SQLite in a folder, or the one of STENOPOOL_TEST_DATABASE_URL, which must be empty."""

from __future__ import annotations

import os

from sqlalchemy import text

from app.database import Database

OTHER_URL = os.environ.get("STENOPOOL_TEST_DATABASE_URL")


def emptied(database: Database) -> None:
    """Take everything out of the other database again; SQLite's goes with its folder."""
    if OTHER_URL:
        with database.writing() as db:
            db.execute(text("DROP SCHEMA public CASCADE"))
            db.execute(text("CREATE SCHEMA public"))
