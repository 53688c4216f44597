"""How far our word times are from stock WhisperX's, on the bundled samples with the trained aligner. Alone:

pytest tests/unit/engine/alignment/test_against_whisperx.py -s
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app import catalogue
from tests.unit.engine.conftest import SETUP, decoded

pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLES = catalogue.DEMO_MODEL.parent / "samples"
Piece = tuple[np.ndarray, dict[str, Any], str]


def cut(pcm: np.ndarray, spoken: list[dict[str, Any]], language: str, longest_s: float) -> Iterator[Piece]:
    """Stretches of at most ``longest_s`` of a recording: the whole of it, what is said in the stretch, in which language."""
    words = list(spoken)
    while words:
        begin = max(0.0, words[0]["start"] - 0.2)
        part = [word for word in words if word["end"] < begin + longest_s]
        del words[: len(part)]
        text = " ".join(word["word"] for word in part[:2]) + ". " + " ".join(word["word"] for word in part[2:])
        yield pcm, {"start": begin, "end": part[-1]["end"] + 0.2, "text": " " + text.strip()}, language


@pytest.fixture(scope="module")
def pieces() -> list[Piece]:
    """Of every sample short and long stretches, and long ones with as much noise as speech."""
    found: list[Piece] = []
    for sample in json.loads((SAMPLES / "manifest.json").read_text()):
        pcm = decoded(SAMPLES / sample["file"])
        noisy = (pcm / 2 + np.random.default_rng(0).normal(0, pcm.std() / 2, len(pcm))).astype(np.int16)
        for audio, longest_s in ((pcm, 2.5), (pcm, 12.0), (noisy, 12.0)):
            found += cut(audio, sample["words"], sample["language"], longest_s)
    return found


@pytest.fixture(scope="module")
def stock(engine: SimpleNamespace, pieces: list[Piece]) -> list[list[dict[str, Any]]]:
    """Sentences as stock WhisperX gives them, per piece; the splitter alone is ours."""
    from whisperx import alignment

    model, about = alignment.load_align_model("en", "cpu", model_name=str(catalogue.DEMO_ALIGNER))
    answers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "nltk_load", lambda *_: engine.alignment.sentences.SPLITTER)
        for pcm, segment, language in pieces:
            audio = engine.vad.samples(pcm, segment["start"], segment["end"])
            local = {"start": 0.0, "end": len(audio) / 16_000, "text": segment["text"]}
            found = alignment.align([local], model, about | {"language": language}, audio, "cpu")["segments"]
            answers.append(found)
    return answers


@pytest.mark.parametrize("runtime", ["chosen here", "openvino-int8", "openvino", "torch"])
def test_word_times_are_within_20_ms_of_whisperx_at_the_95th_percentile(
    engine: SimpleNamespace,
    pieces: list[Piece],
    stock: list[list[dict[str, Any]]],
    runtime: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if runtime != "chosen here":
        only(engine.alignment.emissions, runtime, monkeypatch)
    aligner = engine.alignment.Aligner(SETUP, "cpu")
    apart, scores = [], []
    for (pcm, segment, language), expected in zip(pieces, stock, strict=True):
        found = aligner.align(pcm, segment, language)
        assert [one["text"] for one in found] == [one["text"] for one in expected]
        words, same = ([word for sentence in one for word in sentence["words"]] for one in (found, expected))
        assert [word["word"] for word in words] == [word["word"] for word in same] == segment["text"].split()
        for word, other in zip(words, same, strict=True):
            apart += [abs(word[edge] - segment["start"] - other[edge]) for edge in ("start", "end")]
            scores.append(abs(word["score"] - other["score"]))
    used = aligner._models[""].emissions.runtime
    print(
        f"\n{used}: {len(scores)} words of {len(stock)} segments, times apart {1000 * np.percentile(apart, 95):.1f} ms (p95), "
        f"{1000 * max(apart):.1f} ms (most); scores by {np.percentile(scores, 95):.3f} (p95)"
    )
    assert runtime in (used, "chosen here")
    assert len(scores) > 150
    assert np.percentile(apart, 95) <= (0.0015 if used == "torch" else 0.020)
    assert np.percentile(scores, 95) <= 0.1


def only(emissions: Any, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an aligner have no other runtime, however fast it is."""
    monkeypatch.setattr(emissions, "QUICK_S", 0.0)
    candidates = emissions.Emissions._candidates
    monkeypatch.setattr(emissions.Emissions, "_candidates", lambda self: (one for one in candidates(self) if one[0] == runtime))
    times = iter([1.0] + [0.0] * 9)
    monkeypatch.setattr(emissions, "_seconds", lambda run, audio: next(times))
