"""Many machines in virtual time, in front of which stands the product's own admission: places, speeds, losses and returns.

One API admits against the sum of the nodes' places and bytes. A job whose turn has come goes to any node with a free place.
The node has the last word: it runs no more than it has places and bytes for; what is too much waits until some node has room.
A lost node takes its jobs with it. When their lease has run out they go back to the head of the line, holding no place; and
when the node's heartbeat has been missing for long enough, its places and bytes leave the sum.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from app.admission.controller import Controller
from app.admission.ledger import Ledger
from app.admission.ticket import Ask, Limits, OnTurn, Ticket
from app.errors import CapacityError, NotReady, StenopoolError
from benchmarks.virtual import Request, World

LEASE_S = 15.0
HEARTBEAT_S = 15.0
NEAR = 1e-9


@dataclass(frozen=True)
class Shape:
    """One machine: ``streams`` jobs at once share ``runners`` engine calls, of which one job can use ``width`` at a time.

    ``bytes`` for jobs; ``queued`` is its part of the line's length, and the line may be ``queue_s`` seconds long.
    """

    streams: int = 4
    runners: int = 2
    width: int = 2
    bytes: int = 600_000_000
    queued: int = 50
    queue_s: float = 60.0


@dataclass(eq=False)
class Run:
    """One attempt at a job that was let in."""

    request: Request
    ticket: Ticket
    attempts: int = 0


class Node:
    """Its jobs share its runners equally. ``work`` is what each of them would have got if it had been there all the time."""

    def __init__(self, shape: Shape, speed: float) -> None:
        self.shape, self.speed = shape, speed
        self.alive = self.known = True
        self.epoch = self.version = 0
        self.jobs: list[tuple[float, int, Run]] = []
        self.bytes = 0
        self._work = self._at = 0.0

    @property
    def rate(self) -> float:
        """Seconds of work that each of its jobs gets per second."""
        return self.speed * min(self.shape.width, self.shape.runners / len(self.jobs)) if self.jobs else 0.0

    def has_room(self, run: Run) -> bool:
        """Whether it has a place and the bytes."""
        free = len(self.jobs) < self.shape.streams
        return self.alive and free and (not self.jobs or self.bytes + run.ticket.bytes <= self.shape.bytes)

    def move(self, now: float) -> None:
        """Work until ``now``."""
        self._work += (now - self._at) * self.rate
        self._at = now

    def start(self, now: float, number: int, run: Run) -> None:
        """One more job."""
        self.move(now)
        heappush(self.jobs, (self._work + run.request.work, number, run))
        self.bytes += run.ticket.bytes
        assert len(self.jobs) <= self.shape.streams

    def next_end(self) -> float:
        """When the first of its jobs will be done, if none comes."""
        return self._at + max(0.0, self.jobs[0][0] - self._work) / self.rate

    def done(self, now: float) -> list[Run]:
        """Those that have ended."""
        self.move(now)
        ended = []
        while self.jobs and self.jobs[0][0] <= self._work + NEAR:
            ended.append(heappop(self.jobs)[2])
            self.bytes -= ended[-1].ticket.bytes
        return ended

    def lose(self, now: float) -> list[Run]:
        """It is gone, and its jobs with it."""
        self.move(now)
        lost, self.jobs, self.bytes = [run for _, _, run in self.jobs], [], 0
        self.alive, self.epoch, self.version = False, self.epoch + 1, self.version + 1
        return lost


class TimedDesk(Controller):
    """Measures what its decisions take: calls and seconds of real time, by kind."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.spent: dict[str, list[float]] = {}

    def _note(self, kind: str, began: float) -> None:
        row = self.spent.setdefault(kind, [0, 0.0])
        row[0] += 1
        row[1] += time.perf_counter() - began

    def enter(self, ask: Ask) -> Ticket:
        """As the controller's."""
        began = time.perf_counter()
        try:
            ticket = super().enter(ask)
        except StenopoolError:
            self._note("refuse", began)
            raise
        self._note("admit", began)
        return ticket

    def wait(self, ticket: Ticket, on_turn: OnTurn) -> None:
        """As the controller's."""
        began = time.perf_counter()
        super().wait(ticket, on_turn)
        self._note("wait", began)

    def release(self, ticket: Ticket) -> None:
        """As the controller's; the next one's turn is a part of it."""
        began = time.perf_counter()
        super().release(ticket)
        self._note("release", began)


class Watched(Ledger):
    """Whoever takes, takes within the budget, also where that has shrunk."""

    def _set(self, name: str, amount: int) -> None:
        grows = amount > self.held(name)
        super()._set(name, amount)
        assert not grows or self.reserved <= self.budget, "over the budget"


class Fleet(World):
    """``speeds``: one node each, 1 being the nominal speed."""

    def __init__(self, speeds: list[float], shape: Shape = Shape(), seed: int = 1, memory: type[Ledger] = Ledger) -> None:
        count = len(speeds)
        self.shape, self.nodes = shape, [Node(shape, speed) for speed in speeds]
        limits = Limits(count * shape.streams, count * shape.queued, shape.queue_s, parallel=count * shape.runners)
        super().__init__(limits, count * shape.bytes, seed=seed, controller=TimedDesk)
        self.desk.memory = memory(self.budget)
        self.desk.most_bytes = shape.bytes
        self._free, self._where = list(self.nodes), {node: at for at, node in enumerate(self.nodes)}
        self._pending: deque[Run] = deque()
        self.on_refusal: Callable[[Request, CapacityError, bool], None] = lambda request, error, promised: None
        self.attempts = self.events = self.busiest = 0
        self.twice: set[Run] = set()
        self.speed_log: list[tuple[float, float]] = [(0.0, self.speed)]

    @property
    def speed(self) -> float:
        """Seconds of work per second that the nodes alive can do."""
        return sum(node.speed * self.shape.runners for node in self.nodes if node.alive)

    # -- jobs

    def _begin(self, ticket: Ticket, request: Request, seat: Any, error: StenopoolError | None) -> None:
        assert error is None
        self._hand(Run(request, ticket))

    def _hand(self, run: Run) -> None:
        """To any node that has room; where none has, it waits for one."""
        self.busiest = max(self.busiest, len(self.desk.running))
        for _ in range(min(8, len(self._free))):
            node = self._free[self.random.randrange(len(self._free))]
            if node.has_room(run):
                self._start(node, run)
                return
        node = next((one for one in self._free if one.has_room(run)), None) if self._free else None
        if node is None:
            self._pending.append(run)
        else:
            self._start(node, run)

    def _start(self, node: Node, run: Run) -> None:
        assert run.request.ended_at is None
        run.request.started_at = self.time
        run.attempts += 1
        self.attempts += 1
        if run.attempts > 1:
            self.twice.add(run)
        node.start(self.time, next(self._numbers), run)
        self._look(node)

    def _look(self, node: Node) -> None:
        """Its jobs have changed: when it will have something to say next, and whether it has a free place."""
        node.version += 1
        version = node.version
        if node.jobs:
            self.at(node.next_end(), lambda: self._due(node, version))
        free, listed = node.alive and len(node.jobs) < self.shape.streams, node in self._where
        if free and not listed:
            self._where[node] = len(self._free)
            self._free.append(node)
        elif listed and not free:
            at, last = self._where.pop(node), self._free.pop()
            if last is not node:
                self._free[at], self._where[last] = last, at

    def _due(self, node: Node, version: int) -> None:
        if node.version != version:
            return
        self.events += 1
        for run in node.done(self.time):
            self._end(run.ticket, run.request, None)
        self._pull(node)

    def _pull(self, node: Node) -> None:
        """A node with a free place takes those who wait for one."""
        self._look(node)
        for run in list(self._pending):
            if node.has_room(run):
                self._pending.remove(run)
                self._start(node, run)

    # -- nodes

    def lose(self, node: Node, back_s: float) -> None:
        """The node is gone for ``back_s`` seconds; nothing happens where it is gone already."""
        if not node.alive:
            return
        lost = node.lose(self.time)
        epoch = node.epoch
        self._look(node)
        self._note_speed()
        self.at(self.time + HEARTBEAT_S, lambda: self._forget(node, epoch))
        self.at(self.time + LEASE_S, lambda: self._take_back(lost))
        self.at(self.time + back_s, lambda: self._returns(node))

    def _forget(self, node: Node, epoch: int) -> None:
        if node.epoch == epoch and not node.alive:
            node.known = False
            self._resize()

    def _take_back(self, lost: list[Run]) -> None:
        for run in lost:
            self.desk.again(run.ticket, amount=run.ticket.bytes)
            self.desk.wait(run.ticket, lambda seat, error, run=run: self._hand(run))  # type: ignore[misc]

    def _returns(self, node: Node) -> None:
        node.alive = node.known = True
        node.move(self.time)
        self._note_speed()
        self._resize()
        self._pull(node)

    def _resize(self) -> None:
        known = sum(node.known for node in self.nodes)
        self.desk.memory.budget = known * self.shape.bytes
        self.desk.paused = not known
        self.desk.closed_because = None if known else NotReady("No machine is there.", retry_after_s=HEARTBEAT_S)
        self.desk.resize(max(1, known) * self.shape.streams, max(1, known) * self.shape.runners)

    def _note_speed(self) -> None:
        self.speed_log.append((self.time, self.speed))

    # -- refusals

    def _try(self, request: Request) -> None:
        self.events += 1
        self._made = self.desk.promises.made
        super()._try(request)

    def _refused(self, request: Request, error: CapacityError) -> None:
        self.on_refusal(request, error, self.desk.promises.made > self._made)
        super()._refused(request, error)
