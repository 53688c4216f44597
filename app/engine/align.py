"""Word times by forced alignment: WhisperX's own ``align`` on wav2vec2 models.

Two things differ from calling it on a whole file: each segment gets only its own samples (``align`` would copy the whole
file as float32), and sentences are split without NLTK's downloaded Punkt data.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torchaudio
import whisperx.alignment
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

from app.engine.vad import RATE, samples
from app.errors import AlignerUnavailable
from app.work import WorkerSetup

log = logging.getLogger("stenopool.engine")

SHORTEST = RATE // 10
"""Samples that every aligner's convolutions can take; shorter segments are padded with silence."""

_ABBREVIATIONS = (
    "mr mrs ms dr prof sr jr st vs etc e.g i.e fig no vol inc ltd co u.s u.k a.m p.m approx dept est "
    "bzw ca evtl ggf usw z.b d.h nr str sra dña pág p.ej m mme"
)


class _Splitter(PunktSentenceTokenizer):  # type: ignore[misc]
    """Splits only where white space stands: ``align`` counts the first character of a sentence that touches another twice."""

    def span_tokenize(self, text: str, realign_boundaries: bool = True) -> Iterator[tuple[int, int]]:
        spans: list[tuple[int, int]] = []
        for start, end in super().span_tokenize(text, realign_boundaries):
            begin = spans.pop()[0] if spans and spans[-1][1] == start else start
            spans.append((begin, end))
        return iter(spans)


def _punkt(*_: object) -> _Splitter:
    """A sentence splitter with a short list of abbreviations, in place of downloaded parameters."""
    parameters = PunktParameters()
    parameters.abbrev_types = set(_ABBREVIATIONS.split())
    return _Splitter(parameters)


# `align` calls this name once per segment; the original fetches punkt_tab from the network at run time
whisperx.alignment.nltk_load = _punkt


class Aligner:
    """Alignment models by language, each loaded when first asked for."""

    def __init__(self, setup: WorkerSetup, device: str) -> None:
        self._setup = setup
        self._device = device
        self._models: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def align(self, pcm: np.ndarray, segment: dict[str, Any], language: str) -> list[dict[str, Any]]:
        """The segment split into sentences, each with its ``words`` (``word, start, end, score``; times in seconds).

        A word whose characters the model does not know has no times. A segment that cannot be aligned comes back whole.

        Raises:
            AlignerUnavailable: there is no alignment model for ``language`` here.
        """
        model, metadata = self._model(language)
        offset = segment["start"]
        audio = samples(pcm, offset, segment["end"])
        if not segment["text"].strip() or len(audio) == 0:
            return [{**segment, "words": []}]
        audio = np.pad(audio, (0, max(0, SHORTEST - len(audio))))
        local = {"start": 0.0, "end": len(audio) / RATE, "text": segment["text"]}
        aligned = whisperx.alignment.align([local], model, metadata, audio, self._device)["segments"]
        return [_shifted(segment, sentence, offset) for sentence in aligned]

    def _model(self, language: str) -> tuple[Any, dict[str, Any]]:
        with self._lock:
            if language not in self._models:
                self._models[language] = self._load(language)
            return self._models[language]

    def _load(self, language: str) -> tuple[Any, dict[str, Any]]:
        name, folder = self._source(language)
        try:
            model, metadata = whisperx.alignment.load_align_model(
                language, self._device, model_name=name, model_dir=folder, model_cache_only=self._setup.offline
            )
        except Exception as error:
            log.warning("alignment model for %s could not be loaded: %s", language, error)
            raise _missing(language) from error
        return model.eval(), metadata

    def _source(self, language: str) -> tuple[str | None, str | None]:
        """``model_name`` and ``model_dir`` for WhisperX: a local folder, or its default model and our cache."""
        if self._setup.aligner_path:
            return self._setup.aligner_path, None
        if self._setup.models_dir and (local := Path(self._setup.models_dir) / f"align-{language}").is_dir():
            return str(local), None
        cache = Path(self._setup.hub_dir)
        cache.mkdir(parents=True, exist_ok=True)
        bundle = whisperx.alignment.DEFAULT_ALIGN_MODELS_TORCH.get(language)
        if bundle and self._setup.offline and not (cache / getattr(torchaudio.pipelines, bundle)._path).is_file():
            raise _missing(language)
        return None, str(cache)


def _shifted(parent: dict[str, Any], sentence: dict[str, Any], offset: float) -> dict[str, Any]:
    words = [
        {"word": word["word"], "score": word.get("score")}
        | {edge: round(min(word[edge] + offset, parent["end"]), 3) if edge in word else None for edge in ("start", "end")}
        for word in sentence["words"]
    ]
    start, end = (_or(sentence[edge] + offset, parent[edge]) for edge in ("start", "end"))
    start, end = min(start, parent["end"]), min(end, parent["end"])
    return {**parent, "start": start, "end": end, "text": sentence["text"], "words": words}


def _or(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else round(float(value), 3)


def _missing(language: str) -> AlignerUnavailable:
    return AlignerUnavailable(
        f"There is no alignment model for {language!r} on this server, and none could be fetched.",
        hint=f"Put a Wav2Vec2ForCTC model into STENOPOOL_MODELS_DIR/align-{language}, or ask without word_timestamps.",
    )
