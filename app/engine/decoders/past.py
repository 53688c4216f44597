"""Keys and values of the tokens that were written, and which of them each beam of each window has in its past."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.engine.decoders.graph import Sizes

MASKED = -1e9
"""Added to what must not count: as good as minus infinity, but nothing minus it is no number."""
LEAST = 64
"""Places to begin with. They double: the steps are compiled anew for each size."""


class Past:
    """Each step writes one place for each beam of a window, in the same places of all windows; nothing is moved.

    When all are taken, those that are in no beam's past any more are given up.
    """

    def __init__(self, sizes: Sizes, beams: int) -> None:
        self._sizes, self._beams = sizes, beams
        self.capacity, self._used, self._windows = LEAST, 0, 0
        self._kept = np.zeros(0, np.float32)
        self._seen = np.zeros((0, beams, LEAST), bool)

    def open(self, windows: int) -> None:
        """For so many windows, without a past."""
        self._windows = windows
        self._kept = self._places(windows, self.capacity)
        self._seen = np.zeros((windows, self._beams, self.capacity), bool)

    def of(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of one layer, (windows, heads, places, width of a head) each."""
        return self._kept[2 * layer, : self._windows], self._kept[2 * layer + 1, : self._windows]

    def mask(self, new: int) -> np.ndarray:
        """What must be added to the scores of ``new`` tokens of each window, (windows, 1, new, places)."""
        seen = self._seen[: self._windows, : new if self._used else 1]
        return np.broadcast_to(np.where(seen, 0.0, MASKED)[:, None], (self._windows, 1, new, self.capacity))

    def append(self, made: np.ndarray) -> None:
        """Keys and values of the new tokens, (2 × layers, windows, heads, new, width of a head)."""
        new = made.shape[3]
        self._kept[:, : self._windows, :, self._used : self._used + new] = made
        if self._used:  # of a prompt, which comes first, all is seen by all: see begin()
            for beam in range(new):
                self._seen[: self._windows, beam, self._used + beam] = True
        self._used += new

    def begin(self, unseen: int, length: int) -> None:
        """All beams have a prompt of this length behind them, in front of which are tokens that nobody sees."""
        self._seen[:, :, unseen : unseen + length] = True

    def follow(self, window: int, rows: Sequence[int]) -> None:
        """Each beam of the window goes on from another one of until now, or from the prompt."""
        self._seen[window] = self._seen[window, list(rows)]

    def forget(self, window: int) -> None:
        """The last window takes this one's place."""
        self._windows -= 1
        if window != self._windows:
            self._kept[:, window] = self._kept[:, self._windows]
            self._seen[window] = self._seen[self._windows]

    def make_room(self, new: int) -> None:
        """For so many more places: those that can be given up, if they are a third of all, or twice as many as before."""
        if self._used + new <= self.capacity:
            return
        needed: np.ndarray = np.any(self._seen[: self._windows], axis=1)
        if self._used and 3 * int(needed.sum(1).max()) <= 2 * self._used:
            self._give_up(needed)
        capacity = self.capacity
        while self._used + new > capacity:
            capacity *= 2
        if capacity > self.capacity:
            kept, self._kept = self._kept, self._places(len(self._seen), capacity)
            self._kept[..., : self._used, :] = kept[..., : self._used, :]
            more = np.zeros((*self._seen.shape[:2], capacity - self.capacity), bool)
            self._seen, self.capacity = np.concatenate([self._seen, more], 2), capacity

    def _give_up(self, needed: np.ndarray) -> None:
        """Places that no beam has in its past; what is ``needed`` of each window (windows, places) moves together."""
        for window, places in enumerate(map(np.flatnonzero, needed)):
            self._kept[:, window, :, : len(places)] = self._kept[:, window][:, :, places]
            self._seen[window, :, : len(places)] = self._seen[window][:, places]
            self._seen[window, :, len(places) :] = False
        self._used = int(needed.sum(1).max())

    def _places(self, windows: int, count: int) -> np.ndarray:
        sizes = self._sizes
        return np.zeros((2 * sizes.layers, windows, sizes.heads, count, sizes.head_width), np.float32)
