"""Encoded windows on their way to the decoder: a batch that is not full takes along those of one that still encodes.

The last windows of some recordings are seldom as many for one runner as for another, and a whole window is the least that a
runner takes; without this one of two runners has nothing to do for the last seconds. Encoder and decoder are two stages, in
other words (Patel et al., "Splitwise", ISCA 2024), but a window changes its runner between them only where the later of two
batches is expected to end earlier for it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from faster_whisper.tokenizer import Tokenizer

from app.engine.asr import Decoded, Heard, WindowModel
from app.jobs import TranscribeOptions

ENCODING = 2.5
"""What the encoder takes for a window, in what a batch's decoder takes for one window more. Small: 2.8, tiny: 1.4."""
MOVING = 0.25
"""What it costs to take windows along, in the same unit: their keys and values are copied."""
log = logging.getLogger(__name__)


@dataclass(eq=False)
class Encoded:
    """A window that waits for the decoder: the one of this ``number`` of what was ``heard``.

    Only those of one ``group`` are decoded together. ``found`` is what it says, or None where that failed in another batch.
    """

    heard: Heard
    number: int
    tokenizer: Tokenizer
    options: TranscribeOptions
    group: tuple[Any, ...]
    found: Future[Decoded | None] = field(default_factory=Future)


class Sharing:
    """The batches that share. Those of short and of long jobs each have their own (:mod:`app.engine.runners`)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock, self.clock = threading.Lock(), clock
        self._encoding: list[Batch] = []

    @contextlib.contextmanager
    def batch(self, pieces: int) -> Iterator[Batch]:
        """A batch of so many windows, while it is being encoded."""
        batch = Batch(self, pieces, self.clock())
        with self.lock:
            self._encoding.append(batch)
        try:
            yield batch
        finally:
            self.end(batch, None, 0)

    def end(self, batch: Batch, last: Encoded | None, size: int) -> list[Encoded]:
        """Nothing more of this batch can be taken. Windows of others that it takes, up to ``size`` with its own."""
        with self.lock:
            self._encoding = [other for other in self._encoding if other is not batch]
            taken: list[Encoded] = []
            for other in self._encoding:
                fitting = [window for window in other.offered if last is not None and window.group == last.group]
                if fitting:
                    own = batch.left + len(taken)
                    ahead = ENCODING * other.ahead(self.clock())
                    chosen = fitting[: _worth(own, other.left, ahead, min(len(fitting), size - own))]
                    taken += chosen
                    other.offered = [window for window in other.offered if window not in chosen]
            return taken


def _worth(own: int, theirs: int, ahead: float, most: int) -> int:
    """How many windows to take of those that another batch has ``ahead`` of it, so that the later of both ends earliest."""
    return min(range(max(0, most) + 1), key=lambda count: max(own + count + MOVING * bool(count), ahead + theirs - count))


@dataclass(eq=False)
class Batch:
    """A batch of ``pieces`` windows that is being encoded: ``encoded`` are done, ``offered`` are those nobody has taken."""

    sharing: Sharing
    pieces: int
    since: float
    encoded: int = 0
    at: float = 0.0
    offered: list[Encoded] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Windows that are its own to decode."""
        return self.pieces - self.encoded + len(self.offered)

    def ahead(self, now: float) -> float:
        """Windows that it has still to encode; of the one at work, what is left by the time that those before it took."""
        each = (self.at - self.since) / self.encoded
        return max(0.0, self.pieces - self.encoded - min(1.0, (now - self.at) / max(each, 1e-6)))

    def offer(self, window: Encoded) -> None:
        """It is encoded, and not the last one: another runner may take it now."""
        with self.sharing.lock:
            self.encoded, self.at = self.encoded + 1, self.sharing.clock()
            self.offered.append(window)

    def decode(self, model: WindowModel, last: Encoded, size: int) -> None:
        """Fill ``found`` of the ``last`` window, of those before it that nobody has taken, and of some of others.

        Together they are ``size`` at most. Where they fail, the own ones are tried alone: no job fails for another one's sake.
        """
        taken = self.sharing.end(self, last, size)
        own = [*self.offered, last]
        found = _together(model, own, taken) if taken else None
        for window, one in zip(own, found or _decoded(model, own), strict=True):
            window.found.set_result(one)


def _together(model: WindowModel, own: list[Encoded], taken: list[Encoded]) -> list[Decoded] | None:
    """What the own windows of a batch say, decoded with those that were ``taken``, whose ``found`` is filled in any case."""
    found: list[Decoded] | None = None
    try:
        found = _decoded(model, own + taken)
    except Exception as error:
        log.warning("windows of several batches failed together, and are tried apart (%s)", type(error).__name__)
    finally:
        for number, window in enumerate(taken, len(own)):
            window.found.set_result(found[number] if found else None)
    return found[: len(own)] if found else None


def result(model: WindowModel, window: Encoded) -> Decoded:
    """What a window says. Where it was taken, and failed there, it is tried alone."""
    return window.found.result() or _decoded(model, [window])[0]


def _decoded(model: WindowModel, windows: Sequence[Encoded]) -> list[Decoded]:
    heard = Heard.together([(window.heard, window.number) for window in windows])
    return model.decode(heard, [window.tokenizer for window in windows], [window.options for window in windows])
