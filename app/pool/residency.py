"""Which models stay loaded, and what their workers are billed.

Memory comes back only when a process ends, so models are evicted by ending their workers.
"""

from __future__ import annotations

from collections.abc import Callable

from app.pool.handle import Handle, State
from app.pool.lane import Desk, Lane, PoolLimits


class Residency:
    """Least recently used first; never a model that works or loads.

    ``evict(lane, reason)`` ends the workers of a model, ``kill(worker, reason)`` one of them.
    """

    def __init__(
        self,
        lanes: dict[str, Lane],
        limits: PoolLimits,
        evict: Callable[[Lane, str], None],
        kill: Callable[[Handle, str], None],
        desk: Callable[[], Desk],
        now: Callable[[], float],
    ) -> None:
        self._lanes, self._limits, self._desk, self._now = lanes, limits, desk, now
        self._evict, self._kill = evict, kill

    def admit(self, name: str, model: str, device: str, keep: frozenset[str]) -> bool:
        """Reserve what loading a worker takes, of the machine and of its device; or evict idle models for it."""
        desk = self._desk()
        amount, own = desk.load_bytes(model, device), desk.device_bytes(model, device)
        memory, device_memory = desk.memory, desk.device_memory(device)
        if not memory.fits(amount):
            self.make_room(amount - memory.free, keep)
            return False
        if not device_memory.fits(own):
            self._clear(device, own - device_memory.free, keep)
            return False
        return memory.take(name, amount) and device_memory.take(name, own)

    def _clear(self, device: str, amount: int, keep: frozenset[str]) -> None:
        """End idle workers on one device until ``amount`` bytes of it are on their way back; on others their models stay."""
        held = self._desk().device_memory(device).held
        there = [worker for lane in self._lanes.values() for worker in lane.workers if worker.site.device == device]
        coming = sum(held(worker.name) for worker in there if worker.state is State.DEAD)
        idle = [worker for worker in there if worker.state is State.READY and not worker.load and worker.model not in keep]
        for worker in sorted(idle, key=lambda worker: self._lanes[worker.model].last_used):
            if coming >= amount:
                return
            coming += held(worker.name)
            worker.site.parked = True
            self._kill(worker, f"its memory of {device} is needed")

    def wake(self, worker: Handle, keep: frozenset[str]) -> bool:
        """Reserve what an idle worker takes as soon as it has jobs, however many, or evict idle models for it."""
        if worker.load:
            return True
        desk = self._desk()
        wanted = worker.rest_bytes + desk.working(worker.model, worker.site.device)
        missing = wanted - desk.memory.held(worker.name)
        if missing > 0 and not desk.memory.fits(missing):
            self.make_room(missing - desk.memory.free, keep | {worker.model})
            return False
        desk.memory.resize(worker.name, wanted)
        return True

    def bill(self, worker: Handle, rest_bytes: int | None = None) -> None:
        """Bill what it keeps when idle (which may be news), and while it has jobs what they share."""
        desk = self._desk()
        if rest_bytes is not None:
            worker.rest_bytes = rest_bytes
        if not worker.load:
            desk.memory.resize(worker.name, worker.rest_bytes)
        elif rest_bytes is not None:
            desk.memory.resize(worker.name, rest_bytes + desk.working(worker.model, worker.site.device))

    def make_room(self, amount: int, keep: frozenset[str]) -> None:
        """Evict idle models that are not in ``keep`` until ``amount`` bytes are on their way back.

        Workers that are ending already count.
        """
        ending = [worker for lane in self._lanes.values() for worker in lane.workers if worker.state is State.DEAD]
        coming = sum(self._desk().memory.held(worker.name) for worker in ending)
        for lane in self._idle(keep):
            if coming >= amount:
                return
            coming += sum(self._desk().memory.held(worker.name) for worker in lane.workers)
            self._evict(lane, "its memory is needed")

    def has_place(self, lane: Lane, keep: frozenset[str]) -> bool:
        """Whether another model may be resident beside the others; if not, idle ones are evicted for it."""
        most = self._limits.max_resident_models
        others = [other for other in self._resident() if other is not lane]
        if not most or len(others) < most:
            return True
        for other in self._idle(keep)[: len(others) + 1 - most]:
            self._evict(other, f"for {lane.setup.model}")
        return False

    def tick(self, *, everything: bool) -> None:
        """Evict what has been idle for too long or is one too many; ``everything`` that is idle where memory is low.

        What had to leave a device may come back once there is room without it.
        """
        desk = self._desk()
        for name, site in [(name, site) for name, lane in self._lanes.items() for site in lane.sites if site.parked]:
            site.parked = not desk.device_memory(site.device).fits(desk.device_bytes(name, site.device))
        for lane in self._idle(frozenset()):
            surplus = len(self._resident()) - (self._limits.max_resident_models or len(self._lanes))
            expired = not lane.keep_warm and self._now() - lane.last_used > self._limits.idle_ttl_s
            if everything or surplus > 0 or expired:
                self._evict(lane, "memory is low" if everything else "it was idle")

    def _resident(self) -> list[Lane]:
        return [lane for lane in self._lanes.values() if lane.alive or lane.starting]

    def _idle(self, keep: frozenset[str]) -> list[Lane]:
        idle = [lane for lane in self._lanes.values() if lane.alive and lane.idle and lane.setup.model not in keep]
        return sorted(idle, key=lambda lane: lane.last_used)
