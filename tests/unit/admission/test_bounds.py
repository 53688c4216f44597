"""How full the line may be, for whom, and how long until there is room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission.bounds import ACTIVE_S, Bounds
from app.admission.promises import Promises
from app.admission.ticket import Ask, Limits


class Line(Bounds):
    """On two streams that are always busy: the last one in line starts when all before it are done."""

    def __init__(self, queued: int = 100, queue_s: float = 60.0, share: float = 2.0) -> None:
        self.time = 0.0
        self.promises = Promises(lambda: self.time, lambda: 0.0)
        super().__init__(Limits(2, queued, queue_s, share=share), self.promises, lambda: self.time)

    def shortage(self, seconds: float = 2.0, key: str = "key", fingerprint: str = "print") -> float:
        self.see(key)
        return self.shortage_s(Ask(key, "model", seconds, fingerprint=fingerprint), self.total.seconds / 2, 2)

    def refuse(self, seconds: float = 2.0, key: str = "key", fingerprint: str = "print") -> float:
        return self.promises.make(key, fingerprint, seconds, self.shortage(seconds, key, fingerprint))

    def fill(self, count: int, seconds: float, key: str = "key") -> None:
        for _ in range(count):
            self.add(key, 1, seconds)

    def drain(self, seconds: float, key: str = "key", job_s: float = 2.0) -> None:
        """Time passes in which jobs start one after another."""
        for _ in range(int(seconds * 2 / job_s)):
            self.add(key, -1, -job_s)
        self.time += seconds


def test_the_line_is_bounded_in_predicted_seconds() -> None:
    line = Line()
    line.fill(6, 20.0)
    assert line.shortage() == 0
    line.fill(1, 20.0)
    assert line.shortage() == 10.0


def test_the_line_is_bounded_in_number() -> None:
    line = Line(queued=10)
    line.fill(9, 2.0)
    assert line.shortage() == 0
    line.fill(1, 2.0)
    assert 0 < line.shortage() < 1.0  # the next one starts at once
    line.fill(4, 2.0)
    assert line.shortage() == pytest.approx(4.0)


def test_the_number_is_bounded_although_nothing_is_predicted_to_take_time() -> None:
    line = Line(queued=10)
    line.fill(10, 0.0)
    assert line.shortage(0.0) > 0


def test_what_leaves_makes_room_and_what_takes_longer_takes_it() -> None:
    line = Line()
    line.fill(6, 20.0)
    line.add("key", 0, 30.0)
    assert line.shortage() == 15.0
    line.add("key", -1, -50.0)
    assert line.shortage() == 0
    for _ in range(5):
        line.add("key", -1, -20.0)
    assert (line.total.count, line.total.seconds, line._by_key) == (0, 0.0, {})


def test_each_that_is_refused_is_told_a_later_time() -> None:
    line = Line(queue_s=10.0)
    line.fill(11, 2.0)
    told = [line.refuse(fingerprint=str(number)) for number in range(20)]
    assert told == sorted(told)
    assert told[-1] == pytest.approx(20, abs=3)


def test_newcomers_stand_behind_those_who_were_promised_something() -> None:
    line = Line(queue_s=10.0)
    line.fill(11, 2.0)
    for number in range(5):
        line.refuse(fingerprint=str(number))
    line.drain(3.0)
    assert line.total.seconds / 2 < 10.0
    assert line.shortage(fingerprint="newcomer") > 0
    assert line.shortage(fingerprint="0") == 0


def test_a_newcomer_may_pass_where_nobody_who_was_promised_something_is_late_for_it() -> None:
    line = Line(queue_s=20.0)
    line.fill(21, 2.0)
    line.promises.make("key", "late", 2.0, 50.0)
    line.drain(8.0)
    assert line.shortage() == 0


def test_a_nearly_empty_line_is_kept_free_for_nobody() -> None:
    line = Line(queue_s=40.0)
    for number in range(100):
        line.promises.make("key", str(number), 20.0, 1.0)
    line.fill(10, 2.0)
    assert line.shortage(fingerprint="newcomer") == 0
    line.fill(1, 2.0)
    assert line.shortage(fingerprint="newcomer") > 0


@pytest.mark.parametrize(("queue_s", "most_s"), [(100.0, 125.0), (12.0, 17.0), (4.0, 6.0)])
def test_a_promise_is_kept_in_a_line_that_is_a_little_too_long_but_not_in_any(queue_s: float, most_s: float) -> None:
    line = Line(queued=10_000, queue_s=queue_s)
    line.promises.make("key", "print", 2.0, 1.0)
    line.time = 1.0
    line.fill(1, 2 * most_s)
    assert line.shortage() == 0
    line.fill(1, 0.1)
    assert line.shortage() > 0


@pytest.mark.parametrize(("queued", "most"), [(100, 125), (12, 17), (4, 6), (1, 2)])
def test_a_promise_is_kept_where_a_few_too_many_wait_but_not_where_any_do(queued: int, most: int) -> None:
    line = Line(queued=queued, queue_s=10_000.0)
    line.promises.make("key", "print", 2.0, 1.0)
    line.time = 1.0
    line.fill(most - 1, 2.0)
    assert line.shortage() == 0
    line.fill(1, 2.0)
    assert line.shortage() > 0


def test_where_nobody_may_wait_no_promise_makes_a_line() -> None:
    line = Line(queued=0, queue_s=0.0)
    line.promises.make("key", "print", 2.0, 1.0)
    line.see("other")
    line.time = 2.0
    assert line.shortage(0.0) > 0


# -- several keys


def test_one_key_alone_may_fill_the_line_and_among_others_only_a_part() -> None:
    line = Line()
    line.fill(45, 2.0)
    assert line.shortage() == 0
    line.see("other")
    assert line.shortage() > 0
    assert line.shortage(key="other") == 0


def test_a_key_that_was_not_seen_for_ten_minutes_reserves_nothing() -> None:
    line = Line()
    line.fill(45, 2.0)
    line.see("other")
    line.time = ACTIVE_S + 1
    assert line.shortage() == 0


def test_a_key_that_has_little_gets_in_before_those_who_were_promised_much() -> None:
    line = Line(queue_s=20.0)
    line.see("other")
    line.fill(13, 2.0, "flood")
    for number in range(30):
        line.refuse(key="flood", fingerprint=str(number))
    assert line.shortage(key="flood", fingerprint="newcomer") > 0
    assert line.shortage(key="other") == 0
    line.fill(2, 2.0, "other")
    assert line.shortage(key="other") == 0


def test_a_key_with_nothing_in_line_gets_one_job_in_however_large_it_is() -> None:
    line = Line(queue_s=20.0)
    line.see("flood")
    line.fill(21, 2.0, "flood")
    assert line.shortage(500.0, key="other") == 0
    line.add("other", 1, 500.0)
    assert line.shortage(500.0, key="other") > 0


def test_a_key_that_has_most_of_the_line_is_let_in_no_further_although_it_comes_as_told() -> None:
    line = Line(queue_s=40.0)
    line.promises.make("flood", "print", 2.0, 1.0)
    line.time = 1.0
    line.fill(34, 2.0, "flood")
    assert line.shortage(key="flood") == 0
    line.see("other")
    assert line.shortage(key="flood") > 0


def test_only_asking_makes_nobody_one_of_those_who_share() -> None:
    line = Line()
    line.fill(45, 2.0)
    line.see("key")
    line.shortage_s(Ask("other", "model", 2.0), 45.0, 2)
    assert line.shortage() == 0


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 30.0), st.floats(0.0, 3.0), st.booleans()), max_size=80),
    st.integers(1, 30),
    st.floats(0.1, 60.0),
)
def test_whoever_comes_the_line_stays_within_its_stretched_bounds(
    visits: list[tuple[str, float, float, bool]], queued: int, queue_s: float
) -> None:
    line = Line(queued, queue_s)
    for number, (key, seconds, passed, distinct) in enumerate(visits):
        line.time += passed
        fingerprint = str(number) if distinct else "same"
        wait_s, count = line.total.seconds / 2, line.total.count
        if (shortage_s := line.shortage(seconds, key, fingerprint)) > 0:
            assert 1 <= line.promises.make(key, fingerprint, seconds, shortage_s) <= 120
            continue
        assert wait_s <= 1.5 * queue_s
        assert count < 1.5 * queued
        line.promises.claim(key, fingerprint)
        line.add(key, 1, seconds)
