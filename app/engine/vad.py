"""Voice activity detection, and the cutting of speech into windows of at most 30 s.

Default: Silero v6 (ONNX, inside faster-whisper), about ten times faster on a CPU than WhisperX's pyannote model, which is
the option. Windows are made by WhisperX's ``merge_chunks`` (Bain et al. 2023, "WhisperX: Time-Accurate Speech
Transcription of Long-Form Audio", section 3.2).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from faster_whisper.vad import VadOptions as SileroOptions
from faster_whisper.vad import get_speech_timestamps
from whisperx.diarize import Segment as Speech
from whisperx.vads import Pyannote, Vad

from app.engine import silero
from app.engine.silero import Calls, floats
from app.jobs import VadOptions

RATE = 16_000
BLOCK_S = 300
SHARED_S = 60
"""Blocks that are longer are looked through by several runners at once."""
WINDOW_S = 30.0


@dataclass(frozen=True)
class Window:
    """A stretch of audio with speech in it, at most 30 s: seconds from the start of the file."""

    start: float
    end: float


def samples(pcm: np.ndarray, start_s: float, end_s: float) -> np.ndarray:
    """Float32 samples in [-1, 1] of a stretch of s16 PCM; only this stretch is read from the map."""
    return floats(pcm[int(start_s * RATE) : int(end_s * RATE)])


def find_windows(
    pcm: np.ndarray, options: VadOptions, pyannote: PyannoteVad, progress: Callable[[float], None], calls: Calls
) -> list[Window]:
    """The windows of a file, in order; empty where there is no speech. ``calls`` runs what takes time."""
    chunk_s = min(options.chunk_s, WINDOW_S)
    if len(pcm) == 0:
        return []
    if options.method == "none":
        length = len(pcm) / RATE
        return [Window(start, min(start + chunk_s, length)) for start in np.arange(0.0, length, chunk_s).tolist()]
    if options.method == "pyannote":
        (merged,) = calls([lambda: pyannote.merged(pcm, options, chunk_s)])
    else:
        speech = [Speech(start, end, "UNKNOWN") for start, end in _silero(pcm, options, chunk_s, progress, calls)]
        # merge_chunks of the base class raises IndexError on an empty list
        merged = Vad.merge_chunks(speech, chunk_s, options.onset, options.offset) if speech else []
    return [Window(float(w["start"]), min(float(w["end"]), float(w["start"]) + WINDOW_S)) for w in merged]


def _silero(
    pcm: np.ndarray, options: VadOptions, chunk_s: float, progress: Callable[[float], None], calls: Calls
) -> Iterator[tuple[float, float]]:
    """Speech as (start, end) in seconds.

    A long file goes through in blocks, so that it is never in memory as a whole. A block is cut before the speech that
    touches its end, and the next one starts there: no word is cut by a block.
    """
    settings = silero_options(options, chunk_s)
    total = len(pcm)
    start = 0
    while start < total:
        stop = min(start + BLOCK_S * RATE, total)
        found = speech_in(pcm[start:stop], settings, calls)
        following = stop
        if stop < total and found and found[-1]["end"] >= stop - start - RATE and found[-1]["start"] > 0:
            following = start + found.pop()["start"]
        for speech in found:
            yield (start + speech["start"]) / RATE, (start + speech["end"]) / RATE
        start = following
        progress(start / total)


def silero_options(options: VadOptions, chunk_s: float) -> SileroOptions:
    """What Silero is told for stretches of speech of at most ``chunk_s`` seconds."""
    return SileroOptions(
        threshold=options.onset,
        neg_threshold=min(options.offset, options.onset),
        min_silence_duration_ms=int(options.min_silence_s * 1000),
        speech_pad_ms=int(options.speech_pad_s * 1000),
        max_speech_duration_s=chunk_s,
    )


def speech_in(block: np.ndarray, settings: SileroOptions, calls: Calls) -> list[dict[str, int]]:
    """Speech of a block from ``start`` to ``end``, in samples.

    Runners may share a long block: then this thread does what is not the network, a tenth of the time.
    """
    network = silero.install()
    if len(block) > SHARED_S * RATE:
        with network.shared(calls) as shared:
            if shared:
                return list(get_speech_timestamps(block, settings))
    (found,) = calls([partial(get_speech_timestamps, block, settings)])
    return list(found)


class PyannoteVad:
    """WhisperX's default VAD, loaded when it is first asked for. One file at a time: its pipeline keeps state."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._model: Any = None

    def merged(self, pcm: np.ndarray, options: VadOptions, chunk_s: float) -> list[dict[str, Any]]:
        """Windows as ``merge_chunks`` gives them."""
        import torch

        with self._lock:
            if self._model is None:
                self._model = Pyannote(torch.device(self._device), vad_onset=options.onset, vad_offset=options.offset)
            waveform = Pyannote.preprocess_audio(samples(pcm, 0, len(pcm) / RATE))
            scores = self._model({"waveform": waveform, "sample_rate": RATE})
        merged: list[dict[str, Any]] = Pyannote.merge_chunks(scores, chunk_s, onset=options.onset, offset=options.offset)
        return merged
