"""How full the line may be: the room that is left for a newcomer, and how long until there is some. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from app.admission.forecast import Backlog
from app.admission.promises import Promises
from app.admission.ticket import Ask, Limits

ACTIVE_S = 600.0
RECENT_S = 60.0
MAX_KEYS = 10_000
LOW = 0.25
LOW_S = 2.0
LOW_SHARE = 2 / 3
SLACK = 0.25
SHORT_SLACK = 0.5
SHORT = 5.0
SMALL = 2.0


@dataclass
class Load:
    """Work that was admitted and has not started, of one key or of all."""

    count: int = 0
    seconds: float = 0.0


NOTHING = Load()


class Bounds:
    """Counts what waits. ``now`` is a monotonic clock in seconds."""

    def __init__(self, limits: Limits, promises: Promises, now: Callable[[], float]) -> None:
        self.limits, self._promises, self._now = limits, promises, now
        self._places = limits.queued
        self.total = Load()
        self._by_key: dict[str, Load] = {}
        self._seen: OrderedDict[str, float] = OrderedDict()

    def add(self, key: str, count: int, seconds: float) -> None:
        """Work of ``key`` enters the line (positive) or leaves it (negative), or is found to take longer or shorter."""
        mine = self._by_key.setdefault(key, Load())
        for load in (self.total, mine):
            load.count += count
            load.seconds = max(0.0, load.seconds + seconds) if load.count else 0.0
        if not mine.count:
            del self._by_key[key]

    def shortage_s(self, ask: Ask, wait_s: float, streams: int, idle: int = 0) -> float:
        """Seconds until there is room for ``ask`` in the line: 0 where there is some now.

        ``wait_s`` is when the last one in line would start, ``streams`` how many work at once,
        ``idle`` how many of them have nothing to do yet: so many of those in line are as good as started.
        """
        limits = self.limits
        self._places = limits.queued + idle
        if self._is_within(_low(limits.queue_s), LOW * self._places, wait_s):
            return 0.0  # streams must not run dry while room is kept for those who do not come
        due = self._promises.is_due(ask.key, ask.fingerprint) and not self._dominates(ask.key, streams)
        if (due or self._is_below_its_share(ask, streams)) and self._is_within(
            _stretched(limits.queue_s), _stretched(self._places), wait_s
        ):
            return 0.0
        if self._is_small(ask) and self._is_within(limits.queue_s, self._places, wait_s):
            return 0.0
        return max(0.0, self._until_all_fit(ask, wait_s, streams), self._until_share(ask, streams))

    def _is_within(self, most_s: float, most: float, wait_s: float) -> bool:
        return wait_s <= most_s and self.total.count < most

    def _is_below_its_share(self, ask: Ask, streams: int) -> bool:
        """Among several keys, each has an equal part of the line that nobody's promises can take; one job at the least."""
        keys = self._keys(ask.key)
        mine_s, mine = self._claims_of(ask.key)
        room_s, room = self.limits.queue_s * streams / keys, self._places / keys
        return keys > 1 and (not mine or (mine_s + ask.seconds <= room_s and mine + 1 <= room))

    def _is_small(self, ask: Ask) -> bool:
        """Whether another key has so much more that this one need not stand behind its promises."""
        largest = max(self._by_key, key=lambda key: self._by_key[key].seconds, default=ask.key)
        mine_s, mine = self._claims_of(ask.key)
        largest_s, most = self._claims_of(largest)
        return largest_s >= SMALL * (mine_s + ask.seconds) and most >= SMALL * (mine + 1)

    def _dominates(self, key: str, streams: int) -> bool:
        """Whether one key among several has so much of the line that even promises to it do not count."""
        limits, mine = self.limits, self._by_key.get(key, NOTHING)
        share = limits.share / (1 + limits.share)
        most_s, most = share * _stretched(limits.queue_s) * streams, share * _stretched(self._places)
        return self._keys(key) > 1 and (mine.seconds > most_s or mine.count > most)

    def _claims_of(self, key: str) -> tuple[float, float]:
        """What ``key`` has in line and was promised besides: seconds of work, and requests."""
        mine, promised = self._by_key.get(key, NOTHING), self._promises.of(key)
        return mine.seconds + promised.seconds, mine.count + promised.expected

    def _until_all_fit(self, ask: Ask, wait_s: float, streams: int) -> float:
        """The first moment at which the line has room, and those who were promised theirs later still find it then."""
        backlog = Backlog(self.total.count, self.total.seconds, wait_s, streams)
        free_s = self._until_short(backlog)
        for due_s, booked in self._promises.calendar():
            backlog.append(booked.expected, booked.seconds)
            if self._until_short(backlog, 1, ask.seconds) > due_s:
                free_s = max(free_s, due_s, self._until_short(backlog, 1))
        return free_s

    def _until_short(self, backlog: Backlog, more: int = 0, more_s: float = 0.0) -> float:
        """Seconds until ``backlog``, and ``more`` jobs of ``more_s`` seconds in it, has shrunk to a line with room."""
        limits, behind = self.limits, backlog.count + more + 1
        # one place is free as soon as one ends, which is when the first starts that does not start at once
        by_count = backlog.start_of(behind - limits.queued) if behind > self._places else 0.0
        return max(backlog.last_s + more_s / backlog.streams - limits.queue_s, by_count)

    def _until_share(self, ask: Ask, streams: int) -> float:
        """Seconds until the key has less than its share (dynamic thresholds, Choudhury and Hahne 1998): nobody fills it all.

        The share is a multiple of the room that is left, and at least an equal part of all.
        """
        limits, keys = self.limits, self._keys(ask.key)
        if keys == 1:
            return 0.0
        mine_s, mine = self._claims_of(ask.key)
        most_s = limits.queue_s * streams
        room_s = max(limits.share * (most_s - self.total.seconds), most_s / keys)
        room = max(limits.share * (self._places - self.total.count), self._places / keys)
        job_s = self.total.seconds / self.total.count if self.total.count else ask.seconds
        over_s = max(mine_s - room_s, (mine + 1 - room) * job_s)
        return over_s * max(1, self._about()) / streams  # those about take turns

    def _about(self) -> int:
        """How many keys were here a short time ago."""
        since = self._now() - RECENT_S
        return sum(1 for _ in takewhile(lambda at: at >= since, reversed(self._seen.values())))

    def _keys(self, key: str) -> int:
        """How many keys there are, ``key`` being one of them."""
        return len(self._seen) + (key not in self._seen)

    def see(self, key: str) -> None:
        """``key`` asks for something: it is one of those who share the line from now on."""
        now = self._now()
        self._seen[key] = now
        self._seen.move_to_end(key)
        while len(self._seen) > MAX_KEYS or now - next(iter(self._seen.values())) > ACTIVE_S:
            self._seen.popitem(last=False)


def _low(queue_s: float) -> float:
    """Seconds of waiting below which everybody may come: a quarter of the line; of a short one so much that what is being
    received and decoded comes before it has run dry."""
    return max(LOW * queue_s, min(LOW_S, LOW_SHARE * queue_s))


def _stretched(most: float) -> float:
    """The bound for those who were promised something: a quarter more; of a short line (5 jobs, 5 s) up to a half."""
    return most + max(SLACK * most, min(SHORT_SLACK * most, SHORT))
