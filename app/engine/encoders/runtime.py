"""Running encoders with OpenVINO on a CPU."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from app.engine.encoders.graph import Graph
from app.engine.encoders.int8 import Range, Watched
from app.engine.encoders.weights import Weights

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
"""Without it OpenVINO computes in bfloat16 what is not int8, where the CPU can (:func:`uses_bfloat16`)."""


class Compiled:
    """A model that ``calls`` threads may use at once, on ``threads`` threads each; one more caller waits."""

    def __init__(self, model: openvino.Model, calls: int, threads: int, options: dict[str, str]) -> None:
        compiled = openvino.Core().compile_model(model, "CPU", limits(calls, threads) | options)
        self._requests: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        for _ in range(calls):
            self._requests.put(compiled.create_infer_request())

    def __call__(self, given: dict[Any, np.ndarray], *names: str) -> list[np.ndarray]:
        """The outputs of these names, or the first one. What is ``given`` stays in memory until the next call."""
        request = self._requests.get()
        try:
            request.infer(given, share_inputs=True)
            tensors = [request.get_tensor(name) for name in names] or [request.get_output_tensor(0)]
            return [tensor.data.copy() for tensor in tensors]
        finally:
            self._requests.put(request)


class Encoder:
    """An encoder; see :class:`Compiled`."""

    def __init__(self, model: openvino.Model, calls: int, threads: int, options: dict[str, str]) -> None:
        self._compiled = Compiled(model, calls, threads, options)

    def encode(self, mel: np.ndarray) -> np.ndarray:
        """Encoder output, (1500, width), of one window of (mels, 3000) log-mel features."""
        output: np.ndarray = self._compiled({0: np.ascontiguousarray(mel[None])})[0][0]
        return output


def uses_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 here unless told otherwise: faster than float32 (AMD) or slower (Intel, no AMX)."""
    return bool(openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT") == openvino.Type.bf16)


def limits(calls: int, threads: int) -> dict[str, str]:
    """What OpenVINO is told for ``calls`` at once on ``threads`` each. Not pinned: workers would all take the same cores."""
    counts = {"NUM_STREAMS": calls, "INFERENCE_NUM_THREADS": calls * threads}
    return {name: str(count) for name, count in counts.items()} | {"ENABLE_CPU_PINNING": "NO"}


def mapped(model: openvino.Model, folder: Path, name: str) -> openvino.Model:
    """The same with its constants in a file ``name`` of ``folder`` that is mapped: what has been read can be dropped again.

    The file may be deleted at once. Without this every constant stays in memory beside the form that is computed with.
    """
    openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
    return openvino.Core().read_model(folder / f"{name}.xml")


def observe(
    weights: Weights, mels: Sequence[np.ndarray], watched: int, threads: int
) -> tuple[dict[str, Range], list[np.ndarray]]:
    """All in float32: the range of every layer's inputs over the first ``watched`` windows, and the output of the others.

    Layer by layer, so that it takes the memory of one.
    """
    numbers = Watched()
    states = [mel[None] for mel in mels]
    ranges: dict[str, Range] = {}
    core = openvino.Core()
    for stage in Graph(weights, numbers).stages(lambda: [node for pair in numbers.bounds.values() for node in pair]):
        request = core.compile_model(stage, "CPU", limits(1, threads) | FLOAT32).create_infer_request()
        for number, state in enumerate(states):
            request.infer({0: state})
            states[number], *bounds = (request.get_output_tensor(n).data.copy() for n in range(len(stage.outputs)))
            for name, low, high in zip(numbers.bounds, bounds[::2], bounds[1::2], strict=True):
                seen = Range(low, high)
                if number < watched:
                    ranges[name] = ranges[name] | seen if name in ranges else seen
        numbers.bounds.clear()
    return ranges, [state[0] for state in states[watched:]]
