"""A refused client that obeys ``Retry-After`` gets in when it was told to come, and nothing is wasted where nobody obeys.

Simulated in virtual time: log-normal durations, predictions that are wrong by a third, clients up to 50 ms late.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from app.admission.ticket import Ask, Limits
from benchmarks.virtual import GB, Request, World

Fingerprint = Callable[[int], str]
fingerprints = pytest.mark.parametrize("fingerprint", [str, lambda number: "same"], ids=["distinct", "identical"])
BOUNDS = {"60 s": Limits(2, 1000, 60.0), "10 s": Limits(2, 1000, 10.0), "20 jobs": Limits(2, 20, 600.0)}
lines = pytest.mark.parametrize("limits", BOUNDS.values(), ids=list(BOUNDS))
MEAN_S = 2.0


def drawn(world: World, mean: float, sigma: float) -> float:
    return world.random.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)


def clients(
    world: World, fingerprint: Fingerprint, *, keys: int = 1, obey: float = 1.0, mean: float = 1.0, amount: int = 0
) -> Callable[[int], Request]:
    """Makes one-job clients; ``obey`` is the share of them that comes back."""

    def make(number: int) -> Request:
        seconds = drawn(world, mean, 1.0)
        ask = Ask(f"key-{number % keys}", "model", seconds, amount, fingerprint=fingerprint(number))
        return Request(ask, seconds * drawn(world, 1.0, 0.3), world.random.random() < obey)

    return make


def fill(world: World, seconds: float = 1.0) -> None:
    """The same key's work up to the first refusal."""
    number = 0
    while not world.told:
        number += 1
        world.comes(Request(Ask("key-0", "model", seconds, fingerprint=f"fill-{number}"), seconds))
        world.run(0.0)
    world.told.clear()


def honesty(worlds: list[World]) -> float:
    honoured, broken = sum(one.honoured for one in worlds), sum(one.broken for one in worlds)
    assert honoured + broken > 100
    return honoured / (honoured + broken)


def overloaded(limits: Limits, fingerprint: Fingerprint, *, keys: int = 1, obey: float = 1.0) -> list[World]:
    """Twice as much work comes as can be done, for 70 s after the line is full: then the last ones still get a time."""
    seconds = 70.0 + min(limits.queue_s, limits.queued * MEAN_S / limits.running)
    worlds = [World(limits, seed=seed) for seed in range(6)]
    for world in worlds:
        make = clients(world, fingerprint, keys=keys, obey=obey, mean=MEAN_S)
        world.stream(2.0 * limits.running / MEAN_S, 0.0, seconds, make)
        world.run()
        assert max(world.told) <= 120
    return worlds


@fingerprints
@lines
def test_of_two_hundred_at_once_before_a_full_line_nearly_all_get_in_when_they_were_told(
    limits: Limits, fingerprint: Fingerprint
) -> None:
    world = World(limits)
    fill(world)
    make = clients(world, fingerprint)
    burst = [world.comes(make(number), 0.5) for number in range(200)]
    world.run()
    assert honesty([world]) >= 0.9
    assert max(world.told) <= 120
    assert all(one.ended_at is not None for one in burst)


@fingerprints
@lines
@pytest.mark.parametrize("keys", [1, 5, 20])
def test_in_sustained_overload_nearly_all_who_obey_get_in_when_they_were_told(
    limits: Limits, fingerprint: Fingerprint, keys: int
) -> None:
    assert honesty(overloaded(limits, fingerprint, keys=keys)) >= 0.9


@pytest.mark.parametrize("obey", [0.3, 0.7])
def test_those_who_obey_get_in_although_others_do_not(obey: float) -> None:
    assert honesty(overloaded(Limits(2, 1000, 20.0), str, obey=obey)) >= 0.9


def test_where_memory_is_scarcer_than_streams_the_times_are_right_all_the_same() -> None:
    worlds = [World(Limits(4, 1000, 20.0), budget=2 * GB, seed=seed) for seed in range(4)]
    for world in worlds:
        world.stream(4.0, 0.0, 100.0, clients(world, str, amount=GB))
        world.run()
        assert max(world.told) <= 120
    assert honesty(worlds) >= 0.9


def test_a_client_whose_time_cannot_be_named_is_told_at_most_two_minutes_and_promised_nothing() -> None:
    world = World(Limits(2, 1000, 60.0))
    fill(world)
    make = clients(world, str, obey=0.0)
    for number in range(2000):
        world.comes(make(number), 0.5)
    world.run(1.0)
    assert max(world.told) <= 120
    assert sum(told >= 90 for told in world.told) > 1500
    assert world.desk.promises.made < 300


@fingerprints
@pytest.mark.parametrize("keys", [1, 5])
@lines
def test_where_nobody_obeys_the_kept_room_is_not_wasted(limits: Limits, keys: int, fingerprint: Fingerprint) -> None:
    world = World(limits, count_from=50.0)
    world.stream(10 * limits.running / 5.0, 0.0, 600.0, clients(world, fingerprint, keys=keys, obey=0.0, mean=5.0))
    world.run(600.0)
    assert world.desk.promises.made > 100
    assert world.busy_share() >= 0.97


def test_clients_who_learn_to_obey_are_believed_again() -> None:
    limits = Limits(2, 1000, 20.0)
    world = World(limits)
    world.stream(20.0, 0.0, 200.0, clients(world, str, obey=0.0))
    world.run(260.0)
    world.honoured = world.broken = 0
    world.stream(4.0, 260.0, 360.0, clients(world, lambda number: f"new-{number}"))
    world.run()
    assert honesty([world]) >= 0.85
