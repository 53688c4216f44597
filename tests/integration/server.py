"""A real server process for tests: ``python main.py`` with settings of the test's own."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
KEY = "integration-test-key-0123456789"
OTHER_KEY = "another-key-of-somebody-else-42"


@dataclass
class Server:
    """A running server: its address, data folder, process, and a client that sends the key."""

    url: str
    data: Path
    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: Path

    def workers(self) -> list[psutil.Process]:
        """Its worker processes that have loaded their model."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if title(child).startswith("stenopool worker") and "loading" not in title(child)]

    def wait_ready(self, timeout_s: float = 120.0) -> float:
        """Seconds until /ready says yes."""
        began = time.monotonic()
        while time.monotonic() - began < timeout_s:
            try:
                if self.client.get("/ready").status_code == 200:
                    return time.monotonic() - began
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            time.sleep(0.05)
        raise AssertionError(f"not ready after {timeout_s} s: {self.log.read_text()[-4000:]}")


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def share_encoders(data: Path) -> None:
    """What is measured to choose an encoder is kept for all servers of a test run; each would take seconds for it."""
    data.mkdir(exist_ok=True)
    if not (data / "encoders").exists():
        (data / "encoders").symlink_to(tempfile.mkdtemp(prefix="stenopool-encoders-") if not _shared else _shared[0])
        _shared.append(os.readlink(data / "encoders"))


_shared: list[str] = []


def free_port() -> int:
    """A TCP port that is free now and that nobody else is given: neither other test processes, nor connections of the system.

    A port that the system chooses is free until the server listens on it, seconds later; meanwhile others were given it.
    """
    for _ in range(1000):
        port = next(_ports)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def _own_ports() -> Iterator[int]:
    """Below those that the system gives out, some for each process of pytest-xdist."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20_000 + 1000 * (number % 10)
    return (first + (os.getpid() + count) % 1000 for count in itertools.count())


_ports = _own_ports()


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[Server]:
    """Start a server with its data in ``folder``; at the end SIGTERM, and nothing of it may be left."""
    port = free_port()
    log = folder / "server.log"
    share_encoders(folder / "data")
    own = {
        "PORT": str(port),
        "STENOPOOL_DATA_DIR": str(folder / "data"),
        "STENOPOOL_API_KEYS": f"{KEY},{OTHER_KEY}",
        "STENOPOOL_WARM_MODELS": "demo",
        "STENOPOOL_OFFLINE": "1",
        "STENOPOOL_SHUTDOWN_GRACE_S": "5",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STENOPOOL_")}
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "main.py"], cwd=ROOT, env={**inherited, **own, **settings}, stdout=output, stderr=output
        )
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"X-API-Key": KEY}, timeout=120, trust_env=False)
    server = Server(f"http://127.0.0.1:{port}", folder / "data", process, client, log)
    try:
        server.wait_ready()
        yield server
    finally:
        client.close()
        stop(process)


def still_there(family: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that have not ended in time. A zombie has: init may take seconds to reap it."""
    deadline = time.monotonic() + timeout_s
    while (alive := [one for one in family if _runs(one)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def stop(process: subprocess.Popen[bytes], timeout_s: float = 20.0) -> None:
    """SIGTERM; the server and all its children must be gone in time."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout_s)
    finally:
        process.kill()
        process.wait()
        alive = still_there(family, timeout_s=5.0)
        for child in alive:
            child.kill()
    assert not alive, f"left behind: {[title(child) for child in alive]}"
