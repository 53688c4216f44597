"""A server of a benchmark's own: ``python main.py`` on a free port, optionally inside a memory control group."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
READY_S = 300.0


@dataclass(frozen=True)
class Server:
    """A running server: its address, keys, data folder and process id."""

    url: str
    keys: tuple[str, ...]
    data: Path
    pid: int

    def get(self, path: str) -> Any:
        """JSON of a GET with the first key."""
        request = urllib.request.Request(self.url + path, headers={"X-API-Key": self.keys[0]})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def api_rss(self) -> int:
        """Resident bytes of the API process."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def api_cpu_s(self) -> float:
        """Seconds of processor time that the API process has used."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def family_rss(self) -> int:
        """Bytes of the API process and all its children, shared pages counted once per sharer (PSS) where known."""
        total = 0
        for process in [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]:
            try:
                info = process.memory_full_info()
                total += getattr(info, "pss", 0) or info.rss
            except psutil.Error:
                continue
        return total


def inherited() -> dict[str, str]:
    """This process's environment, without settings of a server, and without what the pool's spawner puts there for workers."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "STENOPOOL_"))}


@contextmanager
def serving(folder: Path, keys: int = 1, procs_file: Path | None = None, **settings: str) -> Iterator[Server]:
    """Start a server with its data in ``folder`` and ``keys`` keys; at the end it is stopped.

    ``procs_file``: the ``cgroup.procs`` of the group that it shall live in.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = tuple(f"benchmark-key-{number:02d}-0123456789" for number in range(keys))
    own = {
        "PORT": str(port),
        "STENOPOOL_DATA_DIR": str(folder / "data"),
        "STENOPOOL_API_KEYS": ",".join(names),
        "STENOPOOL_MODEL_SIZE": "demo",
        "STENOPOOL_OFFLINE": "1",
        "STENOPOOL_SHUTDOWN_GRACE_S": "1",
        "STENOPOOL_LOG_LEVEL": "warning",
    }

    def join() -> None:
        if procs_file is not None:
            procs_file.write_text("0")

    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "main.py"],
            cwd=ROOT,
            env={**inherited(), **own, **settings},
            stdout=log,
            stderr=log,
            preexec_fn=join,
        )
    server = Server(f"http://127.0.0.1:{port}", names, folder / "data", process.pid)
    try:
        _wait_ready(server, process)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit("the server ended while it started; see server.log")
        try:
            with urllib.request.urlopen(server.url + "/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server did not become ready")
