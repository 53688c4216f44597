"""The pool of an API whose workers are on other machines: it knows the nodes, and gives out places on them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from app.admission.ledger import Ledger
from app.cluster.rows import Node, SharedStore
from app.errors import StenopoolError
from app.pool.lane import Desk
from app.store import AsyncStore
from app.work import Blocked

log = logging.getLogger("stenopool.cluster")

LOOK_S = 1.0


class Place:
    """The right to have one job at the nodes. Use as a context manager."""

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class RemotePool:
    """In the place of :class:`app.pool.supervisor.Pool`. ``memory`` is what all nodes together have for jobs.

    ``resized(places, runners, most_bytes)`` is told whenever that may have changed. That no node is there refuses nobody.
    """

    def __init__(self, store: AsyncStore, sync: SharedStore, heard_s: float) -> None:
        self._store, self._sync, self._heard_s = store, sync, heard_s
        self.memory = Ledger(0)
        self.nodes: Sequence[Node] = ()
        self._most_bytes = 1 << 62
        self.desk: Desk
        self.resized: Callable[[int, int, int], None] = lambda places, runners, most_bytes: None
        self.on_close: Callable[[], None] = lambda: None
        self._watching: asyncio.Task[None] | None = None

    # -- what callers of a pool use

    def warm(self, model: str) -> None:
        """Which models a node keeps warm is its own setting; from now on we look for nodes."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    def take(self, model: str, *, solo: bool = False, keep: frozenset[str] = frozenset()) -> Place | Blocked:
        """A place, where there is a node. Which one gets the job is seen then; how many there are the desk counts."""
        return Place() if self.nodes else Blocked.LOADING

    def make_room(self, amount: int, keep: frozenset[str]) -> None:
        """Nodes do that themselves."""

    def tick(self, *, evict_idle: bool = False) -> None:
        """Nodes do that themselves."""

    def shed_newest(self) -> bool:
        """Nothing runs here."""
        return False

    def stats(self) -> dict[str, Any]:
        """The workers of all nodes, by model. Their memory is not this machine's, so none is shown."""
        shown: dict[str, Any] = {}
        for node in self.nodes:
            for model, lane in node.workers.items():
                mine = shown.setdefault(model, {"workers": [], "starting": 0})
                mine["workers"] += [{**worker, "node": node.id, "bytes": 0, "rested": True} for worker in lane["workers"]]
                mine["starting"] += lane["starting"]
        return shown

    def devices(self) -> dict[str, Any]:
        """This machine's are not asked; those of a node are named by its workers."""
        return {}

    def others(self) -> list[dict[str, Any]]:
        """The nodes, as they say of themselves."""
        return [node.to_dict() for node in self.nodes]

    def failures(self) -> dict[str, StenopoolError]:
        """Nodes log theirs."""
        return {}

    @property
    def ready(self) -> bool:
        """Whether a node can take a job."""
        return any(node.ready for node in self.nodes)

    async def close(self) -> None:
        """Stop looking, and talking."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.to_thread(self.on_close)

    # -- the nodes

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self.see(await self._store.run(self._sync.seen, self._heard_s))
            except StenopoolError:
                log.warning("the store does not say which nodes there are")
            except Exception:  # one bad look must not end all looking
                log.exception("looking for nodes failed")
            await asyncio.sleep(max(0.0, LOOK_S - (time.monotonic() - began)))

    def see(self, nodes: Sequence[Node]) -> None:
        """These nodes are there now."""
        if {node.id for node in nodes} != {node.id for node in self.nodes}:
            log.warning("nodes: %s", ", ".join(node.id for node in nodes) or "none")
        self.nodes = nodes
        self.memory.budget = sum(node.room_bytes for node in nodes)
        if nodes:  # else the largest job is what it was: they will come back
            self._most_bytes = max(node.most_bytes for node in nodes)
        self.resized(sum(node.places for node in nodes), sum(node.runners for node in nodes), self._most_bytes)
