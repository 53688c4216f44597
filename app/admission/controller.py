"""The front desk in its first form: it counts places. No I/O.

A place is taken before the body of a request is read and given back when the work is over, whatever happened in
between. Only so many places run at once; the others wait in line, and with no place left the caller is refused at once.
Bytes and seconds are not priced yet.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Literal

from app.errors import TooManyActive

Policy = Literal["queue", "reject"]


class Gate:
    """``running`` places that work at once, and ``queued`` that may wait behind them (none under ``reject``)."""

    def __init__(self, running: int, queued: int, policy: Policy = "queue", what: str = "transcriptions") -> None:
        self.what = what
        self.running = running
        self.places = running + (queued if policy == "queue" else 0)
        self.taken = 0
        self._turns = asyncio.Semaphore(running)

    def enter(self) -> Place:
        """Take a place, without waiting.

        Raises:
            TooManyActive: there is none.
        """
        if self.taken >= self.places:
            raise TooManyActive(f"Too many active {self.what}.", retry_after_s=self._estimate())
        self.taken += 1
        return Place(self)

    def _estimate(self) -> float:
        """Seconds after which a try makes sense: a guess of two per place in line and stream, 1 to 120."""
        return min(120.0, max(1.0, 2.0 * self.taken / self.running))


class Place:
    """A place that was taken. As a context manager it gives the place back at the end."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._released = False

    def turn(self) -> asyncio.Semaphore:
        """``async with place.turn():`` waits until it is this place's turn to run."""
        return self._gate._turns

    def release(self) -> None:
        """Give the place back; a second call does nothing."""
        if not self._released:
            self._released = True
            self._gate.taken -= 1

    def __enter__(self) -> Place:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
