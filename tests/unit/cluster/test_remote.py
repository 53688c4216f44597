"""The pool of an API with nodes: what it gives out, and what it says of them."""

from __future__ import annotations

from typing import cast

from app.cluster.remote import Place, RemotePool
from app.cluster.rows import Node, SharedStore
from app.store import AsyncStore
from app.work import Blocked

WORKERS = {"demo": {"workers": [{"state": "ready", "device": "cpu", "bytes": 5, "running": 1}], "starting": 0}}


def pool() -> RemotePool:
    return RemotePool(cast(AsyncStore, None), cast(SharedStore, None), 15.0)


def node(name: str, places: int = 2, ready: bool = True) -> Node:
    return Node(name, places, 1, 100 * places, 1000 * places, ready=ready, workers=WORKERS)


def test_what_all_nodes_have_is_summed_and_the_largest_decides_what_fits_at_all() -> None:
    remote, told = pool(), []
    remote.resized = lambda *sizes: told.append(sizes)
    remote.see([node("a"), node("b", places=4)])
    assert (remote.memory.budget, told) == (600, [(6, 2, 4000)])


def test_without_nodes_there_is_no_place_and_yet_no_reason_to_refuse_a_size() -> None:
    remote, told = pool(), []
    remote.resized = lambda *sizes: told.append(sizes)
    remote.see([])
    assert remote.take("demo") is Blocked.LOADING
    assert told[0][2] > 1 << 60
    remote.see([node("a")])
    assert isinstance(remote.take("demo"), Place)
    remote.see([])
    assert told[-1] == (0, 0, 2000)


def test_ready_means_that_some_node_is() -> None:
    remote = pool()
    remote.see([node("a", ready=False)])
    assert not remote.ready
    remote.see([node("a", ready=False), node("b")])
    assert remote.ready


def test_workers_of_all_nodes_are_shown_by_model_and_take_no_memory_here() -> None:
    remote = pool()
    remote.see([node("a"), node("b")])
    shown = remote.stats()["demo"]["workers"]
    assert [(one["node"], one["bytes"]) for one in shown] == [("a", 0), ("b", 0)]
    assert [one["id"] for one in remote.others()] == ["a", "b"]
