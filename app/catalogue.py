"""The models that may be named, and where each lies. No model is loaded here.

The RAM figures of the real models are those of the guide this project follows (decimal GB for one loaded instance); the
repositories are those that faster-whisper itself would fetch from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.settings import PROJECT_ROOT, Settings
from app.work import WorkerSetup

DEMO_MODEL = PROJECT_ROOT / "demo" / "model"
DEMO_SAMPLES = PROJECT_ROOT / "demo" / "samples"
DEMO_ALIGNER = PROJECT_ROOT / "demo" / "aligner"


@dataclass(frozen=True)
class ModelSpec:
    """One model: its hub repository (None where it ships with the project), RAM in bytes, languages.

    ``chunk_s`` is the longest window, in seconds, that it does well; every window is padded to 30 s all the same.
    """

    name: str
    ram_bytes: int
    repo: str | None
    english_only: bool = False
    languages: tuple[str, ...] = ("multilingual",)
    chunk_s: float = 30.0


def _real(name: str, ram_gb: float, repo: str | None = None) -> ModelSpec:
    english = name.endswith(".en")
    languages = ("en",) if english else ("multilingual",)
    return ModelSpec(name, int(ram_gb * 1e9), repo or f"Systran/faster-whisper-{name}", english, languages)


_TURBO = "mobiuslabsgmbh/faster-whisper-large-v3-turbo"

MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec("demo", int(0.25e9), None, languages=("en", "de", "es"), chunk_s=10.0),
        _real("tiny", 0.5),
        _real("tiny.en", 0.5),
        _real("base", 0.7),
        _real("base.en", 0.7),
        _real("small", 1.0),
        _real("small.en", 1.0),
        _real("medium", 2.0),
        _real("medium.en", 2.0),
        _real("turbo", 2.5, _TURBO),
        _real("large-v3-turbo", 2.5, _TURBO),
        _real("large-v1", 3.5),
        _real("large-v2", 3.5),
        _real("large-v3", 3.5),
    )
}


def local_path(name: str, settings: Settings) -> Path | None:
    """The folder of the model ``name`` if it lies on disk, else None.

    Looked for in this order: the demo folder, ``STENOPOOL_MODELS_DIR/<name>``,
    ``STENOPOOL_MODELS_DIR/faster-whisper-<name>``, the hub cache under ``STENOPOOL_DATA_DIR``.

    Raises:
        KeyError: there is no such model.
    """
    for folder in _candidates(name, settings):
        if (folder / "model.bin").is_file() and (folder / "config.json").is_file():
            return folder
    return None


def _candidates(name: str, settings: Settings) -> list[Path]:
    spec = MODELS[name]
    folders = [DEMO_MODEL] if name == "demo" else []
    if settings.models_dir is not None:
        folders += [settings.models_dir / name, settings.models_dir / f"faster-whisper-{name}"]
    if spec.repo is not None:
        snapshots = hub_cache(settings) / f"models--{spec.repo.replace('/', '--')}" / "snapshots"
        folders += sorted(snapshots.glob("*"))
    return folders


def hub_cache(settings: Settings) -> Path:
    """Where models that were fetched from the hub are kept."""
    return settings.data_dir.resolve() / "hub"


def warm_models(settings: Settings) -> tuple[str, ...]:
    """The models to load at start."""
    if settings.warm_models:
        return settings.warm_models
    wanted = settings.model_size
    return (wanted if local_path(wanted, settings) else "demo",)


def worker_setup(settings: Settings, model: str, engine: str = "app.engine.pipeline") -> WorkerSetup:
    """What the worker of ``model`` must know."""
    spec = MODELS[model]
    path = local_path(model, settings)
    return WorkerSetup(
        model=model,
        engine=engine,
        model_path=str(path) if path else None,
        repo=spec.repo,
        aligner_path=str(DEMO_ALIGNER) if model == "demo" else None,
        hub_dir=str(hub_cache(settings)),
        models_dir=str(settings.models_dir.resolve()) if settings.models_dir else None,
        offline=settings.offline,
        device=settings.device,
        align_device="same" if settings.devices and settings.align_device == "auto" else settings.align_device,
        compute_type=settings.compute_type,
        streams=settings.stream_count,
        threads=settings.thread_count,
        batch_size=settings.batch_size,
        runners=settings.runner_count,
        batch_wait_s=settings.batch_wait_ms / 1000,
        encoder=settings.encoder,
        decoder=settings.decoder,
        encoders_dir=str(settings.data_dir.resolve() / "encoders"),
        samples_dir=str(DEMO_SAMPLES),
        cores=0 if settings.runners or settings.threads else settings.cores // settings.worker_count,
    )
