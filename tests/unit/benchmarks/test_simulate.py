"""The simulated machines behave as they are said to, and in front of them the desk loses nothing and exceeds nothing."""

from __future__ import annotations

from typing import Any

import pytest

from app.admission.ticket import Ask
from benchmarks.fleet import LEASE_S, Fleet, Shape, Watched
from benchmarks.scenarios import jobs_per_s, losses, machines
from benchmarks.scene import Clients, Scene
from benchmarks.simulated_overload import Replica
from benchmarks.virtual import Request

SMALL = Shape(streams=2, runners=1, width=1, bytes=100)


def job(work: float, amount: int = 0, key: str = "key") -> Request:
    return Request(Ask(key, "model", work, amount), work)


def timeless(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Without what the real clock says."""
    real = {"wall_s", "events_per_s", "decision_us"}
    return {part: {name: value for name, value in row.items() if name not in real} for part, row in rows.items()}


# -- machines


def test_jobs_share_the_runners_of_their_node() -> None:
    world = Fleet([1.0], SMALL)
    first, second = world.comes(job(10.0)), world.comes(job(4.0))
    world.run()
    assert (second.ended_at, first.ended_at) == (pytest.approx(8.0), pytest.approx(14.0))
    assert world.useful_s() == pytest.approx(14.0)


def test_a_slow_node_takes_longer_and_a_wide_job_uses_all_runners() -> None:
    slow, wide = Fleet([0.25], SMALL), Fleet([1.0], Shape(4, 2, 2))
    one, other = slow.comes(job(10.0)), wide.comes(job(10.0))
    slow.run()
    wide.run()
    assert (one.ended_at, other.ended_at) == (40.0, 5.0)


def test_a_node_runs_no_more_than_it_has_bytes_for_although_the_sum_of_all_would_do() -> None:
    world = Fleet([1.0, 1.0], SMALL)
    large = [world.comes(job(10.0, 60)) for _ in range(3)]
    world.run(1.0)
    assert [len(node.jobs) for node in world.nodes] == [1, 1]
    assert len(world.desk.running) == 3
    world.run()
    assert sorted(one.ended_at or 0.0 for one in large) == [10.0, 10.0, 20.0]


# -- losses


def test_the_jobs_of_a_lost_node_start_again_elsewhere_when_their_lease_has_run_out() -> None:
    world = Fleet([1.0, 1.0], SMALL)
    lost = world.comes(job(10.0))
    world.run(5.0)
    world.lose(next(node for node in world.nodes if node.jobs), 1000.0)
    world.run(5.0 + LEASE_S - 0.1)
    assert (lost.ended_at, len(world.desk.running)) == (None, 1)
    world.run(100.0)
    assert (lost.started_at, lost.ended_at) == (5.0 + LEASE_S, 15.0 + LEASE_S)
    assert len(world.twice) == 1
    assert world.useful_s() == pytest.approx(10.0)


def test_the_places_and_bytes_of_a_lost_node_leave_the_sum_and_come_back_with_it() -> None:
    world = Fleet([1.0, 1.0, 1.0], SMALL)
    world.lose(world.nodes[0], 100.0)
    sizes = []
    for at in (14.0, 16.0, 101.0):
        world.run(at)
        sizes.append((world.desk.limits.running, world.desk.streams(), world.desk.memory.budget))
    assert sizes == [(6, 3, 300), (4, 2, 200), (6, 3, 300)]


def test_without_any_machine_newcomers_are_sent_away_and_those_inside_are_served_when_one_is_back() -> None:
    world = Fleet([1.0], SMALL)
    inside = [world.comes(job(4.0)) for _ in range(6)]
    world.run(1.0)
    world.lose(world.nodes[0], 60.0)
    outside = world.comes(job(4.0), 30.0)
    world.run()
    assert outside.admitted_at is None
    assert all((one.ended_at or 0.0) > 60.0 for one in inside)


# -- runs


def crowded(seed: int) -> Scene:
    """Ten nodes for four minutes, twice as much as they can do; two nodes are lost, one of them for good."""
    scene = Scene(machines(10, seed, memory=Watched), 240.0)
    rate = 2 * jobs_per_s(10)
    scene.arrivals(lambda at: rate, rate, Clients(5, 0.7, 5).maker(scene.world))
    for at, node, back_s in ((60.0, 0, 90.0), (100.0, 1, 10_000.0)):
        scene.world.at(at, lambda node=node, back_s=back_s: scene.world.lose(scene.world.nodes[node], back_s))  # type: ignore[misc]
    return scene.run()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_in_overload_with_nodes_lost_every_job_ends_once_and_nothing_is_left(seed: int) -> None:
    scene = crowded(seed)
    world, desk = scene.world, scene.world.desk
    inside = [one for one in scene.came if one.admitted_at is not None]
    assert sorted(map(id, world.ended)) == sorted(map(id, inside))
    assert len(world.twice) >= 4
    assert world.attempts == len(inside) + len(world.twice)
    assert (desk.inside, desk.running, desk.memory.reserved, desk.line.active) == ({}, {}, 0, {})
    assert desk.memory.peak <= world.budget
    assert world.busiest <= 40
    assert scene.reasons["queue"] > 50
    assert scene.longest_told_s <= 120


def test_the_same_seed_gives_the_same_run_and_another_one_does_not() -> None:
    first, again, other = (losses(10, seed, 0.01, Watched) for seed in (1, 1, 2))
    assert timeless(first) == timeless(again)
    assert timeless(first) != timeless(other)
    assert (first["losses"]["lost"], other["losses"]["lost"]) == (0, 0)
    assert first["losses"]["run_twice"] > 0


def test_on_one_server_with_a_short_line_nine_of_ten_who_obey_get_in_when_they_were_told() -> None:
    found = Replica().obeying(3)
    assert found["tries"] > 200
    assert found["as_told"] >= 0.9
    assert found["unserved"] == 0
    assert found["longest_told_s"] <= 120
