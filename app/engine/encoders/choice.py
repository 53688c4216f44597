"""Which encoder is used: the fastest on this machine of those that are near enough to float32.

Measured when a model is loaded for the first time, and kept for the next times.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import openvino

from app import cpu
from app.engine.encoders.graph import Graph, Numbers
from app.engine.encoders.int8 import DynamicInt8, FloatAttention, Int8, Range, group_size
from app.engine.encoders.runtime import FLOAT32, Encoder, observe, uses_bfloat16
from app.engine.encoders.weights import Weights

log = logging.getLogger("stenopool.engine")

CTRANSLATE2, INT8, DYNAMIC, FLOAT = "ctranslate2", "openvino_int8", "openvino_int8_dynamic", "openvino_float"
FLOAT_ATTENTION = "openvino_int8_dynamic_float_attention"
"""Tried where the other dynamic one is not exact enough."""
IN_FLOAT32 = "_float32"
"""Ends the names of those int8 encoders whose attention is told to be float32, where it would be bfloat16."""
TRIED = 2
"""Windows that errors and times are measured on; no ranges are taken from them."""
SLOW_S = 1.0
"""Seconds of a call that need not be repeated: what disturbs it is small beside it."""
LEAST_WINDOWS, ENOUGH_S = 5, 15.0
"""Windows to calibrate with at least, and seconds that more of them may take."""
SLOWEST_S = 20.0
"""Seconds of CTranslate2's call above which nothing is calibrated, which would take minutes: what needs no ranges is tried."""
MARGIN = 0.9
"""Another encoder than CTranslate2's must take less than this share of its time."""
AS_FAST = 1.15
"""Of encoders that take up to so many times the fastest one's time, the most exact one is used."""
MOST_ERROR, TIMES_ERROR = 0.03, 1.5
"""Relative error against float32 that is always fine; beyond it, at most so many times CTranslate2's own."""

Encode = Callable[[np.ndarray], np.ndarray]
Timed = tuple[list[np.ndarray], float]
T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """The encoder's name, and what each one tried took (seconds per window) and missed (relative error to float32)."""

    name: str
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict, repr=False)

    def shown(self, errors: str = "relative_errors") -> dict[str, Any]:
        """As ``/models`` shows it: JSON values, rounded. ``errors``: what they are called there."""
        figures = {"seconds_per_window": self.seconds, errors: self.errors}
        return {"name": self.name} | {
            what: {name: float(f"{value:.3g}") if math.isfinite(value) else None for name, value in found.items()}
            for what, found in figures.items()
        }


@dataclass(frozen=True)
class Machine:
    """What encoders run with: engine calls at once, threads of each, CTranslate2's compute type."""

    calls: int
    threads: int
    compute_type: str

    @property
    def candidates(self) -> tuple[str, ...]:
        """OpenVINO's encoders that round no more than the compute type does; the most exact one last."""
        return (INT8, DYNAMIC) if self.compute_type.startswith("int8") else (FLOAT,)

    @property
    def ends(self) -> tuple[str, ...]:
        """Of the candidates' names: whether what they do not round to int8 is tried in float32 too."""
        return ("", IN_FLOAT32) if self.compute_type.startswith("int8") and uses_bfloat16() else ("",)


def build(name: str, weights: Weights, ranges: dict[str, Range]) -> openvino.Model:
    """The graph of one of OpenVINO's encoders."""
    numbers: dict[str, Callable[[], Numbers]] = {
        INT8: lambda: Int8(ranges),
        DYNAMIC: DynamicInt8,
        FLOAT_ATTENTION: FloatAttention,
        FLOAT: Numbers,
    }
    return Graph(weights, numbers[name.removesuffix(IN_FLOAT32)]()).whole()


def run(name: str, model: openvino.Model, machine: Machine) -> Encoder:
    """What :func:`build` gave, ready to be called."""
    width = model.output(0).partial_shape[-1].get_length()
    dynamic = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group_size(width))}
    options: dict[str, dict[str, str]] = {
        INT8: {},
        DYNAMIC: dynamic,
        FLOAT_ATTENTION: dynamic,
        FLOAT: FLOAT32 if machine.compute_type == "float32" else {},
    }
    precision = FLOAT32 if name.endswith(IN_FLOAT32) else {}
    return Encoder(model, machine.calls, machine.threads, options[name.removesuffix(IN_FLOAT32)] | precision)


def choose(weights: Weights, own: Timed, mels: Sequence[np.ndarray], machine: Machine, *, forced: bool = False) -> Choice:
    """Measure all encoders that may be used.

    ``own``: what CTranslate2's made of the last windows, which is out where another one is ``forced``. ``mels``: windows of
    sound, (mels, 3000) each; the last of them show errors and times.
    """
    tried, (outputs, took) = mels[-TRIED:], own
    windows = min(len(mels) - TRIED, max(LEAST_WINDOWS, int(ENOUGH_S / took)))
    candidates = machine.candidates
    if took > SLOWEST_S:
        windows, candidates = 0, candidates[-1:]
    ranges, exact = observe(weights, [*mels[:windows], *tried], windows, machine.calls * machine.threads)
    seconds, errors = {CTRANSLATE2: took}, {CTRANSLATE2: _error(outputs, exact)}
    ends = machine.ends

    def measure(name: str) -> None:
        nonlocal ends
        model = build(name, weights, ranges)
        for end in ends:
            outputs, seconds[name + end] = timed(run(name + end, model, machine).encode, tried)
            errors[name + end] = _error(outputs, exact)
        ends = (min(ends, key=lambda end: seconds[name + end]),)  # what is faster for one is so for the others

    for name in reversed(candidates):
        measure(name)
    rounded = DYNAMIC in candidates and cpu.multiplies_int8()  # otherwise it has that already
    if rounded and not any(name.startswith(DYNAMIC) for name in exact_enough(errors)):
        ends = machine.ends  # attention in float is another question
        measure(FLOAT_ATTENTION)
    choice = Choice(fastest(seconds, errors, forced=forced), seconds, errors)
    log.info("encoder: %s; seconds per window: %s; relative errors: %s", choice.name, _shown(seconds), _shown(errors))
    return replace(choice, ranges=ranges) if choice.name.removesuffix(IN_FLOAT32) == INT8 else choice


def fastest(seconds: dict[str, float], errors: dict[str, float], *, forced: bool = False) -> str:
    """The name of the best one; CTranslate2's where no other one is exact enough, and clearly faster or ``forced``."""
    exact = {name: seconds[name] for name in exact_enough(errors)}
    as_fast = [name for name, took in exact.items() if took <= AS_FAST * min(exact.values())]
    best = min(as_fast, key=lambda name: errors[name], default=CTRANSLATE2)
    return best if forced or seconds[best] < MARGIN * seconds[CTRANSLATE2] else CTRANSLATE2


def exact_enough(errors: dict[str, float]) -> list[str]:
    """Which of OpenVINO's encoders may be used."""
    allowed = max(MOST_ERROR, TIMES_ERROR * errors[CTRANSLATE2])
    return [name for name, error in errors.items() if name != CTRANSLATE2 and error <= allowed]


def timed(encode: Encode, mels: Sequence[np.ndarray]) -> Timed:
    """The outputs for the last windows of ``mels``, and the least time of a call but for the first."""
    mels = mels[-TRIED:]
    outputs, seconds = least_time([partial(encode, mel) for mel in [*mels, *mels[:1]]])
    return outputs[: len(mels)], seconds


def least_time(calls: Sequence[Callable[[], T]]) -> tuple[list[T], float]:
    """What at least two calls give, and the least seconds of one but for the first, which makes what is made once.

    The least, because what else the machine does only ever adds. After a slow one that counts none follows.
    """
    results, taken = [calls[0]()], []
    for call in calls[1:]:
        began = time.perf_counter()
        results.append(call())
        taken.append(time.perf_counter() - began)
        if taken[-1] > SLOW_S:
            break
    return results, min(taken)


def _error(outputs: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
    if not all(np.isfinite(found).all() for found in outputs):
        return math.inf
    pairs = zip(outputs, exact, strict=True)
    return max(float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)) for found, wanted in pairs)


def _shown(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {figure:.4f}" for name, figure in figures.items())
