"""Room is kept for those who come back, as long as they do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission import promises as module
from app.admission.promises import MAX_PROMISES, Promises


class Desk(Promises):
    """With a clock to turn."""

    def __init__(self, jitter: float = 0.0) -> None:
        self.time = 0.0
        super().__init__(lambda: self.time, lambda: jitter)


def test_a_promise_is_due_when_it_was_said_and_not_before() -> None:
    desk = Desk()
    desk.time = 0.3
    assert desk.make("key", "print", 4.0, 6.2) == 7
    desk.time = 7.29
    assert not desk.is_due("key", "print")
    desk.time = 7.3
    assert desk.is_due("key", "print")
    assert not desk.is_due("key", "other")
    assert not desk.is_due("other", "print")


@given(st.floats(0.0, 1000.0), st.floats(0.0, 1.0))
def test_what_is_told_is_whole_seconds_from_one_to_120_and_not_before_there_is_room(wait_s: float, jitter: float) -> None:
    desk = Desk(jitter)
    told = desk.make("key", "print", 1.0, wait_s)
    assert told == int(told)
    assert 1 <= told <= 120
    assert told >= (wait_s if desk.made else 90)
    assert desk.made == (wait_s * (1 + 0.1 * jitter) <= 120)


def test_beyond_120_seconds_nothing_is_kept() -> None:
    desk = Desk()
    assert desk.make("key", "print", 4.0, 120.5) == 120
    assert (desk.of("key").count, desk.calendar(), desk.open) == (0, [], 0)


def test_what_was_kept_is_expected_no_more() -> None:
    desk = Desk()
    desk.make("key", "print", 4.0, 5.0)
    desk.make("key", "print", 4.0, 6.0)
    assert (desk.of("key").seconds, desk.of("key").expected, desk.keys) == (8.0, 2.0, 1)
    desk.time = 5.0
    desk.claim("key", "print")
    assert (desk.of("key").seconds, desk.kept, desk.open) == (4.0, 1, 1)
    assert not desk.is_due("key", "print")
    desk.time = 6.0
    assert desk.is_due("key", "print")


def test_somebody_who_was_not_due_claims_nothing() -> None:
    desk = Desk()
    desk.make("key", "print", 4.0, 5.0)
    desk.claim("key", "print")
    desk.claim("key", "other")
    assert (desk.kept, desk.open) == (0, 1)


def test_of_identical_requests_the_one_that_is_due_first_is_claimed_first() -> None:
    desk = Desk()
    desk.make("key", "print", 1.0, 20.0)
    desk.make("key", "print", 2.0, 19.0)
    desk.time = 21.0
    desk.claim("key", "print")
    assert desk.of("key").seconds == 1.0


def test_who_does_not_come_is_waited_for_a_while_and_believed_less() -> None:
    desk = Desk()
    desk.make("key", "print", 4.0, 20.0)
    desk.time = 29.9
    assert desk.is_due("key", "print")
    desk.time = 30.1
    assert not desk.is_due("key", "print")
    assert (desk.lapsed, desk.of("key").count) == (1, 0)
    desk.make("key", "print", 4.0, 20.0)
    assert 0.9 < desk.of("key").expected < 1.0


def test_where_nobody_comes_hardly_anything_is_kept_and_where_they_come_again_it_is_again() -> None:
    desk = Desk()
    for _ in range(100):
        desk.make("key", "print", 1.0, 5.0)
    desk.time = 100.0
    desk.make("key", "print", 1.0, 5.0)
    assert desk.of("key").expected < 0.01
    for _ in range(100):
        desk.time += 5.0
        desk.claim("key", "print")
        desk.make("key", "print", 1.0, 5.0)
    assert desk.of("key").expected > 0.95


def test_who_came_as_told_and_was_sent_away_again_is_not_believed_less() -> None:
    desk = Desk()
    for _ in range(50):
        desk.make("key", "print", 1.0, 5.0)
        desk.time += 5.0
    assert (desk.broken, desk.kept, desk.lapsed, desk.open) == (49, 0, 0, 1)
    assert desk.of("key").expected == 1.0


def test_what_others_do_changes_nothing_for_a_key() -> None:
    desk = Desk()
    for _ in range(50):
        desk.make("careless", "print", 1.0, 5.0)
    desk.time = 100.0
    desk.make("careful", "print", 1.0, 5.0)
    assert desk.of("careful").expected == 1.0


def test_the_calendar_says_what_is_due_when() -> None:
    desk = Desk()
    desk.make("a", "print", 4.0, 10.0)
    desk.make("b", "print", 6.0, 10.0)
    desk.make("b", "print", 1.0, 3.0)
    assert [(due, booked.count, booked.seconds) for due, booked in desk.calendar()] == [(3.0, 1, 1.0), (10.0, 2, 10.0)]
    desk.time = 4.0
    assert [due for due, _ in desk.calendar()] == [0.0, 6.0]
    assert desk.keys == 2


def test_a_key_that_asks_without_end_leaves_half_of_what_is_left_to_others() -> None:
    desk = Desk()
    for _ in range(2 * MAX_PROMISES):
        desk.make("flood", "print", 1.0, 5.0)
    assert desk.of("flood").count == MAX_PROMISES // 2
    desk.make("other", "print", 1.0, 5.0)
    assert desk.of("other").count == 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROMISES", 20)
    desk = Desk()
    for number in range(500):
        desk.make(f"key-{number % 100}", f"print-{number}", 1.0, 1.0)
        desk.time += 1.0
        desk.claim(f"key-{number % 100}", f"print-{number}")
        desk.is_due("key", "print")
    assert len(desk._accounts) <= 21
    assert len(desk._ends) <= 41
    assert (len(desk._open), desk._calendar, desk.open, desk.keys) == (0, {}, 0, 0)
    assert desk.kept == 500


def test_what_was_kept_is_not_remembered_behind_what_is_still_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROMISES", 20)
    desk = Desk()
    desk.make("key", "late", 1.0, 1.0)  # waited for until 6.25 s; all the others would be waited for longer
    for second in range(1, 6):
        for _ in range(9):
            desk.make("key", "print", 1.0, 1.0)
        desk.time = float(second)
        for _ in range(9):
            desk.claim("key", "print")
    desk.time = 6.0
    assert (desk.kept, desk.of("key").count) == (45, 1)
    assert len(desk._ends) <= 41


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.floats(0.0, 130.0), st.floats(0.0, 40.0)), max_size=60)
)
def test_the_sums_are_those_of_the_promises_that_are_open(visits: list[tuple[str, str, float, float]]) -> None:
    desk = Desk()
    for key, fingerprint, wait_s, passed in visits:
        if desk.is_due(key, fingerprint) and wait_s > 60:
            desk.claim(key, fingerprint)
        else:
            desk.make(key, fingerprint, wait_s, wait_s)
        desk.time += passed
        booked = [desk.of(key) for key in "ab"]
        waiting = [promise for line in desk._open.values() for promise in line]
        assert sum(one.count for one in booked) == desk.open == len(waiting) == sum(b.count for _, b in desk.calendar())
        assert sum(one.seconds for one in booked) == pytest.approx(sum(p.weight * p.seconds for p in waiting))
        assert sum(one.seconds for _, one in desk.calendar()) == pytest.approx(sum(p.weight * p.seconds for p in waiting))
        assert desk.keys == len({promise.key for promise in waiting})
        assert desk.made == desk.open + desk.kept + desk.broken + desk.lapsed
