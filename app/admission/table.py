"""The shipped figures of the cost model: what a job and a worker take before anything was measured here. Edit freely.

Bytes are host memory. Seconds are those of one stream with one thread on a 2-core Xeon (AVX-512 VNNI), int8, beam 5. What a
server learns, it learns as ratios to these figures, so measurements that were saved beside other figures are dropped.
"""

from __future__ import annotations

import hashlib

MB = 1_000_000

MODELS: dict[str, dict[str, float]] = {
    # resident: one loaded worker beside the shared base, int8. weights: the int8 model alone (demo's: with its aligner);
    # loading holds them once more.
    # load_s: from start to ready, nothing to download. first: the first window of an engine call, with the encoder's working
    # set; slot: each further one, which only the decoder holds. window_s: one window padded to 30 s.
    # resident and weights of all but medium and large were measured (benchmarks/memory.py); the rest is in proportion.
    # OpenVINO's decoder, where it is chosen, is in resident: beside CTranslate2's tiny takes 110 MB more, small 290.
    "demo": {"resident": 105 * MB, "weights": 60 * MB, "load_s": 1.0, "first": 60 * MB, "slot": 8 * MB, "window_s": 0.15},
    "tiny": {"resident": 270 * MB, "weights": 105 * MB, "load_s": 1.0, "first": 125 * MB, "slot": 25 * MB, "window_s": 1.0},
    "base": {"resident": 350 * MB, "weights": 157 * MB, "load_s": 1.0, "first": 140 * MB, "slot": 45 * MB, "window_s": 1.9},
    "small": {"resident": 640 * MB, "weights": 320 * MB, "load_s": 2.0, "first": 220 * MB, "slot": 130 * MB, "window_s": 6.0},
    "medium": {
        "resident": 1500 * MB,
        "weights": 800 * MB,
        "load_s": 6.0,
        "first": 300 * MB,
        "slot": 320 * MB,
        "window_s": 17.0,
    },
    "turbo": {"resident": 1250 * MB, "weights": 730 * MB, "load_s": 6.0, "first": 330 * MB, "slot": 80 * MB, "window_s": 17.0},
    "large": {
        "resident": 2800 * MB,
        "weights": 1600 * MB,
        "load_s": 12.0,
        "first": 330 * MB,
        "slot": 520 * MB,
        "window_s": 30.0,
    },
}

ALIGNMENT: dict[str, dict[str, float]] = {
    # Working set of one segment, during which the engine call has no batch, and seconds per second of audio; the aligner
    # itself is in the resident figure.
    "demo": {"bytes": 50 * MB, "seconds": 0.02},
    "real": {"bytes": 100 * MB, "seconds": 0.08},
}

FAST_WORDS = 0.1
"""Time of the words' times out of the model's own attention, as a share of the window's."""

VAD: dict[str, dict[str, float]] = {
    # minute: bytes per minute of audio, of any length: mapped pages, which the kernel can take back, so only a part of
    # them; pyannote holds the whole file as float32, twice. seconds: per second of audio.
    "silero": {"bytes": 16 * MB, "minute": 0.5 * MB, "seconds": 0.004},
    "pyannote": {"bytes": 250 * MB, "minute": 8 * MB, "seconds": 0.05},
    "none": {"bytes": 8 * MB, "minute": 0.5 * MB, "seconds": 0.0},
}

FREED = 64 * MB
"""What earlier windows freed and the allocator keeps until the worker is idle: up to the trim threshold of decision 10."""

JOB_BYTES = 1 * MB
"""A job's windows, texts and messages."""

COMPUTE: dict[str, dict[str, float]] = {
    # Size of the weights and time of a window on a CPU, both relative to int8. A slot's activations hardly differ.
    "int8": {"weights": 1.0, "seconds": 1.0},
    "int8_float32": {"weights": 1.0, "seconds": 1.0},
    "int8_float16": {"weights": 1.0, "seconds": 1.0},
    "int8_bfloat16": {"weights": 1.0, "seconds": 1.0},
    "int16": {"weights": 2.0, "seconds": 1.1},
    "float16": {"weights": 2.0, "seconds": 1.2},
    "bfloat16": {"weights": 2.0, "seconds": 1.2},
    "float32": {"weights": 3.5, "seconds": 1.2},
}

DEVICES: dict[str, dict[str, float]] = {
    # speed: windows, alignment and pyannote, relative to one CPU thread. resident: what the runtime takes on the host.
    # window: what a window at work takes of the host where the model is elsewhere: features, and the encoder's output twice.
    # The CUDA row is a guess that nothing was measured for.
    "cpu": {"speed": 1.0, "resident": 0},
    "cuda": {"speed": 15.0, "resident": 1500 * MB, "window": 25 * MB},
}

GPU: dict[str, float] = {
    # Memory of the device itself: the contexts of CTranslate2 and torch; an aligner and pyannote, loaded when first asked for.
    # All of it is a guess that nothing was measured for, on the high side. Nothing is learned beside it.
    "context": 700 * MB,
    "stages": 1500 * MB,
}

SET_UP_S = 0.05
BEAM = {"fixed": 0.6, "per_beam": 0.08}
"""Time of a window relative to beam 5: the encoder does not care, the decoder does."""

AUTO = {"cpu": "int8", "cuda": "float16"}


def family(model: str) -> str:
    """The row of ``MODELS`` for ``model``; "" where there is none."""
    name = model.removesuffix(".en")
    if name == "large-v3-turbo":
        return "turbo"
    name = "large" if name.startswith("large-v") else name
    return name if name in MODELS else ""


def compute(compute_type: str, device: str) -> dict[str, float]:
    """The row of ``COMPUTE``; the dearest one for a type that is not known."""
    name = AUTO.get(device, "int8") if compute_type in ("auto", "default") else compute_type
    return COMPUTE.get(name, COMPUTE["float32"])


def device_row(device: str) -> dict[str, float]:
    """The row of ``DEVICES``; the CPU's for a device that is not known."""
    return DEVICES.get(device, DEVICES["cpu"])


def fingerprint() -> str:
    """Changes with every figure above but those of ``GPU``."""
    figures = (MODELS, ALIGNMENT, FAST_WORDS, VAD, FREED, JOB_BYTES, COMPUTE, DEVICES, SET_UP_S, BEAM)
    return hashlib.sha256(repr(figures).encode()).hexdigest()[:16]
