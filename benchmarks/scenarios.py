"""What happens to the simulated machines: overload, a day, losses, slow nodes, one key that floods, clients that obey."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from app.admission.ledger import Ledger
from app.admission.quotas import Quota
from benchmarks.fleet import Fleet, Shape
from benchmarks.scene import MEAN_S, Clients, Scene


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
        scene = Scene(machines(nodes, seed), lasting(nodes, 6_000 * scale, 240.0, 40_000.0 * scale))
        rate = factor * jobs_per_s(nodes)
        scene.arrivals(lambda at, rate=rate: rate, rate, Clients(obey=0.0).maker(scene.world))  # type: ignore[misc]
        rows[f"{factor:g}x"] = scene.run().result(begin=min(scene.end / 3, 300.0))
    peak = max(row["goodput_audio_s_per_s"] for row in rows.values())
    return {name: row | {"goodput_of_peak": row["goodput_audio_s_per_s"] / peak} for name, row in rows.items()}


def day(nodes: int, seed: int, scale: float = 1.0) -> dict[str, Any]:
    """A day (less where machines are many): a sine from 0.25 to 1.45 of the capacity, and bursts of a minute's work in 5 s.

    One of the 20 keys may send half of what it does at the mean; some requests are of no use after 90 s.
    """
    scene = Scene(machines(nodes, seed), lasting(nodes, 40_000 * scale, 1200.0 * scale, 86_400.0 * scale))
    capacity, random = jobs_per_s(nodes), scene.world.random
    bursts = [random.uniform(0.0, scene.end) for _ in range(max(3, round(scene.end / 3600.0)))]

    quota = Quota(requests_per_minute=max(1, round(0.5 * 0.85 * capacity * 60.0 / 20)))

    def rate(at: float) -> float:
        return capacity * (0.85 - 0.6 * math.cos(2 * math.pi * at / scene.end))

    make = Clients(quota=quota, hurry=0.01 * min(1.0, 10 / nodes)).maker(scene.world)
    scene.arrivals(rate, 1.45 * capacity, make)
    for begin in bursts:
        for _ in range(math.ceil(60.0 * capacity)):
            scene.world.at(begin + random.uniform(0.0, 5.0), lambda: scene.comes(make()))
    return {"day": scene.run().result() | scene.fairness("key")}


def losses(nodes: int, seed: int, scale: float = 1.0, memory: type[Ledger] = Ledger) -> dict[str, Any]:
    """0.9 of the capacity; each node is lost now and then for two minutes (2 % of the time), and a tenth of all at once."""
    scene = Scene(machines(nodes, seed, memory=memory), lasting(nodes, 25_000 * scale, 900.0 * scale, 43_200.0 * scale))
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
    scene = Scene(machines(nodes, seed, speeds), lasting(nodes, 20_000 * scale, 600.0 * scale, 43_200.0 * scale))
    rate = 1.2 * scene.world.speed / MEAN_S
    scene.arrivals(lambda at: rate, rate, Clients().maker(scene.world))
    return {"slow": scene.run().result(begin=scene.end / 10) | scene.fairness("key")}


def flood(nodes: int, seed: int, scale: float = 1.0) -> dict[str, Any]:
    """Nine keys that use 0.7 of the capacity and obey, alone and then beside one that sends 50 times as much as one of them."""
    rows = {}
    for name, times in (("quiet", 0.0), ("flooded", 50.0)):
        scene = Scene(machines(nodes, seed), lasting(nodes, 8_000 * scale, 300.0, 40_000.0 * scale))
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
