"""The ladder: each step at its threshold, left a little below it; jobs are shed one at a time; warnings begin and end once."""

from __future__ import annotations

import logging

import pytest

from app.admission.pressure import Ladder, Step

MB = 1 << 20


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ladder(clock: Clock) -> Ladder:
    return Ladder(clock)


@pytest.mark.parametrize(
    ("used", "step"),
    [
        (0.0, Step.CALM),
        (0.69, Step.CALM),
        (0.70, Step.SMALLER_BATCHES),
        (0.75, Step.EVICT_IDLE),
        (0.80, Step.STOP_STARTING),
        (0.91, Step.STOP_STARTING),
        (0.92, Step.SHED_NEWEST),
        (1.2, Step.SHED_NEWEST),
    ],
)
def test_use_of_the_limit_gives_its_step(ladder: Ladder, used: float, step: Step) -> None:
    assert ladder.observe(used, 0, None) is step


def test_a_step_is_left_only_three_hundredths_below_its_threshold(ladder: Ladder, clock: Clock) -> None:
    steps = []
    for used in (0.95, 0.90, 0.88, 0.78, 0.76, 0.73, 0.71, 0.68, 0.66, 0.68):
        clock.time += 10
        steps.append(ladder.observe(used, 0, None).value)
    assert steps == [4, 4, 3, 3, 2, 2, 1, 1, 0, 0]


def test_use_that_swings_around_a_threshold_enters_the_step_once(ladder: Ladder) -> None:
    for used in (0.705, 0.695) * 20:
        assert ladder.observe(used, 0, None) is Step.SMALLER_BATCHES
    assert ladder.counts["smaller_batches"] == 1


def test_jobs_are_shed_one_in_two_seconds_however_often_one_looks(ladder: Ladder, clock: Clock) -> None:
    steps = []
    for _ in range(9):
        steps.append(ladder.observe(0.97, 0, None).value)
        clock.time += 0.5
    assert steps == [4, 3, 3, 3, 4, 3, 3, 3, 4]
    assert ladder.counts["shed_newest"] == 3
    assert ladder.counts["stop_starting"] == 1


def test_memory_that_came_back_for_a_moment_does_not_make_the_next_shedding_earlier(ladder: Ladder, clock: Clock) -> None:
    assert ladder.observe(0.97, 0, None) is Step.SHED_NEWEST
    clock.time += 1
    assert ladder.observe(0.5, 0, None) is Step.CALM
    assert ladder.observe(0.97, 0, None) is Step.STOP_STARTING
    clock.time += 1
    assert ladder.observe(0.97, 0, None) is Step.SHED_NEWEST


def test_a_jump_over_several_steps_counts_each_of_them(ladder: Ladder) -> None:
    ladder.observe(0.85, 0, None)
    ladder.observe(0.10, 0, None)
    ladder.observe(0.71, 0, None)
    steps = {name: ladder.counts[name] for name in ("smaller_batches", "evict_idle", "stop_starting", "shed_newest")}
    assert steps == {"smaller_batches": 2, "evict_idle": 1, "stop_starting": 1, "shed_newest": 0}


@pytest.mark.parametrize(("level", "step"), [(0, Step.CALM), (1, Step.CALM), (2, Step.EVICT_IDLE), (4, Step.STOP_STARTING)])
def test_pressure_that_macos_reports_is_a_step_at_least(ladder: Ladder, level: int, step: Step) -> None:
    assert ladder.observe(0.1, 0, None, level) is step
    assert ladder.observe(0.92, 0, None, level) is Step.SHED_NEWEST
    assert bool(ladder.counts["system_pressure"]) == (level >= 2)


def test_end_of_macos_pressure_ends_its_step_at_once(ladder: Ladder) -> None:
    ladder.observe(0.1, 0, None, 4)
    assert ladder.warnings == ("the system reports memory pressure",)
    assert ladder.observe(0.1, 0, None, 1) is Step.CALM
    assert ladder.warnings == ()


def test_memory_above_ninety_percent_is_warned_of_until_it_is_well_below(ladder: Ladder) -> None:
    heard = []
    for used in (0.90, 0.91, 0.88, 0.86, 0.89):
        ladder.observe(used, 0, None)
        heard.append(bool(ladder.warnings))
    assert heard == [False, True, True, False, False]


def test_swap_that_grows_fast_is_warned_of_and_swap_that_is_only_full_is_not(ladder: Ladder, clock: Clock) -> None:
    ladder.observe(0.1, 900 * MB, None)
    clock.time += 30
    ladder.observe(0.1, 964 * MB, None)
    assert ladder.warnings == ()
    clock.time += 2
    ladder.observe(0.1, 965 * MB, None)
    assert ladder.warnings == ("swap is growing",)
    clock.time += 59
    ladder.observe(0.1, 965 * MB, None)
    assert ladder.warnings == ()


def test_swap_that_grows_slowly_is_not_warned_of(ladder: Ladder, clock: Clock) -> None:
    for minute in range(60):
        ladder.observe(0.1, minute * 60 * MB, None)
        clock.time += 60
    assert ladder.counts["swap_growing"] == 0


def test_slow_jobs_are_warned_of_with_how_slow_they_are(ladder: Ladder) -> None:
    ladder.observe(0.1, 0, 1.5)
    assert ladder.warnings == ()
    ladder.observe(0.1, 0, 2.34)
    assert ladder.warnings == ("jobs take 2.3 times as long as predicted",)
    ladder.observe(0.1, 0, 1.45)
    assert ladder.warnings == ("jobs take 1.4 times as long as predicted",)
    ladder.observe(0.1, 0, 1.3)
    assert ladder.warnings == ()


def test_slow_jobs_are_forgotten_where_nothing_is_measured_any_more(ladder: Ladder) -> None:
    ladder.observe(0.1, 0, 3.0)
    ladder.observe(0.1, 0, None)
    assert ladder.warnings == ()


def test_a_warning_is_logged_once_when_it_begins_and_once_when_it_ends(
    ladder: Ladder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stenopool.admission")
    for used, slowdown in ((0.95, None), (0.96, 2.0), (0.95, 2.5), (0.5, 2.6), (0.4, 1.0), (0.4, 1.0)):
        ladder.observe(used, 0, slowdown)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "pressure: memory above 90 %"),
        ("WARNING", "pressure: jobs take 2.0 times as long as predicted"),
        ("INFO", "pressure is over: memory above 90 %"),
        ("INFO", "pressure is over: jobs take 2.6 times as long as predicted"),
    ]
    assert ladder.counts["memory_high"] == ladder.counts["jobs_slow"] == 1
