"""Sums over those inside that are kept in step, so that a decision costs the same however many there are. Pure."""

from __future__ import annotations

from app.admission.ticket import Phase, Ticket


class Tally:
    """``bytes`` that all inside want, ``held`` by those at work; how many wait for a turn in each lane."""

    def __init__(self) -> None:
        self.bytes = self.held = 0
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

    @property
    def lanes(self) -> frozenset[str]:
        """Where somebody waits."""
        return frozenset(self._waiting)

    def _count(self, ticket: Ticket, sign: int) -> None:
        self.bytes += sign * ticket.bytes
        if ticket.phase is Phase.WAITING:
            lane = ticket.ask.lane
            self._waiting[lane] = self._waiting.get(lane, 0) + sign
            if not self._waiting[lane]:
                del self._waiting[lane]
