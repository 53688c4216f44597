"""What a caller asks the front desk for, and what it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from app.admission.quotas import Quota
from app.errors import StenopoolError

NO_QUOTA = Quota()


class Seats(Protocol):
    """Where work is done. A seat is whatever the work needs; the desk only hands it on.

    ``keep`` names the lanes (models) that must stay loaded, because somebody waits for them.
    """

    def take(self, lane: str, *, solo: bool, keep: frozenset[str]) -> Any:
        """A seat in ``lane``, or why there is none (:class:`Blocked`), or an error where there will be none.

        Where the model is not loaded, loading begins if it fits.
        """
        ...

    def make_room(self, amount: int, keep: frozenset[str]) -> None:
        """Give back ``amount`` bytes of what lies idle. It may take a moment."""
        ...


class Count:
    """Seats of work that only needs to be counted; ``make_room`` is that of those who have something to give back."""

    def __init__(self, make_room: Callable[[int, frozenset[str]], None] = lambda amount, keep: None) -> None:
        self.make_room = make_room

    def take(self, lane: str, *, solo: bool, keep: frozenset[str]) -> Any:
        """Always free: the limit of the desk decides."""
        return None


@dataclass(frozen=True)
class Ask:
    """What one request wants.

    ``seconds`` of work, alone, and ``bytes`` of memory are predictions; ``worker_bytes`` is what its model's process needs
    besides (0 where it needs none), ``load_s`` how long it loads if it is not loaded. ``within_s``: the answer is of no
    use later than that. ``fingerprint`` is the same when the same request comes again.
    """

    key: str
    lane: str
    seconds: float
    bytes: int = 0
    audio_s: float = 0.0
    worker_bytes: int = 0
    load_s: float = 0.0
    within_s: float | None = None
    fingerprint: str = ""
    quota: Quota = NO_QUOTA


class Phase(Enum):
    """A ticket's life."""

    ENTERED = "entered"
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


OnTurn = Callable[[Any, StenopoolError | None], None]


@dataclass(eq=False)
class Ticket:
    """One request inside. Times are monotonic seconds; ``seconds``, ``bytes`` and ``audio_s`` follow what is known.

    ``stays``: its work goes on without the caller, and somebody else will release it.
    """

    ask: Ask
    name: str
    entered_at: float
    seconds: float
    bytes: int
    audio_s: float
    phase: Phase = Phase.ENTERED
    started_at: float = 0.0
    waited_s: float = 0.0
    blocked_since: float | None = None
    solo: bool = False
    charged: float = 0.0
    stays: bool = False
    on_turn: OnTurn | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        """Whose it is."""
        return self.ask.key


@dataclass(frozen=True)
class Estimate:
    """What the desk expects: place in line (0: at work or next), seconds until start and end."""

    position: int
    start_s: float
    end_s: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"position": self.position, "starts_in_s": round(self.start_s, 2), "ends_in_s": round(self.end_s, 2)}


@dataclass(frozen=True)
class Limits:
    """``running`` at once, in line at most ``queued`` and at most ``queue_s`` seconds of waiting (both 0: reject).

    Where ``parallel`` is not 0, only so many of those running make progress at a time, and all share it.
    For those who come back when they were told to, and for keys that have little in line, both may be a quarter more, and in
    a short line up to a half. A job that memory kept from starting for ``large_wait_s`` seconds lets nobody pass any more.
    With several keys about, one of them may fill the line up to ``share`` times the room that is left over.
    """

    running: int
    queued: int = 200
    queue_s: float = 900.0
    large_wait_s: float = 30.0
    share: float = 2.0
    parallel: int = 0
