"""What happens to the simulated machines: load over time, bursts, losses, slow nodes, a key that floods; what came of it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

from app.admission.ledger import Ledger
from app.admission.ticket import NO_QUOTA, Ask
from app.errors import CapacityError
from benchmarks.fleet import Fleet, Shape
from benchmarks.virtual import Request, jain, quantile

MEAN_S = 20.0
AUDIO_PER_WORK = 10.0
WRONG = 0.2
BINS = 48
Rate = Callable[[float], float]
Make = Callable[[], Request]


def drawn(random: Random, mean: float, sigma: float) -> float:
    """A log-normal number of that mean."""
    return random.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)


@dataclass(frozen=True)
class Clients:
    """``keys`` that share a load; of their requests ``obey`` come back when told to, at most ``tries`` times."""

    keys: int = 20
    obey: float = 0.7
    tries: int = 6
    name: str = "key"

    def maker(self, world: Fleet) -> Make:
        """Makes requests: seconds of work are log-normal, and the prediction is wrong by a fifth."""
        random, number = world.random, iter(range(10**9))

        def make() -> Request:
            seconds, amount = drawn(random, MEAN_S, 1.0), min(400e6, drawn(random, 100e6, 0.5))
            key = f"{self.name}-{random.randrange(self.keys)}"
            audio_s = seconds * AUDIO_PER_WORK
            ask = Ask(key, "model", seconds, int(amount), audio_s, fingerprint=f"{key}-{next(number)}", quota=NO_QUOTA)
            return Request(ask, seconds * drawn(random, 1.0, WRONG), random.random() < self.obey, self.tries, 1.0)

        return make


@dataclass
class Scene:
    """One run: machines, what comes, and everything that was seen. Audio in seconds, work in seconds of engine calls."""

    world: Fleet
    end: float
    came: list[Request] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    retries: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    longest_told_s: float = 0.0
    wall_s: float = 0.0

    def __post_init__(self) -> None:
        self._promised: dict[Request, bool] = {}
        self.world.on_refusal = self._refusal

    def _refusal(self, request: Request, error: CapacityError, promised: bool) -> None:
        self.reasons[str((error.details or {}).get("reason", error.code))] += 1
        if request in self._promised:
            self.retries[self._promised[request], False] += 1
        self._promised[request] = promised
        self.longest_told_s = max(self.longest_told_s, error.retry_after_s or 0.0)

    def arrivals(self, rate: Rate, most: float, make: Make, begin: float = 0.0) -> None:
        """Poisson arrivals of ``rate(t)`` per second, which is never above ``most``; each plans the next (thinning)."""
        world = self.world

        def next_one(when: float) -> None:
            while (when := when + world.random.expovariate(most)) < self.end:
                if world.random.random() * most <= rate(when):
                    world.at(when, lambda: arrive(when))
                    return

        def arrive(when: float) -> None:
            self.comes(make())
            next_one(when)

        next_one(begin)

    def comes(self, request: Request) -> None:
        """One request, now."""
        self.came.append(request)
        self.world.comes(request)

    def run(self) -> Scene:
        """To the very end: nothing comes after ``end``, and everybody inside is served."""
        began = time.perf_counter()
        self.world.run()
        self.wall_s = time.perf_counter() - began
        for request, promised in self._promised.items():
            if request.admitted_at is not None:
                self.retries[promised, True] += 1
        return self

    # -- what came of it

    def result(self, begin: float = 0.0) -> dict[str, Any]:
        """Figures of everything from ``begin`` on."""
        world, desk = self.world, self.world.desk
        ended = [one for one in world.ended if one.came_at >= begin]
        inside = [one for one in self.came if one.admitted_at is not None]
        latencies = [(one.ended_at or 0.0) - (one.admitted_at or 0.0) for one in ended]
        waits = [(one.started_at or 0.0) - (one.admitted_at or 0.0) for one in ended]
        return {
            "virtual_s": self.end,
            "came": len(self.came),
            "admitted": len(inside),
            "lost": len(inside) - len(world.ended) + len(desk.inside),
            "run_twice": len(world.twice),
            **self.goodput(begin),
            "wait_p50_s": _quantile(waits, 0.5),
            "wait_p99_s": _quantile(waits, 0.99),
            "latency_p50_s": _quantile(latencies, 0.5),
            "latency_p99_s": _quantile(latencies, 0.99),
            "refused": dict(self.reasons),
            "retries": sum(self.retries.values()),
            "as_told": _share(self.retries, (True, False)),
            "as_promised": _share(self.retries, (True,)),
            "promised_share": _ratio(self.retries[True, True] + self.retries[True, False], sum(self.retries.values())),
            "longest_told_s": self.longest_told_s,
            "most_running": world.busiest,
            "peak_bytes": desk.memory.peak,
            "wall_s": self.wall_s,
            "events_per_s": world.events / self.wall_s,
            "decision_us": {kind: 1e6 * seconds / calls for kind, (calls, seconds) in sorted(desk.spent.items())},
            "decisions": {kind: int(calls) for kind, (calls, _) in sorted(desk.spent.items())},
        }

    def goodput(self, begin: float = 0.0) -> dict[str, Any]:
        """Work done against what the machines alive could do, in ``BINS`` parts of the time; busy: where enough had come."""
        width = (self.end - begin) / BINS
        done, offered = [0.0] * BINS, [0.0] * BINS
        for one in self.world.ended:
            _add(done, ((one.ended_at or 0.0) - begin) / width, one.work)
        for one in self.came:
            _add(offered, (one.came_at - begin) / width, one.work)
        could = [self._could(begin + number * width, begin + (number + 1) * width) for number in range(BINS)]
        busy = [
            number for number in range(1, BINS) if offered[number] >= could[number] and offered[number - 1] >= could[number - 1]
        ]
        seconds = self.end - begin
        jobs = sum(begin <= (one.ended_at or 0.0) <= self.end for one in self.world.ended)
        return {
            "goodput_jobs_per_s": jobs / seconds,
            "goodput_audio_s_per_s": AUDIO_PER_WORK * sum(done) / seconds,
            "goodput_of_capacity": sum(done) / sum(could),
            "goodput_of_capacity_busy": _ratio(sum(done[at] for at in busy), sum(could[at] for at in busy)),
            "goodput_of_peak_busy": _ratio(sum(done[at] for at in busy) / max(1, len(busy)), max(done)) if busy else None,
            "timeline": [[round(value / width, 3) for value in row] for row in (offered, done, could)],
        }

    def _could(self, begin: float, end: float) -> float:
        log = [*self.world.speed_log, (math.inf, 0.0)]
        return sum(speed * max(0.0, min(end, until) - max(begin, since)) for (since, speed), (until, _) in pairwise(log))

    def fairness(self, name: str) -> dict[str, float | None]:
        """Of the keys that begin with ``name``: Jain's index of the share of their work that was done, and their p99."""
        asked: Counter[str] = Counter()
        done: Counter[str] = Counter()
        latencies = []
        for one in self.came:
            if one.ask.key.startswith(name):
                asked[one.ask.key] += one.work  # type: ignore[assignment]
                if one.ended_at is not None and one.admitted_at is not None:
                    done[one.ask.key] += one.work  # type: ignore[assignment]
                    latencies.append(one.ended_at - one.admitted_at)
        return {
            "jain": jain(done[key] / asked[key] for key in asked),
            "normal_p99_s": _quantile(latencies, 0.99),
            "normal_done": sum(done.values()) / sum(asked.values()),
        }


def _add(row: list[float], at: float, amount: float) -> None:
    if 0 <= at < len(row):
        row[int(at)] += amount


def _quantile(values: list[float], share: float) -> float | None:
    return quantile(values, share) if values else None


def _ratio(one: float, other: float) -> float | None:
    return one / other if other else None


def _share(retries: Counter[tuple[bool, bool]], promised: tuple[bool, ...]) -> float | None:
    good, bad = (sum(retries[one, right] for one in promised) for right in (True, False))
    return _ratio(good, good + bad)


# -- the scenarios


def machines(nodes: int, seed: int, speeds: list[float] | None = None, memory: type[Ledger] = Ledger) -> Fleet:
    """So many nodes of the usual shape."""
    return Fleet(speeds or [1.0] * nodes, Shape(), seed, memory)


def jobs_per_s(nodes: int) -> float:
    """What so many nodes can do."""
    return nodes * Shape().runners / MEAN_S


def lasting(nodes: int, jobs: float, shortest: float, longest: float) -> float:
    """Seconds in which about ``jobs`` jobs are done."""
    return min(longest, max(shortest, jobs / jobs_per_s(nodes)))


def levels(nodes: int, seed: int, scale: float = 1.0) -> dict[str, Any]:
    """1, 2, 5 and 10 times as much as can be done; nobody obeys."""
    rows = {}
    for factor in (1.0, 2.0, 5.0, 10.0):
        scene = Scene(machines(nodes, seed), lasting(nodes, 12_000 * scale, 400.0, 40_000.0 * scale))
        rate = factor * jobs_per_s(nodes)
        scene.arrivals(lambda at, rate=rate: rate, rate, Clients(obey=0.0).maker(scene.world))  # type: ignore[misc]
        rows[f"{factor:g}x"] = scene.run().result(begin=min(scene.end / 4, 200.0))
    return rows


def day(nodes: int, seed: int, scale: float = 1.0) -> dict[str, Any]:
    """A day: a sine from a quarter of the capacity to 1.45 times as much, and 24 bursts of a minute's work in five seconds."""
    scene = Scene(machines(nodes, seed), lasting(nodes, 150_000 * scale, 3600.0 * scale, 86_400.0 * scale))
    capacity, random = jobs_per_s(nodes), scene.world.random
    bursts = sorted(random.uniform(0.0, scene.end) for _ in range(24))

    def rate(at: float) -> float:
        return capacity * (0.85 - 0.6 * math.cos(2 * math.pi * at / scene.end))

    make = Clients().maker(scene.world)
    scene.arrivals(rate, 1.45 * capacity, make)
    for begin in bursts:
        for _ in range(math.ceil(60.0 * capacity)):
            scene.world.at(begin + random.uniform(0.0, 5.0), lambda: scene.comes(make()))
    return {"day": scene.run().result() | scene.fairness("key")}


def losses(nodes: int, seed: int, scale: float = 1.0, memory: type[Ledger] = Ledger) -> dict[str, Any]:
    """0.9 of the capacity; each node is lost now and then for two minutes (2 % of the time), and a tenth of all at once."""
    scene = Scene(machines(nodes, seed, memory=memory), lasting(nodes, 40_000 * scale, 1800.0 * scale, 43_200.0 * scale))
    world, rate = scene.world, 0.9 * jobs_per_s(nodes)
    scene.arrivals(lambda at: rate, rate, Clients().maker(world))

    def again(at: float) -> Iterator[float]:
        while (at := at + world.random.expovariate(1 / 6000.0)) < scene.end:
            yield at

    for node in world.nodes:
        for at in again(0.0):
            world.at(at, lambda node=node: world.lose(node, 120.0))  # type: ignore[misc]
    for node in world.nodes[: max(1, nodes // 10)]:
        world.at(scene.end / 3, lambda node=node: world.lose(node, 300.0))  # type: ignore[misc]
    return {"losses": scene.run().result() | scene.fairness("key")}


def slow(nodes: int, seed: int, scale: float = 1.0) -> dict[str, Any]:
    """A tenth of the nodes (one at least) works at a quarter of the speed; 1.2 times as much comes as can be done."""
    speeds = [0.25] * max(1, nodes // 10) + [1.0] * (nodes - max(1, nodes // 10))
    scene = Scene(machines(nodes, seed, speeds), lasting(nodes, 30_000 * scale, 1200.0, 43_200.0 * scale))
    rate = 1.2 * scene.world.speed / MEAN_S
    scene.arrivals(lambda at: rate, rate, Clients().maker(scene.world))
    return {"slow": scene.run().result(begin=scene.end / 10) | scene.fairness("key")}


def flood(nodes: int, seed: int, scale: float = 1.0) -> dict[str, Any]:
    """Nine keys that use 0.7 of the capacity and obey, alone and then beside one that sends 50 times as much as one of them."""
    rows = {}
    for name, times in (("quiet", 0.0), ("flooded", 50.0)):
        scene = Scene(machines(nodes, seed), lasting(nodes, 12_000 * scale, 400.0, 40_000.0 * scale))
        rate = 0.7 * jobs_per_s(nodes)
        scene.arrivals(lambda at, rate=rate: rate, rate, Clients(9, 1.0, 20).maker(scene.world))  # type: ignore[misc]
        if times:
            many = times * rate / 9
            scene.arrivals(lambda at, many=many: many, many, Clients(1, 0.0, 1, "flood").maker(scene.world))  # type: ignore[misc]
        rows[name] = scene.run().result(begin=scene.end / 10) | scene.fairness("key")
    return rows


def obeying(nodes: int, seed: int, scale: float = 1.0) -> dict[str, Any]:
    """Twice the capacity for two minutes, then nothing; everybody comes back as told. Small fleets: several such times."""
    times = max(1, round(1000 * scale / (240 * jobs_per_s(nodes))))
    total = Scene(machines(nodes, seed), 120.0)
    for number in range(times):
        scene = total if not number else Scene(machines(nodes, seed + number), 120.0)
        rate = 2 * jobs_per_s(nodes)
        scene.arrivals(lambda at, rate=rate: rate, rate, Clients(5, 1.0, 20).maker(scene.world))  # type: ignore[misc]
        scene.run()
        if number:
            total.retries += scene.retries
            total.longest_told_s = max(total.longest_told_s, scene.longest_told_s)
    return {"obeying": total.result() | total.fairness("key") | {"times": times}}


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    "levels": levels,
    "day": day,
    "losses": losses,
    "slow": slow,
    "flood": flood,
    "obeying": obeying,
}
