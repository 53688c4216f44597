"""Characters, words and sentences, beside ``whisperx.alignment.align`` on the same emissions."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings("ignore")

LABELS = {label: number for number, label in enumerate("_|abcdefgit'")}
ALPHABET = "abcdeABFGit '.?!7|-ß字İ\n\t\xa0"


def stock(
    engine: SimpleNamespace, text: str, logits: np.ndarray, language: str, labels: dict[str, int]
) -> list[dict[str, Any]]:
    import torch
    from whisperx import alignment

    class Recorded(torch.nn.Module):
        def forward(self, audio: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.from_numpy(logits[None]))

    about = {"language": language, "dictionary": labels, "type": "huggingface"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "nltk_load", lambda *_: engine.alignment.sentences.SPLITTER)
        audio = np.zeros(len(logits) * 320, np.float32)
        segment = {"start": 0.0, "end": len(audio) / 16_000, "text": text}
        found: list[dict[str, Any]] = alignment.align([segment], Recorded(), about, audio, "cpu")["segments"]
    return found


def ours(engine: SimpleNamespace, text: str, logits: np.ndarray, language: str, labels: dict[str, int]) -> list[dict[str, Any]]:
    spaced = language not in ("ja", "zh")
    said = engine.alignment.words.labels_of(text, labels, spaced=spaced)
    known = engine.alignment.kept.Labels(labels, 0)
    model = engine.alignment.aligner.Model(lambda _: engine.alignment.emissions._log_softmax(logits), known)
    times = model.timed(np.zeros(len(logits) * 320, np.float32), said) if said else None
    if times is None:
        return [{"text": text, "start": 0.0, "end": len(logits) * 320 / 16_000, "words": []}]
    spans = engine.alignment.sentences.SPLITTER.span_tokenize(text)
    found: list[dict[str, Any]] = engine.alignment.words.sentences(text, spans, times, spaced=spaced)
    return found


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(ALPHABET, max_size=60),
    seed=st.integers(0, 1000),
    frames=st.integers(1, 200),
    language=st.sampled_from(["en", "ja"]),
    delimiter=st.booleans(),
)
@example("a b. c | d! e", 1, 100, "en", False)
@example("a. | | b. | c", 1, 100, "en", False)
@example("Is it? It is. 7. Ai.", 2, 40, "en", True)
def test_words_and_sentences_are_those_of_whisperx(
    engine: SimpleNamespace, text: str, seed: int, frames: int, language: str, delimiter: bool
) -> None:
    labels = {label: number for label, number in LABELS.items() if delimiter or label != "|"}
    logits = np.random.default_rng(seed).normal(0, 3, (frames, len(LABELS))).astype(np.float32)
    expected, found = (way(engine, text, logits, language, labels) for way in (stock, ours))
    assert [one["text"] for one in found] == [one["text"] for one in expected]
    for sentence, same in zip(found, expected, strict=True):
        assert (sentence["start"], sentence["end"]) == pytest.approx((same["start"], same["end"]))
        assert [word["word"] for word in sentence["words"]] == [word["word"] for word in same["words"]]
        for word, other in zip(sentence["words"], same["words"], strict=True):
            assert word.keys() == other.keys()
            assert [word.get(edge) for edge in ("start", "end")] == [other.get(edge) for edge in ("start", "end")]
            assert word.get("score", 0) == pytest.approx(other.get("score", 0), abs=2e-3)


def test_a_value_that_is_missing_is_that_of_its_nearest_neighbour_the_earlier_of_two(engine: SimpleNamespace) -> None:
    nearest, nan = engine.alignment.words._nearest, math.nan
    assert nearest([nan, 1.0, nan, nan, nan, 5.0, nan]) == [1.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0]
    assert nearest([nan, 2.0]) == [2.0, 2.0]
    assert all(map(math.isnan, nearest([nan, nan])))
