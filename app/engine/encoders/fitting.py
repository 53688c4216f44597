"""A model gets the encoder that is best for it on this machine, and gives up its own where that is another one."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from app import heap
from app.engine.asr import WindowModel
from app.engine.devices import compute_type
from app.engine.encoders import cache
from app.engine.encoders.choice import CTRANSLATE2, Choice, Machine, Timed, build, choose, run, timed
from app.engine.encoders.runtime import mapped
from app.engine.encoders.sounds import sounds
from app.engine.encoders.weights import Weights
from app.work import WorkerSetup

log = logging.getLogger("stenopool.engine")

_LAYERS = re.compile(r"encoder/layer_[1-9]")
"""Variables that CTranslate2 can do without where another encoder stands in; it asks the first layer for its shape."""

Load = Callable[[str], WindowModel]


def fitted(setup: WorkerSetup, path: str, device: str, load: Load) -> WindowModel:
    """The model that ``load(folder)`` gives, with the encoder chosen for it; with CTranslate2's where anything else fails."""
    if device != "cpu" or setup.encoder == CTRANSLATE2:
        return load(path)
    machine = Machine(setup.runners, setup.threads, compute_type(setup.compute_type, device))
    choice = model = None
    try:
        choice = _chosen(setup, path, machine, load)
        if choice.name != CTRANSLATE2:
            model = _with_encoder(setup, Path(path), choice, machine, load)
    except Exception:
        log.exception("no encoder could be chosen for %s; CTranslate2's is used", setup.model)
        choice = None
    model = model or load(path)  # not while an error holds on to what was loaded before
    model.choice = choice
    return model


def _chosen(setup: WorkerSetup, path: str, machine: Machine, load: Load) -> Choice:
    file, folder = Path(path) / "model.bin", Path(setup.encoders_dir)
    name = f"{setup.encoder}-{cache.key(file, machine)}"
    choice = cache.load(folder, name)
    if choice is None:
        with cache.trying(folder, name):
            own, mels = _own(load(path), setup)
            heap.give_back()  # loading takes the most memory: none of it twice
            choice = choose(Weights(file), own, mels, machine, forced=setup.encoder != "auto")
            cache.save(folder, name, choice)
        heap.give_back()
    return choice


def _own(model: WindowModel, setup: WorkerSetup) -> tuple[Timed, list[np.ndarray]]:
    """What CTranslate2's encoder does, and the windows; the model is not needed any more."""
    mels = [model.log_mel(audio) for audio in sounds(Path(setup.samples_dir))]
    return timed(lambda mel: np.asarray(model.encode(mel[None]))[0], mels), mels


def _with_encoder(setup: WorkerSetup, path: Path, choice: Choice, machine: Machine, load: Load) -> WindowModel:
    """The model without the layers that it no longer needs, and what takes their place."""
    weights = Weights(path / "model.bin")
    with cache.scratch(Path(setup.encoders_dir), 2 * (path / "model.bin").stat().st_size) as folder:
        for file in path.iterdir():
            if file.suffix in (".json", ".txt"):
                shutil.copyfile(file, folder / file.name)
        weights.write_without(lambda name: bool(_LAYERS.match(name)), folder / "model.bin")
        model = load(str(folder))
        (folder / "model.bin").unlink()
        model.encoder = run(choice.name, mapped(build(choice.name, weights, choice.ranges), folder), machine)
    return model
