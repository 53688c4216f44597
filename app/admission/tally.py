"""Sums over those inside that are kept in step, so that a decision costs the same however many there are. Pure."""

from __future__ import annotations

from app.admission.ticket import Phase, Ticket


class Tally:
    """``bytes`` that all inside want, ``held`` by those at work; how many of them are ``long``; how many wait in each lane."""

    def __init__(self) -> None:
        self.bytes = self.held = self.long = self._long_at_work = self._may_pass = 0
        self._waiting: dict[str, int] = {}

    def add(self, ticket: Ticket) -> None:
        """It comes in; or it was taken out with :meth:`remove`, has changed, and is counted again."""
        self._count(ticket, 1)

    def remove(self, ticket: Ticket) -> None:
        """It leaves, or is about to change."""
        self._count(ticket, -1)

    def becomes(self, ticket: Ticket, phase: Phase) -> None:
        """It comes into another phase of its life."""
        self.remove(ticket)
        ticket.phase = phase
        self.add(ticket)

    def is_one_too_long(self, ticket: Ticket, most: int) -> bool:
        """Whether it is long, and ``most`` such are at work (0: as many as there are). A second attempt is never refused."""
        return bool(most) and ticket.is_long and not ticket.solo and self._long_at_work >= most

    def only_long_wait(self, most: int) -> bool:
        """Whether each of those who wait is one too long: there may be thousands."""
        return bool(most) and self._long_at_work >= most and not self._may_pass

    @property
    def lanes(self) -> frozenset[str]:
        """Where somebody waits."""
        return frozenset(self._waiting)

    def _count(self, ticket: Ticket, sign: int) -> None:
        self.bytes += sign * ticket.bytes
        self.long += sign * ticket.is_long
        self._long_at_work += sign * (ticket.is_long and ticket.phase is Phase.RUNNING)
        if ticket.phase is Phase.WAITING:
            self._may_pass += sign * (ticket.solo or not ticket.is_long)
            lane = ticket.ask.lane
            self._waiting[lane] = self._waiting.get(lane, 0) + sign
            if not self._waiting[lane]:
                del self._waiting[lane]
