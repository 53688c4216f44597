"""What crosses from the server to a worker process: plain values and paths, never audio and never pickles."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

from app.jobs import TranscribeOptions


class Blocked(Enum):
    """Why a job cannot start now."""

    BUSY = "every stream of its model is taken"
    LOADING = "its model is being loaded"
    MEMORY = "there is no memory for it"


class DeviceLost(Exception):
    """The worker's device does not answer any more: only a new process can use it again, if any."""


def kind_of(device: str) -> str:
    """``cuda`` of ``cuda:1``."""
    return device.partition(":")[0]


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of a worker's own device, in bytes: what there is, what was free before it loaded, and what it takes itself."""

    total: int
    free: int
    taken: int

    @property
    def reserve(self) -> int:
        """What nobody is promised: the driver, other programs, fragments."""
        return self.total // 20


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to start: one model on one device.

    ``model_path`` is None where the model must be fetched (``repo``) into ``hub_dir`` first. ``streams`` jobs are there at
    once and share ``runners`` engine calls at once, each of ``batch_size`` windows at most and on ``threads`` threads, on
    one copy of the weights; that takes about ``work_bytes`` of memory while there are jobs. ``engine`` names the module
    whose ``create`` builds the engine. ``encoder`` and ``decoder`` are auto, ctranslate2 or openvino; what was measured to
    choose, with recordings of ``samples_dir``, is kept in ``encoders_dir``, and so are converted aligners. Where ``cores`` is
    not 0, the worker measures whether fewer ``runners`` with more ``threads`` each do more on so many cores of a CPU. On a GPU
    it takes ``gpu_fixed_bytes`` of the device, and ``gpu_window_bytes`` for each window at work; both are 0 elsewhere.
    ``align_device`` may be ``same``: that of the worker.
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
    decoder: str = "ctranslate2"
    encoders_dir: str = ""
    samples_dir: str = ""
    cores: int = 0
    gpu_fixed_bytes: int = 0
    gpu_window_bytes: int = 0

    @property
    def gpu_bytes(self) -> int:
        """What it takes of a GPU at most, with every batch full."""
        return self.gpu_fixed_bytes + self.runners * self.batch_size * self.gpu_window_bytes

    def within(self, room: int) -> WorkerSetup | None:
        """The same with so much smaller batches, then fewer engine calls, that ``room`` bytes of its GPU do.

        Slower is better than never. None: it does not fit even so.
        """
        setup = self
        while setup.gpu_bytes > room and setup.runners * setup.batch_size > 1:
            smaller = {"batch_size": setup.batch_size // 2} if setup.batch_size > 1 else {"runners": setup.runners // 2}
            setup = replace(setup, **smaller)  # type: ignore[arg-type]
        return setup if setup.gpu_bytes <= room else None

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

    The samples are ``pcm_bytes`` bytes from byte ``pcm_start`` of the file on (None: to its end).
    ``reserved_bytes`` is what it is predicted to need beside what the runners need for all jobs together.
    ``batch_size`` (windows) is smaller than the worker's own under pressure. ``lasting``: the result must survive a power cut.
    """

    job_id: str
    attempt: int
    pcm_path: str
    result_path: str
    options: TranscribeOptions
    reserved_bytes: int = 0
    batch_size: int | None = None
    lasting: bool = True
    pcm_start: int = 0
    pcm_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Task:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**data, "options": TranscribeOptions.from_dict(data["options"])})
