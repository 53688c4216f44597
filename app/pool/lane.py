"""The line in front of one model, as data."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from app.errors import StenopoolError
from app.pool.handle import Handle, State
from app.work import WorkerSetup


@dataclass(frozen=True)
class PoolLimits:
    """Seconds and counts; see :mod:`app.settings` for their meaning."""

    workers_per_model: int = 1
    max_resident_models: int = 2
    ping_interval_s: float = 2.0
    ping_timeout_s: float = 15.0
    setup_timeout_s: float = 900.0


@dataclass(eq=False)
class Waiter:
    """A caller in line."""

    solo: bool
    granted: asyncio.Future[Handle]


@dataclass(eq=False)
class Lane:
    """Everything about one model."""

    setup: WorkerSetup
    waiting: deque[Waiter] = field(default_factory=deque)
    workers: list[Handle] = field(default_factory=list)
    starting: int = 0
    deaths: int = 0
    setup_deaths: int = 0
    not_before: float = 0.0
    keep_warm: bool = False
    last_used: float = 0.0
    failure: StenopoolError | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing runs here or waits."""
        return (
            not self.waiting
            and not self.starting
            and all(worker.load == 0 and worker.state is not State.STARTING for worker in self.workers)
        )
