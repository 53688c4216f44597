"""Pools for tests: one without processes, and a desk that lets everybody go in the order in which they came."""

from __future__ import annotations

import asyncio
from typing import Any

from app.admission.ledger import Ledger
from app.desk.desk import Desk
from app.errors import NotReady, StenopoolError
from app.measurements import Measurements
from app.pool.slot import Slot
from app.pool.supervisor import Pool
from app.service import Service
from app.settings import Settings
from app.store import AsyncStore, Store
from app.work import Blocked, DeviceMemory, WorkerSetup


class QuietPool:
    """Always ready, and no job ever gets a worker."""

    ready = True
    desk: Any = None

    def warm(self, model: str) -> None:
        pass

    def stats(self) -> dict[str, Any]:
        return {}

    def devices(self) -> dict[str, Any]:
        return {}

    def others(self) -> list[dict[str, Any]]:
        return []

    def failures(self) -> dict[str, StenopoolError]:
        return {}

    def take(self, lane: str, **how: Any) -> Any:
        return NotReady("There are no workers in this test.", retry_after_s=7)

    def make_room(self, amount: int, keep: frozenset[str]) -> None:
        pass

    def tick(self, *, evict_idle: bool = False) -> None:
        pass

    def shed_newest(self) -> bool:
        return False

    async def close(self) -> None:
        pass


def quiet_service(settings: Settings) -> Service:
    pool: Any = QuietPool()
    store = Store(settings.store_url)
    settings.jobs_dir.mkdir(parents=True, exist_ok=True)
    return Service(settings, AsyncStore(store), pool, Desk(settings, pool, Measurements(store)))


class OpenDesk:
    """First come, first served, in as much memory as the test says."""

    def __init__(self, pool: Pool, budget: int = 1 << 40, worker_bytes: int = 1, work_bytes: int = 0) -> None:
        self.pool, self.memory = pool, Ledger(budget)
        self.worker_bytes, self.work_bytes = worker_bytes, work_bytes
        self.gpu_bytes = 0
        self.devices: dict[str, Ledger] = {}
        self.minutes: dict[str, float] = {}
        self.seen: list[tuple[str, DeviceMemory]] = []
        self.waiting: list[tuple[str, bool, asyncio.Future[Slot]]] = []
        pool.desk = self

    def load_bytes(self, model: str, device: str) -> int:
        return self.worker_bytes

    def loaded(self, model: str, device: str, kept: int, peak: int, seconds: float) -> int:
        return self.worker_bytes

    def idles(self, model: str, device: str, kept: int) -> int:
        return self.worker_bytes

    def working(self, model: str, device: str) -> int:
        return self.work_bytes

    def minute_s(self, model: str, device: str) -> float:
        return self.minutes.get(device, 1.0)

    def device_memory(self, device: str) -> Ledger:
        return self.devices.setdefault(device, Ledger(1 << 62))

    def device_bytes(self, model: str, device: str) -> int:
        return self.gpu_bytes if device.startswith("cuda") else 0

    def on_device(self, device: str, name: str, memory: DeviceMemory) -> None:
        self.seen.append((device, memory))

    def left_device(self, device: str, name: str) -> None:
        self.device_memory(device).drop(name)

    def sized(self, setup: WorkerSetup) -> WorkerSetup:
        return setup

    def failed(self, model: str, error: StenopoolError) -> None:
        for one in [one for one in self.waiting if one[0] == model]:
            self._answer(one, error)

    def changed(self) -> None:
        blocked: set[str] = set()
        for one in list(self.waiting):
            model, solo, _ = one
            if model not in blocked:
                found = self.pool.take(model, solo=solo)
                if isinstance(found, Blocked):
                    blocked.add(model)
                else:
                    self._answer(one, found)

    def _answer(self, one: tuple[str, bool, asyncio.Future[Slot]], found: Slot | StenopoolError) -> None:
        self.waiting.remove(one)
        if isinstance(found, StenopoolError):
            one[2].set_exception(found)
        else:
            one[2].set_result(found)

    async def acquire(self, model: str, *, solo: bool = False, front: bool = False) -> Slot:
        one = (model, solo, asyncio.get_running_loop().create_future())
        self.waiting.insert(0 if front else len(self.waiting), one)
        self.changed()
        try:
            return await one[2]
        finally:
            if one in self.waiting:
                self.waiting.remove(one)
