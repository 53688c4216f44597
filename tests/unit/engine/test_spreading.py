"""Which part of the last windows a runner takes, without threads."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def spreading(engine: SimpleNamespace) -> Any:
    return engine.spreading


@pytest.mark.parametrize(
    ("waiting", "ahead", "part"),
    [
        (6, [], 6),
        (6, [0.0], 3),
        (5, [0.0], 3),
        (1, [0.0, 0.0], 1),
        (3, [3.3], 3),
        (3, [1.5], 2),
        (1, [0.0], 1),
        (8, [4.3], 6),
        (6, [0.0, 0.0, 0.0], 2),
    ],
)
def test_a_runner_takes_what_lets_all_end_together(spreading: Any, waiting: int, ahead: list[float], part: int) -> None:
    assert spreading.own_part(waiting, ahead) == part


def test_what_is_at_work_is_counted_by_the_time_of_the_last_batch(spreading: Any) -> None:
    now = [0.0]
    pace = spreading.Pace(lambda: now[0])
    pace.began("a", 4)
    pace.began("b", 2)
    assert pace.ahead() == [4.3, 2.3]
    now[0] = 8.6
    pace.ended("a")
    assert pace.ahead() == [0.0]
    pace.began("a", 3)
    now[0] = 10.6
    assert pace.ahead() == [0.0, pytest.approx(2.3)]
    pace.ended("b")
    pace.began("b", 0)
    assert pace.ahead() == [pytest.approx(3.3 - 2.0 / (10.6 / 2.3)), 0.3]
    pace.ended("b")
    assert len(pace.ahead()) == 1


def test_nothing_is_learnt_of_a_batch_that_failed(spreading: Any) -> None:
    now = [0.0]
    pace = spreading.Pace(lambda: now[0])
    pace.began("a", 4)
    pace.began("b", 2)
    now[0] = 0.1
    pace.ended("a", learn=False)
    assert pace.ahead() == [2.3]


def ended(spreading: Any, part: Callable[[int, list[float]], int], windows: int, chance: random.Random) -> float:
    """When two runners have ended with so many windows, 1 s each and 0.4 a batch of four, more or less."""
    free, expected = [0.0, 0.0], [0.0, 0.0]
    while windows:
        one = free.index(min(free))
        count = min(windows, 4, part(windows, [max(0.0, expected[1 - one] - free[one])]))
        expected[one] = free[one] + count + spreading.BATCH
        free[one] += (count + 0.4) * chance.uniform(0.9, 1.1)
        windows -= count
    return max(free)


def test_recordings_end_earlier_than_with_full_batches_or_equal_shares(spreading: Any) -> None:
    def mean(part: Callable[[int, list[float]], int]) -> float:
        chance = random.Random(0)
        return sum(ended(spreading, part, windows, chance) / windows for windows in range(2, 50) for _ in range(20))

    spread = mean(lambda waiting, ahead: spreading.own_part(waiting, ahead) if waiting <= 8 else 4)
    assert spread < 0.95 * mean(lambda waiting, ahead: 4)
    assert spread < 0.99 * mean(lambda waiting, ahead: max(2, -(-waiting // 2)))
