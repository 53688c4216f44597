"""What is recommended, and the words for it."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.advice import recommend
from loadtest.records import Load, Run, Vitals
from loadtest.stats import Summary, summarize
from tests.unit.loadtest.build import record, summary


def test_the_smallest_level_within_five_percent_of_the_best_is_recommended() -> None:
    advice = recommend([summary(1, 10), summary(2, 19.5, 2.0), summary(4, 20), summary(8, 19, 9.0)])
    assert advice.level == 2
    assert "MAX_CONCURRENT_TRANSCRIPTIONS=2" in advice.text
    assert "98 % of the best (20.00 at 4)" in advice.text
    assert "p95 goes from 2.00 s to 9.00 s: past the knee you buy only latency" in advice.text


def test_a_level_just_below_five_percent_is_not_good_enough() -> None:
    assert recommend([summary(1, 18.9), summary(2, 20)]).level == 2


def test_a_level_with_wrong_or_lost_requests_is_not_recommended() -> None:
    advice = recommend([summary(1, 10), summary(2, 30, kind="lost"), summary(4, 12)])
    assert advice.level == 4
    assert "At level 2 0 answers were wrong and 8 requests were lost." in advice.warnings


def test_where_every_level_failed_nothing_is_recommended() -> None:
    advice = recommend([summary(1, 10, kind="wrong"), summary(2, 10, kind="lost")])
    assert advice.level is None
    assert "No setting" in advice.text


def test_where_nothing_was_measured_nothing_is_recommended() -> None:
    assert recommend([]).level is None


def test_one_level_alone_is_not_compared_with_anything() -> None:
    advice = recommend([summary(4, 10)])
    assert advice.level is None
    assert "--test-all" in advice.text


def test_the_highest_level_is_recommended_with_the_hint_that_more_may_be_better() -> None:
    assert "highest level tried" in recommend([summary(1, 10), summary(2, 20)]).text


def test_a_higher_level_with_no_more_latency_is_said_to_bring_nothing() -> None:
    assert "brings nothing" in recommend([summary(1, 10), summary(2, 10)]).text


@pytest.mark.parametrize(("peak", "warned"), [(91, True), (90, False), (10, False)])
def test_memory_above_ninety_percent_is_warned_of(peak: int, warned: bool) -> None:
    advice = recommend([summary(1, 10), summary(2, 20, vitals=Vitals(peak, 100))])
    assert any("91 % of its limit" in warning for warning in advice.warnings) == warned


def test_health_that_did_not_answer_is_warned_of() -> None:
    assert "/health" in recommend([summary(1, 10, vitals=Vitals(health_failed=3))]).warnings[0]


def test_users_with_nothing_to_send_make_the_throughput_doubtful() -> None:
    idle = Summary(**(vars(summary(2, 10)) | {"busy": 0.5}))
    assert any("--requests" in warning for warning in recommend([summary(1, 10), idle]).warnings)


def test_levels_of_a_few_seconds_make_the_recommendation_doubtful() -> None:
    brief = Summary(**(vars(summary(2, 10)) | {"wall_s": 3.0}))
    assert any("as little as 3 s" in warning for warning in recommend([summary(1, 10), brief]).warnings)


@pytest.mark.parametrize("sign", [{"queue_wait_s": 0.9}, {"refusals": ("too_many_active",)}])
def test_levels_beyond_the_servers_own_limit_are_named_as_such(sign: dict[str, Any]) -> None:
    warnings = recommend([summary(1, 10), summary(2, 10), summary(4, 10, **sign)]).warnings
    assert any(warning.startswith("From level 4 on") for warning in warnings)


def test_a_server_that_held_nothing_back_gives_no_such_warning() -> None:
    assert recommend([summary(1, 10), summary(2, 10), summary(4, 10, queue_wait_s=0.01)]).warnings == ()


def open_run(latencies: list[float], refused: int = 0, **changes: object) -> tuple[list[Summary], list[float]]:
    records = [record(n, done_s=latency, **changes) for n, latency in enumerate(latencies)]
    records += [record(900 + n, kind="refused", reason="too_many_active") for n in range(refused)]
    return [summarize(Run(Load(rate=0.5), tuple(records), 60.0))], latencies


def test_a_server_whose_latency_grows_is_said_to_fall_behind() -> None:
    text = recommend(*open_run([1.0] * 10 + [5.0] * 10)).text
    assert "fell behind" in text
    assert "0.5 requests per second" in text


def test_a_server_with_steady_latency_is_said_to_keep_up() -> None:
    assert "kept up" in recommend(*open_run([1.0] * 20)).text


def test_a_server_that_refuses_is_said_to_be_asked_too_much() -> None:
    assert "refused 50 %" in recommend(*open_run([1.0] * 5, refused=5)).text


def test_callers_that_had_to_come_back_are_mentioned() -> None:
    assert "refused 20 times first" in recommend(*open_run([1.0] * 20, refusals=("too_many_active",))).text


def test_an_open_run_without_a_right_answer_says_so() -> None:
    assert "no right answer" in recommend(*open_run([], refused=3)).text


def test_a_client_that_was_late_itself_is_warned_of() -> None:
    summaries, latencies = open_run([1.0] * 4, sent_s=0.4)
    assert any("0.40 s too late" in warning for warning in recommend(summaries, latencies).warnings)
