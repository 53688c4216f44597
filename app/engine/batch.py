"""One batch of windows of any jobs: features → encoder → language → decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from faster_whisper.tokenizer import Tokenizer

from app.engine.asr import Decoded, WindowModel
from app.engine.vad import Window, samples
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


def recognise(model: WindowModel, pieces: Sequence[Piece]) -> list[Decoded]:
    """What the windows say. Batched or alone, the words are the same."""
    mels = (model.log_mel(samples(one.speech.pcm, one.window.start, one.window.end)) for one in pieces)
    encoded = []
    for piece, output in zip(pieces, model.encoded(mels), strict=True):
        encoded.append(output)
        if piece.speech.language is None:
            piece.speech.language, piece.speech.probability = model.language_of(output)
            piece.told()
    tokenizers = [_tokenizer(model, piece.speech) for piece in pieces]
    return model.decode(np.stack(encoded), tokenizers, [piece.speech.options for piece in pieces])


def _tokenizer(model: WindowModel, speech: Speech) -> Tokenizer:
    assert speech.language is not None
    return model.tokenizer_for(speech.language, speech.options.task)
