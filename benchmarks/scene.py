"""One simulated run: who comes, and what came of it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

from app.admission.quotas import Quota
from app.admission.ticket import NO_QUOTA, Ask
from app.errors import CapacityError
from benchmarks.fleet import Fleet
from benchmarks.virtual import Request, jain, quantile

MEAN_S = 20.0
AUDIO_PER_WORK = 10.0
WRONG = 0.2
WITHIN_S = 90.0
BINS = 48
Rate = Callable[[float], float]
Make = Callable[[], Request]


def drawn(random: Random, mean: float, sigma: float) -> float:
    """A log-normal number of that mean."""
    return random.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)


@dataclass(frozen=True)
class Clients:
    """``keys`` that share a load; of their requests ``obey`` come back when told to, at most ``tries`` times.

    The first key has ``quota``; ``hurry`` of the requests are of no use after ``WITHIN_S`` seconds.
    """

    keys: int = 20
    obey: float = 0.7
    tries: int = 6
    name: str = "key"
    quota: Quota = NO_QUOTA
    hurry: float = 0.0

    def maker(self, world: Fleet) -> Make:
        """Makes requests: seconds of work are log-normal, and the prediction is wrong by a fifth."""
        random, number = world.random, iter(range(10**9))

        def make() -> Request:
            seconds, amount = drawn(random, MEAN_S, 1.0), min(400e6, drawn(random, 100e6, 0.5))
            own = random.randrange(self.keys)
            key, quota = f"{self.name}-{own}", NO_QUOTA if own else self.quota
            within_s = WITHIN_S if random.random() < self.hurry else None
            name, audio_s = f"{key}-{next(number)}", seconds * AUDIO_PER_WORK
            ask = Ask(key, "model", seconds, int(amount), audio_s, within_s=within_s, fingerprint=name, quota=quota)
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
        self._useful: list[float] = []
        self.world.on_refusal = self._refusal

    def _refusal(self, request: Request, error: CapacityError, promised: bool) -> None:
        self.reasons[str((error.details or {}).get("reason", error.code))] += 1
        if request in self._promised:
            self.retries[self._promised[request], False] += 1
        if error.retry_after_s is not None:
            self._promised[request] = promised
            self.longest_told_s = max(self.longest_told_s, error.retry_after_s)

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
        for number in range(BINS + 1):
            self.world.at(number * self.end / BINS, lambda: self._useful.append(self.world.useful_s()))
        began = time.thread_time()
        self.world.run()
        self.wall_s = time.thread_time() - began
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
        width, first = self.end / BINS, math.ceil(begin * BINS / self.end)
        done = [until - since for since, until in pairwise(self._useful)]
        offered = [0.0] * BINS
        for one in self.came:
            offered[min(BINS - 1, int(one.came_at / width))] += one.work
        could = [self._could(number * width, (number + 1) * width) for number in range(BINS)]
        busy = [at for at in range(max(1, first), BINS) if min(offered[at] - could[at], offered[at - 1] - could[at - 1]) >= 0]
        seconds = self.end - first * width
        jobs = sum(first * width <= (one.ended_at or 0.0) <= self.end for one in self.world.ended)
        return {
            "goodput_jobs_per_s": jobs / seconds,
            "goodput_audio_s_per_s": AUDIO_PER_WORK * sum(done[first:]) / seconds,
            "goodput_of_capacity": sum(done[first:]) / sum(could[first:]),
            "goodput_of_capacity_busy": _ratio(sum(done[at] for at in busy), sum(could[at] for at in busy)),
            "timeline": [[round(value / width, 3) for value in row] for row in (offered, done, could)],
        }

    def _could(self, begin: float, end: float) -> float:
        log = [*self.world.speed_log, (math.inf, 0.0)]
        return sum(speed * max(0.0, min(end, until) - max(begin, since)) for (since, speed), (until, _) in pairwise(log))

    def fairness(self, name: str) -> dict[str, float | None]:
        """Of the keys that begin with ``name``: Jain's index of the share of their work that was done, and their p99."""
        asked: Counter[str] = Counter()
        done: Counter[str] = Counter()
        latencies, waits = [], []
        for one in self.came:
            if one.ask.key.startswith(name):
                asked[one.ask.key] += one.work  # type: ignore[assignment]
                if one.ended_at is not None and one.admitted_at is not None:
                    done[one.ask.key] += one.work  # type: ignore[assignment]
                    latencies.append(one.ended_at - one.admitted_at)
                    waits.append((one.started_at or 0.0) - one.admitted_at)
        return {
            "jain": jain(done[key] / asked[key] for key in asked),
            "normal_wait_p99_s": _quantile(waits, 0.99),
            "normal_p99_s": _quantile(latencies, 0.99),
            "normal_done": sum(done.values()) / sum(asked.values()),
        }


def _quantile(values: list[float], share: float) -> float | None:
    return quantile(values, share) if values else None


def _ratio(one: float, other: float) -> float | None:
    return one / other if other else None


def _share(retries: Counter[tuple[bool, bool]], promised: tuple[bool, ...]) -> float | None:
    good, bad = (sum(retries[one, right] for one in promised) for right in (True, False))
    return _ratio(good, good + bad)
