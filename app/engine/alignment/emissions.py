"""What an aligner hears: the probability of every label in every frame, on the runtime that is best here.

On a CPU the torch model is converted for OpenVINO (:mod:`app.engine.alignment.features`), with int8 weights if these keep the
probabilities. What is not int8 in its transformer is computed in bfloat16 where the CPU can, or in float32 where that takes
less. The first seconds of audio decide, against torch in float32; twenty of them between the two precisions. Elsewhere, and
where nothing else will do, it is torch. Segments are taken one by one: a batch is no faster on OpenVINO, and its padding would
change the group normalisation of wav2vec2-base.
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

from app.engine.alignment.features import Converted, Logits, convert, pieces, statistics
from app.engine.encoders.runtime import FLOAT32, limits, uses_bfloat16

log = logging.getLogger("stenopool.engine")

Run = Callable[[np.ndarray], np.ndarray]
OnConverted = Callable[[str, Converted], None]

TRIAL_SAMPLES = 48_000
"""Samples of audio that decide whether a runtime will do: three seconds."""
LONG_SAMPLES = 320_000
"""Samples that decide between two precisions: 20 seconds, as segments of speech without a pause have."""
TRY_SAMPLES = 8_000
"""Samples that show whether what was kept can be run at all."""
QUICK_S = 0.04
"""Where torch takes less for them, nothing else is tried: that takes seconds, in which a fresh worker aligns for nobody."""
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
        self._model, self._device = Logits(model).eval(), device
        self._limits, self._on_converted = limits(runners, threads), on_converted
        self._run: Run | None = None
        self._choosing = threading.Lock()

    @classmethod
    def converted(cls, runtime: str, model: Converted, *, runners: int, threads: int) -> Emissions:
        """Of what ``on_converted`` was given in another process.

        Raises:
            Exception: OpenVINO cannot run it here; of many kinds.
        """
        made = cls(torch.nn.Identity(), "cpu", runners=runners, threads=threads)  # nothing is asked of torch
        run = _OpenVino(model, made._limits | _precision(runtime)).run
        run(np.zeros(TRY_SAMPLES, np.float32))
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
                self._run, converted = self._choose(audio)
        if converted is not None and self._on_converted is not None:
            self._on_converted(self.runtime, converted)
        return self._run

    def _choose(self, audio: np.ndarray) -> tuple[Run, Converted | None]:
        """The first runtime that keeps what torch says of ``audio``, and is faster; and what was converted for it."""
        reference, short = partial(_in_torch, self._model, self._device), np.resize(audio, TRIAL_SAMPLES)
        if self._device == "cpu":
            expected = np.exp(_log_softmax(reference(short)))
            limit_s = _seconds(reference, short)
            for name, model in self._candidates() if limit_s > QUICK_S else ():
                names = (name, name + IN_FLOAT32) if uses_bfloat16() else (name,)
                runs = {one: run for one in names if (run := self._serving(one, model, short, expected, limit_s)) is not None}
                self.runtime = _fastest(runs, np.resize(audio, LONG_SAMPLES))
                if self.runtime:
                    del self._model  # the converted one has weights of its own
                    return runs[self.runtime], model
        self.runtime = "torch"
        return reference, None

    def _candidates(self) -> Iterator[tuple[str, Converted]]:
        """Runtimes for a CPU, the fastest first; none where the model cannot be converted."""
        try:
            model = convert(self._model.model)
            yield "openvino-int8", model.quantized()
            yield "openvino", model
        except Exception:  # of the many kinds that a converter knows
            log.warning("the aligner could not be converted for OpenVINO, torch runs it", exc_info=True)

    def _serving(self, name: str, model: Converted, audio: np.ndarray, expected: np.ndarray, limit_s: float) -> Run | None:
        """The model compiled, if it works at all, says what is expected, and takes less than ``limit_s``."""
        try:
            run = _OpenVino(model, self._limits | _precision(name)).run
            deviation = _deviation(np.exp(_log_softmax(run(audio))), expected)
            took_s = _seconds(run, audio)
        except Exception:  # of the many kinds that a runtime knows
            log.warning("the aligner could not be run by %s", name, exc_info=True)
            return None
        log.info("aligner on %s: %.2f of torch's time, deviation %.4f", name, took_s / limit_s, deviation)
        return run if deviation <= MOST_DEVIATION and took_s < limit_s else None


def _fastest(runs: dict[str, Run], audio: np.ndarray) -> str:
    """The name of the one that takes the least time; none where all fail. Attention, which grows with the square, may be
    slower in bfloat16."""
    if len(runs) <= 1:
        return next(iter(runs), "")
    took = {}
    for name, run in runs.items():
        try:
            took[name] = _seconds(run, audio)
        except Exception:  # of the many kinds that a runtime knows
            log.warning("the aligner could not be run by %s for long segments", name, exc_info=True)
    log.info("aligner, seconds for %d of audio: %s", len(audio) // 16_000, {name: round(one, 2) for name, one in took.items()})
    return min(took, key=lambda name: took[name], default="")


def _precision(runtime: str) -> dict[str, str]:
    return FLOAT32 if runtime.endswith(IN_FLOAT32) else {}


def _in_torch(model: torch.nn.Module, device: str, audio: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = model(torch.from_numpy(audio[None]).to(device))[0].float().cpu().numpy()
    return logits


class _OpenVino:
    """A compiled model, and requests for each call that is at work.

    Every length of audio has kernels of its own in the transformer; kept, they would fill the memory (7 MB each with
    wav2vec2-base). Making them anew takes less than a tenth of a call. Nor does it keep what a call computed with, but for its
    features (3 MB for 30 s).
    """

    def __init__(self, model: Converted, limits: dict[str, str]) -> None:
        hints = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP, "CPU_RUNTIME_CACHE_CAPACITY": KERNELS}
        core = openvino.Core()
        # The encoder's norm would not bear bfloat16, and with int8 products little of it would be left to be faster.
        self._encoder = core.compile_model(model.encoder, "CPU", limits | hints | FLOAT32)
        self._transformer = core.compile_model(model.transformer, "CPU", limits | hints)
        self._geometry = model.geometry
        self._idle: list[tuple[openvino.InferRequest, openvino.InferRequest]] = []
        self._at_work = 0
        self._lock = threading.Lock()

    def run(self, audio: np.ndarray) -> np.ndarray:
        """Logits (frames, labels)."""
        with self._lock:
            requests = self._idle.pop() if self._idle else self._requests()
            self._at_work += 1
        try:
            return self._logits(audio, *requests)
        finally:
            with self._lock:
                self._idle.append(requests)
                self._at_work -= 1
                if not self._at_work:
                    self._encoder.release_memory()
                    self._transformer.release_memory()

    def _requests(self) -> tuple[openvino.InferRequest, openvino.InferRequest]:
        return self._encoder.create_infer_request(), self._transformer.create_infer_request()

    def _logits(self, audio: np.ndarray, encoder: openvino.InferRequest, transformer: openvino.InferRequest) -> np.ndarray:
        normalises = len(self._encoder.inputs) > 1  # over all of the audio
        about = statistics(audio, self._geometry) if normalises else ()
        features = []
        for piece, frames in pieces(audio, self._geometry):
            encoder.infer([piece, *about], share_inputs=True)
            features.append(encoder.get_output_tensor(0).data[:, :frames].copy())
        transformer.infer([np.concatenate(features, 1)], share_inputs=True)
        logits: np.ndarray = transformer.get_output_tensor(0).data[0].astype(np.float32)
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
