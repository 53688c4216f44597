"""A refusal says what is short, what the request would cost, and when to come back."""

from __future__ import annotations

import pytest

from app.admission import refusals
from app.admission.ticket import Ask, Estimate, Limits

ASK = Ask("key", "model", 12.345, 1000, worker_bytes=500, within_s=10.0)


def test_what_never_fits_is_413_and_says_by_how_much() -> None:
    error = refusals.never_fits(3_000_000, 2_000_000)
    assert (error.status, error.code, error.retryable, error.retry_after_s) == (413, "never_fits", False, None)
    assert error.details == {"reason": "memory", "predicted_bytes": 3_000_000, "most_bytes": 2_000_000}
    assert "3 MB" in error.message
    assert "2 MB" in error.message


def test_low_memory_is_503_and_passes() -> None:
    error = refusals.memory_low(0.876)
    assert (error.status, error.code, error.retryable, error.retry_after_s) == (503, "memory_low", True, 5.0)
    assert error.details == {"reason": "memory", "used_share": 0.876}


@pytest.mark.parametrize(
    ("queued", "code", "message"),
    [(5, "queue_full", "The line of jobs is full."), (0, "too_many_active", "Too many active jobs.")],
)
def test_a_full_line_is_429_and_says_how_long_it_is(queued: int, code: str, message: str) -> None:
    error = refusals.full("jobs", ASK, Limits(2, queued, 60.0), 7.0, 61.234, 5)
    assert (error.status, error.code, error.message, error.retry_after_s) == (429, code, message, 7.0)
    assert error.details == {
        "reason": "queue",
        "predicted_s": 12.35,
        "predicted_bytes": 1500,
        "wait_s": 61.23,
        "waiting": 5,
        "come_back_s": 7.0,
    }


def test_too_late_says_when_it_could_be_in_time() -> None:
    error = refusals.too_late(ASK, Estimate(3, 23.0, 32.0))
    assert (error.status, error.code, error.retry_after_s) == (429, "deadline_unreachable", 22.0)
    assert error.details is not None
    assert (error.details["position"], error.details["ends_in_s"], error.details["within_s"]) == (3, 32.0, 10.0)


@pytest.mark.parametrize("start_s", [0.0, 50.0])
def test_what_would_be_too_late_even_at_once_need_not_come_back(start_s: float) -> None:
    assert refusals.too_late(ASK, Estimate(0, start_s, start_s + 12.0)).retry_after_s is None


@pytest.mark.parametrize("end_s", [10.1, 500.0])
def test_nobody_is_told_to_come_at_once_or_after_two_minutes(end_s: float) -> None:
    told = refusals.too_late(ASK, Estimate(1, end_s - 5.0, end_s)).retry_after_s
    assert told is not None
    assert 1 <= told <= 120
