"""Which decoder is used: OpenVINO's where it is faster than CTranslate2's on this machine and says the same.

Measured when a model is loaded for the first time, and kept for the next times, as with encoders.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np

from app import cpu
from app.engine.asr import WindowModel
from app.engine.decoders.graph import DecoderGraph
from app.engine.decoders.runtime import MOST_BEAMS, Decoder, Memory, Words
from app.engine.encoders.choice import CTRANSLATE2, MARGIN, Choice, Machine, least_time
from app.engine.encoders.runtime import mapped
from app.engine.encoders.sounds import sounds
from app.engine.encoders.weights import Weights

log = logging.getLogger("stenopool.engine")

INT8 = "openvino_int8"
MOST_DIFFERENCE = 0.1
"""By how much both may differ in the mean log-probability of a token of the same text. With the same weights: 0.01 and less."""
WINDOWS = 4
LENGTH = 64
"""Positions, of which a text takes half."""


def build(path: Path, model: WindowModel, machine: Machine, folder: Path) -> Decoder:
    """OpenVINO's decoder of the model in ``path``. ``folder`` is for its constants, which are mapped; it may go afterwards.

    Raises:
        KeyError: this is not a Whisper model.
    """
    words = _words(path, model)
    graph = DecoderGraph(Weights(path / "model.bin"), words.never)
    models = [mapped(graph.memory(), folder, "memory")]  # one after the other: each is in memory until it is mapped
    models.append(mapped(graph.step(2 * MOST_BEAMS), folder, "step"))
    return Decoder(graph.sizes, graph.bias, models, words, machine.calls, machine.threads)


def _words(path: Path, model: WindowModel) -> Words:
    config, id_of = json.loads((path / "config.json").read_text()), model.hf_tokenizer.token_to_id
    no_speech = id_of("<|nospeech|>") or id_of("<|nocaptions|>")
    known = id_of("<|startoftranscript|>"), id_of("<|endoftext|>"), no_speech
    return Words(*known, *(tuple(config.get(name, ())) for name in ("lang_ids", "suppress_ids", "suppress_ids_begin")))


def possible(machine: Machine) -> bool:
    """Whether it may be tried: it rounds to int8, and is fast only where the processor multiplies that."""
    return machine.compute_type.startswith("int8") and cpu.multiplies_int8()


def choose(model: WindowModel, decoder: Decoder, samples: Path, *, forced: bool = False) -> Choice:
    """Measure both with ``samples`` and other sounds. ``forced``: CTranslate2's is out unless the other one is wrong."""
    mels = [model.log_mel(audio) for audio in sounds(samples)[-WINDOWS:]]
    encoded = list(model.encoded(mels))
    prompts = [model.prompt(model.tokenizer_for("en", "transcribe"))] * len(encoded)
    (results, *_), theirs = least_time(3 * [lambda: _generated(model, encoded, prompts)])
    _, ours = least_time(3 * [lambda: decoder.generate(_remembered(decoder, encoded), prompts, MOST_BEAMS, LENGTH)])
    memory = _remembered(decoder, encoded)
    difference = float(np.max(_differences(decoder, memory, prompts[0], results) or math.inf))
    seconds = {CTRANSLATE2: theirs / len(encoded), INT8: ours / len(encoded)}
    better = difference <= MOST_DIFFERENCE and (forced or ours < MARGIN * theirs)
    choice = Choice(INT8 if better else CTRANSLATE2, seconds, {INT8: difference})
    log.info("decoder: %s; seconds per window: %s; difference: %.4f", choice.name, seconds, difference)
    return choice


def _remembered(decoder: Decoder, encoded: Sequence[np.ndarray]) -> Memory:
    memory = Memory(decoder.sizes, len(encoded))
    for number, output in enumerate(encoded):
        decoder.remember(output, memory, number)
    return memory


def _generated(model: WindowModel, encoded: Sequence[np.ndarray], prompts: list[list[int]]) -> list[Any]:
    features = ctranslate2.StorageView.from_array(np.stack(encoded))
    how = {"beam_size": MOST_BEAMS, "max_length": LENGTH, "return_scores": True}
    results: list[Any] = model.model.generate(features, prompts, **how)
    return results


def _differences(decoder: Decoder, memory: Memory, prompt: list[int], results: Sequence[Any]) -> list[float]:
    """Of the mean log-probability of each text that CTranslate2 has found."""
    found = []
    for number, result in enumerate(results):
        if tokens := result.sequences_ids[0]:
            each = decoder.logprobs(memory.only([number]), prompt, tokens)
            counted = len(tokens) + (len(tokens) < LENGTH // 2)  # the end is there where there was room for it
            found.append(abs(float(each[:counted].sum()) - result.scores[0] * len(tokens)) / counted)
    return found
