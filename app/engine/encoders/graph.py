"""Whisper's encoder as an OpenVINO model, built operation by operation from a CTranslate2 model's weights.

Nothing is traced or exported, so neither torch nor the original checkpoint is needed (Radford et al. 2022, "Robust Speech
Recognition via Large-Scale Weak Supervision", section 2.2; pre-activation residual blocks, sinusoidal positions). How numbers
are kept is the :class:`Numbers`' business: float32 here, int8 in :mod:`app.engine.encoders.int8`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as op

from app.engine.encoders.weights import Weights

FRAMES = 3000
_EPSILON = 1e-5


class Numbers:
    """Float32 as it is. A layer's ``name`` is that of its variables, without ``encoder/``."""

    def product(self, name: str, given: Any, weight: np.ndarray) -> Any:
        """``given`` (…, inputs) times the transposed ``weight`` (outputs, inputs)."""
        return op.matmul(given, op.constant(weight), False, True)

    def convolution(self, name: str, given: Any, weight: np.ndarray, stride: int) -> Any:
        """``given`` (batch, inputs, time) under ``weight`` (outputs, inputs, 3)."""
        return convolution(given, op.constant(weight), stride)

    def attention(self, queries: Any, keys: Any, values: Any) -> Any:
        """Of all positions to all, (batch, heads, time, width of a head) each."""
        return op.scaled_dot_product_attention(queries, keys, values)


def convolution(given: Any, weight: Any, stride: int) -> Any:
    """Over time, padded by one on both sides."""
    return op.convolution(given, weight, [stride], [1], [1], [1])


class Graph:
    """Its parts, for one kind of numbers. Hidden states are (batch, 1500, width) float32.

    Raises:
        KeyError: a weight is missing: this is not a Whisper model.
    """

    def __init__(self, weights: Weights, numbers: Numbers) -> None:
        self._weights, self._numbers = weights, numbers
        self.mels: int = weights.raw("encoder/conv1/weight").shape[1]
        self._width = weights.raw("encoder/conv1/bias").shape[0]
        self._heads = int(weights.raw("encoder/num_heads"))

    def whole(self) -> openvino.Model:
        """Log-mels (batch, mels, 3000) float32 → encoder output (batch, 1500, width) float32."""
        x = given = op.parameter([-1, self.mels, FRAMES], np.float32, name="mel")
        for part in self._parts():
            x = part(x)
        return openvino.Model([x], [given], "whisper-encoder")

    def stages(self, also: Callable[[], list[Any]]) -> Iterator[openvino.Model]:
        """The same as models that follow each other, so that one layer's weights are in memory at a time.

        Each has one more output for each node that ``also()`` gives once the stage is built.
        """
        shape = [-1, self.mels, FRAMES]
        for part in self._parts():
            given = op.parameter(shape, np.float32)
            yield openvino.Model([part(given), *also()], [given], "whisper-encoder-stage")
            shape = [-1, FRAMES // 2, self._width]

    def _parts(self) -> Iterator[Callable[[Any], Any]]:
        yield self._stem
        layer = 0
        while f"encoder/layer_{layer}/ffn/linear_0/weight" in self._weights:
            yield partial(self._layer, f"layer_{layer}")
            layer += 1
        yield partial(self._norm, "layer_norm")

    def _get(self, name: str) -> np.ndarray:
        return self._weights.float32(f"encoder/{name}")

    def _stem(self, x: Any) -> Any:
        x = self._conv(self._conv(x, "conv1", 1), "conv2", 2)
        x = op.transpose(x, op.constant([0, 2, 1]))
        return op.add(x, op.constant(self._get("position_encodings/encodings")[None, : FRAMES // 2]))

    def _conv(self, x: Any, name: str, stride: int) -> Any:
        x = self._numbers.convolution(name, x, self._get(f"{name}/weight"), stride)
        return op.gelu(op.add(x, op.constant(self._get(f"{name}/bias").reshape(1, -1, 1))), "erf")

    def _layer(self, name: str, x: Any) -> Any:
        return self._feed_forward(f"{name}/ffn", self._attention(f"{name}/self_attention", x))

    def _norm(self, name: str, x: Any) -> Any:
        x = op.mvn(x, op.constant([-1]), True, _EPSILON, "inside_sqrt")
        return op.add(op.multiply(x, op.constant(self._get(f"{name}/gamma"))), op.constant(self._get(f"{name}/beta")))

    def _linear(self, name: str, x: Any) -> Any:
        return op.add(self._numbers.product(name, x, self._get(f"{name}/weight")), op.constant(self._get(f"{name}/bias")))

    def _attention(self, name: str, x: Any) -> Any:
        """Queries, keys and values are one matrix in the file, one behind the other."""
        joined = self._linear(f"{name}/linear_0", self._norm(f"{name}/layer_norm", x))
        shape = op.constant([0, 0, self._heads, self._width // self._heads])
        parts = [op.reshape(part, shape, True) for part in op.split(joined, op.constant(2), 3).outputs()]
        queries, keys, values = (op.transpose(part, op.constant([0, 2, 1, 3])) for part in parts)
        heads = op.transpose(self._numbers.attention(queries, keys, values), op.constant([0, 2, 1, 3]))
        return op.add(x, self._linear(f"{name}/linear_1", op.reshape(heads, op.constant([0, 0, self._width]), True)))

    def _feed_forward(self, name: str, x: Any) -> Any:
        inner = op.gelu(self._linear(f"{name}/linear_0", self._norm(f"{name}/layer_norm", x)), "erf")
        return op.add(x, self._linear(f"{name}/linear_1", inner))
