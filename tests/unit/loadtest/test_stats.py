"""Figures of a run."""

from __future__ import annotations

import pytest

from loadtest.monitor import MemoryGauge
from loadtest.records import Load, Run, Vitals
from loadtest.stats import percentile, spread, summarize
from tests.unit.loadtest.build import record


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100)])
def test_percentiles_are_values_that_were_seen(share: float, value: int) -> None:
    assert percentile(range(1, 101), share) == value


def test_a_single_value_is_every_percentile() -> None:
    one = spread([2.5])
    assert one is not None
    assert set(vars(one).values()) == {2.5}


def test_the_spread_of_nothing_is_nothing() -> None:
    assert spread([]) is None


def test_a_summary_counts_each_kind_once_and_by_reason() -> None:
    records = (
        record(0),
        record(1, kind="wrong", reason="unequal"),
        record(2, kind="lost", reason="timeout"),
        record(3, kind="refused", reason="too_many_active", refusals=("not_ready", "too_many_active"), tries=2),
        record(4, refusals=("too_many_active", "too_many_active"), tries=3),
    )
    found = summarize(Run(Load(level=2), records, 10.0))
    assert (found.requests, found.ok, found.wrong, found.lost, found.refused) == (5, 2, 1, 1, 1)
    assert (found.wrong_by, found.lost_by, found.refused_by) == ({"unequal": 1}, {"timeout": 1}, {"too_many_active": 1})
    assert found.retried == {"too_many_active": 2, "not_ready": 1}
    assert found.failed == 2


def test_latency_and_throughput_count_right_answers_only() -> None:
    records = (record(0, done_s=2.0), record(1, done_s=4.0), record(2, kind="refused", done_s=0.01), record(3, kind="lost"))
    found = summarize(Run(Load(level=1), records, 8.0))
    assert found.latency is not None
    assert (found.latency.min, found.latency.avg, found.latency.max) == (2.0, 3.0, 4.0)
    assert found.audio_per_s == 1.0
    assert found.files_per_hour == 900.0


def test_latency_counts_from_the_instant_at_which_the_request_was_due() -> None:
    found = summarize(Run(Load(rate=1.0), (record(0, due_s=1.0, sent_s=1.5, done_s=3.0),), 3.0))
    assert found.latency is not None
    assert found.latency.p50 == 2.0
    assert found.late_s == 0.5


def test_busy_is_the_share_of_time_with_a_request_under_way() -> None:
    records = (record(0, done_s=10.0), record(1, done_s=5.0))
    assert summarize(Run(Load(level=2), records, 10.0)).busy == 0.75


def test_queue_wait_is_of_those_answers_that_tell() -> None:
    found = summarize(Run(Load(level=1), (record(0, queue_wait_s=0.5), record(1)), 1.0))
    assert found.queue_wait is not None
    assert found.queue_wait.avg == 0.5


@pytest.mark.parametrize(("peak", "limit", "share"), [(9, 10, 0.9), (9, None, None), (None, 10, None), (9, 0, None)])
def test_the_share_of_memory_is_known_where_the_server_tells_peak_and_limit(
    peak: int | None, limit: int | None, share: float | None
) -> None:
    assert summarize(Run(Load(level=1), (), 1.0, Vitals(peak, limit))).memory_share == share


def looked(*memories: object) -> MemoryGauge:
    gauge = MemoryGauge()
    for memory in memories:
        gauge.look({"memory": memory})
    return gauge


def test_a_peak_that_rose_during_the_run_is_the_peak() -> None:
    assert looked({"peak_bytes": 5, "used_bytes": 4}, {"peak_bytes": 9, "used_bytes": 6}).peak_bytes == 9


def test_a_peak_of_earlier_runs_does_not_count_where_the_use_is_known() -> None:
    assert looked({"peak_bytes": 9, "used_bytes": 4}, {"peak_bytes": 9, "used_bytes": 6}).peak_bytes == 6


def test_a_lone_peak_counts_and_the_limit_is_kept() -> None:
    gauge = looked({"peak_bytes": 9, "limit_bytes": 20})
    assert (gauge.peak_bytes, gauge.limit_bytes) == (9, 20)


@pytest.mark.parametrize("memory", [None, "much", {}, {"used_bytes": None}])
def test_a_capacity_answer_without_figures_gives_none(memory: object) -> None:
    assert looked(memory).peak_bytes is None
