"""The workers of one model, as data; and what the pool needs to know of memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from app.errors import StenopoolError
from app.pool.handle import Handle, State
from app.pool.sites import Site
from app.work import DeviceMemory, WorkerSetup


class Memory(Protocol):
    """Where bytes are reserved, by name; see :mod:`app.admission.ledger`."""

    @property
    def free(self) -> int:
        """Bytes that can be taken."""
        ...

    def fits(self, amount: int) -> bool:
        """Whether so much more can be taken now."""
        ...

    def take(self, name: str, amount: int) -> bool:
        """Reserve bytes, or nothing where they do not fit."""
        ...

    def resize(self, name: str, amount: int) -> int:
        """Correct a reservation."""
        ...

    def held(self, name: str) -> int:
        """What ``name`` holds."""
        ...

    def drop(self, name: str) -> None:
        """Give back."""
        ...


class Desk(Protocol):
    """Who prices and watches the workers; see :mod:`app.desk`."""

    @property
    def memory(self) -> Memory:
        """The ledger that workers are billed to."""
        ...

    def load_bytes(self, model: str, device: str) -> int:
        """What loading a worker takes at its peak."""
        ...

    def loaded(self, model: str, device: str, kept: int, peak: int, seconds: float) -> int:
        """A worker is ready and keeps so many bytes; what to bill it from now on."""
        ...

    def idles(self, model: str, device: str, kept: int) -> int:
        """A worker has nothing to do and keeps so many bytes; what to bill it from now on."""
        ...

    def working(self, model: str, device: str) -> int:
        """What a worker takes while it has jobs, over what it keeps when idle."""
        ...

    def minute_s(self, model: str, device: str) -> float:
        """Seconds that a minute of audio takes on a device."""
        ...

    def device_memory(self, device: str) -> Memory:
        """The ledger of a device's own memory."""
        ...

    def device_bytes(self, model: str, device: str) -> int:
        """What a worker takes of it."""
        ...

    def on_device(self, device: str, name: str, memory: DeviceMemory) -> None:
        """A worker has said what there is on its device."""
        ...

    def left_device(self, device: str, name: str) -> None:
        """A worker has ended."""
        ...

    def sized(self, setup: WorkerSetup) -> WorkerSetup:
        """The same worker with as many engine calls and as large batches as fit."""
        ...

    def changed(self) -> None:
        """A place or memory may have come free."""
        ...

    def failed(self, model: str, error: StenopoolError) -> None:
        """The model cannot be loaded."""
        ...


@dataclass(frozen=True)
class PoolLimits:
    """Seconds and counts; see :mod:`app.settings` for their meaning. ``max_resident_models``: 0 is as many as fit.

    ``workers_per_model`` are so many on each of ``devices``.
    """

    workers_per_model: int = 1
    devices: tuple[str, ...] = ("cpu",)
    max_resident_models: int = 0
    ping_interval_s: float = 2.0
    ping_timeout_s: float = 15.0
    setup_timeout_s: float = 900.0
    idle_ttl_s: float = 900.0


@dataclass(eq=False)
class Lane:
    """Everything about one model. ``wanted``: a job asked for it since it was last loaded or given up."""

    setup: WorkerSetup
    sites: tuple[Site, ...]
    workers: list[Handle] = field(default_factory=list)
    keep_warm: bool = False
    wanted: bool = False
    last_used: float = 0.0

    @property
    def starting(self) -> int:
        """Workers that have no process yet."""
        return sum(site.starting for site in self.sites)

    @property
    def failure(self) -> StenopoolError | None:
        """Why the model cannot be had, as of the last try: it is on no device, and has failed on every one."""
        if any(worker.state is State.READY for worker in self.workers) or not all(site.failure for site in self.sites):
            return None
        return max(self.sites, key=lambda site: site.not_before).failure

    @property
    def loading(self) -> bool:
        """Whether a worker of it is being started."""
        return self.starting > 0 or any(worker.state is State.STARTING for worker in self.workers)

    def loading_on(self, device: str) -> bool:
        """The same on one device."""
        starting = any(site.starting for site in self.sites if site.device == device)
        return starting or any(one.state is State.STARTING for one in self.workers if one.site.device == device)

    @property
    def idle(self) -> bool:
        """Whether nothing runs here or loads."""
        return not self.loading and all(worker.load == 0 for worker in self.workers)

    @property
    def alive(self) -> list[Handle]:
        """Workers that have not been given up."""
        return [worker for worker in self.workers if worker.state is not State.DEAD]
