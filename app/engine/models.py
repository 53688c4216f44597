"""Loading a model: from disk, or from the hub into the cache, or an error that says what is missing."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from faster_whisper.utils import download_model

from app.engine.asr import WindowModel
from app.engine.devices import asr_device, compute_type, index_of
from app.engine.fitting import fitted
from app.errors import ModelUnavailable
from app.work import WorkerSetup, kind_of

log = logging.getLogger("stenopool.engine")


def load(setup: WorkerSetup) -> tuple[WindowModel, str, WorkerSetup]:
    """The model of ``setup`` with the encoder that is best for it here, the device it is on, and the setup that is best there.

    Raises:
        ModelUnavailable: not on disk and not to be had, or the device is not there.
    """
    path = setup.model_path or fetch(setup)
    device = asr_device(setup.device)
    try:
        model, best = fitted(setup, path, device, partial(_window_model, device))
        return model, device, best
    except (RuntimeError, ValueError, OSError) as error:
        log.exception("model %s could not be loaded", setup.model)
        raise ModelUnavailable(
            f"The model {setup.model!r} is on disk, but could not be loaded.",
            hint="See the server's log; the files may be damaged, or the compute type not supported here.",
        ) from error


def _window_model(device: str, setup: WorkerSetup, path: str) -> WindowModel:
    return WindowModel(
        path,
        device=kind_of(device),
        device_index=index_of(device),
        compute_type=compute_type(setup.compute_type, device),
        cpu_threads=setup.threads,
        num_workers=setup.runners + 1,  # one for the express
        local_files_only=True,
    )


def fetch(setup: WorkerSetup) -> str:
    """Fetch the model from the hub; returns its folder.

    Raises:
        ModelUnavailable: offline, or the hub did not deliver.
    """
    if setup.offline or setup.repo is None:
        raise _missing(setup.model, "and fetching is switched off (STENOPOOL_OFFLINE)")
    Path(setup.hub_dir).mkdir(parents=True, exist_ok=True)
    try:
        return str(download_model(setup.repo, cache_dir=setup.hub_dir))
    except Exception as error:  # huggingface_hub, httpx and requests each have a tree of their own
        log.warning("fetching %s failed: %s", setup.repo, error)
        raise _missing(setup.model, "and could not be fetched from the model hub") from error


def _missing(model: str, why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"The model {model!r} is not on disk {why}.",
        hint=f"Put the CTranslate2 model into STENOPOOL_MODELS_DIR/{model} (model.bin, config.json, tokenizer.json), "
        "or give the server access to the hub; model_size=demo always works.",
    )
