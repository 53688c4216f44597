"""Beam search without a model: the words of a made-up language are the numbers 0 to 9, and 9 ends a text."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

END = 9
Step = dict[int, float]


def advance(search: Any, *rows: Step, **how: Any) -> list[int] | None:
    """Each row: probabilities of the next words behind one beam. All words stand for election."""
    logs = [[math.log(row.get(word, 1e-9)) for word in range(END + 1)] for row in rows]
    order = [sorted(range(END + 1), key=lambda word: -row[word]) for row in logs]
    scores = np.array([[row[word] for word in words] for row, words in zip(logs, order, strict=True)])
    went: list[int] | None = search.advance(scores, np.array(order), **how)
    return went


@pytest.fixture
def search(engine: SimpleNamespace) -> Any:
    return engine.decoders.search.BeamSearch


def test_one_beam_takes_the_likeliest_word_until_the_end(search: Any) -> None:
    one = search(1, END)
    assert advance(one, {3: 0.6, 4: 0.4}) == [0]
    assert advance(one, {5: 0.5, END: 0.4}) == [0]
    assert advance(one, {END: 0.9, 1: 0.1}) is None
    assert one.best().tokens == (3, 5)
    assert one.best().logprob == pytest.approx(math.log(0.6 * 0.5 * 0.9))


def test_a_beam_that_began_worse_wins_where_it_goes_on_better(search: Any) -> None:
    two = search(2, END)
    assert advance(two, {1: 0.6, 2: 0.4}) == [0, 0]
    assert advance(two, {3: 0.3, 4: 0.3}, {5: 1.0}) == [1, 0]
    assert two.beams[0].tokens == (2, 5)


def test_the_place_of_a_finished_text_is_taken_by_the_best_that_goes_on(search: Any) -> None:
    two = search(2, END)
    advance(two, {1: 0.6, 2: 0.4})
    assert advance(two, {END: 0.9, 3: 0.1}, {4: 0.9, 5: 0.1}) == [0, 1]
    assert [beam.tokens for beam in two.beams] == [(1, 3), (2, 4)]


def test_it_goes_on_until_as_many_texts_as_beams_are_finished_and_the_best_per_word_wins(search: Any) -> None:
    two = search(2, END)
    advance(two, {1: 0.6, 2: 0.4})
    assert advance(two, {END: 0.6, 3: 0.4}, {4: 1.0}) == [1, 0]
    assert advance(two, {END: 1.0}, {5: 1.0}) is None
    assert two.best().tokens == (2, 4)  # log(0.4) / 2 against log(0.36) / 1


def test_what_is_not_finished_at_the_last_step_counts_as_it_is(search: Any) -> None:
    two = search(2, END)
    advance(two, {1: 0.6, 2: 0.4})
    assert advance(two, {3: 1.0}, {4: 1.0}, last=True) is None
    assert two.best().tokens == (1, 3)


def test_a_text_without_words_wins_only_where_there_is_no_other(search: Any, engine: SimpleNamespace) -> None:
    empty, other = (engine.decoders.search.Hypothesis(tokens, -0.1 - 9 * len(tokens)) for tokens in ((), (1,)))
    assert other.score > empty.score


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), steps=st.integers(1, 3))
def test_as_many_beams_as_there_are_texts_find_the_best_of_all(engine: SimpleNamespace, seed: int, steps: int) -> None:
    chance = np.random.default_rng(seed)
    chances: dict[tuple[int, ...], np.ndarray] = {}

    def following(text: tuple[int, ...]) -> np.ndarray:
        if text not in chances:
            chances[text] = np.log(chance.dirichlet(np.ones(3)))  # words 0 and 1, and 2 ends
        return chances[text]

    wide = engine.decoders.search.BeamSearch(16, 2)
    for step in range(steps):
        scores = np.array([[*following(beam.tokens), -1e6] for beam in wide.beams])
        if wide.advance(scores, np.tile(np.array([0, 1, 2, 3]), (len(wide.beams), 1)), last=step + 1 == steps) is None:
            break
    best = -math.inf
    for length in range(1, steps + 1):
        for text in itertools.product((0, 1), repeat=length):
            total = sum(following(text[:at])[word] for at, word in enumerate(text))
            best = max(best, (total + (following(text)[2] if length < steps else 0)) / length)
    assert wide.best().score == pytest.approx(best)
