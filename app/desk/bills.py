"""What workers are billed: memory of the machine in the one ledger, memory of each GPU in a ledger of its own.

Nobody here can ask a GPU. What it has, its workers say when they are ready; so the first one on it loads unseen, and finds out
itself whether it fits.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from app.admission.ledger import Ledger
from app.desk.prices import Prices
from app.work import DeviceMemory, WorkerSetup

log = logging.getLogger("stenopool.admission")

UNKNOWN = 1 << 62
"""Bytes of a device that nobody has asked."""


class Bills:
    """The part of the desk that the pool talks to about memory. All amounts are bytes."""

    def __init__(self, prices: Prices) -> None:
        self.prices = prices
        self._ledger = Ledger(0)
        self._devices: dict[str, Ledger] = {}

    @property
    def memory(self) -> Ledger:
        """The one ledger of the machine's memory."""
        return self._ledger

    def load_bytes(self, model: str, device: str = "") -> int:
        """What loading a worker takes at its peak."""
        return self.prices.worker(model, device).load_peak_bytes

    def loaded(self, model: str, device: str, kept: int, peak: int, seconds: float) -> int:
        """A worker is ready: learn from it, and say what to bill it."""
        self.prices.learn_worker(model, device, peak=peak, seconds=seconds)
        return self.idles(model, device, kept)

    def idles(self, model: str, device: str, kept: int) -> int:
        """A worker has nothing to do: learn what it keeps of its past jobs; a young one will come to keep as much."""
        self.prices.learn_worker(model, device, kept=kept)
        return max(kept, self.prices.worker(model, device).resident_bytes)

    def working(self, model: str, device: str = "") -> int:
        """What a worker takes while it has jobs, over what it keeps when idle."""
        return self.prices.batches_bytes(model, device)

    def minute_s(self, model: str, device: str) -> float:
        """Seconds that a minute of audio takes on ``device``."""
        return self.prices.minute_s(model, device)

    def sized(self, setup: WorkerSetup) -> WorkerSetup:
        """The same worker with as many engine calls and as large batches as fit here."""
        model, device = setup.model, setup.device
        batches, (fixed, window) = self.prices.batches(model, device), self.prices.gpu_bytes(model, device)
        sized = replace(
            setup,
            runners=batches.calls,
            batch_size=batches.size,
            work_bytes=self.working(model, device),
            gpu_fixed_bytes=fixed,
            gpu_window_bytes=window,
        )
        return sized.within(self.device_memory(device).budget) or sized  # the worker says so itself where it never fits

    # -- GPUs

    def device_memory(self, device: str) -> Ledger:
        """The ledger of a device's own memory; without bounds where that is not known, and on a CPU."""
        return self._devices.setdefault(device, Ledger(UNKNOWN))

    def device_bytes(self, model: str, device: str) -> int:
        """What a worker takes of the device's own memory, from its load to its end."""
        (fixed, window), batches = self.prices.gpu_bytes(model, device), self.prices.batches(model, device)
        return min(fixed + batches.windows * window, max(fixed + window, self.device_memory(device).budget))

    def on_device(self, device: str, name: str, memory: DeviceMemory) -> None:
        """A worker has said what it found on its device, and what it takes there."""
        ledger = self.device_memory(device)
        others = ledger.reserved - ledger.held(name)
        ledger.budget = max(0, min(memory.total, memory.free + others) - memory.reserve)
        ledger.resize(name, memory.taken)
        shown = {"device": device, "total": memory.total, "free": memory.free, "worker": memory.taken}
        log.info("memory of a device", extra=shown)

    def left_device(self, device: str, name: str) -> None:
        """A worker has ended. Nobody knows what there is on a device that no worker of ours is on."""
        ledger = self.device_memory(device)
        ledger.drop(name)
        if not ledger.holders():
            ledger.budget = UNKNOWN

    def devices_shown(self) -> dict[str, dict[str, Any]]:
        """Bytes of each device that has workers; ``budget_bytes`` is None where nobody has asked it yet."""
        return {
            device: {
                "budget_bytes": None if ledger.budget == UNKNOWN else ledger.budget,
                "reserved_bytes": ledger.reserved,
                "reservations": ledger.holders(),
            }
            for device, ledger in self._devices.items()
            if ledger.reserved  # none on a CPU
        }
