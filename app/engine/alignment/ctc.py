"""The most probable way of a text through CTC emissions, over numpy. Pure.

Trellis and backtracking are those of WhisperX, which has them from torchaudio's tutorial on forced alignment (after Kürzinger
et al. 2020, "CTC-Segmentation of Large Corpora"): a token takes one frame, and blanks follow until the next one. Every sum is
made in the same order and in float32, so the frames are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spans:
    """Where each token lies: its first frame, the frame after its last one, and the mean probability of its frames.

    All three have one entry per token.
    """

    start: np.ndarray
    end: np.ndarray
    score: np.ndarray


def with_wildcard(log_probs: np.ndarray, blank: int) -> np.ndarray:
    """Emissions (frames, labels) with one more label, which is as likely as the likeliest that is not the blank."""
    others = np.delete(log_probs, blank, axis=1)
    return np.concatenate([log_probs, others.max(axis=1, keepdims=True)], axis=1)


def force(log_probs: np.ndarray, tokens: Sequence[int], blank: int) -> Spans | None:
    """Align ``tokens``, at least one, with natural-log probabilities (frames, labels).

    None where there is no way through, as where the frames are too few.
    """
    stay = log_probs[:, blank].astype(np.float32)
    enter = log_probs[:, list(tokens)].astype(np.float32)
    entered, end = _trellis(stay, enter)
    start = _backtrack(entered, end)
    if start is None:
        return None
    begin = int(start[0])
    probabilities = np.exp(stay[begin:end]).astype(np.float64)
    probabilities[start - begin] = np.exp(enter[start, np.arange(len(tokens))])
    ends = np.append(start[1:], end)
    return Spans(start, ends, np.add.reduceat(probabilities, start - begin) / (ends - start))


def _trellis(stay: np.ndarray, enter: np.ndarray) -> tuple[np.ndarray, int]:
    """Whether the best way into a token at a frame enters it there, (frames, tokens), and the frame after the last one.

    Only one row of scores is kept. Column 0 is the time before the first token: it must be left while there are frames enough
    for all the others.
    """
    frames, count = enter.shape
    before = np.zeros(frames + 1, np.float32)
    before[1:] = np.cumsum(stay, dtype=np.float64)  # as torch sums float32 on a CPU
    before[-count:] = np.inf
    entered = np.empty((frames, count), np.bool_)
    row = np.full(count + 1, -np.inf, np.float32)
    row[0] = before[0]
    complete = np.empty(frames + 1, np.float32)
    complete[0] = row[-1]
    stayed, moved = np.empty(count, np.float32), np.empty(count, np.float32)
    for frame in range(frames):
        np.add(row[1:], stay[frame], out=stayed)
        np.add(row[:-1], enter[frame], out=moved)
        np.greater(moved, stayed, out=entered[frame])
        np.maximum(stayed, moved, out=row[1:])
        row[0] = before[frame + 1]
        complete[frame + 1] = row[-1]
    return entered, int(complete.argmax())


def _backtrack(entered: np.ndarray, end: int) -> np.ndarray | None:
    """The frame at which each token is entered on the best way that ends before frame ``end``; None where none does."""
    count = entered.shape[1]
    start = np.empty(count, np.intp)
    token = count - 1
    for frame in range(end - 1, -1, -1):
        if entered[frame, token]:
            start[token] = frame
            if token == 0:
                return start
            token -= 1
    return None
