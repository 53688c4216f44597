"""Places: taken at once or refused, given back once, run only so many at a time."""

from __future__ import annotations

import asyncio
import random

import pytest

from app.admission.controller import Gate
from app.errors import TooManyActive


def test_places_are_those_that_run_and_those_that_wait() -> None:
    gate = Gate(2, 3)
    places = [gate.enter() for _ in range(5)]
    with pytest.raises(TooManyActive) as error:
        gate.enter()
    assert error.value.retry_after_s is not None
    assert 1 <= error.value.retry_after_s <= 120
    places[0].release()
    gate.enter()
    assert gate.taken == 5


def test_nobody_waits_where_the_policy_is_to_reject() -> None:
    gate = Gate(2, 100, "reject")
    assert gate.places == 2
    gate.enter()
    gate.enter()
    with pytest.raises(TooManyActive):
        gate.enter()


def test_no_queue_means_only_those_that_run() -> None:
    assert Gate(3, 0).places == 3


def test_a_place_is_given_back_once_however_often_it_is_released() -> None:
    gate = Gate(1, 1)
    gate.enter()
    with gate.enter() as place:
        place.release()
        place.release()
    assert gate.taken == 1


def test_a_place_is_given_back_after_an_error() -> None:
    gate = Gate(1, 0)
    with pytest.raises(ZeroDivisionError), gate.enter():
        raise ZeroDivisionError
    assert gate.taken == 0


@pytest.mark.parametrize("taken", [1, 10, 100_000])
def test_the_estimate_stays_within_its_bounds(taken: int) -> None:
    gate = Gate(1, taken - 1)
    gate.taken = taken
    with pytest.raises(TooManyActive) as error:
        gate.enter()
    assert error.value.retry_after_s == min(120.0, max(1.0, 2.0 * taken))


async def test_only_so_many_turns_at_once_and_in_the_order_of_asking() -> None:
    gate = Gate(2, 20)
    running = most = 0
    order: list[int] = []

    async def work(number: int) -> None:
        nonlocal running, most
        with gate.enter() as place:
            async with place.turn():
                order.append(number)
                running += 1
                most = max(most, running)
                await asyncio.sleep(0)
                running -= 1

    await asyncio.gather(*(work(number) for number in range(20)))
    assert (most, gate.taken, order) == (2, 0, list(range(20)))


async def test_cancelled_at_random_no_turn_is_lost() -> None:
    chance = random.Random(7)
    gate = Gate(3, 500)

    async def work() -> None:
        with gate.enter() as place:
            async with place.turn():
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)

    tasks = [asyncio.create_task(work()) for _ in range(300)]
    while not all(task.done() for task in tasks):
        chance.choice(tasks).cancel()
        await asyncio.sleep(0)
    assert gate.taken == 0
    for _ in range(3):
        await asyncio.wait_for(gate.enter().turn().acquire(), 1)
