"""Honest ``Retry-After``: a refused caller is told when there will be room for it, and that room is kept. Pure.

A refusal books room in the line for a moment to come, and when the same request comes back at that moment it goes before
newcomers. How many do come back is learned per key: where nobody obeys (a load test that only counts refusals), the kept
room shrinks towards nothing and is not wasted.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

MAX_WAIT_S = 120.0
MIN_WAIT_S = 1.0
JITTER = 0.1
GRACE_S = 5.0
GRACE_SHARE = 0.25
MAX_PROMISES = 4096
LEARNING = 0.05


@dataclass(eq=False)
class Promise:
    """Room for ``seconds`` of work, kept for the request ``fingerprint`` from ``due`` to ``until`` (monotonic seconds).

    ``weight`` is how probable it was, when this was promised, that the caller would come back.
    """

    key: str
    fingerprint: str
    seconds: float
    weight: float
    due: float
    until: float
    open: bool = True


@dataclass
class Booked:
    """What was promised: ``count`` requests. By their probability: how many, and how many seconds of work they are."""

    count: int = 0
    expected: float = 0.0
    seconds: float = 0.0

    def book(self, promise: Promise, sign: int) -> None:
        """One more (1) or one less (-1)."""
        self.count += sign
        self.expected = self.expected + sign * promise.weight if self.count else 0.0
        self.seconds = self.seconds + sign * promise.weight * promise.seconds if self.count else 0.0


@dataclass
class _Account:
    """The promises to one key, and the share of them that leads to a visit."""

    booked: Booked
    share: float = 1.0


NOTHING = Booked()


class Promises:
    """The bookings. ``now`` counts seconds and never goes back; ``jitter`` gives numbers from 0 to 1."""

    def __init__(self, now: Callable[[], float], jitter: Callable[[], float]) -> None:
        self._now, self._jitter = now, jitter
        self._open: dict[tuple[str, str], deque[Promise]] = {}
        self._ends: list[tuple[float, int, Promise]] = []
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._calendar: dict[int, Booked] = {}
        self._number = 0
        self.open = self.keys = 0
        self.made = self.kept = self.broken = self.lapsed = 0

    def of(self, key: str) -> Booked:
        """What ``key`` was promised and may still claim."""
        self._lapse()
        return self._accounts[key].booked if key in self._accounts else NOTHING

    def calendar(self) -> list[tuple[float, Booked]]:
        """What everybody was promised: from how many seconds from now on (0: it is due), and what; in that order."""
        self._lapse()
        now = self._now()
        return [(max(0.0, second - now), self._calendar[second]) for second in sorted(self._calendar)]

    def make(self, key: str, fingerprint: str, seconds: float, wait_s: float) -> float:
        """Keep room for this request in about ``wait_s`` seconds. The whole seconds to tell; beyond 120 nothing is kept.

        Whole seconds, because that is what ``Retry-After`` can say: the caller must not come before its room is there.
        """
        self.broken += self._close_due(key, fingerprint)  # it came as it was told, and is sent away again
        wait_s = math.ceil(max(MIN_WAIT_S, wait_s * (1.0 + JITTER * self._jitter())))
        account = self._account(key)
        if wait_s > MAX_WAIT_S or account.booked.count >= MAX_PROMISES - self.open:  # the half of what is left is for others
            return math.ceil(MAX_WAIT_S * (1.0 - 0.25 * self._jitter()))
        due = self._now() + wait_s
        promise = Promise(key, fingerprint, seconds, account.share, due, due + GRACE_S + GRACE_SHARE * wait_s)
        self._open.setdefault((key, fingerprint), deque()).append(promise)
        self._number += 1
        heappush(self._ends, (promise.until, self._number, promise))
        self._book(promise, account, 1)
        self.made += 1
        return wait_s

    def is_due(self, key: str, fingerprint: str) -> bool:
        """Whether such a request was told to come about now."""
        self._lapse()
        now = self._now()
        return any(promise.due <= now for promise in self._open.get((key, fingerprint), ()))

    def claim(self, key: str, fingerprint: str) -> None:
        """A request was admitted; where it was due, its promise has been kept."""
        self.kept += self._close_due(key, fingerprint)

    def _close_due(self, key: str, fingerprint: str) -> bool:
        self._lapse()
        now = self._now()
        due = [promise for promise in self._open.get((key, fingerprint), ()) if promise.due <= now]
        if due:
            self._close(min(due, key=lambda promise: promise.due), came=1.0)
        return bool(due)

    def _lapse(self) -> None:
        now = self._now()
        while self._ends and (self._ends[0][0] < now or not self._ends[0][2].open):
            promise = heappop(self._ends)[2]
            if promise.open:
                self.lapsed += 1
                self._close(promise, came=0.0)
        if len(self._ends) > 2 * MAX_PROMISES:
            self._ends = [end for end in self._ends if end[2].open]
            heapify(self._ends)

    def _close(self, promise: Promise, came: float) -> None:
        promise.open = False
        line = self._open[promise.key, promise.fingerprint]
        line.remove(promise)
        if not line:
            del self._open[promise.key, promise.fingerprint]
        account = self._accounts[promise.key]
        account.share += LEARNING * (came - account.share)
        self._book(promise, account, -1)

    def _book(self, promise: Promise, account: _Account, sign: int) -> None:
        second = math.ceil(promise.due)
        slot = self._calendar.setdefault(second, Booked())
        for booked in (slot, account.booked):
            booked.book(promise, sign)
        if not slot.count:
            del self._calendar[second]
        self.open += sign
        self.keys += sign * (account.booked.count == (1 if sign > 0 else 0))

    def _account(self, key: str) -> _Account:
        """Made where there is none; those who have been away for longest and hold nothing are forgotten."""
        account = self._accounts.setdefault(key, _Account(Booked()))
        self._accounts.move_to_end(key)
        if len(self._accounts) > MAX_PROMISES:
            oldest, idle = next(iter(self._accounts.items()))
            if idle.booked.count:
                self._accounts.move_to_end(oldest)
            else:
                del self._accounts[oldest]
        return account
