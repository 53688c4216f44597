"""Which file is sent when. Pure: the same seed gives the same schedule."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence

from loadtest.records import Recording, Task

REQUESTS_PER_USER = 4


def default_requests(level: int, files: int) -> int:
    """At least four per user and each file once, in whole rounds over the files, so that every level gets the same mix.

    With fewer per user the last long file decides the total time, and throughput says nothing.
    """
    return files * math.ceil(max(level * REQUESTS_PER_USER, files) / files)


def rounds(recordings: Sequence[Recording], rng: random.Random) -> Iterator[Recording]:
    """The files for ever, each round over them in a new order."""
    order = list(recordings)
    while True:
        rng.shuffle(order)
        yield from order


def tasks(recordings: Sequence[Recording], seed: int, count: int | None) -> Iterator[Task]:
    """``count`` requests (``None``: without end) to be sent as soon as somebody is free."""
    endless = (Task(number, recording) for number, recording in enumerate(rounds(recordings, random.Random(seed))))
    return itertools.islice(endless, count)


def arrivals(rate: float, rng: random.Random) -> Iterator[float]:
    """Instants, in seconds from the start, of a Poisson process with ``rate`` arrivals per second; without end."""
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now


def timed_tasks(
    recordings: Sequence[Recording], seed: int, rate: float, duration_s: float | None, count: int | None
) -> list[Task]:
    """Requests at Poisson instants, until ``duration_s`` is over or there are ``count``. One of the two must be given."""
    assert duration_s is not None or count is not None
    instants = itertools.islice(arrivals(rate, random.Random(f"{seed} arrivals")), count)
    within = itertools.takewhile(lambda now: duration_s is None or now < duration_s, instants)
    files = rounds(recordings, random.Random(seed))
    return [Task(number, recording, due) for number, (due, recording) in enumerate(zip(within, files, strict=False))]
