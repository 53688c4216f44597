"""Several machines, on one: what a second node brings, and what the way through PostgreSQL, Redis and shared media costs a job.

    python -m benchmarks.scaling --into /tmp/scaling      # about 6 minutes; Redis and PostgreSQL must be installed

Real servers, the demo model, real audio. A node is one runner of one thread, so two nodes have two cores and one has one.
Rounds take turns, each with one node and with two (the second is frozen meanwhile and given up after its lease, so that both
are measured on the same processes), and the same jobs on a server of one box with one runner, and with two. The cost of the way
is the difference in latency of one caller with a clip of a word, taken in turns. Writes ``scaling.json``.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.corpus import write_corpus
from benchmarks.serving import ROOT, Server, inherited, serving
from tests.cluster.servers import Postgres, Redis, until

LENGTH_S = 40.0
CLIPS, AT_ONCE, ROUNDS, SINGLE = 24, 8, 3, 40
LEASE_S = "2"
ONE_CORE = {"STENOPOOL_STREAMS": "4", "STENOPOOL_RUNNERS": "1", "STENOPOOL_THREADS": "1"}
TWO_CORES = {"STENOPOOL_STREAMS": "8", "STENOPOOL_RUNNERS": "2", "STENOPOOL_THREADS": "1"}


class Node:
    """A node process that can be taken away for a while."""

    def __init__(self, folder: Path, name: str, settings: dict[str, str]) -> None:
        own = {"STENOPOOL_DATA_DIR": str(folder / name), "STENOPOOL_NODE_NAME": name, "STENOPOOL_MODEL_SIZE": "demo"}
        with open(folder / f"{name}.log", "ab") as log:
            command = [sys.executable, "-m", "app.cluster.agent"]
            environment = {**inherited(), "STENOPOOL_OFFLINE": "1", **ONE_CORE, **settings, **own}
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def freeze(self, frozen: bool) -> None:
        """SIGSTOP or SIGCONT of all of it."""
        me = psutil.Process(self._process.pid)
        for one in (me, *me.children(recursive=True)):
            one.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self.freeze(False)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[Server, list[Node]]]:
    """An API and two nodes."""
    with ExitStack() as stack, TemporaryDirectory(prefix="stenopool-postgres-") as private:
        postgres, redis = Postgres(Path(private)), Redis(folder)
        for server in (postgres, redis):
            server.start()
            stack.callback(server.stop)
        shared = {
            "STENOPOOL_ENGINE": "celery",
            "REDIS_URL": redis.url,
            "DATABASE_URL": postgres.database("scaling"),
            "STENOPOOL_MEDIA_URL": f"file://{folder}/shared",
            "STENOPOOL_LEASE_S": LEASE_S,
        }
        nodes = [Node(folder, name, shared) for name in ("n1", "n2")]
        for node in nodes:
            stack.callback(node.stop)
        yield stack.enter_context(serving(folder, **shared)), nodes


def post(server: Server, name: str, model: str = "demo") -> float:
    """Seconds that a caller waits for the transcript of a recording in the server's media folder."""
    url = f"{server.url}/transcribe?model_size={model}&language=en&audio_file={name}"
    request = urllib.request.Request(url, data=b"", headers={"X-API-Key": server.keys[0]})
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=300) as answer:
        json.load(answer)
    return time.monotonic() - began


def throughput(server: Server, names: list[str]) -> float:
    """Jobs per second with ``AT_ONCE`` callers."""
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as callers:
        list(callers.map(lambda name: post(server, name), names))
    return len(names) / (time.monotonic() - began)


def ready(server: Server, count: int) -> None:
    """Until the API sees so many nodes that can work."""
    until(lambda: sum(one["ready"] for one in server.get("/capacity")["nodes"]) == count, f"{count} nodes", 120)


def measure(folder: Path) -> dict[str, Any]:
    """All of it."""
    box, far = folder / "box", folder / "far"
    rates: dict[str, list[float]] = {"one node": [], "two nodes": [], "one box, one core": [], "one box, two cores": []}
    ways: dict[str, list[float]] = {"one box": [], "one node": []}
    with ExitStack() as stack:
        for path in (box, folder / "box2", far):
            path.mkdir(parents=True, exist_ok=True)
        one = stack.enter_context(serving(box, **ONE_CORE))
        two = stack.enter_context(serving(folder / "box2", **TWO_CORES))
        api, nodes = stack.enter_context(cluster(far))
        for server in (one, two, api):
            paths = write_corpus(server.data / "media", [LENGTH_S] * CLIPS + [1.0])
        names = [path.name for path in paths]
        long, short = names[:-1], names[-1]
        ready(api, 2)
        for server in (one, two, api):
            throughput(server, long[:8])
        for _ in range(ROUNDS):
            rates["one box, one core"].append(throughput(one, long))
            rates["two nodes"].append(throughput(api, long))
            rates["one box, two cores"].append(throughput(two, long))
            nodes[1].freeze(True)
            ready(api, 1)
            rates["one node"].append(throughput(api, long))
            for _ in range(SINGLE):
                ways["one box"].append(post(one, short))
                ways["one node"].append(post(api, short))
            nodes[1].freeze(False)
            ready(api, 2)
            print({what: [round(rate, 3) for rate in found] for what, found in rates.items()}, flush=True)
    return {
        "jobs_per_s": rates,
        "two_nodes_to_one": [b / a for a, b in zip(rates["one node"], rates["two nodes"], strict=True)],
        "one_node_to_box": [b / a for a, b in zip(rates["one box, one core"], rates["one node"], strict=True)],
        "two_nodes_to_box": [b / a for a, b in zip(rates["one box, two cores"], rates["two nodes"], strict=True)],
        "latency_ms": {what: _quantiles(found) for what, found in ways.items()},
        "way_ms": 1000 * (statistics.median(ways["one node"]) - statistics.median(ways["one box"])),
    }


def _quantiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=20)
    return {"p50": 1000 * statistics.median(seconds), "p95": 1000 * cuts[-1]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True, help="folder for scaling.json, data and logs")
    into = parser.parse_args().into.resolve()
    result = measure(into)
    (into / "scaling.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
