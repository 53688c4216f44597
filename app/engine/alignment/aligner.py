"""Alignment models by language, and segments aligned with them."""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torchaudio
import whisperx.alignment

from app.engine.alignment import ctc
from app.engine.alignment.emissions import Emissions
from app.engine.alignment.features import Converted
from app.engine.alignment.kept import Kept, Labels, Shelf
from app.engine.alignment.sentences import SPLITTER
from app.engine.alignment.words import Timed, labels_of, sentences
from app.engine.vad import RATE, samples
from app.errors import AlignerUnavailable
from app.work import WorkerSetup

log = logging.getLogger("stenopool.engine")

SHORTEST = RATE // 10
"""Samples that every aligner's convolutions can take; shorter segments are padded with silence."""


@dataclass(frozen=True)
class Model:
    """An alignment model."""

    emissions: Emissions
    labels: Labels

    def timed(self, audio: np.ndarray, said: dict[int, str]) -> dict[int, Timed] | None:
        """When each character is heard, by its place in the text; ``said`` as :func:`labels_of` gives it.

        None where the text does not fit into the audio.
        """
        seconds = len(audio) / RATE
        emissions = self.emissions(audio[: int(seconds * RATE)])  # as WhisperX cuts it: one sample less for some lengths
        spelt = "".join(said.values())  # a few characters become two in lower case
        columns, blank = self.labels.columns, self.labels.blank
        if any(label not in columns for label in spelt):
            emissions = ctc.with_wildcard(emissions, blank)
        spans = ctc.force(emissions, [columns.get(label, -1) for label in spelt], blank)
        if spans is None:
            return None
        frame_s = seconds / len(emissions)
        edges = ([round(float(edge) * frame_s, 3) for edge in edges] for edges in (spans.start, spans.end))
        scores = (round(float(score), 3) for score in spans.score)
        return {place: Timed(*found) for place, *found in zip(said, *edges, scores, strict=False)}


class Aligner:
    """Alignment models by language, each loaded when first asked for."""

    def __init__(self, setup: WorkerSetup, device: str) -> None:
        self._setup = setup
        self._device = device
        self._models: dict[str, Model] = {}
        self._at_once = {"runners": setup.runners, "threads": setup.threads}
        self._lock = threading.Lock()

    def align(self, pcm: np.ndarray, segment: dict[str, Any], language: str) -> list[dict[str, Any]]:
        """The segment split into sentences, each with its ``words`` (``word, start, end, score``; times in seconds).

        A word whose characters the model does not know has no times. A segment that cannot be aligned comes back whole.

        Raises:
            AlignerUnavailable: there is no alignment model for ``language`` here.
        """
        model, spaced = self._model(language), language not in whisperx.alignment.LANGUAGES_WITHOUT_SPACES
        text, offset = segment["text"], segment["start"]
        said = labels_of(text, model.labels.columns, spaced=spaced)
        audio = samples(pcm, offset, segment["end"])
        if not said or len(audio) == 0:
            return [{**segment, "words": []}]
        times = model.timed(np.pad(audio, (0, max(0, SHORTEST - len(audio)))), said)
        if times is None:
            return [{**segment, "words": []}]
        found = sentences(text, SPLITTER.span_tokenize(text), times, spaced=spaced)
        return [_shifted(segment, sentence, offset) for sentence in found]

    def _model(self, language: str) -> Model:
        key = "" if self._setup.aligner_path else language  # one for all languages
        with self._lock:
            if key not in self._models:
                self._models[key] = self._load(language)
            return self._models[key]

    def _load(self, language: str) -> Model:
        name, folder, files = self._source(language)
        kept_on_disk = self._device == "cpu" and self._setup.encoders_dir  # those for a GPU are not converted
        shelf = Shelf(Path(self._setup.encoders_dir), files) if kept_on_disk else None
        if shelf is not None and (found := self._kept(shelf)) is not None:
            return found
        try:
            model, metadata = whisperx.alignment.load_align_model(
                language, self._device, model_name=name, model_dir=folder, model_cache_only=self._setup.offline
            )
        except Exception as error:
            log.warning("alignment model for %s could not be loaded: %s", language, error)
            raise _missing(language) from error
        columns: dict[str, int] = metadata["dictionary"]
        labels = Labels(columns, columns.get("<pad>", columns.get("[pad]", 0)))

        def keep(runtime: str, converted: Converted) -> None:
            if shelf is not None:
                shelf.save(Kept(runtime, labels, converted))

        return Model(Emissions(model, self._device, **self._at_once, on_converted=keep), labels)

    def _kept(self, shelf: Shelf) -> Model | None:
        """The aligner as an earlier worker has converted it, if that can be used."""
        kept = shelf.load()
        if kept is None:
            return None
        try:
            return Model(Emissions.converted(kept.runtime, kept.model, **self._at_once), kept.labels)
        except Exception as error:  # of the many kinds that a runtime knows
            log.warning("an aligner that was kept on disk cannot be run; it is made again", exc_info=True)
            if not isinstance(error, MemoryError):
                shelf.forget()
            return None

    def _source(self, language: str) -> tuple[str | None, str | None, Path]:
        """``model_name`` and ``model_dir`` for WhisperX: a local folder, or its default model and our cache; and its files."""
        if self._setup.aligner_path:
            return self._setup.aligner_path, None, Path(self._setup.aligner_path)
        if self._setup.models_dir and (local := Path(self._setup.models_dir) / f"align-{language}").is_dir():
            return str(local), None, local
        cache = Path(self._setup.hub_dir)
        cache.mkdir(parents=True, exist_ok=True)
        bundle = whisperx.alignment.DEFAULT_ALIGN_MODELS_TORCH.get(language)
        if bundle is None:
            repo = whisperx.alignment.DEFAULT_ALIGN_MODELS_HF.get(language, language)
            return None, str(cache), cache / f"models--{repo.replace('/', '--')}" / "snapshots"
        file = cache / getattr(torchaudio.pipelines, bundle)._path
        if self._setup.offline and not file.is_file():
            raise _missing(language)
        return None, str(cache), file


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
        hint=f"Put a Wav2Vec2ForCTC model into STENOPOOL_MODELS_DIR/align-{language}, or ask for word_timestamps=fast.",
    )
