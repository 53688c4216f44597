"""Silero's network (v6, ONNX, inside faster-whisper), a few seconds at a time, on the runtime that is best here.

faster-whisper does all but the network: it cuts samples into frames, and makes speech of probabilities. On x86 OpenVINO takes
0.4 of ONNX Runtime's time for the same numbers (less than 1e-5 apart); elsewhere it was not measured, and ONNX Runtime stays.
"""

from __future__ import annotations

import logging
import os
import platform
import queue
from functools import cache
from typing import Any

import numpy as np
import openvino
from faster_whisper.utils import get_assets_path
from faster_whisper.vad import get_vad_model

from app.engine.encoders.runtime import FLOAT32, limits

SLICE = 128
"""Frames (of 32 ms) that the network is given at once. faster-whisper gives it 10,000, whose intermediate values take
100 MB, and a tenth of the time for pages that are mapped and cleared anew in every call."""
CALLS = 4
"""Slices that OpenVINO computes at once, on a thread each: those of all runners. One more waits."""
log = logging.getLogger("stenopool.engine")

State = tuple[np.ndarray, np.ndarray]


@cache
def install() -> None:
    """Let faster-whisper's model, which is one for the whole process, use this network."""
    model = get_vad_model()
    network = None
    if platform.machine().lower() in ("x86_64", "amd64"):
        try:
            network = OpenVino(os.path.join(get_assets_path(), "silero_vad_v6.onnx"))
        except Exception:  # of the many kinds that a runtime knows
            log.warning("Silero cannot be run by OpenVINO, ONNX Runtime runs it", exc_info=True)
    model.session = Slices(model.session, network)


class OpenVino:
    """The network for exactly :data:`SLICE` frames, on one thread; :data:`CALLS` threads may call it at once."""

    def __init__(self, path: str) -> None:
        model = openvino.Core().read_model(path)
        state = [1, 1, 128]
        model.reshape({"input": [SLICE, 576], "h": state, "c": state})
        compiled = openvino.Core().compile_model(model, "CPU", limits(CALLS, 1) | FLOAT32)
        self._requests: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        for _ in range(CALLS):
            self._requests.put(compiled.create_infer_request())

    def __call__(self, given: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Probabilities, (frames,), and both parts of the state after them."""
        request = self._requests.get()
        try:
            request.infer(given, share_inputs=True)
            return tuple(request.get_tensor(name).data.copy() for name in ("speech_probs", "hn", "cn"))
        finally:
            self._requests.put(request)


class Slices:
    """Stands in for Silero's ONNX ``session``, for floats or s16 samples, given :data:`SLICE` frames at a time.

    It hands its state on, so the values are those of a single call. ``network`` computes slices that are full, if it is there.
    faster-whisper pads and reshapes the samples only, so that they need not be floats before: three copies of a block would
    take 60 MB.
    """

    def __init__(self, session: Any, network: OpenVino | None = None) -> None:
        self._session, self._network = session, network

    def run(self, names: list[str] | None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        """As ``InferenceSession.run``: probabilities of all frames, and the state after them."""
        frames, h, c = given["input"], given["h"], given["c"]
        found = []
        for start in range(0, len(frames), SLICE):
            part = frames[start : start + SLICE]
            one = {"input": floats(part) if part.dtype == np.int16 else part, "h": h, "c": c}
            if self._network is not None and len(part) == SLICE:
                output, h, c = self._network(one)
            else:
                output, h, c = self._session.run(names, one)
            found.append(output)
        return [np.concatenate(found), h, c]


def floats(pcm: np.ndarray) -> np.ndarray:
    """Float32 in [-1, 1] of s16 samples."""
    found: np.ndarray = np.multiply(pcm, 1 / 32768, dtype=np.float32)  # exact, and one array less than with astype
    return found
