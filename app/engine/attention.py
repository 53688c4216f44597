"""Word times out of Whisper's own cross-attention: where the decoder looked when it wrote each word.

CTranslate2 finds the path by dynamic time warping over the model's alignment heads (openai/whisper, ``timing.py``); tokens
become words as in faster-whisper. It needs the encoder's output and nothing else, so it costs little; a word begins where
the one before it ends, so a pause belongs to the word behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import merge_punctuations

from app.errors import AlignerUnavailable
from app.languages import WITHOUT_SPACES

FRAME_S = 0.02
"""Seconds of one encoder frame."""
HOP = 160
"""Samples of one feature frame, of which an encoder frame has two."""
SHORTEST = 16
"""Feature frames without which there is no path."""
POSITIONS = 448
"""Of Whisper's decoder. Tokens that find no place there are timed at the end of the others."""
MEDIAN_FILTER = 7
PREPENDED = "\"'“¿([{-"
APPENDED = "\"'.。,，!！?？:：”)]}、"
SENTENCE_ENDS = ".。!！?？"
LONGEST_MEDIAN_S = 0.7


@dataclass(frozen=True)
class Spoken:
    """One word of a window: seconds from the window's start, and the mean probability of its tokens."""

    word: str
    start: float
    end: float
    score: float


@dataclass(frozen=True)
class Text:
    """What was recognised in a window: its encoder output (1500, width), its length in samples, its text tokens."""

    encoded: np.ndarray
    samples: int
    tokens: Sequence[int]
    tokenizer: Tokenizer


def words_of(model: ctranslate2.models.Whisper, texts: Sequence[Text]) -> list[tuple[Spoken, ...]]:
    """The words of each window. Those of one language and task go through the decoder together.

    Raises:
        AlignerUnavailable: nobody has said which heads of this model's attention follow the words.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, text in enumerate(texts):
        if text.tokens:
            groups.setdefault(tuple(text.tokenizer.sot_sequence), []).append(number)
    found: list[tuple[Spoken, ...]] = [()] * len(texts)
    for start, numbers in groups.items():
        group = [texts[number] for number in numbers]
        for number, path in zip(numbers, _paths(model, list(start), group), strict=True):
            found[number] = tuple(_words(path, texts[number]))
    return found


def _paths(model: ctranslate2.models.Whisper, start: list[int], texts: Sequence[Text]) -> list[Any]:
    try:
        paths: list[Any] = model.align(
            ctranslate2.StorageView.from_array(np.stack([text.encoded for text in texts])),
            start,
            [list(text.tokens[: POSITIONS - len(start) - 2]) for text in texts],  # the end has one, no_timestamps another
            [min(max(-(-text.samples // HOP), SHORTEST), 2 * text.encoded.shape[0]) for text in texts],
            median_filter_width=MEDIAN_FILTER,
        )
    except RuntimeError as error:
        if "alignment_heads" not in str(error):
            raise
        raise AlignerUnavailable(
            "This model does not say which of its attention heads follow the words, so it has no fast word times.",
            hint="Ask for word_timestamps=aligned, or convert the model with a newer CTranslate2.",
        ) from error
    return paths


def _words(path: Any, text: Text) -> list[Spoken]:
    pieces, tokens = text.tokenizer.split_to_word_tokens([*text.tokens, text.tokenizer.eot])
    if len(pieces) < 2:
        return []
    edges = np.cumsum([0, *(len(one) for one in tokens[:-1])])
    rows, frames = np.array(path.alignments).T
    reached = frames[np.flatnonzero(np.diff(rows, prepend=-1))] * FRAME_S
    left = len(text.tokens) + 1 - len(reached)
    reached, probabilities = np.pad(reached, (0, left), "edge"), np.pad(path.text_token_probs, (0, left))
    timing = [
        {
            "word": piece,
            "tokens": ids,
            "start": float(reached[first]),
            "end": float(reached[behind]),
            "score": float(np.mean(probabilities[first:behind])),
        }
        for piece, ids, first, behind in zip(pieces, tokens, edges[:-1], edges[1:], strict=False)
    ]
    _shorten(timing)
    merge_punctuations(timing, PREPENDED, APPENDED)
    return _glued([one for one in timing if one["word"].strip()], text.tokenizer.language_code not in WITHOUT_SPACES)


def _shorten(timing: list[dict[str, Any]]) -> None:
    """A pause between two sentences belongs to neither: signs, and words behind them, last twice the median word at most."""
    lengths = [one["end"] - one["start"] for one in timing if one["end"] > one["start"]]
    longest = 2 * min(LONGEST_MEDIAN_S, float(np.median(lengths))) if lengths else 0.0
    for before, one in pairwise(timing):
        if one["end"] - one["start"] > longest:
            if one["word"] in SENTENCE_ENDS:
                one["end"] = one["start"] + longest
            elif before["word"] in SENTENCE_ENDS:
                one["start"] = one["end"] - longest


def _glued(timing: list[dict[str, Any]], spaced: bool) -> list[Spoken]:
    """Where words are set apart by spaces, what has none before it is a part of the word before it (``well-known``)."""
    words: list[Spoken] = []
    for one in timing:
        word = Spoken(one["word"].strip(), one["start"], one["end"], round(one["score"], 3))
        if spaced and words and not one["word"].startswith(" "):
            last = words.pop()
            word = Spoken(last.word + word.word, last.start, max(last.end, word.end), last.score)
        words.append(word)
    return words
