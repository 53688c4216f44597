"""How many engine calls at once, and threads of each: what does most on this machine, measured at a model's first load.

Many calls with one thread each waste the least as long as cores do not share what is scarce (memory bandwidth, caches), and
threads of one call wait for each other. Which of both weighs more depends on model and machine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from app import heap
from app.engine.asr import WindowModel
from app.engine.encoders.choice import CTRANSLATE2, Choice, least_time
from app.engine.encoders.sounds import sounds
from app.jobs import TranscribeOptions
from app.work import WorkerSetup

log = logging.getLogger("stenopool.engine")

MOST_WINDOWS = 4
"""Windows of all calls together: as many as the decoder's choice has at once, so that a load's peak is not higher."""
LENGTH = 64
"""Positions of a text, of which it may take half."""
SLOWEST_S = 3.0
"""Seconds of a window above which the setting stays, unmeasured: what is tried is loaded, too, and a load must end."""
MARGIN = 0.85
"""Another arrangement than the setting's must take less than this share of its time.

VAD, features and Python are not measured, and fewer calls at once are worse for those.
"""

Make = Callable[[WorkerSetup], WindowModel]


def possible(setup: WorkerSetup) -> list[WorkerSetup]:
    """The setup as it is; then with as many or fewer calls that have more threads each, and as many threads in all at least."""
    if not setup.cores:
        return [setup]
    other = [replace(setup, runners=calls, threads=setup.cores // calls) for calls in range(setup.runners, 0, -1)]
    used = setup.runners * setup.threads
    return [setup] + [one for one in other if one.runners * one.threads >= used and one != setup]


def name(setup: WorkerSetup) -> str:
    """Calls at once × threads of each."""
    return f"{setup.runners}x{setup.threads}"


def parts(*choices: Choice | None) -> str:
    """The encoder and the decoder that were chosen; CTranslate2's where nothing was."""
    return "-".join(choice.name if choice else CTRANSLATE2 for choice in choices)


def choose(setups: Sequence[WorkerSetup], make: Make) -> tuple[WindowModel, Choice]:
    """Measure all of ``setups``, one copy of the model at a time; the model of the best one.

    The first one stays unless another is clearly faster, and is all that is made where a window takes very long.

    Raises:
        RuntimeError: not all of them got the same encoder and decoder.
    """
    first = setups[0]
    seconds: dict[str, float] = {}
    model = make(first)
    used = parts(model.choice, model.decoder_choice)
    if model.choice is not None and model.choice.seconds[model.choice.name] > SLOWEST_S:
        return model, Choice(name(first))
    mel = model.log_mel(sounds(Path(first.samples_dir))[0])
    mels = [mel] * max(1, min(first.batch_size, MOST_WINDOWS // first.runners))
    for setup in setups:
        if setup is not first:
            del model
            heap.give_back()  # loading takes the most memory: none of it twice
            model = make(setup)
            if parts(model.choice, model.decoder_choice) != used:
                raise RuntimeError(f"the parts of {name(setup)} are not those of {name(first)}: {used}")
        seconds[name(setup)] = per_window(model, setup.runners, mels)
    choice = Choice(fastest(seconds), seconds)
    log.info("engine calls x threads: %s; seconds per window: %s", choice.name, seconds)
    if setup is not (best := chosen(setups, choice)):
        del model
        heap.give_back()
        model = make(best)
    return model, choice


def chosen(setups: Sequence[WorkerSetup], choice: Choice) -> WorkerSetup:
    """The one that the choice names."""
    return next((setup for setup in setups if name(setup) == choice.name), setups[0])


def fastest(seconds: dict[str, float]) -> str:
    """The name of the best one; the first where no other is clearly faster."""
    first, best = next(iter(seconds)), min(seconds, key=lambda one: seconds[one])
    return best if seconds[best] < MARGIN * seconds[first] else first


def per_window(model: WindowModel, calls: int, mels: Sequence[np.ndarray]) -> float:
    """Seconds per window where so many calls at once encode and decode ``mels`` each."""
    most, model.max_length = model.max_length, LENGTH
    try:
        with ThreadPoolExecutor(calls) as threads:
            _, took = least_time(3 * [lambda: list(threads.map(lambda _: _recognised(model, mels), range(calls)))])
    finally:
        model.max_length = most
    return took / (calls * len(mels))


def _recognised(model: WindowModel, mels: Sequence[np.ndarray]) -> None:
    heard = model.hear(len(mels))
    for output in model.encoded(mels):
        heard.add(output)
    count = len(mels)
    model.decode(heard, [model.tokenizer_for("en", "transcribe")] * count, [TranscribeOptions("")] * count)
