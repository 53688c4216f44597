"""The database behind the store and the keys: SQLite by default, PostgreSQL by URL. Knows no table but the list of them."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from copy import copy
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Dialect,
    Engine,
    MetaData,
    TypeDecorator,
    create_engine,
    event,
    make_url,
    or_,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import CapacityError, DiskFull, StenopoolError
from app.migrations import LaterVersion, upgrade

log = logging.getLogger(__name__)

D = TypeVar("D", bound="Database")

BUSY_TIMEOUT_S = 10
LONGEST_DELAY = timedelta(hours=11)
"""More than the longest pause between two tries of a webhook."""

_DEADLINES = {
    "connect_timeout": BUSY_TIMEOUT_S,
    "keepalives_idle": BUSY_TIMEOUT_S,
    "tcp_user_timeout": 1000 * BUSY_TIMEOUT_S,
    "options": f"-c lock_timeout={BUSY_TIMEOUT_S}s -c statement_timeout={3 * BUSY_TIMEOUT_S}s",
}
"""libpq's, so that a database that has gone silent keeps nobody waiting for ever."""

ANSWER_S = 3 * BUSY_TIMEOUT_S + 5.0
"""After these seconds without an answer a connection is closed: a server that is frozen has a kernel that keeps it up."""

metadata = MetaData()


class UtcDateTime(TypeDecorator[datetime]):
    """A moment: timezone-aware in Python, UTC in the database (SQLite keeps no zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC; refuses a moment without a zone, which would mean another moment on another machine."""
        if value is not None and value.tzinfo is None:
            raise ValueError("the moment has no timezone")
        return None if value is None else value.astimezone(timezone.utc)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Back, timezone-aware."""
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


def is_due(at: ColumnElement[datetime], now: datetime) -> ColumnElement[bool]:
    """Whether what is planned for ``at`` is to be done now; None: at once.

    Also where that lies further ahead than anything is ever put off: then the clock was set back.
    """
    return or_(at.is_(None), at <= now, at > now + LONGEST_DELAY)


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(timezone.utc)


class Database:
    """Connections and transactions, from any thread. No call waits for another much longer than ``BUSY_TIMEOUT_S``.

    SQLite runs in WAL mode with ``synchronous=FULL``, so what was committed survives a power cut (but see :meth:`passing`).
    ``now`` is the wall clock that stamps the rows.

    Raises:
        DiskFull: there is no room for the change.
        CapacityError: the database does not answer. Neither message holds SQL or a path; the log has the cause.
        ValueError: the change breaks a constraint (an id is taken).
    """

    def __init__(self, url: str, *, now: Callable[[], datetime] = utc_now) -> None:
        self.now = now
        with _translated():
            self._engine = _engine(url)
        self._reader = self._engine.execution_options(read_only=True)

    def create_schema(self) -> None:
        """Make the tables, or bring those of an earlier version up to date.

        Raises:
            StenopoolError: a later version of this program made them.
        """
        with self.writing() as db:
            try:
                upgrade(db)
            except LaterVersion as error:
                raise StenopoolError(
                    "The database was made by a later version of this program.",
                    hint="Run that version, or use another database.",
                ) from error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads; in SQLite it never waits for a writer."""
        with _translated(), self._reader.begin() as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed at the end; in SQLite it holds the write lock from its beginning."""
        with _translated(), self._engine.begin() as db:
            yield db

    def passing(self: D) -> D:
        """The same database for rows that nobody asks for after a power cut: SQLite does not wait for the disk then.

        They survive the end of this process, and a later change that lasts makes them last. PostgreSQL may lose such changes
        while this process lives on, by an end of its own: there it is the same object.
        """
        if self._engine.dialect.name != "sqlite":
            return self
        other = copy(self)
        other._engine = self._engine.execution_options(passing=True)
        return other

    def close(self) -> None:
        """Close every connection that is not in use."""
        self._engine.dispose()


def _engine(url: str) -> Engine:
    parsed = _parsed(url)
    if parsed.get_backend_name() != "sqlite":
        is_psycopg = parsed.drivername == "postgresql+psycopg"
        more = {"connect_args": _DEADLINES} if is_psycopg else {}
        engine = create_engine(parsed, hide_parameters=True, pool_pre_ping=True, pool_timeout=BUSY_TIMEOUT_S, **more)
        if is_psycopg:
            event.listen(engine, "do_connect", lambda dialect, record, args, settings: _bounded().connect(*args, **settings))
        return engine
    if parsed.database and not parsed.database.startswith((":", "file:")):
        _make_private(Path(parsed.database))
    engine = create_engine(parsed, hide_parameters=True)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


@cache
def _bounded() -> Any:
    """psycopg's connection, which waits for no answer longer than ``ANSWER_S``; imported only where it is used."""
    import psycopg

    class Bounded(psycopg.Connection[Any]):
        def wait(self, gen: Any, *args: Any, **more: Any) -> Any:
            return super().wait(self._within(gen), *args, **more)

        def _within(self, gen: Any) -> Generator[Any, Any, Any]:
            end = time.monotonic() + ANSWER_S
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted  # nothing, every now and then, where there is no answer yet
                    if not ready and time.monotonic() > end:
                        self.pgconn.finish()
                        raise psycopg.OperationalError("the database does not answer")
                    wanted = gen.send(ready)
            except StopIteration as done:
                return done.value

    return Bounded


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
        if parsed.drivername in {"postgres", "postgresql"}:  # As hosting platforms write it.
            parsed = parsed.set(drivername="postgresql+psycopg")
        parsed.get_dialect().import_dbapi()
    except (ArgumentError, ImportError) as error:
        # The cause may quote the URL, and that may hold a password.
        raise StenopoolError(
            f"The database URL cannot be used ({type(error).__name__}).",
            hint="DATABASE_URL is sqlite:///<path> or postgresql://...; PostgreSQL also needs `pip install psycopg[binary]`.",
        ) from None
    return parsed


def _make_private(path: Path) -> None:
    """Make the folder 0700 and the file 0600 if they are not there; SQLite gives its side files the mode of the file."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _set_pragmas(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # The driver begins no transactions; _begin does.
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_S * 1000}", "journal_mode=WAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    # A transaction that reads first and writes later fails at once if another wrote in between; IMMEDIATE waits instead.
    options, known = connection.get_execution_options(), connection.info
    if options.get("read_only"):
        connection.exec_driver_sql("BEGIN")
        return
    wanted = "NORMAL" if options.get("passing") else "FULL"
    if known.get("synchronous") != wanted:
        connection.exec_driver_sql(f"PRAGMA synchronous={wanted}")
        known["synchronous"] = wanted
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise ValueError("the row breaks a constraint; its id may be taken") from error
    except (DBAPIError, PoolTimeout, OSError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        log.error("the database failed: %s: %s", type(cause).__name__, cause)
        if _is_full(cause):
            raise DiskFull("The job store has no room left.") from error
        raise CapacityError("The job store is not available.") from error


def _is_full(cause: BaseException | None) -> bool:
    if isinstance(cause, OSError):
        return cause.errno in {errno.ENOSPC, errno.EDQUOT}
    # SQLITE_FULL by its text, as Python 3.10 has no error codes; PostgreSQL's disk_full by its SQLSTATE.
    return "disk is full" in str(cause) or getattr(cause, "sqlstate", None) == "53100"
