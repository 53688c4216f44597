"""Eight-bit integers: weights per output channel, activations per tensor with the ranges that real log-mels showed.

A few channels of a transformer's activations are far larger than the others. Before each product they are divided by a
factor per channel, and the weights are multiplied by it (SmoothQuant, Xiao et al., ICML 2023, section 4), so that both fit
into eight bits. OpenVINO computes a ``FakeQuantize`` in front of an int8 weight as one int8 product.

Attention's scores are int8 products too, with steps that follow the window at hand, so no ranges are needed: one for each
query, one for all keys of a head. What all keys of a head have in common is taken off first: it adds the same to all scores of
a query, which their softmax does not see, and is most of what would not fit (SageAttention, Zhang et al., ICLR 2025, section
4). The probabilities and the values stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from openvino import opset13 as op

from app import cpu
from app.engine.encoders.graph import Numbers, convolution

ALPHA = 0.95
"""SmoothQuant's migration strength."""
MARGIN = 1.25
"""How far ranges go beyond what was seen: what is cut off costs far more than coarser steps."""
GROUPS = (256, 192, 128, 64, 32)
"""Activations that may share one scale where OpenVINO rounds them while it computes. 256 take a tenth of the time less than 64
and cost a twentieth of the error more; 192 is for the width of tiny."""
_STEPS = 255
_LEAST = 1e-5


@dataclass(frozen=True)
class Range:
    """Least and largest value of each input channel of a layer, (inputs,) each."""

    low: np.ndarray
    high: np.ndarray

    def __or__(self, other: Range) -> Range:
        return Range(np.minimum(self.low, other.low), np.maximum(self.high, other.high))


class Watched(Numbers):
    """Float32; ``bounds`` collects, by layer, the nodes that give the least and the largest value of its inputs."""

    def __init__(self) -> None:
        self.bounds: dict[str, tuple[Any, Any]] = {}

    def product(self, name: str, given: Any, weight: np.ndarray) -> Any:
        """See :class:`Numbers`."""
        self.bounds[name] = op.reduce_min(given, op.constant([0, 1])), op.reduce_max(given, op.constant([0, 1]))
        return super().product(name, given, weight)

    def convolution(self, name: str, given: Any, weight: np.ndarray, stride: int) -> Any:
        """See :class:`Numbers`."""
        self.bounds[name] = op.reduce_min(given, op.constant([0, 2])), op.reduce_max(given, op.constant([0, 2]))
        return super().convolution(name, given, weight, stride)


def group_size(width: int) -> int:
    """The largest of :data:`GROUPS` that divides a layer's inputs; with another one OpenVINO rounds nothing, and is slow."""
    return next((size for size in GROUPS if width % size == 0), GROUPS[-1])


class _Int8Scores(Numbers):
    def attention(self, queries: Any, keys: Any, values: Any) -> Any:
        """See :class:`Numbers`. In float without the instructions: OpenVINO would neither fuse it nor be exact."""
        if not cpu.multiplies_int8():
            return super().attention(queries, keys, values)
        keys = op.subtract(keys, op.reduce_mean(keys, op.constant([2]), True))
        queries, query_scale = within_one(queries, axes=[3])
        keys, key_scale = within_one(keys, axes=[2, 3])
        width = int(values.get_output_partial_shape(0)[3].get_length())
        scale = op.multiply(op.multiply(query_scale, key_scale), op.constant(np.float32(width**-0.5)))
        scores = op.multiply(op.matmul(queries, keys, False, True), scale)
        return op.matmul(op.softmax(scores, 3), values, False, False)


class DynamicInt8(_Int8Scores):
    """Weights in int8. OpenVINO rounds activations while it computes, where it is told to, or leaves them."""

    def product(self, name: str, given: Any, weight: np.ndarray) -> Any:
        """See :class:`Numbers`."""
        return op.matmul(given, int8_constant(weight), False, True)


class FloatAttention(DynamicInt8):
    """For models whose scores do not fit into eight bits."""

    attention = Numbers.attention


class Int8(_Int8Scores):
    """Weights and activations in int8; ``ranges`` by layer."""

    def __init__(self, ranges: dict[str, Range]) -> None:
        self._ranges = ranges

    def product(self, name: str, given: Any, weight: np.ndarray) -> Any:
        """See :class:`Numbers`."""
        seen = self._ranges[name]
        factor = _smoothing(seen, weight)
        smooth = op.multiply(given, op.constant(1 / factor))
        rounded = _rounded(smooth, Range(seen.low / factor, seen.high / factor))
        return op.matmul(rounded, int8_constant(weight * factor), False, True)

    def convolution(self, name: str, given: Any, weight: np.ndarray, stride: int) -> Any:
        """See :class:`Numbers`."""
        return convolution(_rounded(given, self._ranges[name]), int8_constant(weight), stride)


def int8_constant(weight: np.ndarray, across: int | None = None) -> Any:
    """A weight as int8, with one scale for each output. ``across``: the axis of its inputs, if not all but the first."""
    stored, scale = int8_rows(weight, across)
    return op.multiply(op.convert(op.constant(stored), np.float32), op.constant(scale))


def int8_rows(weight: np.ndarray, across: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The same as numbers: the integers, and the scales, which have one place along the axes of the inputs."""
    axes = tuple(range(1, weight.ndim)) if across is None else across
    scale = np.abs(weight).max(axes, keepdims=True).astype(np.float32) / 127
    scale[scale == 0] = 1
    return np.rint(weight / scale).astype(np.int8), scale


def _smoothing(seen: Range, weight: np.ndarray) -> np.ndarray:
    """SmoothQuant's factor of each input channel."""
    given = np.maximum(np.maximum(np.abs(seen.low), np.abs(seen.high)), _LEAST)
    factor: np.ndarray = given**ALPHA / np.maximum(np.abs(weight).max(0), _LEAST) ** (1 - ALPHA)
    return factor.astype(np.float32, copy=False)


def within_one(given: Any, axes: list[int]) -> tuple[Any, Any]:
    """In 255 steps from -1 to 1, and what that must be multiplied by, which is one number along ``axes``."""
    scale = op.maximum(op.reduce_max(op.abs(given), op.constant(axes), True), op.constant(np.float32(_LEAST)))
    bounds = [op.constant(np.float32(bound)) for bound in (-1, 1)]
    return op.fake_quantize(op.divide(given, scale), *bounds, *bounds, _STEPS), scale


def _rounded(given: Any, seen: Range) -> Any:
    """In 256 steps between the least and the largest value seen; zero is one of the steps."""
    low, high = MARGIN * min(0.0, float(seen.low.min())), MARGIN * max(0.0, float(seen.high.max()))
    step = max(high - low, _LEAST) / _STEPS
    zero = round(-low / step)
    bounds = [op.constant(np.float32(bound)) for bound in (-zero * step, (_STEPS - zero) * step)]
    return op.fake_quantize(given, *bounds, *bounds, _STEPS + 1)
