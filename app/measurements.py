"""What the server learned about itself, kept across restarts: one JSON document per name."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import JSON, Column, String, Table, insert, select, update

from app.database import Database, UtcDateTime, metadata

log = logging.getLogger(__name__)

measurements = Table(
    "measurements",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("data", JSON, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)


class Measurements:
    """The documents in ``database``. Methods block, and raise what :class:`app.database.Database` lists."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, name: str) -> dict[str, Any] | None:
        """The document; None where there is none, or where what is there is not one."""
        with self._database.reading() as db:
            try:
                data = db.execute(select(measurements.c.data).where(measurements.c.name == name)).scalar()
            except (ValueError, RecursionError):  # The text in the column is not JSON, or too deep.
                log.warning("the measurements %r cannot be read; starting without them", name)
                return None
        return data if isinstance(data, dict) else None

    def save(self, name: str, data: dict[str, Any]) -> None:
        """Keep the document in place of the one before."""
        try:
            self._put(name, data)
        except ValueError:
            self._put(name, data)  # Another process inserted the row in between, so now there is one to update.

    def _put(self, name: str, data: dict[str, Any]) -> None:
        values = {"data": data, "updated_at": self._database.now()}
        with self._database.writing() as db:
            if db.execute(update(measurements).where(measurements.c.name == name).values(values)).rowcount == 0:
                db.execute(insert(measurements).values(values | {"name": name}))
