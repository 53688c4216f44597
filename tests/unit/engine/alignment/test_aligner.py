"""Word times of segments, without a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.errors import AlignerUnavailable
from app.formats import Transcript, render
from tests.unit.engine.conftest import SETUP, noise

pytestmark = pytest.mark.filterwarnings("ignore")

RECORDING = noise(12)


@pytest.fixture(scope="module")
def aligner(engine: SimpleNamespace) -> Any:
    return engine.alignment.Aligner(SETUP, "cpu")


def align(aligner: Any, text: str, start: float = 2.0, end: float = 10.0, language: str = "en") -> list[dict[str, Any]]:
    segment = {"start": start, "end": end, "text": text, "tokens": [1], "avg_logprob": -0.5}
    found: list[dict[str, Any]] = aligner.align(RECORDING, segment, language)
    assert all(sentence["tokens"] == [1] for sentence in found)
    return found


def words(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [word for sentence in found for word in sentence["words"]]


@pytest.mark.parametrize(
    "text",
    [
        " seven red boats go north",
        "seven",
        " One. Two three. Four!",
        "Mr. Smith met Dr. Who at 5 p.m. today. It rained.",
        "7 12 99",
        "call 112 now",
        "żółć 字 🚢 ω",
        "a" * 60,
        "word " * 30,
        "...",
        "-- ?!",
        "Wait!!No?Yes. Go",
        "tab\tand\nbreak",
        "double  space   here",
    ],
)
def test_words_are_those_of_the_text_in_order_and_their_times_lie_inside_the_segment(aligner: Any, text: str) -> None:
    found = align(aligner, text)
    joined = "".join("".join(word["word"].split()) for word in words(found))
    assert joined == "".join(text.split())
    before = 2.0
    for word in words(found):
        assert word["start"] is not None
        assert before - 1e-6 <= word["start"] <= word["end"] <= 10.0 + 1e-6
        before = word["start"]
    edges = [edge for sentence in found for edge in (sentence["start"], sentence["end"])]
    assert all(2.0 <= edge <= 10.0 + 1e-6 for edge in edges)


def test_sentences_are_split_but_not_after_an_abbreviation(aligner: Any) -> None:
    found = align(aligner, "Mr. Smith met Dr. Who. It rained all day. They left.")
    assert [sentence["text"].strip() for sentence in found] == ["Mr. Smith met Dr. Who.", "It rained all day.", "They left."]


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_segment_without_text_comes_back_whole_and_without_words(aligner: Any, text: str) -> None:
    assert align(aligner, text) == [{"start": 2.0, "end": 10.0, "text": text, "tokens": [1], "avg_logprob": -0.5, "words": []}]


def test_segment_behind_the_end_of_the_recording_comes_back_whole(aligner: Any) -> None:
    (sentence,) = align(aligner, "seven", 20.0, 21.0)
    assert (sentence["start"], sentence["end"], sentence["words"]) == (20.0, 21.0, [])


@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.05, 0.2])
def test_text_that_cannot_fit_into_its_audio_loses_nothing(aligner: Any, seconds: float) -> None:
    text = "far too many words for so short a moment"
    found = align(aligner, text, 2.0, 2.0 + seconds)
    assert "".join(sentence["text"] for sentence in found).split() == text.split()
    for word in words(found):
        assert word["start"] is None or 2.0 - 1e-6 <= word["start"] <= word["end"] <= 2.0 + seconds + 0.05


@pytest.mark.parametrize("language", ["ja", "zh"])
def test_language_without_spaces_is_timed_by_character(aligner: Any, language: str) -> None:
    found = align(aligner, "一二三", language=language)
    assert [word["word"] for word in words(found)] == ["一", "二", "三"]


def test_aligned_segments_can_be_rendered_in_every_format(aligner: Any) -> None:
    segments = [sentence | {"id": number} for number, sentence in enumerate(align(aligner, "One 2. Three 字."))]
    data = {"task": "transcribe", "language": "en", "language_probability": None, "duration": 12.0, "model": "demo"}
    transcript = Transcript.from_dict(data | {"segments": segments})
    for name in ("json", "verbose_json", "text", "srt", "vtt", "tsv"):
        assert render(transcript, name, words=True).body


def test_silence_can_be_aligned(aligner: Any) -> None:
    segment = {"start": 0.0, "end": 3.0, "text": "seven"}
    (sentence,) = aligner.align(np.zeros(3 * 16_000, np.int16), segment, "en")
    assert sentence["words"][0]["word"] == "seven"


def test_nothing_is_fetched_for_splitting_sentences(aligner: Any, no_network: list[object]) -> None:
    align(aligner, "One. Two. Three.")
    align(aligner, "Eins. Zwei.", language="de")
    assert no_network == []


@pytest.mark.parametrize("language", ["en", "fr", "ja", "nn", "haw", "xx"])
def test_language_without_an_aligner_offline_is_refused_naming_the_remedy(
    engine: SimpleNamespace, tmp_path: Path, language: str, no_network: list[object]
) -> None:
    missing = engine.alignment.Aligner(replace(SETUP, aligner_path=None, hub_dir=str(tmp_path / "hub")), "cpu")
    for _ in range(2):
        with pytest.raises(AlignerUnavailable) as error:
            align(missing, "seven", language=language)
        assert repr(language) in error.value.message
        assert f"STENOPOOL_MODELS_DIR/align-{language}" in error.value.hint
        assert str(tmp_path) not in error.value.message + error.value.hint
    assert no_network == []


def test_aligner_in_the_models_folder_is_taken(engine: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "align-fr").symlink_to(SETUP.aligner_path or "")
    setup = replace(SETUP, aligner_path=None, models_dir=str(tmp_path))
    assert words(align(engine.alignment.Aligner(setup, "cpu"), "sept", language="fr"))


def test_damaged_aligner_is_refused_without_its_path(engine: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "align-fr").mkdir()
    (tmp_path / "align-fr" / "config.json").write_text("{}")
    setup = replace(SETUP, aligner_path=None, models_dir=str(tmp_path))
    with pytest.raises(AlignerUnavailable) as error:
        align(engine.alignment.Aligner(setup, "cpu"), "sept", language="fr")
    assert str(tmp_path) not in error.value.message + error.value.hint
