"""One batch of windows of any jobs: features → encoder → language → decoder, and fast word times for those who want them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.engine.asr import Decoded, Heard, WindowModel
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
    """One window of a job. ``told()`` is called as soon as its language is known; None where no other window waits for that."""

    speech: Speech
    window: Window
    told: Callable[[], None] | None = None

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
        for number, (piece, output) in enumerate(zip(pieces, model.encoded(mels()), strict=True), 1):
            heard.add(output)
            unknown = any(one.speech.language is None for one in pieces[len(windows) : number])
            awaited = piece.speech.language is None and piece.told is not None
            if unknown and not awaited and number < len(pieces):
                continue  # nobody waits for their languages: those of all are found out in one step
            _find_languages(model, heard, pieces[:number])
            for one in pieces[len(windows) : number]:
                windows.append(_encoded(model, heard, len(windows), one.speech))
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


def _find_languages(model: WindowModel, heard: Heard, pieces: Sequence[Piece]) -> None:
    """Fill in what nobody has given or found out yet."""
    unknown = [number for number, piece in enumerate(pieces) if piece.speech.language is None]
    for number, found in zip(unknown, model.languages_of(heard, unknown) if unknown else [], strict=True):
        pieces[number].speech.language, pieces[number].speech.probability = found
        if told := pieces[number].told:
            told()


def _encoded(model: WindowModel, heard: Heard, number: int, speech: Speech) -> Encoded:
    assert speech.language is not None
    tokenizer = model.tokenizer_for(speech.language, speech.options.task)
    return Encoded(heard, number, tokenizer, speech.options, model.group(tokenizer, speech.options))
