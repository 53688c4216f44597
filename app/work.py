"""What crosses from the server to a worker process: plain values and paths, never audio and never pickles."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from app.jobs import TranscribeOptions


class Blocked(Enum):
    """Why a job cannot start now."""

    BUSY = "every stream of its model is taken"
    LOADING = "its model is being loaded"
    MEMORY = "there is no memory for it"


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to start: one model on one device.

    ``model_path`` is None where the model must be fetched (``repo``) into ``hub_dir`` first. ``streams`` jobs are there at
    once and share ``runners`` engine calls at once, each of ``batch_size`` windows at most and on ``threads`` threads, on
    one copy of the weights; that takes about ``work_bytes`` of memory while there are jobs. ``engine`` names the module
    whose ``create`` builds the engine. ``encoder`` is auto, ctranslate2 or openvino; what was measured to choose one is kept
    in ``encoders_dir``, with recordings of ``samples_dir``.
    """

    model: str
    engine: str
    model_path: str | None
    repo: str | None
    aligner_path: str | None
    hub_dir: str
    models_dir: str | None
    offline: bool
    device: str
    align_device: str
    compute_type: str
    streams: int
    threads: int
    batch_size: int
    runners: int = 1
    batch_wait_s: float = 0.0
    work_bytes: int = 0
    encoder: str = "ctranslate2"
    encoders_dir: str = ""
    samples_dir: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> WorkerSetup:
        """The inverse of :meth:`to_dict`."""
        return cls(**data)


@dataclass(frozen=True)
class Task:
    """One attempt at one job: ``pcm_path`` holds 16 kHz mono s16le samples, the result is written to ``result_path``.

    ``reserved_bytes`` is what it is predicted to need beside what the runners need for all jobs together.
    ``batch_size`` (windows) is smaller than the worker's own under pressure.
    """

    job_id: str
    attempt: int
    pcm_path: str
    result_path: str
    options: TranscribeOptions
    reserved_bytes: int = 0
    batch_size: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Task:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**data, "options": TranscribeOptions.from_dict(data["options"])})
