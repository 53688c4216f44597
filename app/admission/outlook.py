"""What is going to happen to those inside, if every prediction holds: who starts when, who ends when. Pure.

Where only some of the places are for long jobs (``Limits.long``), long and short ones are two lines: the long ones wait for
each other, the short ones share the places that these leave, and the engine does not let them wait for long ones either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from app.admission.bounds import Bounds
from app.admission.fair import FairLine
from app.admission.forecast import place_of, starts
from app.admission.ledger import Ledger
from app.admission.tally import Tally
from app.admission.ticket import Estimate, Limits, Phase, Ticket

MIN_LEFT_SHARE = 0.1
MANY = 256
RECOUNT_S = 1e-4
"""Of more than ``MANY`` inside: seconds for each of them between two counts of the wait; a hundredth of a core at most."""


class Outlook:
    """Those inside, as predictions need them. :class:`app.admission.turns.Turns` moves them."""

    bounds: Bounds

    def __init__(self, limits: Limits, memory: Ledger, now: Callable[[], float]) -> None:
        self.limits, self.memory, self._now = limits, memory, now
        self.line: FairLine[Ticket] = FairLine()
        self.inside: dict[Ticket, None] = {}  # sets, but in order
        self.running: dict[Ticket, None] = {}
        self._front: list[Ticket] = []
        self._tally = Tally()
        self._counted: dict[bool, tuple[float, float, float]] = {}

    def estimate(self, ticket: Ticket) -> Estimate:
        """Position, start and end of a ticket, if every prediction holds."""
        if ticket.phase is Phase.RUNNING:
            return Estimate(0, 0.0, self._left_of(ticket))
        order, running = [*self._front, *self.line.in_order()], list(self.running)
        if not ticket.is_long:
            order, running = self._like(ticket.is_long, order), self._like(ticket.is_long, running)
        expected = place_of(ticket, order, self._lefts(running), self.streams())
        start_s = self._start_s(ticket.is_long, order[: expected.position])
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

    def places_for(self, is_long: bool) -> int:
        """Of these, how many a long job may have, or a short one."""
        places, most = self.places(), self.limits.long
        if not most:
            return places
        return min(places, most) if is_long else max(1, places - min(most, self._tally.long))

    def has_place(self, is_long: bool) -> bool:
        """Whether one more would find a place at once."""
        inside, most = len(self.inside), self.limits.long
        if not most:
            return inside < self.places()
        if is_long:
            return self._tally.long < most and inside < self.places()
        return inside - self._tally.long < self.places_for(is_long)

    def idle_places(self, is_long: bool) -> int:
        """How many of the places that it may have nobody is at work in."""
        return max(0, self.places_for(is_long) - len(self._like(is_long, self.running)))

    def wait_s(self, is_long: bool = False) -> float:
        """Seconds until somebody at the end of the line would start.

        Of many it is counted afresh a few times a second only, and moves with the work in line meanwhile.
        """
        if len(self.inside) <= MANY:
            return self._count_wait_s(is_long)
        now, waiting_s = self._now(), self.bounds.total.seconds
        counted = self._counted.get(is_long)
        if counted is None or now - counted[0] >= RECOUNT_S * len(self.inside):
            counted = self._counted[is_long] = now, self._count_wait_s(is_long), waiting_s
        _, counted_s, then_s = counted
        return max(0.0, counted_s + (waiting_s - then_s) / self.streams())

    def _count_wait_s(self, is_long: bool) -> float:
        return self._start_s(is_long, (one for one in self.inside if one.phase is not Phase.RUNNING))

    def _start_s(self, is_long: bool, before: Iterable[Ticket]) -> float:
        """Seconds until a place is free for one that waits behind ``before``."""
        slower = self._slower()
        lefts = (slower * left for left in self._lefts(self._like(is_long, self.running)))
        *_, last = starts(lefts, self.places_for(is_long), (slower * one.seconds for one in self._like(is_long, before)))
        return last

    def _like(self, is_long: bool, tickets: Iterable[Ticket]) -> list[Ticket]:
        """Those that compete with it for places."""
        return [one for one in tickets if one.is_long == is_long or not self.limits.long]

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
