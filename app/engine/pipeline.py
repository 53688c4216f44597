"""One transcription, start to end: memory map → VAD → windows → batches → alignment → result."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from app.engine.align import Aligner
from app.engine.asr import Decoded, WindowModel
from app.engine.devices import align_device
from app.engine.models import load
from app.engine.vad import RATE, PyannoteVad, Window, find_windows, samples
from app.errors import Cancelled
from app.jobs import TranscribeOptions
from app.work import Task, WorkerSetup

Report = Callable[[str, float], None]


def create(setup: WorkerSetup) -> Pipeline:
    """Entry for :mod:`app.pool.worker`."""
    return Pipeline(setup)


class Pipeline:
    """One loaded model; :meth:`transcribe` may run in several threads at once."""

    def __init__(self, setup: WorkerSetup) -> None:
        torch.set_num_threads(setup.threads)
        self._setup = setup
        self._model: WindowModel
        self._model, self.device = load(setup)
        self._aligner = Aligner(setup, align_device(setup.align_device))
        self._pyannote = PyannoteVad(self.device)
        self._warm_up()

    def transcribe(self, task: Task, report: Report, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """The result as plain JSON values, as :meth:`app.formats.Transcript.to_dict` has them.

        Raises:
            Cancelled: ``cancelled()`` became true; it is asked after every batch.
            AlignerUnavailable: word times were asked for and cannot be had.
        """
        options = task.options
        pcm = _map_pcm(task.pcm_path)
        checked = _checked(report, cancelled)
        windows = find_windows(pcm, options.vad, self._pyannote, lambda done: checked("vad", done))
        size = min(self._setup.batch_size, task.batch_size or self._setup.batch_size)
        segments, language, probability = self._recognise(pcm, windows, options, size, checked)
        if options.word_timestamps:
            segments = self._align(pcm, segments, language, checked)
        return {
            "task": options.task,
            "model": options.model,
            "language": language,
            "language_probability": probability,
            "duration": round(len(pcm) / RATE, 3),
            "segments": [{**segment, "id": number} for number, segment in enumerate(segments)],
        }

    def _warm_up(self) -> None:
        """One silent window, so that the first job neither waits for nor is billed for what is made at first use."""
        silence = np.zeros(RATE, np.int16)
        options = TranscribeOptions(self._setup.model, language="en")
        find_windows(silence, options.vad, self._pyannote, lambda done: None)
        self._recognise(silence, [Window(0.0, 1.0)], options, 1, lambda stage, done: None)

    def _recognise(
        self, pcm: np.ndarray, windows: list[Window], options: TranscribeOptions, size: int, report: Report
    ) -> tuple[list[dict[str, Any]], str | None, float | None]:
        """Segments of all windows, ``size`` at a time."""
        language, probability = options.language, None
        segments: list[dict[str, Any]] = []
        for first in range(0, len(windows), size):
            batch = windows[first : first + size]
            encoded = self._model.encode_each(self._model.log_mels([samples(pcm, w.start, w.end) for w in batch]))
            if language is None:
                language, probability = self._model.language_of(encoded)
            tokenizer = self._model.tokenizer_for(language, options.task)
            decoded = self._model.decode(encoded, len(batch), tokenizer, options)
            segments += [
                _segment(w, d, options) for w, d in zip(batch, decoded, strict=True) if not d.silent and d.text.strip()
            ]
            report("transcribe", (first + len(batch)) / len(windows))
        return segments, language, probability

    def _align(
        self, pcm: np.ndarray, segments: list[dict[str, Any]], language: str | None, report: Report
    ) -> list[dict[str, Any]]:
        aligned: list[dict[str, Any]] = []
        for number, segment in enumerate(segments, 1):
            assert language is not None
            aligned += self._aligner.align(pcm, segment, language)
            report("align", number / len(segments))
        return aligned


def _map_pcm(path: str) -> np.ndarray:
    """The file's whole samples, mapped: nothing is read before it is used. An empty file cannot be mapped."""
    count = os.path.getsize(path) // 2
    return np.memmap(path, dtype="<i2", mode="r", shape=(count,)) if count else np.zeros(0, np.int16)


def _checked(report: Report, cancelled: Callable[[], bool]) -> Report:
    def step(stage: str, fraction: float) -> None:
        if cancelled():
            raise Cancelled("The job was cancelled.")
        report(stage, fraction)

    return step


def _segment(window: Window, decoded: Decoded, options: TranscribeOptions) -> dict[str, Any]:
    return {
        "start": round(window.start, 3),
        "end": round(window.end, 3),
        "text": decoded.text,
        "tokens": list(decoded.tokens),
        "temperature": options.temperature,
        "avg_logprob": round(decoded.avg_logprob, 4),
        "compression_ratio": round(decoded.compression_ratio, 3),
        "no_speech_prob": round(decoded.no_speech_prob, 4),
    }
