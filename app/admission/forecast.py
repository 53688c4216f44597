"""When work would start: jobs go, in order, to whichever stream is free first (list scheduling, Graham 1969). Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from heapq import heapreplace

from app.admission.ticket import Estimate, Ticket

MIN_START_S = 0.01


def starts(running: Iterable[float], streams: int, waiting: Iterable[float]) -> Iterator[float]:
    """Seconds from now at which each of ``waiting`` (seconds of work each, in order) would start, and lastly the next one.

    ``running`` are the seconds of work that the jobs inside still take; where they share the streams, those with the least
    left end first.
    """
    free_at = [0.0] * streams
    for seconds in sorted(running):
        heapreplace(free_at, free_at[0] + seconds)
    for seconds in waiting:
        start = free_at[0]
        yield start
        heapreplace(free_at, start + seconds)
    yield free_at[0]


def place_of(ticket: Ticket, order: list[Ticket], running: Iterable[float], streams: int) -> Estimate:
    """Position, start and end of ``ticket``, which waits in the line ``order``."""
    begin = starts(running, streams, (one.seconds for one in order))
    for position, (one, start_s) in enumerate(zip(order, begin, strict=False)):
        if one is ticket:
            start_s += ticket.ask.load_s
            return Estimate(position, start_s, start_s + ticket.seconds)
    return Estimate(0, 0.0, 0.0)


class Backlog:
    """Work in the order in which it will start: ``count`` jobs of ``seconds`` in line, then what is promised to others.

    ``last_s``: seconds from now until whoever comes behind all of them would start, on ``streams`` streams.
    """

    def __init__(self, count: float, seconds: float, last_s: float, streams: int) -> None:
        self.streams = streams
        self._counts, self._starts = [0.0], [last_s - seconds / streams]
        self.append(count, seconds)

    @property
    def count(self) -> float:
        """How many jobs these are."""
        return self._counts[-1]

    @property
    def last_s(self) -> float:
        """When the next one behind them would start."""
        return self._starts[-1]

    def append(self, count: float, seconds: float) -> None:
        """``count`` more, which are ``seconds`` of work in all."""
        self._counts.append(self.count + count)
        self._starts.append(self.last_s + seconds / self.streams)

    def start_of(self, number: float) -> float:
        """Seconds until so many of them have started; among those added together, each takes the same time."""
        if number <= 0:
            return 0.0
        before = max(0.0, number - 1.0)  # the last one of them starts when this many before it have
        at = min(max(1, bisect_left(self._counts, before)), len(self._counts) - 1)
        count, start = self._counts[at - 1], self._starts[at - 1]
        width = self._counts[at] - count
        share = (before - count) / width if width else 1.0
        return max(MIN_START_S, start + share * (self._starts[at] - start))
