"""Outputs of two sides are compared word by word, and word times are asked for as the service takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.handoff import COPIES, measure
from benchmarks.sides import can, options_for
from benchmarks.vs_whisperx import agreement, distinct, models_folder


def test_equal_words_agree_whatever_the_windows() -> None:
    assert agreement([[" Stop ", "go left"]], [["stop go", "Left"]]) == 1.0


def test_one_wrong_word_of_four_is_a_quarter_less_in_common() -> None:
    assert agreement([["one two three four"]], [["one two nine four"]]) == pytest.approx(0.75)
    assert agreement([["one"]], [[]]) == 0.0


def test_a_model_with_random_weights_has_one_text() -> None:
    assert distinct([[" the fox", "the fox"], ["the fox "]]) == {"the fox"}
    assert len(distinct([["the fox", "the"]])) == 2


def test_words_are_asked_for_as_this_version_spells_them() -> None:
    assert not options_for("demo", "none", None).word_timestamps
    assert options_for("demo", "aligned", "en").word_timestamps
    assert can("aligned")
    assert options_for("demo", "none", "en").vad.chunk_s == 10.0


def test_a_model_that_is_nowhere_is_told_with_what_to_do(tmp_path: Path) -> None:
    assert models_folder(None, ["demo"], tmp_path / "models").is_dir()
    with pytest.raises(SystemExit, match=r"benchmarks\.random_models small"):
        models_folder(tmp_path, ["small"], tmp_path / "models")
    (tmp_path / "given" / "small").mkdir(parents=True)
    folder = models_folder(tmp_path / "given", ["small"], tmp_path / "models")
    assert (folder / "small").resolve() == (tmp_path / "given" / "small").resolve()


def test_every_way_hands_over_the_very_samples() -> None:
    """Each checks the other process's checksum of random bytes; a wrong one ends the run."""
    seconds = measure(size=300_000, rounds=1)
    assert set(seconds) == {*COPIES, "checksum alone"}
    assert all(len(values) == 1 and values[0] > 0 for values in seconds.values())
