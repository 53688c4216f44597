"""Silero's network (v6, ONNX, inside faster-whisper), a few seconds at a time, on the runtime that is best here.

faster-whisper does all but the network: it cuts samples into frames, and makes speech of probabilities. On x86 OpenVINO takes
0.4 of ONNX Runtime's time for the same numbers (less than 1e-5 apart); elsewhere it was not measured, and ONNX Runtime stays.

With OpenVINO the network is two: what it makes of each frame by itself, which several runners can compute at once, and a
recurrent layer, which takes a quarter of the time and goes from frame to frame.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import openvino
from faster_whisper.utils import get_assets_path
from faster_whisper.vad import get_vad_model
from openvino import opset13 as op
from openvino.passes import ConstantFolding, Manager

from app.engine.encoders.runtime import FLOAT32, Compiled

SLICE = 128
"""Frames (of 32 ms) that the network is given at once. faster-whisper gives it 10,000, whose intermediate values take
100 MB, and a tenth of the time for pages that are mapped and cleared anew in every call."""
CALLS = 5
"""Slices that OpenVINO computes at once, on a thread each: four runners', as many as there are unless set so, and the express'.
One more waits for a millisecond."""
PART = 8 * SLICE
"""Frames (33 s) that one runner takes where several share."""
log = logging.getLogger("stenopool.engine")

Calls = Callable[[Sequence[Callable[[], Any]]], Iterable[Any]]
"""Runs what takes time, several of it at once where it can, and gives the results in order."""


@cache
def install() -> Slices:
    """Let faster-whisper's model, which is one for the whole process, use this network."""
    model = get_vad_model()
    network = None
    if platform.machine().lower() in ("x86_64", "amd64"):
        try:
            network = OpenVino(os.path.join(get_assets_path(), "silero_vad_v6.onnx"))
        except Exception:  # of the many kinds that a runtime knows
            log.warning("Silero cannot be run by OpenVINO, ONNX Runtime runs it", exc_info=True)
    model.session = made = Slices(model.session, network)
    return made


class OpenVino:
    """The network for whole slices of frames, each on one thread; :data:`CALLS` threads may call it at once."""

    def __init__(self, path: str) -> None:
        whole = openvino.Core().read_model(path)
        state = [1, 1, 128]
        whole.reshape({"input": [SLICE, 576], "h": state, "c": state})
        folding = Manager()
        folding.register_pass(ConstantFolding())
        folding.run_passes(whole)  # the recurrent layer asks for the shape of the frames
        (recurrent,) = (node for node in whole.get_ordered_ops() if node.get_type_name() == "LSTMSequence")
        result, given = op.result(recurrent.input_value(0)), op.parameter(recurrent.get_input_shape(0), np.float32)
        given.output(0).tensor.set_names({"features"})
        of_frames = {node.output(0).any_name: node for node in whole.get_parameters()}
        recurrent.input(0).replace_source_output(given.output(0))
        self._features = Compiled(openvino.Model([result], [of_frames.pop("input")]), CALLS, 1, FLOAT32)
        self._recurrent = Compiled(openvino.Model(whole.get_results(), [given, *of_frames.values()]), CALLS, 1, FLOAT32)
        silence, none = np.zeros((SLICE, 576), np.float32), np.zeros(state, np.float32)
        self.probabilities(self.features(silence), none, none)  # it fails here or never

    def features(self, frames: np.ndarray) -> np.ndarray:
        """What the network makes of each frame by itself, (slices, 1, SLICE, 128), of (slices * SLICE, 576) samples."""
        slices = (frames[start : start + SLICE] for start in range(0, len(frames), SLICE))
        return np.stack([self._features({"input": floats(one)})[0] for one in slices])

    def probabilities(self, features: np.ndarray, h: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
        """Of all frames, (frames,), and both parts of the state after them."""
        found = []
        for one in features:
            of_slice, h, c = self._recurrent({"features": one.copy(), "h": h, "c": c}, "speech_probs", "hn", "cn")
            found.append(of_slice)
        return [np.concatenate(found), h, c]


class Slices:
    """Stands in for Silero's ONNX ``session``, for floats or s16 samples, given :data:`SLICE` frames at a time.

    It hands its state on, so the values are those of a single call. ``network`` computes slices that are full, if it is there.
    faster-whisper pads and reshapes the samples only, so that they need not be floats before: three copies of a block would
    take 60 MB.
    """

    def __init__(self, session: Any, network: OpenVino | None = None) -> None:
        self._session, self._network = session, network
        self._thread, self._sharing = threading.local(), threading.Lock()

    @contextlib.contextmanager
    def shared(self, calls: Calls) -> Iterator[bool]:
        """Whether what this thread asks for meanwhile is computed by ``calls``.

        Not without OpenVINO, and not while another thread's is: its arrays would be in memory beside the others', for runners
        that have enough to do.
        """
        if self._network is None or not self._sharing.acquire(blocking=False):
            yield False
            return
        self._thread.calls = calls
        try:
            yield True
        finally:
            del self._thread.calls
            self._sharing.release()

    def run(self, names: list[str] | None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        """As ``InferenceSession.run``: probabilities of all frames, and the state after them."""
        calls: Calls = getattr(self._thread, "calls", one_by_one)
        frames, h, c = given["input"], given["h"], given["c"]
        found, whole = [], len(frames) // SLICE * SLICE
        if self._network is not None and whole:
            parts = [frames[start : min(start + PART, whole)] for start in range(0, whole, PART)]
            features = np.concatenate(list(calls([partial(self._network.features, part) for part in parts])))
            ((output, h, c),) = calls([partial(self._network.probabilities, features, h, c)])
            found.append(output)
            frames = frames[whole:]
        for start in range(0, len(frames), SLICE):
            output, h, c = self._session.run(names, {"input": floats(frames[start : start + SLICE]), "h": h, "c": c})
            found.append(output)
        return [np.concatenate(found), h, c]


def one_by_one(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """:data:`Calls` in the caller's own thread."""
    return [function() for function in functions]


def floats(pcm: np.ndarray) -> np.ndarray:
    """Float32 in [-1, 1] of s16 samples; samples of another type as they are."""
    if pcm.dtype != np.int16:
        return pcm
    found: np.ndarray = np.multiply(pcm, 1 / 32768, dtype=np.float32)  # exact, and one array less than with astype
    return found
