"""API keys: shown once, kept hashed, compared in constant time, revoked for good."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import keys
from app.errors import CapacityError, InputError, StenopoolError
from app.keys import CACHE_S, KeyRing, main
from app.store import Store

START = datetime(2026, 1, 2, tzinfo=timezone.utc)
CONFIGURED = "a key of my own, 16+"


class Time:
    """One time for both clocks: ``wall`` and ``monotonic`` move together unless one is moved."""

    def __init__(self) -> None:
        self.moment = START
        self.seconds = 100.0

    def wall(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)
        self.seconds += seconds


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def store(tmp_path: Path, clock: Time) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path}/jobs.db", now=clock.wall)
    opened.create_schema()
    yield opened
    opened.close()


@pytest.fixture
def ring(store: Store, clock: Time) -> KeyRing:
    return KeyRing(store, [CONFIGURED, "another key, ending in ü"], clock=clock.monotonic)


@pytest.fixture
def other(store: Store, clock: Time) -> KeyRing:
    """The ring of another process on the same database."""
    return KeyRing(store, clock=clock.monotonic)


def test_a_new_key_has_its_form_and_opens(ring: KeyRing) -> None:
    plain, key = ring.create("laptop")
    match = re.fullmatch(r"steno_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", plain)
    assert match
    assert key.id == match[1]
    assert (key.name, key.created_at, key.expires_at, key.revoked_at) == ("laptop", START, None, None)
    assert ring.verify(plain) == key
    assert ring.list() == [key]
    assert ring.count() == 3


def test_keys_differ(ring: KeyRing) -> None:
    made = [ring.create("x") for _ in range(20)]
    assert len({plain for plain, _ in made}) == len({key.id for _, key in made}) == 20
    assert all(ring.verify(plain) == key for plain, key in made)


def test_scopes_and_limits_are_kept(ring: KeyRing) -> None:
    plain, key = ring.create("x", scopes=["transcribe"], limits={"jobs": 2})
    found = ring.verify(plain)
    assert found == key
    assert (found.scopes, found.limits) == (["transcribe"], {"jobs": 2})


def test_the_secret_is_nowhere(ring: KeyRing, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    plain, key = ring.create("laptop")
    secret = plain.split("_", 2)[2]
    assert ring.verify(plain)
    assert ring.verify(plain[:-1]) is None
    shown = f"{key!r} {vars(ring)!r} {ring.list()!r} {caplog.text}"
    assert secret not in shown
    assert CONFIGURED not in shown
    assert not any(secret.encode() in path.read_bytes() for path in tmp_path.iterdir())
    assert any(key.id.encode() in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "steno_",
        "steno_000000000000_" + "A" * 43,
        "{plain} ",
        "{plain}A",
        "{short}",
        "{upper}",
        "steno_{id}_" + "A" * 43,
        "STENO_{id}_{secret}",
        "{secret}",
        "{id}",
        "' OR 1=1 --",
        "\ud800" * 20,
        "ü" * 100_000,
    ],
)
def test_a_wrong_key_opens_nothing(ring: KeyRing, wrong: str) -> None:
    plain, key = ring.create("x")
    secret = plain.split("_", 2)[2]
    for _ in range(2):  # The second time the right key lies in the cache.
        given = wrong.format(plain=plain, short=plain[:-1], upper=plain.upper(), id=key.id, secret=secret)
        assert ring.verify(given) is None
        assert ring.known(given) is None
        assert ring.verify(plain) == key


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text() | st.from_regex(keys._FORMAT, fullmatch=True))
def test_no_guess_opens(ring: KeyRing, guess: str) -> None:
    assert ring.verify(guess) is None


def test_a_miss_is_compared_too(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def compare(a: str, b: str) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    plain, _ = ring.create("x")
    ring.verify(plain[:-1] + ("A" if plain[-1] != "A" else "B"))
    wrong_secret = len(compared)
    compared.clear()
    ring.verify("steno_000000000000_" + "A" * 43)
    assert len(compared) == wrong_secret == 4


def test_every_configured_key_is_compared_whichever_matches(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(b) or a == b)
    assert ring.known(CONFIGURED)
    assert len(compared) == 2


def test_a_configured_key_opens_without_the_database(ring: KeyRing, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "reading", None)
    key = ring.verify(CONFIGURED)
    assert key is not None
    assert re.fullmatch(r"env-[0-9a-f]{8}", key.id)
    assert ring.known(CONFIGURED) == key
    assert ring.verify("another key, ending in ü").id != key.id


def test_the_owner_of_a_configured_key_stays_the_same(store: Store) -> None:
    assert KeyRing(store, [CONFIGURED]).known(CONFIGURED) == KeyRing(store, ["x" * 16, CONFIGURED]).known(CONFIGURED)


def test_a_short_configured_key_stops_the_start_and_is_not_shown(store: Store) -> None:
    with pytest.raises(StenopoolError, match="Key 2 of STENOPOOL_API_KEYS is shorter than 16") as caught:
        KeyRing(store, [CONFIGURED, "only 15 letters"])
    assert "only 15" not in f"{caught.value.message} {caught.value.hint}"


def test_a_revoked_key_is_refused_at_once_here_and_soon_elsewhere(ring: KeyRing, other: KeyRing, clock: Time) -> None:
    plain, key = ring.create("x")
    assert ring.verify(plain)
    assert other.verify(plain)
    assert ring.revoke(key.id)
    assert ring.verify(plain) is None
    clock.advance(5)
    assert other.verify(plain) is None
    assert not ring.revoke(key.id)
    assert not ring.revoke("nothing")
    assert ring.list()[0].revoked_at == START
    assert other.count() == 0


def test_a_verified_key_is_known_for_a_moment(ring: KeyRing, clock: Time) -> None:
    plain, key = ring.create("x")
    assert ring.known(plain) is None
    assert ring.verify(plain)
    clock.advance(CACHE_S - 0.01)
    assert ring.known(plain) == key
    clock.advance(0.02)
    assert ring.known(plain) is None
    assert ring.verify(plain) == key


def test_being_known_is_not_prolonged_by_use_or_by_a_clock_that_is_set_back(other: KeyRing, ring: KeyRing, clock: Time) -> None:
    plain, key = ring.create("x")
    assert other.verify(plain)
    ring.revoke(key.id)
    for _ in range(5):
        clock.advance(1)
        clock.moment -= timedelta(hours=1)
        last = other.verify(plain)
    assert last is None


def test_a_key_expires_even_while_it_is_known(ring: KeyRing, clock: Time) -> None:
    plain, key = ring.create("x", START + timedelta(seconds=2))
    assert ring.verify(plain) == key
    clock.advance(1.9)
    assert ring.known(plain) == key
    clock.advance(0.1)
    assert ring.known(plain) is None
    assert ring.verify(plain) is None
    assert ring.count() == 2


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", "\x1b[2J"])
def test_a_name_that_cannot_be_shown_is_refused(ring: KeyRing, name: str) -> None:
    with pytest.raises(InputError):
        ring.create(name)


def test_a_key_that_is_over_before_it_begins_is_refused(ring: KeyRing) -> None:
    with pytest.raises(InputError):
        ring.create("x", START)


def test_a_database_that_is_down_is_not_a_wrong_key(tmp_path: Path) -> None:
    empty = Store(f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(CapacityError):
        KeyRing(empty, [CONFIGURED]).verify("steno_000000000000_" + "A" * 43)
    assert KeyRing(empty, [CONFIGURED]).verify(CONFIGURED)
    empty.close()


# -- the command line


@pytest.fixture
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("STENOPOOL_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.usefixtures("_home")
def test_the_command_line_creates_lists_and_revokes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "laptop", "--days", "1.5"]) == 0
    plain = capsys.readouterr().out.strip()
    opened = Store(f"sqlite:///{tmp_path}/data/stenopool.db")
    key = KeyRing(opened).verify(plain)
    assert key is not None
    assert key.expires_at - key.created_at < timedelta(days=1.51)

    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert listed.split("\t")[:2] == [key.id, "valid"]
    assert plain.split("_", 2)[2] not in listed

    assert main(["revoke", key.id]) == 0
    assert main(["revoke", key.id]) == 1
    capsys.readouterr()
    assert main(["list"]) == 0
    assert "\trevoked\t" in capsys.readouterr().out
    assert KeyRing(opened).verify(plain) is None
    opened.close()


@pytest.mark.usefixtures("_home")
@pytest.mark.parametrize("arguments", [[], ["create"], ["create", "x", "--days", "0"], ["create", "x", "--days", "inf"]])
def test_the_command_line_refuses_what_it_does_not_know(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.usefixtures("_home")
def test_the_command_line_says_what_is_wrong_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", ""]) == 1
    assert "1 to 100" in capsys.readouterr().err
