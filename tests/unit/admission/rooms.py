"""Seats that are only numbers: lanes with streams, loading, eviction and death, billed to the desk's own ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from app.admission.ledger import Ledger
from app.errors import StenopoolError
from app.work import Blocked


@dataclass(eq=False)
class Seat:
    room: Room
    solo: bool

    def leave(self) -> None:
        if self in self.room.taken:
            self.room.taken.remove(self)


@dataclass(eq=False)
class Room:
    """One lane's worker. ``state``: cold, loading, ready or ending (evicted, its memory is on its way back)."""

    lane: str
    streams: int
    worker_bytes: int
    state: str = "cold"
    failure: StenopoolError | None = None
    taken: list[Seat] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"worker-{self.lane}"

    def can_take(self, solo: bool) -> bool:
        if self.state != "ready" or any(seat.solo for seat in self.taken):
            return False
        return not self.taken if solo else len(self.taken) < self.streams


class Rooms:
    """One worker per lane; one loads at a time; idle ones are evicted for others, and their bytes come back later."""

    def __init__(self, memory: Ledger, *rooms: Room) -> None:
        self.memory = memory
        self.rooms = {room.lane: room for room in rooms}

    def take(self, lane: str, *, solo: bool, keep: frozenset[str]) -> Any:
        room = self.rooms[lane]
        if room.can_take(solo):
            room.taken.append(seat := Seat(room, solo))
            return seat
        if room.failure is not None:
            return room.failure
        if room.state == "ready":
            return Blocked.BUSY
        if room.state != "cold" or any(other.state == "loading" for other in self.rooms.values()):
            return Blocked.LOADING
        if not self.memory.take(room.name, room.worker_bytes):
            self.make_room(room.worker_bytes - self.memory.free, keep | {lane})
            return Blocked.MEMORY
        room.state = "loading"
        return Blocked.LOADING

    def make_room(self, amount: int, keep: frozenset[str]) -> None:
        coming = sum(room.worker_bytes for room in self.rooms.values() if room.state == "ending")
        for room in self.rooms.values():
            if coming < amount and room.state == "ready" and not room.taken and room.lane not in keep:
                room.state = "ending"
                coming += room.worker_bytes

    # -- what time brings; each time the desk is to be pumped afterwards

    def loaded(self, lane: str) -> None:
        assert self.rooms[lane].state == "loading"
        self.rooms[lane].state = "ready"

    def gone(self, lane: str) -> list[Seat]:
        """The process has ended, wanted or not; the seats that it takes with it."""
        room = self.rooms[lane]
        lost, room.taken, room.state = room.taken, [], "cold"
        self.memory.drop(room.name)
        return lost
