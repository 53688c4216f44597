"""What an aligner hears: the probability of every label in every frame, on the runtime that is best here.

On a CPU the torch model is converted for OpenVINO, with int8 weights if these keep the probabilities; what is not int8 is
computed in bfloat16 where the CPU can, or in float32 where that takes less. The first seconds of audio decide, against torch in
float32. Elsewhere, and where nothing else will do, it is torch. Segments are taken one by one: a batch is no faster on
OpenVINO, and its padding would change the group normalisation of wav2vec2-base.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import openvino
import torch

from app.engine.alignment.quantize import quantized
from app.engine.encoders.runtime import FLOAT32, limits, uses_bfloat16

log = logging.getLogger("stenopool.engine")

Run = Callable[[np.ndarray], np.ndarray]
OnConverted = Callable[[str, openvino.Model], None]

TRIAL_SAMPLES = 48_000
"""Samples of audio that decide: three seconds."""
EXAMPLE_SAMPLES = 8_000
"""Length at which the model is traced; what is made of it takes any."""
QUICK_S = 0.04
"""Where torch takes less for them, nothing else is tried: that takes a second, in which a fresh worker answers nobody."""
MOST_DEVIATION = 0.02
"""Share of the probability, in the mean over the frames, that a runtime may give to other labels than torch does."""
GROUP = "128"
"""Values of the activations that share one scale."""
IN_FLOAT32 = "-float32"
"""Ends the names of runtimes that are told to compute in float32 what would be bfloat16."""
KERNELS = 16
"""How many OpenVINO keeps of earlier lengths; below it oneDNN keeps as many as :mod:`app.engine.preload` says."""


class Emissions:
    """One model on its runtime; calls may come from several threads at once, and do not wait for each other.

    ``model`` takes (1, samples) at 16 kHz and gives logits in ``.logits`` (transformers) or first (torchaudio). ``runners``
    calls are made at once, each on ``threads`` threads. ``runtime`` says what was chosen, once it was. Where that is one of
    OpenVINO's, ``on_converted(runtime, model)`` is called once.
    """

    def __init__(
        self, model: torch.nn.Module, device: str, *, runners: int, threads: int, on_converted: OnConverted | None = None
    ) -> None:
        self.runtime = ""
        self._model, self._device = _Logits(model).eval(), device
        self._limits, self._on_converted = limits(runners, threads), on_converted
        self._run: Run | None = None
        self._choosing = threading.Lock()

    @classmethod
    def converted(cls, runtime: str, model: openvino.Model, *, runners: int, threads: int) -> Emissions:
        """Of what ``on_converted`` was given in another process.

        Raises:
            Exception: OpenVINO cannot run it here; of many kinds.
        """
        made = cls(torch.nn.Identity(), "cpu", runners=runners, threads=threads)  # nothing is asked of torch
        run = _OpenVino(model, made._limits | _precision(runtime)).run
        run(np.zeros(EXAMPLE_SAMPLES, np.float32))
        made.runtime, made._run = runtime, run
        return made

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Natural-log probabilities, float32 (frames, labels), of float32 samples at 16 kHz."""
        return _log_softmax((self._run or self._chosen(audio))(audio))

    def _chosen(self, audio: np.ndarray) -> Run:
        """The runtime that the first caller found to be best; the others wait for it, but not for the disk."""
        converted = None
        with self._choosing:
            if self._run is None:
                self._run, converted = self._choose(np.resize(audio, TRIAL_SAMPLES))
        if converted is not None and self._on_converted is not None:
            self._on_converted(self.runtime, converted)
        return self._run

    def _choose(self, audio: np.ndarray) -> tuple[Run, openvino.Model | None]:
        """The first runtime that keeps what torch says of ``audio``, and is faster; and what was converted for it."""
        reference = partial(_in_torch, self._model, self._device)
        if self._device == "cpu":
            expected = np.exp(_log_softmax(reference(audio)))
            limit_s = _seconds(reference, audio)
            for name, model in self._candidates() if limit_s > QUICK_S else ():
                names = (name, name + IN_FLOAT32) if uses_bfloat16() else (name,)
                runs = {one: run for one in names if (run := self._serving(one, model, audio, expected, limit_s)) is not None}
                if runs:
                    self.runtime = min(runs, key=lambda one: runs[one][1])
                    del self._model  # the converted one has weights of its own
                    return runs[self.runtime][0], model
        self.runtime = "torch"
        return reference, None

    def _candidates(self) -> Iterator[tuple[str, openvino.Model]]:
        """Runtimes for a CPU, the fastest first; none where the model cannot be converted."""
        try:
            model = _converted(self._model)
            yield "openvino-int8", quantized(model)
            yield "openvino", model
        except Exception:  # of the many kinds that a converter knows
            log.warning("the aligner could not be converted for OpenVINO, torch runs it", exc_info=True)

    def _serving(
        self, name: str, model: openvino.Model, audio: np.ndarray, expected: np.ndarray, limit_s: float
    ) -> tuple[Run, float] | None:
        """The model compiled, and its seconds, if it works at all, says what is expected, and takes less than ``limit_s``."""
        try:
            run = _OpenVino(model, self._limits | _precision(name)).run
            deviation = _deviation(np.exp(_log_softmax(run(audio))), expected)
            took_s = _seconds(run, audio)
        except Exception:  # of the many kinds that a runtime knows
            log.warning("the aligner could not be run by %s", name, exc_info=True)
            return None
        log.info("aligner on %s: %.2f of torch's time, deviation %.4f", name, took_s / limit_s, deviation)
        return (run, took_s) if deviation <= MOST_DEVIATION and took_s < limit_s else None


def _precision(runtime: str) -> dict[str, str]:
    return FLOAT32 if runtime.endswith(IN_FLOAT32) else {}


class _Logits(torch.nn.Module):
    """A model of either library as one that gives only its logits, (1, frames, labels)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        answer = self.model(audio)
        logits: torch.Tensor = answer[0] if isinstance(answer, tuple) else answer.logits
        return logits


def _in_torch(model: torch.nn.Module, device: str, audio: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = model(torch.from_numpy(audio[None]).to(device))[0].float().cpu().numpy()
    return logits


def _converted(model: torch.nn.Module) -> openvino.Model:
    with torch.no_grad():
        return openvino.convert_model(
            model, example_input=torch.zeros(1, EXAMPLE_SAMPLES), input=[openvino.PartialShape([1, -1])]
        )


class _OpenVino:
    """A compiled model, and a request for each call that is at work.

    Every length of audio has kernels of its own; kept, they would fill the memory (7 MB each with wav2vec2-base). Making
    them anew takes less than a tenth of a call. Nor does it keep what a call computed with (half a gigabyte for 30 s).
    """

    def __init__(self, model: openvino.Model, limits: dict[str, str]) -> None:
        hints = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP, "CPU_RUNTIME_CACHE_CAPACITY": KERNELS}
        self._compiled = openvino.Core().compile_model(model, "CPU", limits | hints)
        self._idle: list[openvino.InferRequest] = []
        self._at_work = 0
        self._lock = threading.Lock()

    def run(self, audio: np.ndarray) -> np.ndarray:
        """Logits (frames, labels)."""
        with self._lock:
            request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
            self._at_work += 1
        try:
            request.infer([audio[None]], share_inputs=True)
            logits: np.ndarray = request.get_output_tensor(0).data[0].astype(np.float32)
        finally:
            with self._lock:
                self._idle.append(request)
                self._at_work -= 1
                if not self._at_work:
                    self._compiled.release_memory()
        return logits


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def _deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """The total variation distance of two sets of distributions (frames, labels), in the mean over the frames: 0 to 1."""
    return float(np.abs(found - expected).sum(axis=-1).mean() / 2) if found.shape == expected.shape else 1.0


def _seconds(run: Run, audio: np.ndarray) -> float:
    began = time.perf_counter()
    run(audio)
    return time.perf_counter() - began
