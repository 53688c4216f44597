"""The worker process: loads one model, then runs jobs in threads that share it, until it is told to stop.

The main thread only reads the pipe, so that pings are answered while jobs compute. The pipe's end is the parent's end:
when it closes, the process exits at once. Exits use ``os._exit``: libgomp and onnxruntime can deadlock in their own
exit handlers.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from setproctitle import setproctitle

from app import logs
from app.durable import write_durably
from app.errors import Cancelled, StenopoolError, WorkError
from app.pool import messages
from app.pool.meter import Meter
from app.work import DeviceLost, DeviceMemory, Task, WorkerSetup

log = logging.getLogger("stenopool.worker")

Report = Callable[[str, float], None]


class Engine(Protocol):
    """What an engine module's ``create(setup)`` returns."""

    device: str
    device_memory: DeviceMemory | None
    chosen: dict[str, Any]
    """``encoder``, ``decoder`` and ``arrangement`` (with ``runners``) of its model, and what they were chosen by."""

    def transcribe(self, task: Task, report: Report, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Run one task; call ``report(stage, fraction)`` after every step and stop where ``cancelled()`` is true.

        ``spent`` in the result (as :class:`app.engine.runners.Spent`) stays here; without it the run time counts.
        """
        ...


def main(pipe: socket.socket, setup: dict[str, Any]) -> None:
    """Entry of the process; never returns."""
    code = 1
    try:
        _detach()
        logs.configure("info")
        code = Worker(pipe, WorkerSetup.from_dict(setup)).serve()
    except BaseException:
        log.exception("worker failed")
    finally:
        sys.stderr.flush()
        os._exit(code)


def _detach() -> None:
    """Leave the terminal's group, be the first to go when memory runs out, and end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setpgid(0, 0)
    os.nice(5)  # the server must answer while every core computes
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # not writable in some sandboxes
            Path("/proc/self/oom_score_adj").write_text("900")
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Worker:
    """One model, ``setup.streams`` jobs at once."""

    def __init__(self, pipe: socket.socket, setup: WorkerSetup) -> None:
        self._pipe = pipe
        self._setup = setup
        self._send_lock = threading.Lock()
        self._running: set[str] = set()
        self._cancelled: set[str] = set()
        self._threads = ThreadPoolExecutor(setup.streams, thread_name_prefix="stream")
        self._engine: Engine
        self._meter: Meter

    def serve(self) -> int:
        """Set up, then answer messages until ``stop`` or the end of the pipe; returns the exit code."""
        setproctitle(f"stenopool worker {self._setup.model} loading")
        self._meter = Meter(self._setup.work_bytes, lambda kept: self._send("idle", bytes=kept))
        try:
            self._engine = importlib.import_module(self._setup.engine).create(self._setup)
        except StenopoolError as error:
            self._send("setup_failed", code=error.code, message=error.message, hint=error.hint)
            return 2
        setproctitle(f"stenopool worker {self._setup.model} {self._engine.device}")
        kept, peak = self._meter.loaded()
        memory = asdict(self._engine.device_memory) if self._engine.device_memory else None
        ready = {"device": self._engine.device, "bytes": kept, "peak_bytes": peak, "device_memory": memory}
        self._send("ready", pid=os.getpid(), chosen=self._engine.chosen, **ready)
        with self._pipe.makefile("rb") as lines:
            for line in lines:
                message = messages.decode(line)
                if message["type"] == "stop":
                    break
                self._handle(message)
        return 0

    def _handle(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "ping":
            self._send("pong", n=message["n"])
        elif kind == "run":
            task = Task.from_dict(message["task"])
            self._running.add(task.job_id)
            self._threads.submit(self._run, task)
        elif kind == "cancel":  # it may cross the job's own end
            self._cancelled |= {message["job_id"]} & self._running

    def _run(self, task: Task) -> None:
        job_id, began = task.job_id, time.monotonic()
        self._meter.began(job_id, task.reserved_bytes)
        highest: int | None = None
        try:
            result = self._engine.transcribe(task, self._reporter(job_id), lambda: job_id in self._cancelled)
            if job_id in self._cancelled:
                raise Cancelled("The job was cancelled.")
            spent = {"seconds": time.monotonic() - began} | result.pop("spent", {})
            write_durably(Path(task.result_path), json.dumps(result, ensure_ascii=False).encode(), lasting=task.lasting)
            highest = self._meter.ended(job_id)
            self._send("done", job_id=job_id, peak_bytes=highest, **spent)
        except StenopoolError as error:
            self._send("failed", job_id=job_id, code=error.code, message=error.message, hint=error.hint)
        except DeviceLost:
            log.exception("the device is lost, and with it this worker", extra={"device": self._engine.device})
            sys.stderr.flush()
            os._exit(4)  # every job of it runs again, in another worker
        except Exception:
            log.exception("job failed", extra={"job_id": job_id})
            self._send("failed", job_id=job_id, code=WorkError.code, message="The engine failed on this audio.", hint=None)
        finally:
            if highest is None:
                self._meter.ended(job_id)
            self._running.discard(job_id)
            self._cancelled.discard(job_id)

    def _reporter(self, job_id: str) -> Report:
        return lambda stage, fraction: self._send("progress", job_id=job_id, stage=stage, fraction=round(fraction, 4))

    def _send(self, kind: str, **values: Any) -> None:
        try:
            with self._send_lock:
                self._pipe.sendall(messages.encode(kind, **values))
        except OSError:
            os._exit(3)  # the parent is gone
