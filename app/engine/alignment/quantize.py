"""Weights of an OpenVINO model in int8: symmetric, one scale per output channel, as in "LLM.int8" without its outlier path.

With ``DYNAMIC_QUANTIZATION_GROUP_SIZE`` OpenVINO quantizes the activations while it computes, so nothing needs calibration.
"""

from __future__ import annotations

import openvino

from app.engine.encoders.int8 import int8_constant

LEAST_INPUTS = 32
"""Products with fewer inputs stay as they are: the samples of the first layer."""


def quantized(model: openvino.Model) -> openvino.Model:
    """A copy of ``model`` whose matrix products with constants have int8 weights. Convolutions stay as they are."""
    copy = model.clone()
    for node in copy.get_ordered_ops():
        if node.get_type_name() == "MatMul" and (constant := node.input_value(1).get_node()).get_type_name() == "Constant":
            across = 1 if node.get_attributes()["transpose_b"] else 0
            weights = constant.get_data()
            if weights.shape[across] >= LEAST_INPUTS:
                node.input(1).replace_source_output(int8_constant(weights, across).output(0))
    copy.validate_nodes_and_infer_types()
    return copy
