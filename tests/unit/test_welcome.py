"""The first minute: what refuses to start, when a key is made, and what is printed."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import pytest

from app import welcome
from app.keys import KeyRing
from app.settings import Settings
from app.store import Store


def settings(folder: Path, **changes: Any) -> Settings:
    return Settings(_env_file=None, **({"data_dir": folder / "data", "model_size": "demo"} | changes))


def key_count(configured: Settings) -> int:
    store = Store(configured.store_url)
    try:
        return len(KeyRing(store).list())
    finally:
        store.close()


def test_first_start_on_loopback_makes_a_key_that_opens_and_prints_a_line_to_paste(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configured = settings(tmp_path, port=8123)
    assert welcome.prepare(configured) is None
    printed = capsys.readouterr().out
    url = r"'http://127\.0\.0\.1:8123/transcribe\?model_size=demo'"
    found = re.search(rf"curl -H [\"']X-API-Key: (\S+)[\"'] -F file=@\S+ {url}", printed)
    assert found is not None
    store = Store(configured.store_url)
    assert KeyRing(store).verify(found[1]) is not None
    store.close()
    assert stat.S_IMODE(configured.data_dir.stat().st_mode) == 0o700


def test_second_start_makes_no_other_key_and_prints_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configured = settings(tmp_path)
    welcome.prepare(configured)
    first = re.search(r"steno_\S+", capsys.readouterr().out)
    assert first is not None
    assert welcome.prepare(configured) is None
    assert "steno_" not in capsys.readouterr().out
    assert key_count(configured) == 1


def test_configured_keys_are_neither_printed_nor_joined_by_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configured = settings(tmp_path, api_keys="a-configured-key-0123456789", host="0.0.0.0")
    assert welcome.prepare(configured) is None
    printed = capsys.readouterr()
    assert "a-configured-key" not in printed.out + printed.err
    assert "http://127.0.0.1:8000" in printed.out
    assert key_count(configured) == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "2001:db8::1", "example.org", "0", "127.0.0.1.example.org"])
def test_a_public_address_without_keys_is_refused_and_no_key_is_made(
    tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configured = settings(tmp_path, host=host)
    problem = welcome.prepare(configured)
    assert problem is not None
    assert "STENOPOOL_API_KEYS" in problem
    assert capsys.readouterr().out == ""
    assert key_count(configured) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_a_loopback_address_needs_no_key_of_the_operator(tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert welcome.prepare(settings(tmp_path, host=host)) is None
    assert f"http://{f'[{host}]' if ':' in host else host}:8000/" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{"model_size": "huge"}, {"warm_models": ("demo", "huge")}])
def test_an_unknown_model_is_refused_naming_the_known_ones(tmp_path: Path, changes: dict[str, Any]) -> None:
    problem = welcome.prepare(settings(tmp_path, **changes))
    assert problem is not None
    assert "'huge'" in problem
    assert "large-v3" in problem


def test_an_ffmpeg_that_cannot_be_run_is_told_at_the_start(tmp_path: Path) -> None:
    problem = welcome.prepare(settings(tmp_path, ffmpeg=tmp_path / "none"))
    assert problem is not None
    assert "STENOPOOL_FFMPEG" in problem


def test_a_key_that_is_too_short_is_refused_without_being_shown(tmp_path: Path) -> None:
    problem = welcome.prepare(settings(tmp_path, api_keys="short-key"))
    assert problem is not None
    assert "shorter" in problem
    assert "short-key" not in problem


def test_a_database_url_that_cannot_be_used_is_refused_without_its_password(tmp_path: Path) -> None:
    problem = welcome.prepare(settings(tmp_path, database_url="nonsense://user:hunter2@host/db"))
    assert problem is not None
    assert "hunter2" not in problem


def test_an_expired_key_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyRing, "count", lambda ring: 0)
    assert welcome.prepare(settings(tmp_path, host="0.0.0.0")) is not None
