"""Who goes next: seats and bytes in one step, in fair order. Pure; the clock is injected."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from app.admission.bounds import Bounds
from app.admission.fair import FairLine
from app.admission.forecast import place_of, starts
from app.admission.ledger import Ledger
from app.admission.promises import Promises
from app.admission.tally import Tally
from app.admission.ticket import Estimate, Limits, OnTurn, Phase, Seats, Ticket
from app.errors import StenopoolError
from app.work import Blocked

MIN_LEFT_SHARE = 0.1
MANY = 256
RECOUNT_S = 1e-4
"""Of more than ``MANY`` inside: seconds for each of them between two counts of the wait; a hundredth of a core at most."""


class Turns:
    """Those inside: who waits, who runs, who may start. :class:`app.admission.controller.Controller` lets them in."""

    def __init__(
        self,
        limits: Limits,
        memory: Ledger,
        seats: Seats,
        now: Callable[[], float],
        jitter: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.limits, self.memory = limits, memory
        self._seats, self._now = seats, now
        self.promises = Promises(now, jitter)
        self.bounds = Bounds(limits, self.promises, now)
        self.line: FairLine[Ticket] = FairLine()
        self.inside: dict[Ticket, None] = {}  # sets, but in order
        self.running: dict[Ticket, None] = {}
        self._front: list[Ticket] = []
        self._tally = Tally()
        self._counted_at, self._counted = -math.inf, (0.0, 0.0)
        self._blocked: dict[Ticket, None] = {}
        self._pumping = self._wanted = False
        self.most_bytes = memory.budget
        self.paused = self.draining = False
        self.started = 0

    def resize(self, running: int, parallel: int = 0) -> None:
        """Places came or went: ``running`` jobs may run at once from now on, ``parallel`` make progress; who runs goes on.

        Raises:
            ValueError: no place at all; then close and pause instead.
        """
        if running < 1:
            raise ValueError("no place is left")
        self.limits = self.bounds.limits = replace(self.limits, running=running, parallel=parallel)
        self._counted_at = -math.inf
        self.pump()

    def wait(self, ticket: Ticket, on_turn: OnTurn) -> None:
        """The ticket is ready to run: call ``on_turn(seat, None)`` once it may, or ``on_turn(None, error)``."""
        ticket.on_turn = on_turn
        self._tally.becomes(ticket, Phase.WAITING)
        self.pump()

    def withdraw(self, ticket: Ticket) -> None:
        """Take back :meth:`wait`: it does not want its turn now; it keeps its place."""
        if ticket.phase is Phase.WAITING:
            ticket.on_turn = None
            self._tally.becomes(ticket, Phase.ENTERED)

    def again(self, ticket: Ticket, *, amount: int) -> None:
        """Its worker died under it: it goes to the head of the line, alone in its worker, with ``amount`` bytes.

        :meth:`wait` must follow at once, so that nobody gets in between.
        """
        if ticket.phase is not Phase.RUNNING:
            return
        self._stop(ticket)
        most = max(ticket.bytes, self.most_bytes - ticket.ask.worker_bytes)
        self._tally.remove(ticket)
        ticket.phase, ticket.solo, ticket.bytes = Phase.ENTERED, True, min(amount, most)
        self._tally.add(ticket)
        self._front.append(ticket)
        self.bounds.add(ticket.key, 1, ticket.seconds)

    def progressed(self, ticket: Ticket, fraction: float) -> None:
        """So much of it is done (a share): now its windows have been counted, and how long it takes is seen, not predicted."""
        if ticket.phase is Phase.RUNNING and fraction >= MIN_LEFT_SHARE:
            ticket.seconds = self._worked_s(ticket) / min(1.0, fraction)

    def fail_lane(self, lane: str, error: StenopoolError) -> None:
        """Nothing in ``lane`` can run: everybody who waits there is told."""
        for ticket in [one for one in self.inside if one.ask.lane == lane and one.phase is Phase.WAITING]:
            self._tell(ticket, error)

    def send_away(self, ticket: Ticket, error: StenopoolError) -> None:
        """Somebody who waits will not get a turn."""
        if ticket.phase is Phase.WAITING:
            self._tell(ticket, error)

    def pump(self) -> None:
        """Start whatever may start. To be called when anything was released, loaded, or has died."""
        self._wanted = True
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._wanted:  # what came free while others were told of their turn counts too
                self._wanted = False
                self._start_all()
        finally:
            self._pumping = False

    def _start_all(self) -> None:
        if self._is_shut():
            return
        busy: set[str] = set()
        kept, somebody_blocked = 0, False
        wanted = self._tally.lanes
        for ticket in self._in_order():
            if self._is_shut() or busy >= wanted:
                return
            if ticket.phase is not Phase.WAITING or ticket.ask.lane in busy or (self.draining and ticket.stays):
                continue
            aged = self._aged(ticket)
            # models that others wait for are not evicted, or two would take turns at being loaded; until it is time
            seat = self._seat(ticket, kept, frozenset({ticket.ask.lane}) if aged else wanted)
            if isinstance(seat, StenopoolError):
                self._tell(ticket, seat)
            elif seat is Blocked.BUSY or seat is Blocked.LOADING:
                busy.add(ticket.ask.lane)
                kept += ticket.bytes if aged else 0
            elif seat is not Blocked.MEMORY:
                self._start(ticket, seat)
            elif aged:
                return  # what comes free from now on is for this one
            elif not somebody_blocked:
                somebody_blocked = self._note_block(ticket)  # only the first one ages: the others wait for their turn anyway

    def _is_shut(self) -> bool:
        return self.paused or len(self.running) >= self.limits.running

    def _in_order(self) -> Iterator[Ticket]:
        """Second attempts, then those that memory has kept waiting for too long, then fair turns."""
        yield from list(self._front)
        aged = {one for one in self._blocked if self._aged(one)}
        if not aged:
            yield from self.line.in_order()
            return
        fair = list(self.line.in_order())
        yield from (one for one in fair if one in aged)
        yield from (one for one in fair if one not in aged)

    def _aged(self, ticket: Ticket) -> bool:
        since = ticket.blocked_since
        return since is not None and self._now() - since >= self.limits.large_wait_s and self._may_fit(ticket)

    def _may_fit(self, ticket: Ticket) -> bool:
        """Whether it helps that others make room; not where the budget has shrunk to less than it needs alone."""
        return ticket.ask.worker_bytes + ticket.bytes <= min(self.most_bytes, self.memory.budget)

    def _seat(self, ticket: Ticket, kept: int, keep: frozenset[str]) -> Any:
        """A seat and its bytes, or neither; ``kept`` bytes are left for others."""
        if not self.memory.fits(ticket.bytes + kept) or not self.memory.take(ticket.name, ticket.bytes):
            if self._may_fit(ticket):
                self._seats.make_room(ticket.bytes + kept - self.memory.free, keep)
            return Blocked.MEMORY
        seat: Any = Blocked.BUSY
        try:
            seat = self._seats.take(ticket.ask.lane, solo=ticket.solo, keep=keep)
        finally:
            if isinstance(seat, Blocked | StenopoolError):
                self.memory.drop(ticket.name)
        return seat

    def _tell(self, ticket: Ticket, error: StenopoolError) -> None:
        on_turn, ticket.on_turn = ticket.on_turn, None
        self._tally.becomes(ticket, Phase.ENTERED)
        if on_turn is not None:
            on_turn(None, error)

    def _start(self, ticket: Ticket, seat: Any) -> None:
        self._leave_line(ticket)
        self.line.started(ticket)
        self._tally.becomes(ticket, Phase.RUNNING)
        ticket.started_at = self._now()
        ticket.waited_s = ticket.started_at - ticket.entered_at
        ticket.charged = ticket.seconds
        self._forget_block(ticket)
        self._tally.held += self.memory.held(ticket.name)
        self.running[ticket] = None
        self.started += 1
        on_turn, ticket.on_turn = ticket.on_turn, None
        assert on_turn is not None
        on_turn(seat, None)

    def _stop(self, ticket: Ticket) -> None:
        worked_s = self._worked_s(ticket)
        del self.running[ticket]
        self._tally.held -= self.memory.held(ticket.name)
        self.memory.drop(ticket.name)
        self.line.charge(ticket.key, worked_s - ticket.charged)

    def _leave_line(self, ticket: Ticket) -> None:
        self.line.remove(ticket)
        if ticket in self._front:
            self._front.remove(ticket)
        self.bounds.add(ticket.key, -1, -ticket.seconds)

    def _note_block(self, ticket: Ticket) -> bool:
        """It cannot start for lack of memory; from when on, if it helps at all that others make room."""
        if not self._may_fit(ticket):
            return False
        ticket.blocked_since = self._now() if ticket.blocked_since is None else ticket.blocked_since
        self._blocked[ticket] = None
        return True

    def _forget_block(self, ticket: Ticket) -> None:
        ticket.blocked_since = None
        self._blocked.pop(ticket, None)

    def estimate(self, ticket: Ticket) -> Estimate:
        """Position, start and end of a ticket, if every prediction holds."""
        if ticket.phase is Phase.RUNNING:
            return Estimate(0, 0.0, self._left_of(ticket))
        order = [*self._front, *self.line.in_order()]
        expected = place_of(ticket, order, self._lefts(self.running), self.streams())
        places, slower = self.places(), self._slower()
        lefts = (slower * left for left in self._lefts(self.running))
        *_, start_s = starts(lefts, places, (slower * one.seconds for one in order[: expected.position]))
        return replace(expected, start_s=start_s + ticket.ask.load_s)  # a place comes before its full share of the streams

    def ends_of(self, key: str) -> list[tuple[float, float]]:
        """When each job of ``key`` will probably end, in seconds from now, and how many seconds of audio it is."""
        order = [*self._front, *self.line.in_order()]
        begin = starts(self._lefts(self.running), self.streams(), (one.seconds for one in order))
        ends = [(self._left_of(one), one.audio_s) for one in self.running if one.key == key]
        return ends + [(at + one.seconds, one.audio_s) for one, at in zip(order, begin, strict=False) if one.key == key]

    def streams(self) -> int:
        """How many make progress at a time, as if each had a stream of its own."""
        return min(self.limits.parallel or self.limits.running, self.places())

    def places(self) -> int:
        """How many may run at once: as many as there are places, or as jobs like those inside fit into memory."""
        amount = self._tally.bytes
        if not amount:
            return self.limits.running
        room = self.memory.free + self._tally.held
        return max(1, len(self.running), min(self.limits.running, room * len(self.inside) // amount))

    def wait_s(self) -> float:
        """Seconds until somebody at the end of the line would start.

        Of many it is counted afresh a few times a second only, and moves with the work in line meanwhile.
        """
        if len(self.inside) <= MANY:
            return self._count_wait_s()
        now, waiting_s = self._now(), self.bounds.total.seconds
        if now - self._counted_at >= RECOUNT_S * len(self.inside):
            self._counted_at, self._counted = now, (self._count_wait_s(), waiting_s)
        counted_s, then_s = self._counted
        return max(0.0, counted_s + (waiting_s - then_s) / self.streams())

    def _count_wait_s(self) -> float:
        slower = self._slower()
        waiting = (slower * one.seconds for one in self.inside if one.phase is not Phase.RUNNING)
        *_, last = starts((slower * left for left in self._lefts(self.running)), self.places(), waiting)
        return last

    def _left_of(self, ticket: Ticket) -> float:
        """Seconds of work that a running ticket still takes."""
        return self._lefts([ticket])[0]

    def _lefts(self, running: Iterable[Ticket]) -> list[float]:
        """The same of each of them; in one go, because there may be thousands."""
        now, share = self._now(), self._share()
        return [max(one.seconds - (now - one.started_at) * share, MIN_LEFT_SHARE * one.seconds) for one in running]

    def _worked_s(self, ticket: Ticket) -> float:
        """Seconds of work that a running ticket has got, if as many as now have shared the streams all the time."""
        return (self._now() - ticket.started_at) * self._share()

    def _slower(self) -> float:
        """How many times longer a job takes where every place is taken, than with a stream of its own."""
        return self.places() / self.streams()

    def _share(self) -> float:
        """The part of a stream that each of those running has."""
        return min(1.0, (self.limits.parallel or self.limits.running) / max(1, len(self.running)))
