"""Fair turns between API keys: whoever was served least goes first. Pure.

Each key has a counter of served seconds (predicted when work starts, corrected when it ends). A key that comes back from
idleness starts at most ``CREDIT_S`` below the level of the others: it may send a few jobs at once and does not feel who
floods, but nobody saves up turns for long (start-time fair queueing, Goyal, Vin and Cheng 1996, with the charges of
Kubernetes' API priority and fairness: a guess first, the difference later).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

MAX_IDLE_KEYS = 10_000
CREDIT_S = 60.0


class Waiting(Protocol):
    """What a line needs to know of those in it."""

    @property
    def key(self) -> str:
        """Whose it is."""
        ...

    @property
    def seconds(self) -> float:
        """Predicted seconds of work."""
        ...

    @property
    def entered_at(self) -> float:
        """When it came; breaks ties."""
        ...


W = TypeVar("W", bound=Waiting)


class _KeyLine(Generic[W]):
    """One key's line. Others may come and go while somebody looks through it."""

    def __init__(self) -> None:
        self._places: dict[int, W] = {}
        self._numbers: dict[int, int] = {}
        self._first = self._next = 0

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[W]:
        number = self._first
        while number < self._next:
            if (waiting := self._places.get(number)) is not None:
                yield waiting
            number += 1

    def push(self, waiting: W) -> None:
        self._numbers[id(waiting)] = self._next
        self._places[self._next] = waiting
        self._next += 1

    def remove(self, waiting: W) -> None:
        number = self._numbers.pop(id(waiting), None)
        if number is not None:
            del self._places[number]
        while self._first < self._next and self._first not in self._places:
            self._first += 1


class FairLine(Generic[W]):
    """Those who wait, per key in the order of their arrival."""

    def __init__(self) -> None:
        self._lines: dict[str, _KeyLine[W]] = {}
        self._served: OrderedDict[str, float] = OrderedDict()
        self._level = 0.0
        self.active: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def arrive(self, key: str) -> None:
        """``key`` has work here from now on (until :meth:`leave`); it brings few saved-up turns along."""
        if not self.active.get(key):
            self._served[key] = max(self._served.get(key, 0.0), self._level - CREDIT_S)
            self._served.move_to_end(key)
        self.active[key] = self.active.get(key, 0) + 1

    def leave(self, key: str) -> None:
        """One piece of work of ``key`` is gone."""
        self.active[key] -= 1
        if not self.active[key]:
            del self.active[key]
        if not self.active:  # the end of a busy time: nobody owes or is owed anything
            self._served.clear()
            self._level = 0.0
        while len(self._served) > MAX_IDLE_KEYS + len(self.active):
            oldest = next(name for name in self._served if name not in self.active)
            del self._served[oldest]

    def push(self, waiting: W) -> None:
        """To the end of its key's line."""
        line = self._lines.get(waiting.key)
        if line is None:
            line = self._lines[waiting.key] = _KeyLine()
        line.push(waiting)

    def remove(self, waiting: W) -> None:
        """Out of the line, wherever it stands; nothing happens where it is not in it."""
        line = self._lines.get(waiting.key)
        if line is None:
            return
        line.remove(waiting)
        if not line:
            del self._lines[waiting.key]

    def charge(self, key: str, seconds: float) -> None:
        """Work of ``key`` starts (positive), or took less than was charged (negative)."""
        self._served[key] = self._served.get(key, self._level) + seconds

    def started(self, waiting: W) -> None:
        """It leaves the line to work: charge it."""
        self.remove(waiting)
        self._level = max(self._level, self._served.get(waiting.key, 0.0))
        self.charge(waiting.key, waiting.seconds)

    def in_order(self) -> Iterator[W]:
        """Everybody in the order in which they would start if each took its predicted time.

        Whoever begins to look and does not go on has hardly any work; those who leave meanwhile are not met any more.
        """
        rest = {key: iter(line) for key, line in self._lines.items()}
        heads: list[tuple[float, float, str, W]] = []
        for key, line in rest.items():
            self._head(heads, key, line, self._served.get(key, 0.0))
        heapify(heads)
        while heads:
            served, _, key, waiting = heappop(heads)
            yield waiting
            following: list[tuple[float, float, str, W]] = []
            self._head(following, key, rest[key], served + waiting.seconds)
            for one in following:
                heappush(heads, one)

    @staticmethod
    def _head(heads: list[tuple[float, float, str, W]], key: str, line: Iterator[W], served: float) -> None:
        waiting = next(line, None)
        if waiting is not None:
            heads.append((served, waiting.entered_at, key, waiting))
