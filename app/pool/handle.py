"""One worker as the supervisor sees it: its state, the jobs it holds, its pings."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from app.errors import StenopoolError, by_code
from app.pool import messages
from app.pool.sites import Site
from app.pool.spawn import Child
from app.work import DeviceMemory, Task

log = logging.getLogger("stenopool.pool")

Progress = Callable[[str, float], None]


class State(Enum):
    """A worker's life."""

    STARTING = "starting"
    READY = "ready"
    DEAD = "dead"


class WorkerDied(Exception):
    """The worker ended while it held the job. ``alone``: no other job can be to blame. ``of_memory``: we ended it for that."""

    def __init__(self, alone: bool, of_memory: bool = False) -> None:
        super().__init__(f"worker died, alone={alone}")
        self.alone, self.of_memory = alone, of_memory


@dataclass(frozen=True)
class Measured:
    """What a run took: seconds of engine calls, and of its worker the most bytes, engine calls and windows at once meanwhile.

    The bytes are those beyond what the idle worker keeps and what its jobs take each for itself.
    """

    seconds: float
    bytes: int
    calls: int = 1
    windows: int = 1
    device: str = ""


@dataclass
class Running:
    """A job inside a worker: the future is set when the worker has answered or is dead. ``since``: monotonic seconds."""

    task: Task
    done: asyncio.Future[Measured]
    progress: Progress | None
    since: float


@dataclass(eq=False)
class Handle:
    """One worker process. ``reserved`` slots are taken by callers that have not sent their job yet.

    ``site`` is where it was started; ``device`` and ``device_memory`` are what it says of that when it is ready.
    ``name`` is its name in the memory ledgers, ``kept_bytes`` what it keeps when idle, ``rest_bytes`` what it is billed then,
    ``peak_bytes`` the most that it took while loading. ``rested``: it has no job, and has given back what it does not keep.
    ``chosen`` is what it measured and chose for its model (:class:`app.pool.worker.Engine`).
    """

    model: str
    streams: int
    child: Child
    site: Site
    name: str = ""
    on_idle: Callable[[Handle, int], None] | None = None
    kept_bytes: int = 0
    rest_bytes: int = 0
    peak_bytes: int = 0
    rested: bool = True
    state: State = State.STARTING
    device: str = ""
    device_memory: DeviceMemory | None = None
    chosen: dict[str, Any] = field(default_factory=dict)
    reserved: int = 0
    exclusive: bool = False
    running: dict[str, Running] = field(default_factory=dict)
    ready: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    last_pong: float = 0.0
    finished: int = 0

    @property
    def load(self) -> int:
        """Slots in use."""
        return self.reserved + len(self.running)

    def stats(self) -> dict[str, Any]:
        """What it is and does, as JSON values; ``bytes`` is what it keeps when idle."""
        return {
            "pid": self.child.pid,
            "state": self.state.value,
            "device": self.device or self.site.device,
            "running": len(self.running),
            "reserved": self.reserved,
            "bytes": self.kept_bytes,
            "rested": self.rested,
            "chosen": self.chosen,
        }

    def can_take(self, solo: bool) -> bool:
        """Whether a job fits now; a ``solo`` job shares the process with no other."""
        if self.state is not State.READY or self.exclusive:
            return False
        return self.load == 0 if solo else self.load < self.streams

    def send(self, kind: str, **values: Any) -> None:
        """Queue one message; a dead pipe is noticed by the reader."""
        if self.state is not State.DEAD:
            self.child.writer.write(messages.encode(kind, **values))

    def begin(self, task: Task, progress: Progress | None) -> Running:
        """Send a job to the worker."""
        running = Running(task, asyncio.get_running_loop().create_future(), progress, time.monotonic())
        self.running[task.job_id] = running
        self.rested = False
        self.send("run", task=task.to_dict())
        return running

    async def listen(self, now: Callable[[], float]) -> None:
        """Handle the worker's messages until its pipe ends; garbage counts as the end."""
        while line := await self._line():
            try:
                self._handle(messages.decode(line), now)
            except (ValueError, KeyError, TypeError):
                log.error("worker sent garbage", extra={"pid": self.child.pid})
                return

    async def _line(self) -> bytes:
        try:
            return await self.child.reader.readline()
        except (ValueError, OSError):  # ValueError: the line is longer than the limit
            return b""

    def _handle(self, message: dict[str, Any], now: Callable[[], float]) -> None:
        kind = message["type"]
        self.last_pong = now()
        if self.state is State.DEAD or (kind in ("ready", "setup_failed") and self.ready.done()):
            return  # what was still in the pipe of a worker that has been given up
        if kind == "ready":
            self.kept_bytes, self.peak_bytes = int(message["bytes"]), int(message["peak_bytes"])
            if message.get("device_memory"):
                self.device_memory = DeviceMemory(**message["device_memory"])
            self.state, self.device = State.READY, message["device"]
            self.chosen = message.get("chosen") or {}
            self.ready.set_result(None)
        elif kind == "setup_failed":
            self.ready.set_exception(_error(message))
        elif kind == "progress":
            running = self.running.get(message["job_id"])
            if running and running.progress:
                running.progress(str(message["stage"]), float(message["fraction"]))
        elif kind == "idle":
            self.rested = not self.running  # a job may be on its way there
            if self.on_idle is not None:
                self.on_idle(self, int(message["bytes"]))
        elif kind in ("done", "failed"):
            self._finish(message)

    def _finish(self, message: dict[str, Any]) -> None:
        running = self.running.pop(message["job_id"], None)
        if running is None or running.done.done():
            return
        self.finished += 1
        if message["type"] == "done":
            at_once = int(message.get("calls", 1)), int(message.get("windows", 1))
            measured = Measured(float(message["seconds"]), int(message["peak_bytes"]), *at_once, self.device)
            running.done.set_result(measured)
        else:
            running.done.set_exception(_error(message))

    def bury(self, *, blame: bool = True, of_memory: bool = False) -> None:
        """Mark the worker dead and tell every job it held; a job is to ``blame`` only where it was the only one."""
        self.state = State.DEAD
        alone = blame and len(self.running) == 1
        for running in self.running.values():
            if not running.done.done():
                running.done.set_exception(WorkerDied(alone, of_memory))
        self.running.clear()


def _error(message: dict[str, Any]) -> StenopoolError:
    return by_code(message["code"], message["message"], message.get("hint"))
