"""Amounts are taken in one step or not at all, and the sum is always right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission.ledger import Ledger

steps = st.lists(
    st.tuples(st.sampled_from(["take", "resize", "drop", "budget"]), st.sampled_from("abc"), st.integers(0, 120)), max_size=40
)


def test_what_does_not_fit_is_not_taken_in_part() -> None:
    ledger = Ledger(100)
    assert ledger.take("a", 60)
    assert not ledger.take("b", 41)
    assert (ledger.reserved, ledger.held("b"), ledger.holders()) == (60, 0, {"a": 60})
    assert ledger.take("b", 40)
    assert ledger.free == 0


def test_what_was_held_stays_held_when_the_budget_shrinks_and_nothing_new_is_taken() -> None:
    ledger = Ledger(100)
    ledger.take("a", 80)
    ledger.budget = 50
    assert (ledger.held("a"), ledger.free) == (80, 0)
    assert not ledger.take("b", 1)
    assert not ledger.take("b", 0)
    assert ledger.resize("a", 90) == 80
    assert ledger.resize("a", 30) == 30
    assert ledger.take("b", 20)


def test_a_reservation_grows_only_as_far_as_it_fits() -> None:
    ledger = Ledger(100)
    ledger.take("a", 10)
    ledger.take("b", 50)
    assert ledger.resize("a", 70) == 50
    assert ledger.resize("nobody", 5) == 0
    assert (ledger.reserved, ledger.peak) == (100, 100)


def test_giving_back_twice_does_nothing() -> None:
    ledger = Ledger(100)
    ledger.take("a", 10)
    ledger.drop("a")
    ledger.drop("a")
    assert (ledger.reserved, ledger.free) == (0, 100)


@pytest.mark.parametrize("amount", [-1, 5])
def test_a_negative_amount_or_a_second_reservation_is_a_mistake(amount: int) -> None:
    ledger = Ledger(100)
    ledger.take("b" if amount < 0 else "a", 1)
    with pytest.raises(ValueError, match="cannot take"):
        ledger.take("a", amount)
    assert ledger.reserved == 1


@given(steps)
def test_the_sum_is_what_everybody_holds_and_never_grows_beyond_the_budget(given_steps: list[tuple[str, str, int]]) -> None:
    ledger = Ledger(100)
    for what, name, amount in given_steps:
        before = ledger.reserved
        if what == "budget":
            ledger.budget = amount
        elif what == "drop":
            ledger.drop(name)
        elif what == "resize":
            ledger.resize(name, amount)
        elif not ledger.held(name):
            ledger.drop(name)  # it may hold nothing, by name
            ledger.take(name, amount)
        assert ledger.reserved == sum(ledger.holders().values()) >= 0
        assert ledger.reserved <= max(before, ledger.budget)
        assert 0 <= ledger.free <= max(0, ledger.budget)
        assert ledger.peak >= ledger.reserved
