"""The front desk with everything it looks at: memory, disk, prices, pressure. Beside the pure :mod:`app.admission`, the clock.

One ledger of memory for all: the server itself, the workers, every job. A loop looks at the real use once a second and acts
on it, and what jobs really took goes back into the prices, which outlive the server.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import replace

from app.admission import refusals
from app.admission.controller import Controller
from app.admission.ledger import Ledger
from app.admission.memory import MemoryProbe, Reading, usable
from app.admission.pressure import Ladder, Step
from app.admission.ticket import Ask, Count, Limits, Phase, Ticket
from app.desk.bills import Bills
from app.desk.prices import MEDIA_BYTES, Prices
from app.errors import DiskFull, QueueTimeout, StenopoolError
from app.measurements import Measurements
from app.media.paths import free_bytes
from app.media.process import MB as DISK_MB
from app.pool.interface import AnyPool
from app.pool.slot import Slot
from app.settings import Settings

log = logging.getLogger("stenopool.admission")

MB = 1 << 20
LOOK_S = 1.0
SAVE_S = 30.0
BASE_BYTES = 575_000_000
"""The API process and the forkserver with its imports, until they are measured."""
ONE_JOB_BYTES = 100_000_000
"""What the smallest server must have room for beside a worker."""
PCM_BYTES_PER_S = 32_000
UNKNOWN_UPLOAD_BYTES = 16_000_000
RETRY_GROWTH = 1.5
OOM_RECENT_S = 3.0


class Desk(Bills):
    """See the module. ``start`` makes it look and learn; before, it admits against what it saw at its creation.

    ``elsewhere``: the memory of other machines, where transcriptions run there; :meth:`resize` tells of them.
    """

    def __init__(
        self,
        settings: Settings,
        pool: AnyPool,
        measurements: Measurements,
        probe: MemoryProbe | None = None,
        now: Callable[[], float] = time.monotonic,
        elsewhere: Ledger | None = None,
    ) -> None:
        super().__init__(Prices(settings, pool, lambda: self.jobs.most_bytes))
        self.settings, self.pool = settings, pool
        self._measurements, self._now = measurements, now
        self._probe = probe or MemoryProbe(settings.memory_limit_mb, settings.railway_ram_mb)
        self.ladder = Ladder(now)
        self.step = Step.CALM
        self.reading = self._probe.read()
        self.peak_bytes = self.reading.used
        self._oom_kills, self._oom_at = self.reading.oom_kills, now() - OOM_RECENT_S
        self.disk = Ledger(0)
        jitter = random.Random().random
        waiting = 0 if settings.overload_policy == "reject" else settings.max_queued
        queue_s = settings.max_queue_s if waiting else 0.0
        at_once = self._at_once()
        parallel = min(at_once, settings.runner_count * settings.worker_count)
        limits = Limits(at_once, waiting, queue_s, settings.large_wait_s, parallel=parallel)
        self.jobs = Controller("transcriptions", limits, elsewhere or self._ledger, pool, now, jitter)
        count = Count(pool.make_room)
        media = replace(limits, running=settings.max_media_jobs, parallel=0)
        self.media = Controller("extractions", media, self._ledger, count, now, jitter)
        self.downloads = Controller(
            "downloads", replace(media, running=settings.max_downloads), self._ledger, count, now, jitter
        )
        self._set_budget()
        self._ledger.take("base", min(BASE_BYTES, self._ledger.budget))
        self._set_budget()  # again: now what the server itself holds is known
        self._watching: asyncio.Task[None] | None = None
        pool.desk = self

    def _at_once(self) -> int:
        streams = self.settings.stream_count * self.settings.worker_count
        return min(streams, self.settings.max_concurrent_transcriptions or streams)

    # -- what the pool needs of its desk, beside bills

    def changed(self) -> None:
        """Something came free: see who may start."""
        for controller in self.controllers:
            controller.pump()

    def failed(self, model: str, error: StenopoolError) -> None:
        """The model cannot be loaded: tell those who wait for it."""
        self.jobs.fail_lane(model, error)

    # -- life

    @property
    def controllers(self) -> tuple[Controller, ...]:
        """One per class of work; small and short work first, because the large one waits for it."""
        return self.media, self.downloads, self.jobs

    async def start(self) -> None:
        """Take up what was learned before, and begin to look."""
        saved = await asyncio.to_thread(self._measurements.load, "costs")
        if saved is not None:
            self.prices.costs.load(saved)
        shown = {"source": self.reading.source, "limit": self.reading.limit, "budget": self._ledger.budget}
        log.info("memory for admission", extra=shown)
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stop looking; keep what was learned."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            try:
                await self._save()
            except StenopoolError:  # the rest of the server must still stop in order
                log.warning("what was learned could not be kept")

    def drain(self) -> None:
        """Start no background job any more, and let nobody wait for a transcription; who finds a place free may still run."""
        self.jobs.draining = True
        for ticket in [one for one in self.jobs.inside if one.phase is Phase.WAITING and not one.stays]:
            self.jobs.send_away(ticket, refusals.stopping())

    async def _watch(self) -> None:
        saved_at = self._now()
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self.look(await asyncio.to_thread(self._probe.read))
                if self._now() - saved_at > SAVE_S:
                    saved_at = self._now()
                    await self._save()
            except Exception:  # one bad look must not end all looking
                log.exception("looking at the memory failed")

    async def _save(self) -> None:
        costs = self.prices.costs
        if costs.dirty:
            costs.dirty = False
            await asyncio.to_thread(self._measurements.save, "costs", costs.dump())

    def look(self, reading: Reading) -> None:
        """Act on one reading: the budget, the ladder of pressure, idle models, and then whoever may start."""
        self.reading = reading
        self.peak_bytes = max(self.peak_bytes, reading.used)
        self._set_budget()
        self._measure_base()
        used = reading.used / reading.limit
        self.step = self.ladder.observe(used, reading.swap_used, self.prices.costs.slowdown, reading.pressure)
        low = self.step >= Step.STOP_STARTING
        for controller in self.controllers:
            controller.paused = low
            controller.closed_because = refusals.memory_low(used) if low else None
        if self.step >= Step.SHED_NEWEST:
            self.pool.shed_newest()
        self.pool.tick(evict_idle=self.step >= Step.EVICT_IDLE)
        self.changed()

    def _set_budget(self) -> None:
        settings = self.settings
        worker = self.prices.worker(settings.model_size)
        one = BASE_BYTES + MEDIA_BYTES + max(worker.load_peak_bytes, worker.resident_bytes + ONE_JOB_BYTES)
        budget = usable(self.reading, settings.host_reserve_mb * MB, settings.container_reserve_mb * MB, one)
        self.static_bytes, self._ledger.budget = budget.static, budget.now
        for controller in self.controllers:
            if controller.memory is self._ledger:
                controller.most_bytes = max(0, budget.static - self._ledger.held("base"))

    def resize(self, places: int, runners: int, most_bytes: int) -> None:
        """How many transcriptions may run at once, how many of them make progress, and what the largest may take, elsewhere."""
        self.jobs.most_bytes = most_bytes
        most = self.settings.max_concurrent_transcriptions or places
        self.jobs.resize(max(1, min(places, most)), max(1, runners))
        self.changed()

    def _measure_base(self) -> None:
        """What is ours and no worker's, while nothing else changes."""
        workers = [worker for lane in self.pool.stats().values() for worker in lane["workers"]]
        calm = not self.jobs.running and not self.media.running and not self.downloads.running
        if workers and calm and all(worker["state"] == "ready" and worker["rested"] for worker in workers):
            self._ledger.resize("base", max(0, self.reading.own - sum(worker["bytes"] for worker in workers)))

    # -- the way through

    def enter(self, controller: Controller, ask: Ask, upload_bytes: int | None) -> Ticket:
        """Let a request in and reserve its disk, in one step.

        Raises:
            DiskFull: too little free disk for the upload and its decoded audio.
            StenopoolError: as :meth:`Controller.enter`.
        """
        self.disk.budget = free_bytes(self.settings.jobs_dir) - self.settings.disk_reserve_mb * DISK_MB
        most = self.settings.max_audio_s * PCM_BYTES_PER_S
        amount = (UNKNOWN_UPLOAD_BYTES if upload_bytes is None else upload_bytes) + int(
            min(ask.audio_s * PCM_BYTES_PER_S, most)
        )
        if not self.disk.fits(amount):
            raise DiskFull(
                "The server has too little free disk for this.", details={"reason": "disk", "predicted_bytes": amount}
            )
        ticket = controller.enter(ask)
        self.disk.take(ticket.name, amount)
        return ticket

    def release(self, controller: Controller, ticket: Ticket) -> None:
        """It has ended, however it ended; a second call does nothing."""
        self.disk.drop(ticket.name)
        controller.release(ticket)
        self.changed()

    async def turn(self, controller: Controller, ticket: Ticket, timeout_s: float) -> Slot | None:
        """Wait until the ticket may run; its seat.

        Raises:
            QueueTimeout: its turn did not come within ``timeout_s`` seconds.
            StenopoolError: it never will.
        """
        seat: asyncio.Future[Slot | None] = asyncio.get_running_loop().create_future()

        def on_turn(given: Slot | None, error: StenopoolError | None) -> None:
            if error is not None:
                seat.set_exception(error)
            else:
                seat.set_result(given)

        controller.wait(ticket, on_turn)
        try:
            if controller.draining and not (ticket.stays or ticket.solo or seat.done()):
                raise refusals.stopping()
            # not wait_for: before Python 3.12 it swallows a cancellation that comes together with its result
            if not (await asyncio.wait({seat}, timeout=None if timeout_s == math.inf else timeout_s))[0]:
                raise QueueTimeout("The request waited in line for too long.")
            return seat.result()
        except BaseException:
            controller.withdraw(ticket)
            if seat.done() and seat.exception() is None and (given := seat.result()) is not None:
                given.__exit__()
            raise

    def again(self, ticket: Ticket) -> None:
        """Its worker died under it: next, alone, and with more memory. :meth:`turn` must follow at once."""
        self.jobs.again(ticket, amount=int(ticket.bytes * RETRY_GROWTH))

    async def died_of_memory(self) -> bool:
        """Whether the kernel has killed something of ours in the last seconds."""
        kills = (await asyncio.to_thread(self._probe.read)).oom_kills
        if kills > self._oom_kills:
            self._oom_kills, self._oom_at = kills, self._now()
        return self._now() - self._oom_at < OOM_RECENT_S

    def batch_size(self, model: str) -> int:
        """Windows per engine call: as priced, or half as many under pressure."""
        size = self.prices.batches(model).size
        return max(1, size // 2) if self.step >= Step.SMALLER_BATCHES else size
