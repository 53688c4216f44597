"""The command line, the recordings, the questions before the load."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from loadtest import audio
from loadtest.cli import status
from loadtest.options import parse
from loadtest.preflight import judge_warm_up, shown
from loadtest.records import Unusable
from tests.unit.loadtest.build import record


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STENOPOOL_URL", "STENOPOOL_KEY", "X_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_the_call_from_the_guide_tries_one_to_eight_at_once_and_comes_back_after_refusals() -> None:
    options = parse(["--test-all", "--model", "tiny"])
    assert [load.level for load in options.loads] == [1, 2, 4, 6, 8]
    assert (options.model, options.url, options.key, options.requests) == ("tiny", "http://127.0.0.1:8000", "", None)
    assert options.tries > 1


def test_one_level_alone() -> None:
    options = parse(["--concurrent", "4", "--model", "medium"])
    assert [load.level for load in options.loads] == [4]


def test_other_levels_for_test_all_are_sorted_and_distinct() -> None:
    assert [load.level for load in parse(["--test-all", "--levels", "3,1,3"]).loads] == [1, 3]


def test_an_open_loop_lasts_a_minute_and_does_not_come_back_unless_told_so() -> None:
    options = parse(["--rate", "0.5"])
    assert (options.loads[0].rate, options.duration_s, options.tries) == (0.5, 60.0, 1)
    assert parse(["--rate", "0.5", "--obey", "--max-tries", "3"]).tries == 3
    assert parse(["--rate", "0.5", "--requests", "9"]).duration_s is None


def test_no_retry_means_one_try() -> None:
    assert parse(["--concurrent", "2", "--no-retry"]).tries == 1


def test_address_and_key_come_from_the_environment_and_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STENOPOOL_URL", "https://example.com/api/")
    monkeypatch.setenv("X_API_KEY", "first")
    assert (parse(["--test-all"]).url, parse(["--test-all"]).key) == ("https://example.com/api", "first")
    monkeypatch.setenv("STENOPOOL_KEY", " second\n")
    assert parse(["--test-all"]).key == "second"
    assert parse(["--test-all", "--api-key", "third"]).key == "third"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--test-all", "--concurrent", "2"],
        ["--concurrent", "0"],
        ["--concurrent", "two"],
        ["--rate", "-1"],
        ["--rate", "nan"],
        ["--test-all", "--levels", "1,x"],
        ["--test-all", "--timeout", "0"],
        ["--test-all", "--obey", "--no-retry"],
        ["--concurrent", "1", "extra"],
    ],
)
def test_what_argparse_refuses_ends_with_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(argv)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--levels", "1,2"],
        ["--url", "localhost:8000"],
        ["--url", "http://"],
        ["--url", "http://host:99999"],
        ["--url", "http://ho st"],
        ["--api-key", "schlüssel"],
        ["--api-key", "a\nb"],
        ["--json", "/no/such/folder/out.json"],
        ["--plot", "/"],
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_sent(more: list[str]) -> None:
    with pytest.raises(Unusable):
        parse(["--concurrent", "2", *more])


def test_the_bundled_samples_are_sent_by_default_with_what_is_said_in_them() -> None:
    found = audio.find([])
    assert len(found) == 8
    assert all(one.expected and one.seconds for one in found)


def test_bundled_samples_are_recognised_when_they_are_named() -> None:
    (one,) = audio.find([str(audio.SAMPLES / "monday.flac")])
    assert one.expected == "monday red north help"
    assert audio.find([str(audio.SAMPLES)]) != []


def test_a_folder_stands_for_the_media_files_in_it_each_once(tmp_path: Path) -> None:
    for name in ("b.WAV", "a.mp3", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "inner").mkdir()
    assert [one.name for one in audio.find([str(tmp_path), str(tmp_path / "a.mp3")])] == ["a.mp3", "b.WAV"]
    assert audio.find([str(tmp_path / "a.mp3")])[0].expected is None


def test_audio_that_is_missing_empty_or_nowhere_in_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    for name in ("empty.wav", "gone.wav"):
        with pytest.raises(Unusable, match=name):
            audio.find([str(tmp_path / name)])
    (tmp_path / "none").mkdir()
    with pytest.raises(Unusable, match="no audio"):
        audio.find([str(tmp_path / "none")])


async def test_small_files_are_kept_in_memory_and_vanished_ones_are_told_plainly(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    (one,) = audio.find([str(tmp_path / "a.wav")])
    shelf = audio.Shelf()
    await shelf.fill([one])
    (tmp_path / "a.wav").unlink()
    assert await shelf.body(one) == b"x"
    with pytest.raises(Unusable, match="cannot be read"):
        await shelf.body(dataclasses.replace(one, path=tmp_path / "gone.wav"))


def test_a_password_in_the_address_is_not_shown() -> None:
    assert shown("http://user:secret@host:8000/api") == "http://host:8000/api"


@pytest.mark.parametrize(
    ("status_code", "reason", "kind"),
    [(422, "not_media", "refused"), (503, "model_unavailable", "lost"), (404, "http_404", "refused")],
)
def test_a_warm_up_that_can_never_work_ends_the_test(status_code: int, reason: str, kind: str) -> None:
    with pytest.raises(Unusable, match=reason):
        judge_warm_up(record(status=status_code, reason=reason, kind=kind))


@pytest.mark.parametrize(
    ("status_code", "kind"), [(200, "ok"), (429, "refused"), (500, "lost"), (None, "lost"), (200, "wrong")]
)
def test_a_warm_up_that_failed_otherwise_is_left_to_the_test(status_code: int | None, kind: str) -> None:
    judge_warm_up(record(status=status_code, reason="x", kind=kind))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["ok"], 0),
        (["ok", "refused"], 0),
        (["ok", "wrong"], 1),
        (["ok", "lost"], 1),
        (["refused"], 1),
        ([], 1),
    ],
)
def test_the_exit_status_is_1_if_anything_was_wrong_or_lost_or_nothing_was_answered(kinds: list[str], expected: int) -> None:
    assert status([record(kind=kind) for kind in kinds]) == expected
