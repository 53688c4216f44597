"""A front desk in virtual time: requests come, wait, work on streams that are only numbers, and end; clients obey or do not.

The desk is the product's own; only the work and the clock are not real. Tests of the admission use it, and the simulation of
many machines (:mod:`benchmarks.fleet`) is built on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

from app.admission.controller import Controller
from app.admission.ledger import Ledger
from app.admission.ticket import Ask, Count, Limits, Seats, Ticket
from app.errors import CapacityError, StenopoolError

LATE_S = 0.05
GB = 10**9


@dataclass(eq=False)
class Request:
    """One client's one job. ``work`` is what it really takes, in seconds of one stream; ``ask`` says what is predicted.

    It comes back when it was told to if it ``obeys``, but it tries no more than ``tries`` times. After it was let in it takes
    ``intake_s`` seconds until it is ready to run; then ``settled`` is what is known of it, where that is more than ``ask``.
    """

    ask: Ask
    work: float
    obeys: bool = False
    tries: float = math.inf
    intake_s: float = 0.0
    settled: Ask | None = None
    came_at: float = 0.0
    told_s: float | None = None
    admitted_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None

    @property
    def latency_s(self) -> float:
        assert self.ended_at is not None
        return self.ended_at - self.came_at


@dataclass
class World:
    """Virtual time, a desk, and what happened at it."""

    limits: Limits
    budget: int = 100 * GB
    seats: Seats = field(default_factory=Count)
    seed: int = 1
    count_from: float = 0.0
    controller: type[Controller] = Controller

    def __post_init__(self) -> None:
        self.time = 0.0
        self.random = Random(self.seed)
        self.desk = self.controller("jobs", self.limits, Ledger(self.budget), self.seats, lambda: self.time, self.random.random)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self.told: list[float] = []
        self.honoured = self.broken = 0
        self.ended: list[Request] = []
        self.busy_s = 0.0

    # -- time

    def at(self, when: float, act: Callable[[], None]) -> None:
        heappush(self._events, (when, next(self._numbers), act))

    def run(self, until: float = math.inf) -> None:
        while self._events and self._events[0][0] <= until:
            when, _, act = heappop(self._events)
            self.time = max(self.time, when)
            act()
        if until < math.inf:
            self.time = until

    # -- clients

    def comes(self, request: Request, when: float | None = None) -> Request:
        request.came_at = self.time if when is None else when
        self.at(request.came_at, lambda: self._try(request))
        return request

    def stream(self, rate: float, begin: float, end: float, make: Callable[[int], Request]) -> list[Request]:
        """Open-loop (Poisson) arrivals: they come whether or not anybody is served."""
        made: list[Request] = []
        when = begin
        while (when := when + self.random.expovariate(rate)) < end:
            made.append(self.comes(make(len(made)), when))
        return made

    def _try(self, request: Request) -> None:
        try:
            ticket = self.desk.enter(request.ask)
        except CapacityError as error:
            self._refused(request, error)
            return
        self.honoured += request.told_s is not None
        request.admitted_at = self.time
        if request.intake_s:
            self.at(self.time + request.intake_s, lambda: self._ready(ticket, request))
        else:
            self._ready(ticket, request)

    def _ready(self, ticket: Ticket, request: Request) -> None:
        if request.settled is not None:
            self.desk.settle(ticket, request.settled)
        self.desk.wait(ticket, lambda seat, error: self._begin(ticket, request, seat, error))

    def _refused(self, request: Request, error: CapacityError) -> None:
        assert error.retry_after_s is not None
        self.told.append(error.retry_after_s)
        self.broken += request.told_s is not None
        request.told_s = error.retry_after_s
        request.tries -= 1
        if request.obeys and request.tries > 0:
            self.at(self.time + request.told_s + self.random.uniform(0.0, LATE_S), lambda: self._try(request))

    # -- work

    def _begin(self, ticket: Ticket, request: Request, seat: Any, error: StenopoolError | None) -> None:
        assert error is None
        request.started_at = self.time
        self.at(self.time + request.work, lambda: self._end(ticket, request, seat))

    def _end(self, ticket: Ticket, request: Request, seat: Any) -> None:
        request.ended_at = self.time
        self.busy_s += max(0.0, self.time - max(self.count_from, request.started_at or 0.0))
        self.ended.append(request)
        if seat is not None:
            seat.leave()
        self.desk.release(ticket)

    # -- what came of it

    @property
    def honesty(self) -> float:
        """The share of those who came back when they were told to, and were let in then."""
        return self.honoured / max(1, self.honoured + self.broken)

    def busy_share(self) -> float:
        """The share of the streams' time since ``count_from`` that went into work."""
        still = sum(self.time - max(self.count_from, one.started_at) for one in self.desk.running)
        return (self.busy_s + still) / ((self.time - self.count_from) * self.limits.running)


def quantile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def jain(values: Iterable[float]) -> float:
    """Jain's index of fairness: 1 where everybody has the same, 1/n where one has all (Jain, Chiu and Hawe 1984)."""
    given = list(values)
    return sum(given) ** 2 / (len(given) * sum(value * value for value in given))
