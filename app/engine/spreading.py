"""How the last windows of recordings are spread over the runners, so that all of them end at about the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence

BATCH = 0.3
"""What a batch takes besides its windows, in what a window takes. Tiny: 0.4, small: 0.1."""


def own_part(waiting: int, ahead: Sequence[float]) -> int:
    """Of so many windows, those that a runner should take that is free now, where each goes to the runner that ends first.

    ``ahead``: what each of the others has still to do, in what a window takes.
    """
    ends, counts = [0.0, *ahead], [0] * (len(ahead) + 1)
    for _ in range(waiting):
        after = [end + 1 + BATCH * (not count) for end, count in zip(ends, counts, strict=True)]
        first = after.index(min(after))
        ends[first], counts[first] = after[first], counts[first] + 1
    return max(1, counts[0])


class Pace:
    """What is at work, and how long it will take: by the time that the last batch took for each of its windows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._window_s = 0.0
        self._at_work: dict[Hashable, tuple[int, float]] = {}

    def began(self, runner: Hashable, windows: int) -> None:
        """A runner has begun with so many; 0 for something else."""
        self._at_work[runner] = windows, self._clock()

    def ended(self, runner: Hashable, *, learn: bool = True) -> None:
        """It has ended; ``learn`` from the time that it took, unless it has failed."""
        windows, since = self._at_work.pop(runner)
        if windows and learn:
            self._window_s = (self._clock() - since) / (windows + BATCH)

    def ahead(self) -> list[float]:
        """Of every runner at work, what it has still to do, in what a window takes."""
        now = self._clock()
        return [
            max(0.0, windows + BATCH - (now - since) / self._window_s) if self._window_s else windows + BATCH
            for windows, since in self._at_work.values()
        ]
