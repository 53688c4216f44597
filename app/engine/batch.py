"""One batch of windows of any jobs: features → encoder → language → decoder, and fast word times for those who want them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from faster_whisper.tokenizer import Tokenizer

from app.engine.asr import Decoded, WindowModel
from app.engine.attention import Text, words_of
from app.engine.sharing import Encoded, Sharing, result
from app.engine.vad import RATE, Window, samples
from app.jobs import TranscribeOptions


@dataclass
class Speech:
    """A job's audio and what it wants. ``language`` is filled in by its first window where nobody has given it."""

    pcm: np.ndarray
    options: TranscribeOptions
    language: str | None
    probability: float | None = None


@dataclass(frozen=True)
class Piece:
    """One window of a job. ``told()`` is called once its language is known."""

    speech: Speech
    window: Window
    told: Callable[[], None]

    @property
    def samples(self) -> int:
        """Length of the window."""
        return int(self.window.end * RATE) - int(self.window.start * RATE)


def recognise(
    model: WindowModel,
    pieces: Sequence[Piece],
    *,
    give_way: Callable[[], None] = lambda: None,
    sharing: Sharing | None = None,
    size: Callable[[], int] = lambda: 0,
) -> list[Decoded]:
    """What the windows say. Batched or alone, the words are the same.

    ``give_way()`` is called before each step that takes long; it may wait for a while. ``sharing``: with other batches, so
    that up to ``size()`` windows of all of them are decoded together.
    """

    def mels() -> Iterator[np.ndarray]:
        for piece in pieces:
            give_way()
            yield model.log_mel(samples(piece.speech.pcm, piece.window.start, piece.window.end))

    heard = model.hear(len(pieces))
    windows: list[Encoded] = []
    with (sharing or Sharing()).batch(len(pieces)) as batch:
        for number, (piece, output) in enumerate(zip(pieces, model.encoded(mels()), strict=True)):
            heard.add(output)
            if piece.speech.language is None:
                piece.speech.language, piece.speech.probability = model.language_of(heard, number)
                piece.told()
            tokenizer, options = _tokenizer(model, piece.speech), piece.speech.options
            windows.append(Encoded(heard, number, tokenizer, options, model.group(tokenizer, options)))
            if len(windows) < len(pieces):
                batch.offer(windows[-1])
        give_way()
        batch.decode(model, windows[-1], size())
    decoded = [result(model, window) for window in windows]
    wanted = [number for number, piece in enumerate(pieces) if piece.speech.options.word_timestamps == "fast"]
    texts = [Text(heard.encoded[n], pieces[n].samples, decoded[n].tokens, windows[n].tokenizer) for n in wanted]
    for number, words in zip(wanted, words_of(model.model, texts), strict=True):
        decoded[number] = replace(decoded[number], words=words)
    return decoded


def _tokenizer(model: WindowModel, speech: Speech) -> Tokenizer:
    assert speech.language is not None
    return model.tokenizer_for(speech.language, speech.options.task)
