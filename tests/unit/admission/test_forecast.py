"""When work would start, against the obvious simulation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission.forecast import Backlog, place_of, starts
from app.admission.ticket import Ask, Estimate, Ticket

times = st.lists(st.floats(0.0, 50.0), max_size=12)


def ticket(seconds: float, load_s: float = 0.0) -> Ticket:
    return Ticket(Ask("key", "model", seconds, load_s=load_s), "name", 0.0, seconds, 0, 0.0)


def simulated(running: list[float], streams: int, waiting: list[float]) -> list[float]:
    """Each in turn goes to the stream that is free first; those inside before those who wait, the short ones first."""
    free = [0.0] * streams
    begin = []
    for seconds in [*sorted(running), *waiting, 0.0]:
        begin.append(min(free))
        free[free.index(min(free))] = min(free) + seconds
    return begin[len(running) :]


@given(times, st.integers(1, 5), times)
def test_starts_are_those_of_the_obvious_simulation(running: list[float], streams: int, waiting: list[float]) -> None:
    assert list(starts(running, streams, waiting)) == pytest.approx(simulated(running, streams, waiting))


def test_where_more_run_than_there_are_streams_the_work_of_all_of_them_comes_first() -> None:
    assert list(starts([1.0, 2.0, 9.0], 1, [5.0])) == [12.0, 17.0]


def test_a_ticket_is_told_its_place_and_that_its_model_has_to_be_loaded() -> None:
    order = [ticket(4.0), ticket(6.0), ticket(1.0, load_s=3.0)]
    assert place_of(order[2], order, [2.0], 2) == Estimate(2, 7.0, 8.0)
    assert place_of(order[0], order, [2.0], 2) == Estimate(0, 0.0, 4.0)


def test_who_is_not_in_line_is_expected_at_once() -> None:
    assert place_of(ticket(4.0), [], [2.0], 1) == Estimate(0, 0.0, 0.0)


def test_an_estimate_is_shown_as_plain_values() -> None:
    assert Estimate(3, 1.234, 5.678).to_dict() == {"position": 3, "starts_in_s": 1.23, "ends_in_s": 5.68}


def test_a_backlog_says_when_so_many_of_it_have_started() -> None:
    backlog = Backlog(4, 8.0, 5.0, 2)  # four jobs of 2 s on two streams, the next one in 5 s
    backlog.append(2, 12.0)
    assert (backlog.count, backlog.last_s) == (6.0, 11.0)
    assert [backlog.start_of(number) for number in (-1, 0, 1, 2, 4, 5, 6)] == [0.0, 0.0, 1.0, 2.0, 4.0, 5.0, 8.0]


def test_a_backlog_never_says_that_somebody_has_started_already() -> None:
    backlog = Backlog(3, 0.0, 0.0, 2)
    assert backlog.start_of(1) > 0
    assert Backlog(0, 0.0, 0.0, 1).start_of(1) > 0
