"""Beam search over one window's text, as CTranslate2's (``decoding.cc``, ``BeamSearch``): no numbers of a model are in here.

Each step looks at the best ``2 × beam_size`` continuations of all beams. Those of the first ``beam_size`` that end the text are
finished, and the best others that do not end it take their places. ``beam_size`` finished texts are enough (patience 1).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Hypothesis:
    """Tokens without the one that ends the text, and the sum of all their natural log-probabilities, that one's included."""

    tokens: tuple[int, ...]
    logprob: float

    @property
    def score(self) -> float:
        """What hypotheses are compared by: per token (length penalty 1)."""
        return self.logprob / len(self.tokens) if self.tokens else -math.inf


class BeamSearch:
    """One window's. ``beams`` are those that go on; the text of ``best()`` is there when :meth:`advance` gave None."""

    def __init__(self, beam_size: int, end: int) -> None:
        self._size, self._end = beam_size, end
        self.beams = [Hypothesis((), 0.0)]
        self._finished: list[Hypothesis] = []

    def advance(self, scores: np.ndarray, tokens: np.ndarray, *, last: bool = False) -> list[int] | None:
        """Take the next tokens. Both are (beams, candidates), the best first, ``scores`` natural log-probabilities.

        ``last``: there is no room for more. Returns which of the beams until now each new one goes on from; None at the end.
        """
        totals = scores.astype(np.float64) + np.array([[beam.logprob] for beam in self.beams])
        order = np.argsort(-totals, axis=None, kind="stable")[: 2 * self._size]
        rows = order // tokens.shape[1]
        found = [(int(row), int(tokens.flat[at]), float(totals.flat[at])) for row, at in zip(rows, order, strict=True)]
        spare = (one for one in found[self._size :] if one[1] != self._end)
        going: list[tuple[int, int, float]] = []
        for row, token, total in found[: self._size]:
            if token == self._end or last:
                text = self.beams[row].tokens + (() if token == self._end else (token,))
                self._finished.append(Hypothesis(text, total))
                going += itertools.islice(spare, 1)  # with 2 × beam_size candidates there is one: each beam can end only once
            else:
                going.append((row, token, total))
        if last or not going or len(self._finished) >= self._size:
            return None
        self.beams = [Hypothesis((*self.beams[row].tokens, token), total) for row, token, total in going]
        return [row for row, _, _ in going]

    def best(self) -> Hypothesis:
        """The finished one with the best score."""
        return max(self._finished, key=lambda one: one.score)
