"""Which tokens a beam has behind it. One layer, one head, one number for each token's key: its own."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

BEAMS = 5


class Lines:
    """Texts as lists of numbers beside what the past says of them."""

    def __init__(self, engine: SimpleNamespace, windows: int, prompt: int = 3, unseen: int = 1) -> None:
        self.past = engine.decoders.past.Past(engine.decoders.graph.Sizes(1, 1, 1, 9), BEAMS)
        self.past.open(windows)
        self.texts = [[[0.5 * one for one in range(prompt)]] * BEAMS for _ in range(windows)]
        self.next = 100.0
        made = [-1.0] * unseen + self.texts[0][0]
        self._append(np.tile(np.array(made), (windows, 1)))
        self.past.begin(unseen, prompt)

    def write(self, rows: list[list[int]]) -> None:
        """Each beam of each window goes on from another one, then writes a number that nobody has written."""
        for window, each in enumerate(rows):
            self.past.follow(window, each)
            self.texts[window] = [self.texts[window][row] for row in each]
        numbers = self.next + np.arange(len(rows) * BEAMS, dtype=float).reshape(len(rows), BEAMS)
        self.next += numbers.size
        self._append(numbers)
        self.texts = [
            [[*line, float(number)] for line, number in zip(lines, new, strict=True)]
            for lines, new in zip(self.texts, numbers, strict=True)
        ]

    def _append(self, numbers: np.ndarray) -> None:
        self.past.make_room(numbers.shape[1])
        self.past.append(np.stack([numbers, -numbers])[:, :, None, :, None])

    def seen(self, window: int) -> list[list[float]]:
        """The keys that each beam has in its past, by the mask; values must be their negatives."""
        keys, values = (part[window, 0, :, 0] for part in self.past.of(0))
        masks = self.past.mask(BEAMS)[window, 0]
        assert all((keys[mask == 0] == -values[mask == 0]).all() for mask in masks)
        return [sorted(keys[mask == 0].tolist()) for mask in masks]

    def check(self) -> None:
        for window, lines in enumerate(self.texts):
            assert self.seen(window) == [sorted(line) for line in lines]


SHARED, APART, TURNED = [0] * BEAMS, list(range(BEAMS)), [1, 2, 3, 4, 0]


def test_each_beam_sees_the_prompt_and_its_own_line_whichever_it_goes_on_from(engine: SimpleNamespace) -> None:
    lines = Lines(engine, 2)
    for rows in ([SHARED, SHARED], [TURNED, [1, 1, 4, 0, 2]], [[3, 3, 0, 0, 1], APART]):
        lines.write(rows)
        lines.check()


def test_tokens_in_front_of_a_prompt_are_seen_by_nobody(engine: SimpleNamespace) -> None:
    lines = Lines(engine, 1, prompt=2, unseen=30)
    lines.write([APART])
    assert lines.seen(0) == [[0.0, 0.5, 100.0 + beam] for beam in range(BEAMS)]


def test_a_past_that_all_beams_share_needs_few_places_because_the_others_are_given_up(engine: SimpleNamespace) -> None:
    lines = Lines(engine, 2)
    for _ in range(90):  # 450 places in all
        lines.write([SHARED, TURNED if lines.next < 300 else SHARED])
        lines.check()
    assert lines.past.capacity == 256
    assert lines.past._used < 256


@pytest.mark.parametrize(("apart", "capacity"), [(5, 64), (6, 128)])
def test_places_are_given_up_where_at_most_two_thirds_are_needed_and_there_are_more_otherwise(
    engine: SimpleNamespace, apart: int, capacity: int
) -> None:
    lines = Lines(engine, 1, prompt=4, unseen=0)  # 60 places for 12 steps: one is needed of each that all share, else five
    for step in range(12):
        lines.write([SHARED if step < 12 - apart else APART])
        lines.check()
    lines.write([APART])
    lines.check()
    assert lines.past.capacity == capacity


def test_lines_that_have_nothing_in_common_get_more_places(engine: SimpleNamespace) -> None:
    lines = Lines(engine, 1)
    for _ in range(90):
        lines.write([TURNED])
        lines.check()
    assert lines.past.capacity == 512


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), windows=st.integers(1, 4))
def test_whatever_beams_go_on_from_and_whichever_window_ends_all_lines_stay_what_they_are(
    engine: SimpleNamespace, seed: int, windows: int
) -> None:
    chance, lines = np.random.default_rng(seed), Lines(engine, windows)
    for step in range(80):
        lines.write(chance.integers(0, 1 + int(chance.integers(1, BEAMS)), (len(lines.texts), BEAMS)).tolist())
        if step % 25 == 24 and len(lines.texts) > 1:
            place = int(chance.integers(0, len(lines.texts)))
            lines.past.forget(place)
            lines.texts[place] = lines.texts[-1]
            lines.texts.pop()
        lines.check()


def test_the_last_window_takes_the_place_of_one_that_is_finished(engine: SimpleNamespace) -> None:
    lines = Lines(engine, 3)
    lines.write([APART, SHARED, TURNED])
    lines.past.forget(0)
    lines.texts = [lines.texts[2], lines.texts[1]]
    lines.check()
    lines.write([SHARED, TURNED])
    lines.check()


def test_a_prompt_longer_than_the_places_to_begin_with_finds_room(engine: SimpleNamespace) -> None:
    lines = Lines(engine, 1, prompt=200, unseen=24)
    lines.write([SHARED])
    lines.check()
    assert lines.past.capacity == 256
