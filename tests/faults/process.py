"""A real server process with the fake engine in it (:mod:`tests.faults.serve`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.integration.server import KEY, ROOT, free_port, still_there, stop, title


@dataclass
class Process:
    """A running server and a client that sends the key."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    data: Path

    def family(self) -> list[psutil.Process]:
        """Everything it has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """SIGKILL of the server alone; whatever it had started must end by itself."""
        family = self.family()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        alive = still_there(family, timeout_s=10.0)
        assert not alive, f"left behind: {[title(child) for child in alive]}"

    def wait_ready(self, path: str = "/ready") -> None:
        """Until a worker can take a job, or whatever ``path`` says."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None
            try:
                if self.client.get(path).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError("the server did not become ready")


@contextmanager
def started(
    folder: Path, group: Path | None = None, ready: str = "/ready", files: int | None = None, **settings: str
) -> Iterator[Process]:
    """A server with its data in ``folder``, which may hold that of an earlier one, once ``ready`` answers 200.

    ``group``: the control group that it shall live in. ``files``: how many it may have open.
    """
    port = free_port()
    own = {
        "PORT": str(port),
        "STENOPOOL_DATA_DIR": str(folder / "data"),
        "STENOPOOL_API_KEYS": KEY,
        "STENOPOOL_MODEL_SIZE": "demo",
        "STENOPOOL_WARM_MODELS": "demo",
        "STENOPOOL_DISK_RESERVE_MB": "1",
        "STENOPOOL_SHUTDOWN_GRACE_S": "5",
        "STENOPOOL_LOG_LEVEL": "error",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STENOPOOL_")}
    with open(folder / "server.log", "ab") as log:
        command = [sys.executable, "-m", "tests.faults.serve"]
        if group is not None:  # before anything is allocated
            command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]
        if files is not None:
            command = ["sh", "-c", f'ulimit -n {files} && exec "$0" "$@"', *command]
        process = subprocess.Popen(command, cwd=ROOT, env={**inherited, **own, **settings}, stdout=log, stderr=log)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"X-API-Key": KEY}, timeout=30, trust_env=False)
    try:
        server = Process(process, client, Path(settings.get("STENOPOOL_DATA_DIR", folder / "data")))
        server.wait_ready(ready)
        yield server
    finally:
        client.close()
        if process.poll() is None:
            stop(process)
