"""What is sent when."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from loadtest.schedule import arrivals, default_requests, tasks, timed_tasks
from tests.unit.loadtest.build import recording

FILES = [recording(f"{number}.wav") for number in range(3)]


@pytest.mark.parametrize(
    ("level", "files", "count"), [(1, 8, 8), (2, 8, 8), (4, 8, 16), (8, 8, 32), (2, 3, 9), (1, 1, 4), (1, 50, 50)]
)
def test_default_requests_are_whole_rounds_with_four_per_user(level: int, files: int, count: int) -> None:
    assert default_requests(level, files) == count


def test_each_round_holds_each_file_once_in_an_order_of_its_own() -> None:
    many = [recording(f"{number}.wav") for number in range(20)]
    names = [task.recording.name for task in tasks(many, 1, 40)]
    assert set(Counter(names).values()) == {2}
    assert names[:20] != names[20:]


def test_the_same_seed_gives_the_same_order_and_a_higher_level_only_more_of_it() -> None:
    assert list(tasks(FILES, 7, 6)) == list(tasks(FILES, 7, 12))[:6]
    assert list(tasks(FILES, 7, 30)) != list(tasks(FILES, 8, 30))


def test_without_a_count_the_tasks_never_end() -> None:
    assert [task.number for task in itertools.islice(tasks(FILES, 0, None), 1000)] == list(range(1000))


def test_poisson_arrivals_have_the_rate_and_the_spread_of_their_kind() -> None:
    instants = list(itertools.islice(arrivals(5.0, random.Random(3)), 20_000))
    gaps = [after - before for before, after in itertools.pairwise([0.0, *instants])]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(0.2, rel=0.05)
    assert variance == pytest.approx(mean**2, rel=0.1)  # exponential gaps


def test_timed_tasks_end_with_the_duration() -> None:
    due = [task.due_s for task in timed_tasks(FILES, 0, 10.0, 20.0, None)]
    assert len(due) == pytest.approx(200, abs=60)
    assert all(when is not None and 0 < when < 20 for when in due)
    assert due == sorted(due, key=lambda when: when or 0)


def test_timed_tasks_end_with_the_count_where_that_comes_first() -> None:
    assert len(timed_tasks(FILES, 0, 10.0, 20.0, 7)) == 7
    assert len(timed_tasks(FILES, 0, 10.0, None, 7)) == 7


def test_the_same_seed_gives_the_same_arrivals() -> None:
    assert timed_tasks(FILES, 5, 1.0, 30.0, None) == timed_tasks(FILES, 5, 1.0, 30.0, None)
    assert timed_tasks(FILES, 5, 1.0, 30.0, None) != timed_tasks(FILES, 6, 1.0, 30.0, None)
