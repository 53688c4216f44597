"""One transcription, start to end: memory map → VAD → windows → batches → alignment → result.

A job's own thread computes next to nothing: what takes time is done by the runners that all jobs share
(:mod:`app.engine.runners`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from app import heap
from app.engine import gpu
from app.engine.alignment import Aligner
from app.engine.asr import Decoded, WindowModel
from app.engine.attention import Spoken
from app.engine.batch import Piece, Speech, recognise
from app.engine.devices import align_device
from app.engine.lease import Lease, Stopped, Unit
from app.engine.models import load
from app.engine.runners import Runners, is_express
from app.engine.sharing import Sharing
from app.engine.vad import RATE, PyannoteVad, Window, find_windows
from app.errors import Cancelled
from app.jobs import TranscribeOptions
from app.work import DeviceMemory, Task, WorkerSetup

Report = Callable[[str, float], None]


def create(setup: WorkerSetup) -> Pipeline:
    """Entry for :mod:`app.pool.worker`."""
    return gpu.on_its_device(Pipeline, setup)


class Pipeline:
    """One loaded model; :meth:`transcribe` may run in several threads at once."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.device_memory: DeviceMemory | None = None
        self._model: WindowModel
        torch.set_num_threads(setup.threads)
        self._model, self.device, self._setup = load(setup)
        self._counted = setup.runners / self._setup.runners
        setup = self._setup
        torch.set_num_threads(setup.threads)
        self.chosen = _shown(self._model, setup)
        self._aligner = Aligner(setup, align_device(setup.align_device, self.device))
        self._pyannote = PyannoteVad(self.device)
        at_once = setup.runners, setup.batch_size, setup.batch_wait_s
        self._sharing = {long: Sharing() for long in (False, True)}
        self._runners: Runners[Piece] = Runners(
            self._recognise_batch, *at_once, express=self.device == "cpu", on_rest=heap.Keeper().settle
        )
        self._warm_up()

    def transcribe(self, task: Task, report: Report, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """The result as plain JSON values, as :meth:`app.formats.Transcript.to_dict` has them, and what it took in ``spent``.

        Raises:
            Cancelled: ``cancelled()`` became true; it is asked after every step, and while the job waits for its turn.
            AlignerUnavailable: word times were asked for and cannot be had.
        """
        options = task.options
        pcm = _map_pcm(task)
        checked = _checked(report, cancelled)
        try:
            with self._runners.lease(cancelled, task.batch_size) as lease:
                speech, segments = self._segments(lease, pcm, options, checked)
        except Stopped:
            raise Cancelled("The job was cancelled.") from None
        except RuntimeError as error:
            gpu.raise_if_lost(error)
            raise
        return {
            "task": options.task,
            "model": options.model,
            "language": speech.language,
            "language_probability": speech.probability,
            "duration": round(len(pcm) / RATE, 3),
            "segments": [{**segment, "id": number} for number, segment in enumerate(segments)],
            "spent": self._spent(lease),
        }

    def _spent(self, lease: Lease[Piece]) -> dict[str, Any]:
        """Seconds of as many runners as the server counts with; where there are fewer, each is worth more of them."""
        return asdict(lease.spent) | {"seconds": lease.spent.seconds * self._counted}

    def _warm_up(self) -> None:
        """One silent window, so that the first job neither waits for nor is billed for what is made at first use."""
        silence = np.zeros(RATE, np.int16)
        options = TranscribeOptions(self._setup.model, language="en")
        with self._runners.lease(lambda: False) as lease:
            find_windows(silence, options.vad, self._pyannote, lambda done: None, lease.calls)
            self._recognise(lease, [Window(0.0, 1.0)], Speech(silence, options, "en"), lambda stage, done: None)

    def _segments(
        self, lease: Lease[Piece], pcm: np.ndarray, options: TranscribeOptions, report: Report
    ) -> tuple[Speech, list[dict[str, Any]]]:
        """What was found out of the recording, and its segments."""
        windows = find_windows(pcm, options.vad, self._pyannote, lambda done: report("vad", done), lease.calls)
        speech = Speech(pcm, options, options.language)
        segments = self._recognise(lease, windows, speech, report)
        if options.word_timestamps == "aligned":
            segments = self._align(lease, pcm, segments, speech.language, report)
        return speech, segments

    def _recognise_batch(self, units: Sequence[Unit[Piece]]) -> list[Decoded]:
        """One batch. On a CPU recordings of several windows share what is encoded; a clip must not wait for others' windows."""
        pieces, jobs = [unit.window for unit in units if unit.window is not None], [unit.job for unit in units]
        shares = self.device == "cpu" and all(job.brought > 1 for job in jobs) and not is_express()
        sharing, most = self._sharing[jobs[0].long] if shares else None, min(job.size for job in jobs)
        run = partial(
            recognise,
            self._model,
            give_way=self._runners.give_way,
            sharing=sharing,
            size=lambda: 0 if self._runners.awaited() else most,
        )
        return gpu.halving(run, pieces)

    def _recognise(self, lease: Lease[Piece], windows: list[Window], speech: Speech, report: Report) -> list[dict[str, Any]]:
        """Segments of all windows; where the language is not known, the first window tells it to the others."""
        told = partial(self._runners.release, lease) if len(windows) > 1 else None
        pieces = [Piece(speech, window, told) for window in windows]
        segments: list[dict[str, Any]] = []
        for number, decoded in enumerate(lease.windows(pieces, hold=speech.language is None), 1):
            if not decoded.silent and decoded.text.strip():
                segments.append(_segment(windows[number - 1], decoded, speech.options))
            report("transcribe", number / len(windows))
        return segments

    def _align(
        self, lease: Lease[Piece], pcm: np.ndarray, segments: list[dict[str, Any]], language: str | None, report: Report
    ) -> list[dict[str, Any]]:
        calls = [partial(self._aligner.align, pcm, segment, language or "en") for segment in segments]
        aligned: list[dict[str, Any]] = []
        for number, sentences in enumerate(lease.calls(calls), 1):
            aligned += sentences
            report("align", number / len(segments))
        return aligned


def _shown(model: WindowModel, setup: WorkerSetup) -> dict[str, Any]:
    """What was chosen for the model, and why, as ``/models`` shows it."""
    encoder, decoder, arranged = model.choice, model.decoder_choice, model.arrangement_choice
    return {
        "encoder": encoder.shown() if encoder else None,
        "decoder": decoder.shown("log_probability_differences") if decoder else None,
        "arrangement": {
            "runners": setup.runners,
            "threads": setup.threads,
            "seconds_per_window": arranged.shown()["seconds_per_window"] if arranged else {},
        },
    }


def _map_pcm(task: Task) -> np.ndarray:
    """The whole samples, mapped: nothing is read before it is used. An empty file cannot be mapped."""
    path, start, length = task.pcm_path, task.pcm_start, task.pcm_bytes
    count = (os.path.getsize(path) - start if length is None else length) // 2
    return np.memmap(path, dtype="<i2", mode="r", offset=start, shape=(count,)) if count else np.zeros(0, np.int16)


def _checked(report: Report, cancelled: Callable[[], bool]) -> Report:
    def step(stage: str, fraction: float) -> None:
        if cancelled():
            raise Cancelled("The job was cancelled.")
        report(stage, fraction)

    return step


def _segment(window: Window, decoded: Decoded, options: TranscribeOptions) -> dict[str, Any]:
    segment = {
        "start": round(window.start, 3),
        "end": round(window.end, 3),
        "text": decoded.text,
        "tokens": list(decoded.tokens),
        "temperature": options.temperature,
        "avg_logprob": round(decoded.avg_logprob, 4),
        "compression_ratio": round(decoded.compression_ratio, 3),
        "no_speech_prob": round(decoded.no_speech_prob, 4),
    }
    if decoded.words is None:
        return segment
    return segment | {"words": [_word(window, word) for word in decoded.words]}


def _word(window: Window, word: Spoken) -> dict[str, Any]:
    start, end = (round(min(window.start + edge, window.end), 3) for edge in (word.start, word.end))
    return {"word": word.word, "start": start, "end": end, "score": word.score}
