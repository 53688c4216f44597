"""Ten times too much work: what is done stays the same, nobody pays for others, and large jobs get their turn. Virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest

from app.admission.controller import Controller
from app.admission.ledger import Ledger
from app.admission.ticket import Ask, Count, Limits
from app.errors import StenopoolError
from benchmarks.virtual import GB, Request, World, jain, quantile
from tests.unit.admission.rooms import Room, Rooms

MEAN_S = 5.0


def drawn(random: Random, mean: float, sigma: float) -> float:
    return random.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)


def source(
    world: World, key: str, *, sigma: float = 1.0, obeys: bool = False, tries: float = math.inf
) -> Callable[[int], Request]:
    """Makes the requests of one key."""

    def make(number: int) -> Request:
        seconds = drawn(world.random, MEAN_S, sigma)
        work = seconds * drawn(world.random, 1.0, 0.2)
        return Request(Ask(key, "model", seconds, fingerprint=str(number)), work, obeys, tries)

    return make


# -- one key, more and more of it


def at_load(load: float) -> World:
    world = World(Limits(2, 200, 60.0), count_from=100.0)
    world.stream(load * 2 / MEAN_S, 0.0, 4000.0, source(world, "key"))
    world.run(4000.0)
    return world


def test_goodput_and_latency_stay_where_they_are_under_overload() -> None:
    worlds = {load: at_load(load) for load in (1.0, 2.0, 5.0, 10.0)}
    goodput = {load: world.busy_share() for load, world in worlds.items()}
    latency = {load: quantile((one.latency_s for one in world.ended), 0.99) for load, world in worlds.items()}
    assert min(goodput[load] for load in (2.0, 5.0, 10.0)) >= 0.95 * max(goodput.values())
    assert latency[10.0] <= 1.5 * latency[1.0]


# -- nine keys, and one that floods


def crowd(streams: int, flood: float, *, obeys: bool = False) -> list[Request]:
    """What became of the requests of nine keys, which are six tenths of the load; a tenth key sends ``flood`` times as much."""
    world, rate, end = World(Limits(streams, 400, 60.0)), 0.6 * streams / MEAN_S / 9, 10_000.0 / streams
    mine: list[Request] = []
    for key in range(9):
        mine += world.stream(rate, 0.0, end, source(world, f"key-{key}", sigma=0.5, obeys=True))
    if flood:
        world.stream(flood * rate, 0.0, end, source(world, "flood", sigma=0.5, obeys=obeys, tries=3))
    world.run(end + 200.0)
    assert all(one.ended_at is not None for one in mine)
    return mine


def worst(requests: list[Request]) -> float:
    return quantile((one.latency_s for one in requests), 0.99)


def done_per_key(requests: list[Request]) -> list[float]:
    """The share of the work that was asked for which was done within a minute."""
    share = {}
    for key in sorted({one.ask.key for one in requests}):
        mine = [one for one in requests if one.ask.key == key]
        share[key] = sum(one.work for one in mine if one.latency_s < 60.0) / sum(one.work for one in mine)
    return list(share.values())


floods = pytest.mark.parametrize("obeys", [False, True], ids=["obeys nothing", "comes back"])


@floods
def test_a_flood_does_not_delay_the_other_keys(obeys: bool) -> None:
    quiet, flooded = crowd(8, 0.0), crowd(8, 50.0, obeys=obeys)
    assert len(flooded) == len(quiet) > 1000
    assert worst(flooded) <= 1.2 * worst(quiet)
    assert jain(done_per_key(flooded)) >= 0.95


@floods
def test_on_two_streams_a_flood_costs_the_others_the_jobs_that_are_at_work_when_they_come(obeys: bool) -> None:
    quiet, flooded = crowd(2, 0.0), crowd(2, 50.0, obeys=obeys)
    assert worst(flooded) <= worst(quiet) + 2 * MEAN_S
    assert jain(done_per_key(flooded)) >= 0.95


# -- a large job among small ones


class LoadingWorld(World):
    """8 GB; models of 1 and 3 GB, which load for ``load_s`` seconds, one at a time. The pool looks four times a second."""

    def __init__(self, load_s: float, large_wait_s: float) -> None:
        memory = Ledger(8 * GB)
        self.rooms = Rooms(memory, Room("small", 4, GB), Room("large", 1, 3 * GB))
        super().__init__(Limits(4, 2000, 10_000.0, large_wait_s), memory.budget, self.rooms)
        self.desk.memory = memory
        self.load_s, self.began = load_s, {"small": math.inf, "large": math.inf}
        self.at(0.0, self.look)

    def look(self) -> None:
        for room in self.rooms.rooms.values():
            if room.state == "ending":
                self.rooms.gone(room.lane)
            self.began[room.lane] = min(self.began[room.lane], self.time) if room.state == "loading" else math.inf
            if self.time - self.began[room.lane] >= self.load_s:
                self.rooms.loaded(room.lane)
        self.desk.pump()
        self.at(self.time + 0.25, self.look)


@pytest.mark.parametrize("same_key", [False, True], ids=["of other keys", "of its own key"])
@pytest.mark.parametrize("load_s", [1.0, 15.0])
def test_a_large_job_behind_a_stream_of_small_ones_starts_within_its_bound(load_s: float, same_key: bool) -> None:
    longest_s, large_wait_s = 20.0, 30.0
    world, random = LoadingWorld(load_s, large_wait_s), Random(1)
    for number in range(400):
        seconds, key = random.uniform(2.0, longest_s), "large" if same_key else f"key-{number % 5}"
        world.comes(Request(Ask(key, "small", seconds, GB, worker_bytes=GB), seconds), number * 3.0)
    large = world.comes(Request(Ask("large", "large", 30.0, 4 * GB, worker_bytes=3 * GB), 30.0), 100.0)
    world.run(1000.0)
    assert large.started_at is not None
    assert large.started_at - large.came_at <= large_wait_s + longest_s + load_s + 1.0
    passed = [one for one in world.ended if large.came_at < (one.started_at or 0.0) < large.came_at + large_wait_s]
    assert len(passed) >= 5


# -- in the same instant


@pytest.mark.parametrize("seed", range(50))
def test_a_hundred_requests_in_the_same_instant_never_reserve_more_than_there_is(seed: int) -> None:
    random = Random(seed)
    memory = Ledger(random.randint(1, 100))
    limits = Limits(random.randint(1, 8), random.choice([0, 5, 200]), random.choice([0.0, 30.0, 900.0]))
    desk = Controller("jobs", limits, memory, Count(), lambda: 0.0, random.random)
    started: list[str] = []
    admitted = 0
    for _ in range(100):
        ask = Ask(f"key-{random.randrange(5)}", "model", random.uniform(0, 60), random.randint(0, 60))
        try:
            ticket = desk.enter(ask)
        except StenopoolError:
            continue
        admitted += 1
        desk.wait(ticket, lambda seat, error, name=ticket.name: started.append(name))
        assert memory.reserved <= memory.budget
        assert len(desk.running) <= limits.running
    assert memory.peak <= memory.budget
    assert len(started) == len(desk.running) <= admitted <= limits.running + 1.25 * limits.queued + 5
    for ticket in list(desk.inside):
        desk.release(ticket)
        assert memory.reserved <= memory.budget
    assert (memory.reserved, desk.ended) == (0, admitted)
