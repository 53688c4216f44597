"""Encoded windows on their way to the decoder: a batch that is not full takes along those of one that still encodes.

The last windows of some recordings are seldom as many for one runner as for another, and a whole window is the least that a
runner takes; without this one of two runners has nothing to do for the last seconds. It also costs less: a step of the decoder
reads all weights, for however many windows. In other words, encoder and decoder are two stages (Patel et al., "Splitwise", ISCA
2024), but a window changes its runner between them only where that helps.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from faster_whisper.tokenizer import Tokenizer

from app.engine.asr import Decoded, Heard, WindowModel
from app.jobs import TranscribeOptions


@dataclass(eq=False)
class Encoded:
    """A window that waits for the decoder: the one of this ``number`` of what was ``heard``. ``found`` is what it says."""

    heard: Heard
    number: int
    tokenizer: Tokenizer
    options: TranscribeOptions
    found: Future[Decoded] = field(default_factory=Future)


class Sharing:
    """The batches that share. Those of short and of long jobs each have their own (:mod:`app.engine.runners`)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._encoding: list[list[Encoded]] = []

    @contextlib.contextmanager
    def batch(self) -> Iterator[Batch]:
        """A batch, while it is being encoded."""
        offered: list[Encoded] = []
        with self._lock:
            self._encoding.append(offered)
        try:
            yield Batch(self, offered)
        finally:
            self.end(offered, 0)

    def offer(self, offered: list[Encoded], window: Encoded) -> None:
        """See :meth:`Batch.offer`."""
        with self._lock:
            offered.append(window)

    def end(self, offered: list[Encoded], room: int) -> list[Encoded]:
        """Nothing more of this batch can be taken; up to ``room`` windows of others, which are the caller's now."""
        with self._lock:
            self._encoding = [other for other in self._encoding if other is not offered]
            taken: list[Encoded] = []
            for other in self._encoding:
                most = max(0, room - len(taken))
                taken += other[:most]
                del other[:most]
            return taken


@dataclass(frozen=True)
class Batch:
    """One batch's side of it. ``_offered``: those of its windows that nobody has taken."""

    _sharing: Sharing
    _offered: list[Encoded]

    def offer(self, window: Encoded) -> None:
        """Another runner may take it now."""
        self._sharing.offer(self._offered, window)

    def decode(self, model: WindowModel, last: Encoded, room: int) -> None:
        """Fill ``found`` of the ``last`` window, of those before it that nobody has taken, and of up to ``room`` of others.

        What comes from other batches has a result or an error in any case. Where all together fail, the own ones are tried
        alone, so that they do not fail for another job's sake.
        """
        taken = self._sharing.end(self._offered, room)
        own = [*self._offered, last]
        try:
            found = _decoded(model, [*own, *taken])
        except BaseException as error:
            for window in taken:
                window.found.set_exception(error)
            if not taken:
                raise
            found = _decoded(model, own)
        for window, one in zip([*own, *taken], found, strict=False):
            window.found.set_result(one)


def result(model: WindowModel, window: Encoded) -> Decoded:
    """What a window says. Where it was taken, and failed beside the others there, it is tried alone."""
    try:
        return window.found.result()
    except Exception:
        (decoded,) = _decoded(model, [window])
        return decoded


def _decoded(model: WindowModel, windows: Sequence[Encoded]) -> list[Decoded]:
    heard = Heard.together([(window.heard, window.number) for window in windows])
    return model.decode(heard, [window.tokenizer for window in windows], [window.options for window in windows])
