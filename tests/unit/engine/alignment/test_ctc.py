"""Trellis and backtracking, beside WhisperX's own functions on random emissions."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings("ignore")


def emissions(seed: int, frames: int, labels: int, sharpness: float) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, sharpness, (frames, labels))
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), np.float32)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    frames=st.integers(1, 60),
    tokens=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    blank=st.integers(0, 6),
    sharpness=st.sampled_from([0.0, 0.5, 3.0, 30.0]),
)
def test_spans_are_those_of_whisperx(
    engine: SimpleNamespace, seed: int, frames: int, tokens: list[int], blank: int, sharpness: float
) -> None:
    import torch
    from whisperx import alignment

    heard = emissions(seed, frames, 7, sharpness)
    trellis = alignment.get_trellis(torch.from_numpy(heard), tokens, blank)
    path = alignment.backtrack(trellis, torch.from_numpy(heard), tokens, blank)
    spans = engine.alignment.ctc.force(heard, tokens, blank)
    assert (spans is None) == (path is None)
    if path is not None:
        expected = alignment.merge_repeats(path, "x" * len(tokens))
        assert spans.start.tolist() == [one.start for one in expected]
        assert spans.end.tolist() == [one.end for one in expected]
        assert spans.score == pytest.approx([one.score for one in expected], abs=1e-6)


def test_text_with_more_characters_than_frames_does_not_fit(engine: SimpleNamespace) -> None:
    heard = emissions(0, 5, 4, 1.0)
    assert engine.alignment.ctc.force(heard, [1] * 6, 0) is None
    assert engine.alignment.ctc.force(heard, [1] * 4, 0) is not None


def test_a_character_has_the_blanks_behind_it_but_for_the_last_which_ends_at_once(engine: SimpleNamespace) -> None:
    heard = np.full((9, 3), -9.0, np.float32)
    for frame, label in enumerate([0, 0, 1, 0, 0, 2, 1, 0, 0]):
        heard[frame, label] = -0.01
    spans = engine.alignment.ctc.force(heard, [1, 2, 1], 0)
    assert (spans.start.tolist(), spans.end.tolist()) == ([2, 5, 6], [5, 6, 7])
    assert spans.score == pytest.approx([np.exp(-0.01)] * 3)


def test_wildcard_is_as_likely_as_the_likeliest_label_but_the_blank(engine: SimpleNamespace) -> None:
    heard = np.log(np.array([[0.6, 0.1, 0.3], [0.2, 0.7, 0.1]], np.float32))
    assert engine.alignment.ctc.with_wildcard(heard, 0)[:, -1] == pytest.approx(np.log([0.3, 0.7]))
