"""An API and nodes as processes of their own, with the fake engine: ``python -m tests.cluster.machines NAME`` is a node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.cluster.servers import Postgres, Redis, until
from tests.faults import process as faults
from tests.integration.server import ROOT, stop

LEASE_S = 2
FINAL = {"succeeded", "failed", "cancelled"}


@dataclass
class NodeProcess:
    """A node and everything it has started."""

    name: str
    process: subprocess.Popen[bytes]

    def family(self) -> list[psutil.Process]:
        """The node's processes, itself first."""
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def kill(self) -> None:
        """SIGKILL, as when the machine is gone."""
        family = self.family()
        for one in family:
            with suppress(psutil.NoSuchProcess):  # some end with their parents
                one.kill()
        self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP of everything."""
        for one in self.family():
            one.suspend()

    def thaw(self) -> None:
        """SIGCONT."""
        for one in reversed(self.family()):
            one.resume()

    def end(self) -> None:
        """However it is: it has to go, with all that it has started."""
        if self.process.poll() is None:
            self.thaw()
            stop(self.process)

    def drain(self) -> None:
        """SIGTERM, and wait for its end."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(40)


@dataclass
class Cluster:
    """An API, its nodes, and the servers between them."""

    folder: Path
    redis: Redis
    postgres: Postgres
    settings: dict[str, str]
    api: faults.Process = field(init=False)
    nodes: dict[str, NodeProcess] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def client(self) -> httpx.Client:
        """Speaks to the API with the key."""
        return self.api.client

    def node(self, name: str, **settings: str) -> NodeProcess:
        """Start one more node."""
        own = {
            "STENOPOOL_DATA_DIR": str(self.folder / name),
            "STENOPOOL_NODE_NAME": name,
            "STENOPOOL_MODEL_SIZE": "demo",
            "STENOPOOL_WARM_MODELS": "demo",
            "STENOPOOL_STREAMS": "2",
            "STENOPOOL_RUNNERS": "1",
            "STENOPOOL_LOG_LEVEL": "warning",
            "STENOPOOL_DISK_RESERVE_MB": "1",
            "STENOPOOL_SHUTDOWN_GRACE_S": "3",
        }
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("STENOPOOL_")}
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.machines"],
                cwd=ROOT,
                env={**inherited, **own, **self.settings, **settings},
                stdout=log,
                stderr=log,
            )
        self.nodes[name] = NodeProcess(name, process)
        return self.nodes[name]

    def have(self, *names: str) -> list[NodeProcess]:
        """Exactly these nodes, ready and idle; what an earlier test has done to others does not matter."""
        for name in set(self.nodes) - set(names):
            self.nodes.pop(name).end()
        for name in names:
            if name not in self.nodes or self.nodes[name].process.poll() is not None:
                self.node(name)
        self.wait_nodes(len(names))
        until(lambda: all(one["running"] == 0 for one in self.seen()), "idle nodes")
        return [self.nodes[name] for name in names]

    def restart_api(self) -> None:
        """SIGKILL of the API, and a new one."""
        self.api.kill()
        self.start_api()

    def start_api(self) -> None:
        """Start one."""
        self.api = self.stack.enter_context(faults.started(self.folder, ready="/health", **self.settings))

    def wait_nodes(self, count: int) -> None:
        """Until the API knows so many nodes that can work."""
        until(lambda: sum(one["ready"] for one in self.seen()) == count, f"{count} nodes", 60)

    def seen(self) -> list[dict[str, Any]]:
        """The nodes, as the API shows them."""
        shown: list[dict[str, Any]] = self.client.get("/capacity").json()["nodes"]
        return shown

    def submit(self, audio: bytes, command: str = "echo") -> str:
        """Hand in an async job; ``command`` is for the fake engine."""
        answer = self.client.post("/transcribe", params={"wait": "false", "initial_prompt": command}, content=audio)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job_id"])

    def status(self, job_id: str) -> dict[str, Any]:
        """How a job is."""
        answer = self.client.get(f"/transcribe/{job_id}/status")
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    def ended(self, job_ids: list[str], timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """The jobs once all of them have ended."""
        until(lambda: all(self.status(one)["status"] in FINAL for one in job_ids), "the end of all jobs", timeout_s)
        return [self.status(one) for one in job_ids]


@contextmanager
def cluster(folder: Path, redis: Redis, postgres: Postgres, **settings: str) -> Iterator[Cluster]:
    """An API without nodes; those that are started are ended with it."""
    shared = {
        "STENOPOOL_ENGINE": "celery",
        "REDIS_URL": redis.url,
        "DATABASE_URL": postgres.database(folder.name),
        "STENOPOOL_MEDIA_URL": f"file://{folder}/shared",
        "STENOPOOL_LEASE_S": str(LEASE_S),
        **settings,
    }
    here = Cluster(folder, redis, postgres, shared)
    with here.stack:
        here.start_api()
        try:
            yield here
        finally:
            for node in here.nodes.values():
                node.end()


if __name__ == "__main__":
    from app import logs
    from app.catalogue import warm_models
    from app.cluster.agent import serve
    from app.cluster.build import build_node
    from app.settings import Settings

    chosen = Settings()
    logs.configure(chosen.log_level)
    sys.exit(serve(chosen, lambda: build_node(chosen, chosen.node_name, "tests.fakes.engine", ()), warm_models(chosen)))
