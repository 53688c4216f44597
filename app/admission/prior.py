"""What a job and a worker take by the shipped table, before anything is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from app.admission import table
from app.catalogue import MODELS

WINDOW_S = 30.0
MAX_AUDIO_S = 1e7
"""Above it a length is taken for this one, so that no arithmetic overflows."""

Parts = tuple[float, float, float]


@dataclass(frozen=True)
class Work:
    """What decides the price of a job. ``audio_s``: length of the audio; ``chunk_s``: longest window; both in seconds.

    ``word_timestamps`` is "", fast or aligned; ``vad`` is silero, pyannote or none.
    """

    model: str
    compute_type: str
    device: str
    audio_s: float
    chunk_s: float = WINDOW_S
    word_timestamps: str = ""
    vad: str = "silero"
    beam_size: int = 5


@dataclass(frozen=True)
class Batches:
    """What a worker has at work at once: ``calls`` of the engine, with ``windows`` in all of them together."""

    calls: int
    windows: int

    @property
    def size(self) -> int:
        """Windows of one call."""
        return self.windows // self.calls


@dataclass(frozen=True)
class Cost:
    """The price of one job in a worker that is at work already.

    ``bytes``: what it takes beside the batches that all jobs of the worker share. ``seconds``: of one engine call at a time.
    """

    bytes: int
    seconds: float
    audio_s: float


@dataclass(frozen=True)
class Footprint:
    """One worker process beside the shared base: bytes once loaded, bytes at the peak of loading, seconds until ready."""

    resident_bytes: int
    load_peak_bytes: int
    load_s: float


def audio_s_of(work: Work) -> float:
    """The length of the audio as a number that can be computed with: 0 for NaN and for less than nothing."""
    return min(work.audio_s, MAX_AUDIO_S) if work.audio_s > 0 else 0.0


def windows_of(work: Work) -> int:
    """How many windows the audio has if there is speech all through: at least one."""
    longest = min(max(work.chunk_s, 1.0), WINDOW_S) if work.chunk_s > 0 else WINDOW_S
    return max(1, math.ceil(audio_s_of(work) / longest))


def job_bytes(work: Work) -> float:
    """Bytes of a job at its peak that no other job shares: mapped audio, results, pyannote, beams beyond five."""
    vad, minutes = _vad(work.vad), audio_s_of(work) / 60
    total = table.JOB_BYTES + vad["minute"] * minutes + (vad["bytes"] if work.vad == "pyannote" else 0)
    return total + _model(work.model)["slot"] * max(0.0, _beam(work.beam_size) - 1.0)


def batch_bytes(model: str, batches: Batches, device: str = "cpu") -> float:
    """Bytes of the host that a worker takes for its engine calls, over what it keeps when idle, however many jobs share them.

    A call recognises a batch, or aligns a segment, or finds the speech in a block. On a GPU (:func:`gpu_bytes`) little is left
    here: the alignment may run on the CPU all the same.
    """
    row, windows = _model(model), max(batches.calls, batches.windows)
    if (window := table.device_row(device).get("window")) is not None:
        return batches.calls * (_alignment(model)["bytes"] + table.VAD["silero"]["bytes"]) + windows * window + table.FREED
    one = max(row["first"], _alignment(model)["bytes"]) - row["slot"] + table.VAD["silero"]["bytes"]
    return batches.calls * one + windows * row["slot"] + table.FREED


def job_seconds(work: Work) -> Parts:
    """Seconds of one stream in three parts: set-up, what goes with the windows, what goes with the length."""
    speed = table.device_row(work.device)["speed"]
    window_s = _model(work.model)["window_s"] * _beam(work.beam_size) / speed
    window_s *= table.compute(work.compute_type, work.device)["seconds"]
    # Silero runs on the CPU whatever the device is.
    vad_s = _vad(work.vad)["seconds"] / (speed if work.vad == "pyannote" else 1.0)
    window_s *= 1.0 + (table.FAST_WORDS if work.word_timestamps == "fast" else 0.0)
    align_s = _alignment(work.model)["seconds"] / speed if work.word_timestamps == "aligned" else 0.0
    return table.SET_UP_S, windows_of(work) * window_s, audio_s_of(work) * (vad_s + align_s)


def footprint(model: str, compute_type: str, device: str) -> Footprint:
    """One worker. Where the table has no figure, the catalogue's RAM figure stands in for it."""
    row, scale = _model(model), table.compute(compute_type, device)["weights"]
    resident = row["resident"]
    if not table.family(model) and model in MODELS:
        resident = MODELS[model].ram_bytes
    resident += row["weights"] * (scale - 1) + table.device_row(device)["resident"]
    return Footprint(int(resident), int(resident + row["weights"] * scale), row["load_s"])


def gpu_bytes(model: str, compute_type: str, stages: bool) -> tuple[int, int]:
    """What a worker takes of a GPU: for itself, and for each window that is at work; a whole batch goes through the encoder.

    ``stages``: alignment and pyannote run on it too.
    """
    row, scale = _model(model), table.compute(compute_type, "cuda")["weights"]
    fixed = table.GPU["context"] + row["weights"] * scale + (table.GPU["stages"] if stages else 0)
    return int(fixed), int(row["first"] + row["slot"])


def _model(model: str) -> dict[str, float]:
    return table.MODELS[table.family(model) or "large"]  # The dearest: a guess that is too low kills a worker.


def _alignment(model: str) -> dict[str, float]:
    return table.ALIGNMENT["demo" if model == "demo" else "real"]


def _vad(method: str) -> dict[str, float]:
    return table.VAD.get(method, table.VAD["pyannote"])


def _beam(size: int) -> float:
    return table.BEAM["fixed"] + table.BEAM["per_beam"] * min(max(size, 1), 100)
