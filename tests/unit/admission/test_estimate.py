"""The statistics under the cost model: peaks are covered, lines are found, broken states are refused."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.admission.estimate import GARBLED, Line, Peak, number, remembered, solve_bounded

DAY = 86_400.0
PARTS = (0.05, 2.0, 0.5)

ratios = st.floats(min_value=0.0, allow_nan=False)
moments = st.floats(min_value=0.0, max_value=1e10)
parts = st.tuples(*[st.floats(min_value=1e-3, max_value=1e6)] * 3)
durations = st.floats(min_value=1e-3, max_value=1e300)


def learned(*values: float, trust: int = 10, every_s: float = 60.0) -> Peak:
    peak = Peak(trust)
    for step, value in enumerate(values):
        peak.observe(value, step * every_s)
    return peak


# -- peaks


def test_without_samples_the_prior_stands() -> None:
    assert Peak().factor(0) == 1.0


def test_the_first_samples_only_raise_the_factor() -> None:
    assert learned(0.2).factor(0) > 0.8
    assert learned(3.0).factor(0) > 3.0 * Peak.MARGIN


def test_what_was_seen_among_few_samples_is_never_too_much() -> None:
    assert learned(0.5, 2.0, 0.5, 0.5).factor(0) > 2.0


def test_with_enough_samples_the_prior_is_forgotten() -> None:
    assert learned(*[0.5] * 50).factor(0) == pytest.approx(0.5 * Peak.MARGIN, rel=0.08)


def test_the_factor_is_the_95th_percentile_and_a_margin() -> None:
    noise = random.Random(1)
    samples = [math.exp(noise.gauss(0, 0.15)) for _ in range(400)]
    high = sorted(samples)[int(0.95 * len(samples))]
    assert high * Peak.MARGIN <= learned(*samples).factor(0) <= high * Peak.MARGIN * 1.15


@pytest.mark.parametrize(("sample", "factor"), [(1e-9, 1 / 8), (0.0, 1 / 8), (1e9, 8.0), (math.inf, 8.0)])
def test_the_factor_stays_within_an_eighth_and_eight(sample: float, factor: float) -> None:
    assert learned(*[sample] * 50).factor(0) == factor


def test_one_odd_sample_among_many_changes_nothing() -> None:
    usual = [1.0, 0.9, 1.1] * 10
    assert learned(*usual, 7.0).factor(0) < learned(*usual).factor(0) * 1.1


def test_what_grows_is_followed_before_the_histogram_forgets() -> None:
    assert learned(*[1.0] * 500, 2.0, 2.0, every_s=1.0).factor(0) > 2.0


def test_old_samples_count_half_after_a_day() -> None:
    peak = learned(*[4.0] * 100, every_s=0.0)
    for step in range(200):
        peak.observe(1.0, 8 * DAY + step)
    assert peak.factor(8 * DAY) == pytest.approx(Peak.MARGIN, rel=0.08)


def test_after_a_long_rest_one_sample_does_not_outweigh_the_past() -> None:
    peak = learned(*[2.0] * 100)
    peak.observe(0.1, 1000 * DAY)
    assert peak.factor(1000 * DAY) > 2.0


def test_a_clock_that_is_set_back_forgets_nothing() -> None:
    peak = Peak()
    for step in range(100):
        peak.observe(2.0, 100 * DAY - step * DAY)
    assert peak.factor(0) == pytest.approx(2.0 * Peak.MARGIN, rel=0.08)


def test_a_bump_multiplies_by_a_fifth_more_each_time_and_fades() -> None:
    peak = learned(*[1.0] * 20)
    before = peak.factor(1000)
    peak.bump(1000)
    assert peak.factor(1000) == pytest.approx(before * 1.2)
    peak.bump(1000)
    assert peak.factor(1000) == pytest.approx(before * 1.44)
    peak.observe(1.0, 1001)
    assert peak.factor(1001) == pytest.approx(before * 1.44, rel=1e-3)
    assert peak.factor(1000 + 2 * DAY) == pytest.approx(before, rel=0.01)


def test_bumps_end_at_eight() -> None:
    peak = Peak()
    for _ in range(50):
        peak.bump(0)
    assert peak.factor(0) == 8.0


def test_a_worker_needs_fewer_samples_than_a_job() -> None:
    assert learned(0.5, 0.5, 0.5, trust=3).factor(0) < learned(0.5, 0.5, 0.5).factor(0)


@settings(deadline=None)
@given(st.lists(st.tuples(ratios, moments, st.booleans()), max_size=30), moments)
def test_a_factor_is_within_its_bounds_and_survives_a_dump(seen: list[tuple[float, float, bool]], now: float) -> None:
    peak = Peak()
    for ratio, moment, killed in seen:
        peak.observe(ratio, moment)
        if killed:
            peak.bump(moment)
    later = max([now, *(moment for _, moment, _ in seen)])
    assert 1 / 8 <= peak.factor(later) <= 8
    assert Peak.load(json.loads(json.dumps(peak.dump())), later).factor(later) == peak.factor(later)


# -- lines


def test_a_new_line_answers_with_the_prior() -> None:
    assert Line().predict(PARTS) == pytest.approx(sum(PARTS))
    assert Line(math.log(3)).predict(PARTS) == pytest.approx(3 * sum(PARTS))


def test_the_first_job_is_believed() -> None:
    line = Line()
    line.observe(PARTS, 10 * sum(PARTS))
    assert line.predict(PARTS) == pytest.approx(10 * sum(PARTS), rel=0.1)


def test_each_part_finds_its_own_factor() -> None:
    line, dice = Line(), random.Random(2)
    for _ in range(200):
        some = (0.05, 10 ** dice.uniform(-1, 1.7), 10 ** dice.uniform(-1, 1.7))
        line.observe(some, 20 * some[0] + 0.5 * some[1] + 3 * some[2])
    for some, truth in [((0.05, 0.1, 0.1), 1.35), ((0.05, 40.0, 0.1), 21.3), ((0.05, 0.1, 40.0), 121.05)]:
        assert line.predict(some) == pytest.approx(truth, rel=0.1)


@pytest.mark.parametrize("odd", [50.0, 1 / 50])
@pytest.mark.parametrize(("before", "moved"), [(5, 1.55), (50, 1.25)])
def test_one_job_that_took_fifty_times_as_long_or_short_is_not_believed(odd: float, before: int, moved: float) -> None:
    line = Line()
    for _ in range(before):
        line.observe(PARTS, 2.5)
    line.observe(PARTS, 2.5 * odd)
    assert abs(math.log(line.predict(PARTS) / 2.5)) < math.log(moved)


@pytest.mark.parametrize("odd", [50.0, 1 / 50])
def test_a_first_job_that_was_odd_is_forgotten_soon(odd: float) -> None:
    line = Line()
    line.observe(PARTS, 2.5 * odd)
    for _ in range(30):
        line.observe(PARTS, 2.5)
    assert line.predict(PARTS) == pytest.approx(2.5, rel=0.15)


@pytest.mark.parametrize("change", [0.2, 0.5, 2.0, 5.0])
def test_a_lasting_change_is_followed_within_thirty_jobs(change: float) -> None:
    line = Line()
    for _ in range(500):
        line.observe(PARTS, 2.5)
    for _ in range(30):
        line.observe(PARTS, 2.5 * change)
    assert line.predict(PARTS) == pytest.approx(2.5 * change, rel=0.1)


def test_the_ratio_says_how_wrong_the_prior_was() -> None:
    line = Line()
    for _ in range(100):
        line.observe(PARTS, 4 * sum(PARTS))
    assert math.exp(line.ratio) == pytest.approx(4, rel=0.02)


@settings(deadline=None)
@given(st.lists(st.tuples(parts, durations), max_size=20), parts, st.tuples(*[st.floats(0, 1e6)] * 3))
def test_a_prediction_is_positive_grows_with_every_part_and_survives_a_dump(
    seen: list[tuple[tuple[float, float, float], float]],
    some: tuple[float, float, float],
    more: tuple[float, float, float],
) -> None:
    line = Line()
    for one, seconds in seen:
        line.observe(one, seconds)
    predicted = line.predict(some)
    assert 0 < predicted < math.inf
    assert line.predict((some[0] + more[0], some[1] + more[1], some[2] + more[2])) >= predicted
    assert Line.load(json.loads(json.dumps(line.dump()))).predict(some) == predicted


# -- garbage


@pytest.mark.parametrize("damage", [None, "x", [], {}, math.nan, math.inf, 1e300, -1e300, [[1]], {"0": 1}])
@pytest.mark.parametrize("kind", [Peak, Line])
def test_a_damaged_state_is_refused_or_still_works(kind: type[Peak] | type[Line], damage: object) -> None:
    peak, line = learned(*[1.5] * 5), Line()
    line.observe(PARTS, 3.0)
    whole = peak.dump() if kind is Peak else line.dump()
    for name in whole:
        try:
            if kind is Peak:
                assert 1 / 8 <= Peak.load(whole | {name: damage}, 0.0).factor(0.0) <= 8
            else:
                assert 0 < Line.load(whole | {name: damage}).predict(PARTS) < math.inf
        except GARBLED:
            continue


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 11, 10**400])
def test_a_number_out_of_bounds_is_refused(value: float) -> None:
    with pytest.raises(ValueError):
        number(value, 0, 10)


@pytest.mark.parametrize("value", ["1", None, [1]])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        number(value)


# -- arithmetic


def test_equations_are_solved() -> None:
    assert solve_bounded([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 4.0]], [6.0, 2.0, 7.0], 0.05) == [2.0, 3.0, 1.0]


def test_an_unknown_that_would_be_negative_is_held_and_the_others_make_up_for_it() -> None:
    a, b, c = solve_bounded([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]], [3.0, -5.0, 1.0], 0.05)
    assert (b, c) == (0.05, 1.0)
    assert a == pytest.approx((3.0 - 0.05) / 2)


@pytest.mark.parametrize("matrix", [[[0.0] * 3] * 3, [[1.0] * 3] * 3, [[math.nan] * 3] * 3])
def test_equations_without_a_solution_leave_the_prior(matrix: list[list[float]]) -> None:
    assert solve_bounded(matrix, [1.0, 1.0, 1.0], 0.05) == [1.0, 1.0, 1.0]


def test_memory_is_bounded_and_loses_what_was_not_used_for_longest() -> None:
    memory: dict[str, list[int]] = {}
    for key in ("a", "b", "a", "c"):
        remembered(memory, key, list, 2).append(1)
    assert memory == {"a": [1, 1], "c": [1]}


def test_the_median_error_is_that_of_the_noise() -> None:
    line, dice = Line(), random.Random(3)
    errors = []
    for _ in range(300):
        predicted, actual = line.predict(PARTS), sum(PARTS) * math.exp(dice.gauss(0, 0.1))
        errors.append(abs(predicted - actual) / actual)
        line.observe(PARTS, actual)
    assert statistics.median(errors) < 0.08
