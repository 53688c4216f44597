"""Weights of an aligner in eight bits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

INPUTS = 40


@pytest.fixture
def weights() -> np.ndarray:
    drawn = np.random.default_rng(0).normal(0, 1, (6, INPUTS)) * np.array([[1], [10], [0.1], [0], [5], [3]])
    return drawn.astype(np.float32)


def product(weights: np.ndarray) -> Any:
    entry = ops.parameter([1, weights.shape[1]], np.float32)
    return openvino.Model([ops.matmul(entry, ops.constant(weights), False, True)], [entry])


def kinds(model: Any) -> set[str]:
    return {node.get_element_type().get_type_name() for node in model.get_ordered_ops() if node.get_type_name() == "Constant"}


def test_weights_are_rounded_to_a_127th_of_the_largest_of_their_channel(engine: SimpleNamespace, weights: np.ndarray) -> None:
    model = product(weights)
    quantized = engine.alignment.quantize.quantized(model)
    assert "i8" in kinds(quantized)
    assert "i8" not in kinds(model)
    run = openvino.Core().compile_model(quantized, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = np.stack([run(row[None])[0][0] for row in np.eye(INPUTS, dtype=np.float32)]).T
    assert np.all(np.abs(found - weights) <= np.abs(weights).max(axis=1, keepdims=True) / 127 / 2 + 1e-6)


def test_a_product_with_few_inputs_stays_as_it_is(engine: SimpleNamespace, weights: np.ndarray) -> None:
    assert "i8" not in kinds(engine.alignment.quantize.quantized(product(weights[:, :20])))
