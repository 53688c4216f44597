"""Whisper's text decoder as two OpenVINO models, built operation by operation from a CTranslate2 model's weights.

The first takes one window's encoder output and gives what every step will look at, keys and values of each layer, in int8. The
second takes a few new tokens of each window of a batch and gives the likeliest next ones (Radford et al. 2022, section 2.2).

Almost all of a step's time goes into reading: the weights, once for all windows, and those keys and values, which are most of
it. In int8 they are a quarter of what CTranslate2 reads. Probabilities times values would lose too much if probabilities were
rounded to eight bits, a long tail of small ones above all; so each goes in as two numbers of eight bits, the second of which is
what the first has left over, in one product.

New tokens look at those before them through a mask, so beams that have a past in common share it: nothing is copied when beams
are reordered (tree attention, Miao et al., SpecInfer, ASPLOS 2024, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as op

from app.engine.encoders.int8 import int8_rows, within_one
from app.engine.encoders.weights import Weights

POSITIONS = 1500
"""Of the encoder's output."""
FIXED = 5
"""Inputs of a step that are not a layer's."""
PER_LAYER = 6
_STEPS = np.float32(255)
NEVER = np.float32(-1000)
"""Added to the logits of words that are never written. Their own are still in there, to a ten-thousandth."""
_ORDERS = [0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3], [0, 2, 1, 3]
_LEAST = np.float32(1e-5)
_EPSILON = 1e-5


@dataclass(frozen=True)
class Sizes:
    """Of a decoder."""

    layers: int
    heads: int
    width: int
    vocabulary: int

    @property
    def head_width(self) -> int:
        """Of each of the heads."""
        return self.width // self.heads


class DecoderGraph:
    """Both models, for the weights of one file. ``bias`` is what is added to the logits (vocabulary,).

    Raises:
        KeyError: a weight is missing: this is not a Whisper model.
    """

    def __init__(self, weights: Weights, never: Sequence[int] = ()) -> None:
        self._weights = weights
        vocabulary, width = weights.raw("decoder/embeddings/weight").shape
        layers = 0
        while f"decoder/layer_{layers}/ffn/linear_0/weight" in weights:
            layers += 1
        self.sizes = Sizes(layers, int(weights.raw("decoder/num_heads")), width, vocabulary)
        self.bias = np.zeros(vocabulary, np.float32)
        self.bias[list(never)] = NEVER
        self._words = self._constants("embeddings/weight")
        tied = weights.same("decoder/projection/weight", "decoder/embeddings/weight")
        self._projection = self._words if tied else self._constants("projection/weight")

    def memory(self) -> openvino.Model:
        """Encoder output (1, 1500, width) → of each layer keys and values, (1, heads, 1500, width of a head) int8, and steps.

        In this order: keys, their steps (1, heads, 1, 1500), values, theirs (1, heads, 1, width of a head).
        """
        encoded = op.parameter([1, POSITIONS, self.sizes.width], np.float32, name="encoded")
        outputs: list[Any] = []
        for layer in range(self.sizes.layers):
            name = f"layer_{layer}/attention/linear_1"
            keys, values = (self._by_heads(self._linear(name, encoded, half)) for half in (0, 1))
            keys = op.subtract(keys, op.reduce_mean(keys, _axes(1), True))  # the same for all: a softmax does not see it
            outputs += [*_stored(keys, 3), *_stored(values, 1)]
        outputs = [
            op.transpose(node, op.constant(order)) for node, order in zip(outputs, _ORDERS * self.sizes.layers, strict=True)
        ]
        return openvino.Model([node.output(0) for node in outputs], [encoded], "whisper-decoder-memory")

    def step(self, candidates: int) -> openvino.Model:
        """New tokens → the likeliest next ones.

        Inputs: ``tokens`` (windows, new) and their ``positions`` (new,) int32; additive masks for ``past`` tokens (windows, 1,
        new, past) and ``among`` the new ones (1, 1, new, new); which of the new ones are ``wanted`` (wanted,) int32; then
        of each layer the past's keys and values (windows, heads, past, width of a head) and what :meth:`memory` gave.
        Outputs: log-probabilities and tokens of the best ``candidates`` (windows, wanted, candidates), the logits with
        ``bias`` (windows, wanted, vocabulary), and the new tokens' keys and values (2 × layers, windows, heads, new, width of
        a head).
        """
        tokens, positions = op.parameter([-1, -1], np.int32), op.parameter([-1], np.int32)
        past, among = op.parameter([-1, 1, -1, -1], np.float32), op.parameter([1, 1, -1, -1], np.float32)
        wanted = op.parameter([-1], np.int32)
        inputs = [tokens, positions, past, among, wanted]
        x, made = self._embedded(tokens, positions), []
        for layer in range(self.sizes.layers):
            shape = [-1, self.sizes.heads, -1, self.sizes.head_width]
            own = [op.parameter(shape, np.float32) for _ in range(2)]
            inputs += own
            x, keys, values = self._self_attention(f"layer_{layer}/self_attention", x, own, past, among)
            made += [op.unsqueeze(node, _axes(0)) for node in (keys, values)]
            memory = self._memory_inputs()
            inputs += memory
            x = self._cross_attention(f"layer_{layer}/attention", x, memory)
            x = self._feed_forward(f"layer_{layer}/ffn", x)
        x = self._norm("layer_norm", op.gather(x, wanted, op.constant(1)))
        logits = op.add(op.matmul(x, _int8(*self._projection), False, True), op.constant(self.bias))
        best = op.topk(logits, op.constant(np.int32(candidates)), 2, "max", "value")
        most = op.gather(best.output(0), _axes(0), op.constant(2))
        total = op.reduce_sum(op.exp(op.subtract(logits, most)), _axes(2), True)
        scores = op.subtract(best.output(0), op.add(op.log(total), most))
        outputs = [scores.output(0), best.output(1), logits.output(0), op.concat(made, 0).output(0)]
        return openvino.Model(outputs, inputs, "whisper-decoder-step")

    def _memory_inputs(self) -> list[Any]:
        values = [-1, self.sizes.heads, POSITIONS, self.sizes.head_width]
        steps = [-1, self.sizes.heads, 1, POSITIONS], [-1, self.sizes.heads, 1, self.sizes.head_width]
        return [op.parameter(*both) for shape in steps for both in ((values, np.int8), (shape, np.float32))]

    def _embedded(self, tokens: Any, positions: Any) -> Any:
        rows = [op.gather(part, tokens, op.constant(0)) for part in self._words]
        where = op.gather(op.constant(self._get("position_encodings/encodings")), positions, op.constant(0))
        return op.add(_int8(*rows), where)

    def _self_attention(self, name: str, x: Any, own: list[Any], past: Any, among: Any) -> tuple[Any, Any, Any]:
        joined = self._linear(f"{name}/linear_0", self._norm(f"{name}/layer_norm", x))
        queries, keys, values = (self._split_heads(part) for part in op.split(joined, op.constant(2), 3).outputs())
        queries = op.multiply(queries, op.constant(np.float32(self.sizes.head_width**-0.5)))
        before = op.add(op.matmul(queries, own[0], False, True), past)
        here = op.add(op.matmul(queries, keys, False, True), among)
        lengths = [op.gather(op.shape_of(one), _axes(2), op.constant(0)) for one in (own[0], keys)]
        parts = op.variadic_split(op.softmax(op.concat([before, here], 3), 3), op.constant(3), op.concat(lengths, 0)).outputs()
        seen = op.add(op.matmul(parts[0], own[1], False, False), op.matmul(parts[1], values, False, False))
        return op.add(x, self._linear(f"{name}/linear_1", self._join_heads(seen))), keys, values

    def _cross_attention(self, name: str, x: Any, memory: list[Any]) -> Any:
        queries = self._split_heads(self._linear(f"{name}/linear_0", self._norm(f"{name}/layer_norm", x)))
        keys, key_steps, values, value_steps = memory
        queries, step = within_one(queries, axes=[3])
        scale = op.multiply(step, op.constant(np.float32(self.sizes.head_width**-0.5)))
        scores = op.multiply(op.multiply(op.matmul(queries, _restored(keys), False, True), key_steps), scale)
        most = op.subtract(op.reduce_max(scores, _axes(3), True), op.constant(np.log(_STEPS)))
        odds = op.exp(op.subtract(scores, most))  # up to 255
        coarse = op.floor(odds)
        fine = op.multiply(op.subtract(odds, coarse), op.constant(_STEPS))
        product = op.matmul(_whole(op.concat([coarse, fine], 2)), _restored(values), False, False)
        high, low = op.split(product, op.constant(2), 2).outputs()
        seen = op.divide(op.add(high, op.divide(low, op.constant(_STEPS))), op.reduce_sum(odds, _axes(3), True))
        return op.add(x, self._linear(f"{name}/linear_2", self._join_heads(op.multiply(seen, value_steps))))

    def _feed_forward(self, name: str, x: Any) -> Any:
        inner = op.gelu(self._linear(f"{name}/linear_0", self._norm(f"{name}/layer_norm", x)), "erf")
        return op.add(x, self._linear(f"{name}/linear_1", inner))

    def _get(self, name: str) -> np.ndarray:
        return self._weights.float32(f"decoder/{name}")

    def _int8_parts(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A weight (outputs, inputs) in int8 and the steps of its rows (outputs, 1); those of the file if it has them."""
        stored = self._weights.raw(f"decoder/{name}")
        if stored.dtype != np.int8:
            return int8_rows(self._get(name))
        scales = self._weights.raw(f"decoder/{name}_scale").astype(np.float32).reshape(-1, 1)
        return stored, np.broadcast_to(1 / scales, (len(stored), 1))

    def _constants(self, name: str, rows: slice = slice(None)) -> list[Any]:
        return [op.constant(np.ascontiguousarray(part[rows])) for part in self._int8_parts(name)]

    def _linear(self, name: str, x: Any, half: int | None = None) -> Any:
        """``half``: that of the outputs that is wanted, if not all."""
        rows = slice(None) if half is None else slice(half * self.sizes.width, (half + 1) * self.sizes.width)
        weight = self._constants(f"{name}/weight", rows)
        return op.add(op.matmul(x, _int8(*weight), False, True), op.constant(self._get(f"{name}/bias")[rows]))

    def _norm(self, name: str, x: Any) -> Any:
        x = op.mvn(x, _axes(-1), True, _EPSILON, "inside_sqrt")
        return op.add(op.multiply(x, op.constant(self._get(f"{name}/gamma"))), op.constant(self._get(f"{name}/beta")))

    def _by_heads(self, x: Any) -> Any:
        return op.reshape(x, op.constant([0, 0, self.sizes.heads, self.sizes.head_width]), True)

    def _split_heads(self, x: Any) -> Any:
        return op.transpose(self._by_heads(x), op.constant([0, 2, 1, 3]))

    def _join_heads(self, x: Any) -> Any:
        return op.reshape(op.transpose(x, op.constant([0, 2, 1, 3])), op.constant([0, 0, self.sizes.width]), True)


def _axes(axis: int) -> Any:
    return op.constant([axis])


def _int8(stored: Any, steps: Any) -> Any:
    return op.multiply(op.convert(stored, np.float32), steps)


def _stored(given: Any, axis: int) -> tuple[Any, Any]:
    """In int8, and the steps, which are one number along ``axis``."""
    largest = op.maximum(op.reduce_max(op.abs(given), _axes(axis), True), op.constant(_LEAST))
    whole = op.round(op.multiply(given, op.divide(op.constant(np.float32(127)), largest)), "half_to_even")
    return op.convert(whole, np.int8), largest


def _restored(stored: Any) -> Any:
    """Int8 as numbers from -1 to 1; OpenVINO takes that apart again and multiplies integers."""
    return op.multiply(op.convert(stored, np.float32), op.constant(np.float32(1 / 127)))


def _whole(given: Any) -> Any:
    """Rounded to whole numbers from 0 to 255."""
    bounds = [op.constant(np.float32(bound)) for bound in (0, _STEPS)]
    return op.fake_quantize(given, *bounds, *bounds, 256)
