"""Weights of an OpenVINO model in int8: symmetric, one scale per output channel, as in "LLM.int8" without its outlier path.

With ``DYNAMIC_QUANTIZATION_GROUP_SIZE`` OpenVINO quantizes the activations while it computes, so nothing needs calibration.
"""

from __future__ import annotations

import numpy as np
import openvino
from openvino import opset13 as ops


def quantized(model: openvino.Model) -> openvino.Model:
    """A copy of ``model`` whose matrix products with constants have int8 weights. Convolutions stay as they are."""
    copy = model.clone()
    for node in copy.get_ordered_ops():
        if node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() == "Constant":
            across = 1 if node.get_attributes()["transpose_b"] else 0
            weights = _in_int8(node.input_value(1).get_node().get_data(), across)
            node.input(1).replace_source_output(weights.output(0))
    copy.validate_nodes_and_infer_types()
    return copy


def _in_int8(weights: np.ndarray, across: int) -> openvino.Node:
    """The graph of ``int8 weights × scale``; each scale is that of the largest weight along the axis ``across``."""
    scale = np.maximum(np.abs(weights).max(axis=across, keepdims=True), 1e-30) / 127
    rounded = np.round(weights / scale).astype(np.int8)
    return ops.multiply(ops.convert(ops.constant(rounded), np.float32), ops.constant(scale.astype(np.float32)))
