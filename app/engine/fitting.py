"""A model gets the encoder and the decoder that are best for it on this machine; its own encoder goes if another one comes.

So it gets the engine calls at once, and threads of each, that do most here.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from app import heap
from app.engine import arrangement
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
LoadWith = Callable[[WorkerSetup, str], WindowModel]


def fitted(setup: WorkerSetup, path: str, device: str, load: LoadWith) -> tuple[WindowModel, WorkerSetup]:
    """The model that ``load(setup, folder)`` gives, with what was chosen for it, and its setup with calls and threads chosen.

    Where choosing fails, they stay as they are, and so do CTranslate2's encoder and decoder.
    """
    if device != "cpu":
        return load(setup, path), setup
    setups, machine = arrangement.possible(setup), _machine(setup)
    own_decoder = setup.decoder == CTRANSLATE2 or not possible(machine)
    if setup.encoder == CTRANSLATE2 and own_decoder and len(setups) == 1:
        return load(setup, path), setup
    key = cache.key(Path(path) / "model.bin", machine)

    def make(one: WorkerSetup) -> WindowModel:
        return _made(one, path, _machine(one), partial(load, one), key, own_decoder=own_decoder)

    if len(setups) == 1:
        return make(setup), setup
    model, choice = _arranged(setups, make, key)
    model.arrangement_choice = choice
    return model, arrangement.chosen(setups, choice) if choice else setup


def _machine(setup: WorkerSetup) -> Machine:
    return Machine(setup.runners, setup.threads, compute_type(setup.compute_type, "cpu"))


def _arranged(setups: list[WorkerSetup], make: arrangement.Make, key: str) -> tuple[WindowModel, Choice | None]:
    """The model in the best arrangement, and why; None where nothing could be measured: it is in the first one then."""
    setup, folder = setups[0], Path(setups[0].encoders_dir)
    kept = [cache.load(folder, name) for name in (_encoder_name(setup, key), _decoder_name(setup, key))]
    about = f"{setup.cores}-{key}"
    choice = cache.load(folder, f"arrangement-{arrangement.parts(*kept)}-{about}")
    if choice is not None:
        return make(arrangement.chosen(setups, choice)), choice
    try:
        with cache.trying(folder, f"arrangement-{about}"):
            model, choice = arrangement.choose(setups, make)
            used = arrangement.parts(model.choice, model.decoder_choice)
            cache.save(folder, f"arrangement-{used}-{about}", choice)
            return model, choice
    except Exception:
        log.exception("engine calls and threads could not be measured for %s; they stay as they are", setup.model)
    return make(setup), None


def _encoder_name(setup: WorkerSetup, key: str) -> str:
    return f"{setup.encoder}-{key}"


def _decoder_name(setup: WorkerSetup, key: str) -> str:
    return f"decoder-{setup.decoder}-{key}"


def _made(setup: WorkerSetup, path: str, machine: Machine, load: Load, key: str, *, own_decoder: bool) -> WindowModel:
    """With the encoder and the decoder that were chosen under ``key``, whatever the threads are then."""
    choice = model = None
    if setup.encoder != CTRANSLATE2:
        try:
            choice = _encoder_choice(setup, path, machine, load, _encoder_name(setup, key))
            if choice.name != CTRANSLATE2:
                model = _with_encoder(setup, Path(path), choice, machine, load)
        except Exception:
            log.exception("no encoder could be chosen for %s; CTranslate2's is used", setup.model)
            choice = None
    model = model or load(path)  # not while an error holds on to what was loaded before
    model.choice = choice
    if not own_decoder:
        try:
            _give_decoder(setup, Path(path), machine, model, _decoder_name(setup, key))
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
