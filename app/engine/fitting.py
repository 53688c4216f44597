"""A model gets the encoder and the decoder that are best for it on this machine; its own encoder goes if another one comes."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from app import heap
from app.engine.asr import WindowModel
from app.engine.decoders.choice import build as build_decoder
from app.engine.decoders.choice import choose as choose_decoder
from app.engine.decoders.choice import possible
from app.engine.decoders.runtime import Decoder
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
    """The model that ``load(folder)`` gives, with the parts chosen for it; with CTranslate2's where anything else fails."""
    machine = Machine(setup.runners, setup.threads, compute_type(setup.compute_type, device))
    own_decoder = setup.decoder == CTRANSLATE2 or not possible(machine)
    if device != "cpu" or (setup.encoder == CTRANSLATE2 and own_decoder):
        return load(path)
    key = cache.key(Path(path) / "model.bin", machine)
    choice = model = None
    if setup.encoder != CTRANSLATE2:
        try:
            choice = _encoder_choice(setup, path, machine, load, f"{setup.encoder}-{key}")
            if choice.name != CTRANSLATE2:
                model = _with_encoder(setup, Path(path), choice, machine, load)
        except Exception:
            log.exception("no encoder could be chosen for %s; CTranslate2's is used", setup.model)
            choice = None
    model = model or load(path)  # not while an error holds on to what was loaded before
    model.choice = choice
    if not own_decoder:
        try:
            _give_decoder(setup, Path(path), machine, model, f"decoder-{setup.decoder}-{key}")
        except Exception:
            log.exception("no decoder could be chosen for %s; CTranslate2's is used", setup.model)
            model.decoder = model.decoder_choice = None
    return model


def _encoder_choice(setup: WorkerSetup, path: str, machine: Machine, load: Load, name: str) -> Choice:
    folder = Path(setup.encoders_dir)
    choice = cache.load(folder, name)
    if choice is None:
        with cache.trying(folder, name):
            own, mels = _own(load(path), setup)
            heap.give_back()  # loading takes the most memory: none of it twice
            choice = choose(Weights(Path(path) / "model.bin"), own, mels, machine, forced=setup.encoder != "auto")
            cache.save(folder, name, choice)
        heap.give_back()
    return choice


def _give_decoder(setup: WorkerSetup, path: Path, machine: Machine, model: WindowModel, name: str) -> None:
    """The other decoder, if it is the better one. CTranslate2's stays: it samples, and it times words."""
    folder = Path(setup.encoders_dir)
    choice, decoder = cache.load(folder, name), None
    if choice is None:
        with cache.trying(folder, name):
            decoder = _decoder(setup, path, machine, model)
            choice = choose_decoder(model, decoder, Path(setup.samples_dir), forced=setup.decoder != "auto")
            cache.save(folder, name, choice)
    elif choice.name != CTRANSLATE2:
        decoder = _decoder(setup, path, machine, model)
    model.decoder_choice = choice
    model.decoder = decoder if choice.name != CTRANSLATE2 else None
    heap.give_back()


def _decoder(setup: WorkerSetup, path: Path, machine: Machine, model: WindowModel) -> Decoder:
    with cache.scratch(Path(setup.encoders_dir), (path / "model.bin").stat().st_size) as folder:
        return build_decoder(path, model, machine, folder)


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
        model.encoder = run(choice.name, mapped(build(choice.name, weights, choice.ranges), folder, "encoder"), machine)
    return model
