"""API keys: create, verify, revoke. ``python -m app.keys create|list|revoke`` is the operator's way in.

A key reads ``steno_<id>_<secret>``: 12 hex digits that name it, and 256 random bits. Kept are the id and the SHA-256 of
the secret; such a secret cannot be guessed, so a slow hash would only cost time. The plain key is shown once.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import JSON, Column, RowMapping, String, Table, insert, select, update

from app.database import Database, UtcDateTime, metadata
from app.errors import InputError, StenopoolError
from app.settings import Settings

LIMITS = {
    "jobs": "transcriptions that wait or run at once",
    "audio_s": "seconds of audio that wait or run at once",
    "requests_per_minute": "transcriptions asked for in a minute",
}
"""What a key may have of its own, instead of the server's STENOPOOL_KEY_* settings."""

MIN_CONFIGURED_CHARACTERS = 16
CACHE_S = 4.0
"""Seconds that a verified key is taken for valid without asking again; a revocation is felt everywhere within them."""

_FORMAT = re.compile(r"steno_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_DUMMY = hashlib.sha256(secrets.token_bytes(32)).hexdigest()

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("secret_sha256", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("scopes", JSON(none_as_null=True)),
    Column("limits", JSON(none_as_null=True)),
)


@dataclass(frozen=True)
class Key:
    """What is known of a key but for its secret. ``id`` is the owner of the jobs sent with it.

    ``created_at`` is None for a key of STENOPOOL_API_KEYS. ``scopes`` and ``limits``: None where nothing is set.
    """

    id: str
    name: str
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    scopes: list[str] | None = None
    limits: dict[str, Any] | None = None

    def valid(self, now: datetime) -> bool:
        """Whether the key opens anything at ``now``."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class KeyRing:
    """The keys of STENOPOOL_API_KEYS, held hashed in memory, and those of the database.

    ``clock`` counts seconds and never goes back; expiry is judged by the database's wall clock. Methods that reach the
    database block, and raise what :class:`app.database.Database` lists.

    Raises:
        StenopoolError: a configured key is too short; the message does not show it.
    """

    def __init__(
        self, database: Database, configured: Iterable[str] = (), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._clock = clock
        self._configured = [_configured(number, plain) for number, plain in enumerate(configured, start=1)]
        self._seen: dict[str, tuple[str, Key, float]] = {}

    def create(
        self,
        name: str,
        expires_at: datetime | None = None,
        *,
        scopes: list[str] | None = None,
        limits: dict[str, Any] | None = None,
    ) -> tuple[str, Key]:
        """Make a key. The plain key is in this answer and nowhere else.

        Raises:
            InputError: the name is empty, longer than 100 characters or not printable, or ``expires_at`` is over.
        """
        if not (0 < len(name) <= 100 and name.isprintable()):
            raise InputError("A key's name has 1 to 100 printable characters.", param="name")
        now = self._database.now()
        if expires_at is not None and expires_at <= now:
            raise InputError("The key would be expired from the start.", param="expires_at")
        secret = secrets.token_urlsafe(32)
        key = Key(secrets.token_hex(6), name, now, expires_at, None, scopes, limits)
        with self._database.writing() as db:
            db.execute(insert(api_keys).values(vars(key) | {"secret_sha256": _sha256(secret)}))
        return f"steno_{key.id}_{secret}", key

    def verify(self, plain: str) -> Key | None:
        """The key that ``plain`` is, if it is valid now. Asks the database where :meth:`known` cannot tell."""
        if (known := self.known(plain)) is not None:
            return known
        if (parts := _FORMAT.fullmatch(plain)) is None:
            return None
        asked = self._clock()
        with self._database.reading() as db:
            row = db.execute(select(api_keys).where(api_keys.c.id == parts[1])).mappings().one_or_none()
        digest = _sha256(parts[2])
        # An unknown id is compared too, so that the time taken does not tell which ids exist.
        same = hmac.compare_digest(digest, _DUMMY if row is None else row["secret_sha256"])
        if row is None or not same or not (found := _key(row)).valid(self._database.now()):
            return None
        self._seen[found.id] = (digest, found, asked)
        return found

    def known(self, plain: str) -> Key | None:
        """The valid key that ``plain`` is, as far as memory goes: configured, or verified within ``CACHE_S``. Never blocks."""
        digest = _sha256(plain)
        found = None
        for expected, key in self._configured:  # All of them, so that the time taken tells nothing.
            if hmac.compare_digest(digest, expected):
                found = key
        return found or self._recent(plain)

    def _recent(self, plain: str) -> Key | None:
        if (parts := _FORMAT.fullmatch(plain)) is None:
            return None
        expected, key, asked = self._seen.get(parts[1], (_DUMMY, None, 0.0))
        same = hmac.compare_digest(_sha256(parts[2]), expected)
        if key is None or not same or self._clock() - asked >= CACHE_S or not key.valid(self._database.now()):
            return None
        return key

    def revoke(self, key_id: str) -> bool:
        """End a key: at once in this process, within ``CACHE_S`` in others. False where there is none that is alive."""
        alive = (api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        with self._database.writing() as db:
            revoked = db.execute(update(api_keys).where(*alive).values(revoked_at=self._database.now())).rowcount == 1
        self._seen.pop(key_id, None)
        return revoked

    def list(self) -> list[Key]:
        """The keys of the database, oldest first, revoked ones too."""
        with self._database.reading() as db:
            rows = db.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)).mappings()
            return [_key(row) for row in rows]

    def count(self) -> int:
        """How many valid keys there are, configured ones included. With none, nobody gets in."""
        now = self._database.now()
        return len(self._configured) + sum(key.valid(now) for key in self.list())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _configured(number: int, plain: str) -> tuple[str, Key]:
    if len(plain) < MIN_CONFIGURED_CHARACTERS:
        raise StenopoolError(
            f"Key {number} of STENOPOOL_API_KEYS is shorter than {MIN_CONFIGURED_CHARACTERS} characters.",
            hint="Make one with `python -m app.keys create <name>`, or with `openssl rand -hex 32`.",
        )
    digest = _sha256(plain)
    return digest, Key(f"env-{digest[:8]}", "STENOPOOL_API_KEYS")


def _key(row: RowMapping) -> Key:
    return Key(**{name: row[name] for name in Key.__dataclass_fields__})


# -- the command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m app.keys``; the exit status is 0 where it did what was asked."""
    options = _parser().parse_args(arguments)
    settings = Settings()
    database = Database(settings.store_url)
    try:
        database.create_schema()
        return _run(KeyRing(database), options, database.now())
    except StenopoolError as error:
        print(f"{error.message} {error.hint}", file=sys.stderr)
        return 1
    finally:
        database.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.keys", description="API keys of this server's database.")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it, once")
    create.add_argument("name", help="who or what the key is for")
    create.add_argument("--days", type=_days, help="days until it expires; never, if left out")
    for name, what in LIMITS.items():
        create.add_argument(f"--{name.replace('_', '-')}", type=_limit, help=f"{what}; 0: no limit; default: the server's")
    commands.add_parser("list", help="show the keys, without their secrets")
    commands.add_parser("revoke", help="end a key").add_argument("id", help="the 12 digits in the middle of the key")
    return parser


def _days(text: str) -> timedelta:
    days = float(text)
    if not 0 < days <= 36500:
        raise argparse.ArgumentTypeError("days lie between 0 and 36500")
    return timedelta(days=days)


def _limit(text: str) -> int:
    limit = int(text)
    if limit < 0:
        raise argparse.ArgumentTypeError("a limit is not negative")
    return limit


def _run(ring: KeyRing, options: argparse.Namespace, now: datetime) -> int:
    if options.command == "create":
        expires = None if options.days is None else now + options.days
        limits = {name: value for name in LIMITS if (value := getattr(options, name)) is not None}
        plain, _ = ring.create(options.name, expires, limits=limits or None)
        print(plain)
        print("Keep it: it is not shown again.", file=sys.stderr)
        return 0
    if options.command == "list":
        for key in ring.list():
            state = "revoked" if key.revoked_at else "valid" if key.valid(now) else "expired"
            print(key.id, state, key.created_at or "", key.expires_at or "never", key.name, sep="\t")
        return 0
    if ring.revoke(options.id):
        print(f"Revoked {options.id}.")
        return 0
    print("There is no such key, or it is revoked already.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
