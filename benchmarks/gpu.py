"""One at a time, batched, several processes, and both, on GPUs: the table of the guide on serving a GPU model to many.

    python -m benchmarks.gpu --into /tmp/gpu                                  # every GPU of this machine, the demo model
    python -m benchmarks.random_models small large-v2 --into /tmp/models
    python -m benchmarks.gpu --into /tmp/gpu --models-dir /tmp/models --model large-v2 --devices cuda:0

Real servers, one after the other, each warm; ``--clients`` callers send clips one after the other until all are through. Every
way runs ``--rounds`` times, in turns; the table has medians. Device memory is what ``nvidia-smi`` counts more than before the
server. Writes ``gpu.json``. Where there is no GPU it says so and ends with 0; ``--devices cpu`` tries the program itself there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ctranslate2

from benchmarks.corpus import write_corpus
from benchmarks.openloop import percentile
from benchmarks.scaling import post
from benchmarks.serving import Server, serving

LOAD_S = 600.0


@dataclass(frozen=True)
class Way:
    """One row of the table. ``batch``: windows of one engine call at most; ``workers``: processes per device."""

    name: str
    batch: int
    workers: int
    wait_ms: float = 0.0


@dataclass(frozen=True)
class Run:
    """One measurement: clips per second, seconds of audio per second, latencies in seconds, bytes."""

    clips_per_s: float
    audio_per_s: float
    p50_s: float
    p95_s: float
    device_bytes: int
    host_bytes: int


def ways(batch: int, workers: int, wait_ms: float) -> tuple[Way, ...]:
    """The guide's four."""
    return (
        Way("one at a time", 1, 1),
        Way("batched", batch, 1, wait_ms),
        Way("several processes", 1, workers),
        Way("both", batch, workers, wait_ms),
    )


def settings_of(way: Way, devices: Sequence[str], model: str, clients: int, models_dir: Path | None) -> dict[str, str]:
    """A server of that way. Without batches a worker has one job at a time, with them its share of all callers."""
    share = max(1, -(-clients // (way.workers * len(devices))))
    settings = {
        "STENOPOOL_DEVICES": ",".join(devices),
        "STENOPOOL_MODEL_SIZE": model,
        "STENOPOOL_WARM_MODELS": model,
        "STENOPOOL_WORKERS_PER_MODEL": str(way.workers),
        "STENOPOOL_BATCH_SIZE": str(way.batch),
        "STENOPOOL_BATCH_WAIT_MS": str(way.wait_ms),
        "STENOPOOL_RUNNERS": "1",
        "STENOPOOL_STREAMS": str(share if way.batch > 1 else 1),
    }
    return settings | ({"STENOPOOL_MODELS_DIR": str(models_dir)} if models_dir else {})


def used_bytes() -> int:
    """Memory that is used on all GPUs together; 0 where nobody can say."""
    if shutil.which("nvidia-smi") is None:
        return 0
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return sum(int(line) for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()) << 20


def wait_loaded(server: Server, model: str, count: int) -> None:
    """Until every worker of the model is there.

    Raises:
        SystemExit: they did not come.
    """
    end = time.monotonic() + LOAD_S
    while time.monotonic() < end:
        devices = server.get("/capacity")["devices"]
        if sum(device["workers"] for device in devices.values() if device["state"] == "ready") == count:
            return
        time.sleep(0.5)
    raise SystemExit(f"not every worker of {model} was ready: {json.dumps(devices)}")


def measure(folder: Path, way: Way, devices: Sequence[str], options: argparse.Namespace) -> Run:
    """One warm server, all clips once."""
    before = used_bytes()
    settings = settings_of(way, devices, options.model, options.clients, options.models_dir)
    with serving(folder, **settings) as server:
        names = [path.name for path in write_corpus(server.data / "media", [options.clip_s] * options.clips)]
        wait_loaded(server, options.model, way.workers * len(devices))

        def one(name: str) -> float:
            return post(server, name, options.model)

        with ThreadPoolExecutor(options.clients) as callers:
            list(callers.map(one, names[: options.clients]))  # what is made at first use is made
            began = time.monotonic()
            latencies = list(callers.map(one, names))
            took_s = time.monotonic() - began
        device_bytes, host_bytes = used_bytes() - before, server.family_rss()
    rate = len(names) / took_s
    p50_s, p95_s = percentile(latencies, 0.5), percentile(latencies, 0.95)
    return Run(rate, rate * options.clip_s, p50_s, p95_s, device_bytes, host_bytes)


def table(runs: dict[str, list[Run]]) -> str:
    """Medians, as Markdown; the ratios are to the first row."""
    lines = ["| way | clips/s | audio s/s | ratio | p50 s | p95 s | device GB | host GB |", "|---|---|---|---|---|---|---|---|"]
    first = 0.0
    for name, found in runs.items():
        mid = {field: statistics.median(getattr(run, field) for run in found) for field in Run.__annotations__}
        first = first or mid["clips_per_s"]
        lines.append(
            f"| {name} | {mid['clips_per_s']:.2f} | {mid['audio_per_s']:.1f} | {mid['clips_per_s'] / first:.2f} | "
            f"{mid['p50_s']:.2f} | {mid['p95_s']:.2f} | {mid['device_bytes'] / 1e9:.2f} | {mid['host_bytes'] / 1e9:.2f} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True, help="folder for gpu.json, data and logs")
    parser.add_argument("--devices", default="", help="as STENOPOOL_DEVICES; default: every GPU")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--clip-s", type=float, default=8.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=4, help="processes per device where there are several")
    parser.add_argument("--wait-ms", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    options = arguments()
    devices = [name for name in options.devices.split(",") if name]
    devices = devices or [f"cuda:{index}" for index in range(ctranslate2.get_cuda_device_count())]
    if not devices:
        print("There is no GPU here (CTranslate2 sees none): nothing was measured.")
        return
    into = options.into.resolve()
    every = ways(options.batch, options.workers, options.wait_ms)
    runs: dict[str, list[Run]] = {way.name: [] for way in every}
    for number in range(options.rounds):
        for way in every:
            folder = into / f"{number}-{way.name.replace(' ', '-')}"
            folder.mkdir(parents=True, exist_ok=True)
            runs[way.name].append(measure(folder, way, devices, options))
    print(table(runs))
    found: dict[str, Any] = {name: [asdict(run) for run in every_run] for name, every_run in runs.items()}
    shown = {name: str(value) for name, value in vars(options).items()}
    (into / "gpu.json").write_text(json.dumps({"devices": devices, "options": shown, "runs": found}, indent=1))


if __name__ == "__main__":
    main()
