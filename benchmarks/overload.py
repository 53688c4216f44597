"""Overload: what a server does when several times as much comes in as it can do.

    python -m benchmarks.overload --into /tmp/overload                          # about 25 minutes
    python -m benchmarks.overload --into /tmp/overload --parts levels --phase 60   # one part of it

Real servers (demo model, real audio, real ffmpeg) under open-loop Poisson load with log-normal lengths of audio. One run on
one machine: capacity, then 1, 2, 5 and 10 times as much; the same without control, behind a plain semaphore with an unbounded
queue, and behind a queue bounded by number; one key flooding beside nine; clients that obey Retry-After; 50 slow uploads.
The levels take turns, three times, each time after the capacity was measured again, so that a machine that is slower for a
while is slower for all of them. Writes
``overload.json`` after each part, and plots at the end; parts of earlier runs into the same folder are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import overload_plots
from benchmarks.corpus import lognormal_lengths, write_corpus
from benchmarks.openloop import Client, Record, Shot, percentile, poisson, probe_health
from benchmarks.overload_extra import flood, obeying, uploads
from benchmarks.serving import Server, serving

PATIENCE_S = 40.0
FACTORS = (1.0, 2.0, 5.0, 10.0)
QUEUE_S = "3"  # short, so that the line is also full now and then at 1x, where arrivals and departures are in balance
ROUNDS = 3
FULL_RATE = 6.0
PARTS = ("levels", "obeying", "flood", "uploads", "baselines")
CONTROL = {"STENOPOOL_MAX_QUEUE_S": QUEUE_S, "STENOPOOL_MAX_QUEUED": "1000"}
CROWDED = {"STENOPOOL_MAX_QUEUED": "80"}  # 50 uploads that come in, and 30 that have
UNBOUNDED = {"STENOPOOL_MAX_QUEUE_S": "1000000", "STENOPOOL_MAX_QUEUED": "1000000"}
BASELINES = {
    "admission control": CONTROL,
    "bounded queue (20)": {"STENOPOOL_MAX_QUEUE_S": "1000000", "STENOPOOL_MAX_QUEUED": "20"},
    "semaphore, unbounded queue": UNBOUNDED,
    "no control": {**UNBOUNDED, "STENOPOOL_STREAMS": "64", "STENOPOOL_RUNNERS": "64", "STENOPOOL_MAX_MEDIA_JOBS": "64"},
}


class Bench:
    """Corpus, lengths and right texts, shared by all servers of a run."""

    def __init__(self, phase_s: float) -> None:
        self.lengths = lognormal_lengths(24, 30.0, 0.7, 6.0, 150.0, seed=11)
        self.texts: dict[int, str] = {}
        self.phase_s = phase_s
        self.capacity = 0.0

    def prepare(self, server: Server) -> None:
        """Put the corpus where the server's callers may name it."""
        write_corpus(server.data / "media", self.lengths)

    def target(self, file: int) -> str:
        """What to POST to."""
        return f"/transcribe?model_size=demo&audio_file=recording-{file:02d}.wav"

    def client(self, server: Server, timeout_s: float = PATIENCE_S, max_tries: int = 1) -> Client:
        """A client that knows the right answers."""
        return Client(server.url, server.keys, self.target, self.texts.get, timeout_s, max_tries)

    async def learn(self, server: Server) -> None:
        """Right texts, one request after the other; it also warms the server and its cost model."""
        for number in range(len(self.lengths)):
            client = Client(server.url, server.keys, self.target, lambda file: None, 300)
            await client.run([Shot(0.0, number)])
            (record,) = client.records
            assert record.status == 200, record
            self.texts[number] = record.text

    async def measure_capacity(self, server: Server) -> float:
        """Right answers per second while more comes in than the line takes, over one phase."""
        shots = poisson(FULL_RATE, self.phase_s, len(self.lengths), 0, random.Random(3))
        records = await self.client(server).run(shots)
        good = summary([records], self.lengths, self.phase_s / 5, self.phase_s)
        return float(good["goodput_jobs_per_s"])


@dataclass
class Level:
    """What was seen at one load, over one or more phases."""

    factor: float
    offered: int = 0
    phases: list[list[Record]] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    peak: int = 0
    client_cpu_s: float = 0.0
    server_cpu_s: float = 0.0
    seconds: float = 0.0
    worked_s: float = 0.0

    async def run(self, bench: Bench, server: Server, seed: int) -> None:
        """One more phase."""
        shots = poisson(self.factor * bench.capacity, bench.phase_s, len(bench.lengths), 0, random.Random(seed))
        stop = asyncio.Event()
        health = asyncio.create_task(probe_health(server.url, stop))
        peak = asyncio.create_task(_peak(server, stop))
        began, mine, its = time.monotonic(), time.process_time(), server.api_cpu_s()
        working = asyncio.create_task(_worked(server, bench.phase_s))
        self.phases.append(await bench.client(server).run(shots))
        self.seconds += time.monotonic() - began
        self.worked_s += await working
        self.client_cpu_s += time.process_time() - mine
        self.server_cpu_s += server.api_cpu_s() - its
        stop.set()
        self.offered += len(shots)
        self.health += await health
        self.peak = max(self.peak, await peak)

    def result(self, bench: Bench) -> dict[str, Any]:
        """Figures of what arrived after the first fifth of each phase; CPU in cores, of the client and the API.

        ``busy``: seconds of engine calls per second, in useful work: unlike goodput, hardly changed by how fast the machine is.
        """
        return {
            "factor": self.factor,
            "offered_per_s": self.offered / bench.phase_s / len(self.phases),
            **summary(self.phases, bench.lengths, bench.phase_s / 5, bench.phase_s),
            "busy": self.worked_s / (0.8 * bench.phase_s * len(self.phases)),
            "health_p99_ms": percentile(self.health, 0.99) * 1000,
            "client_cpu": self.client_cpu_s / self.seconds,
            "server_cpu": self.server_cpu_s / self.seconds,
            "peak_mb": self.peak / 1e6,
            "timeline": [(round(one.ended_at, 2), round(one.latency_s, 3), one.ok) for one in self.phases[0]],
        }


async def _worked(server: Server, phase_s: float) -> float:
    """Seconds of engine calls of the jobs that ended after the first fifth of a phase, and before its end."""
    await asyncio.sleep(phase_s / 5)
    before = await asyncio.to_thread(server.get, "/capacity")
    await asyncio.sleep(phase_s * 4 / 5)
    after = await asyncio.to_thread(server.get, "/capacity")
    return float(after["cpu"]["worked_s"] - before["cpu"]["worked_s"])


async def _peak(server: Server, stop: asyncio.Event) -> float:
    most = 0
    while not stop.is_set():
        most = max(most, await asyncio.to_thread(server.family_rss))
        await asyncio.sleep(2)
    return most


def summary(phases: list[list[Record]], lengths: list[float], cut: float, end: float) -> dict[str, Any]:
    """Goodput is counted by the time of the answer, latency by the time of arrival, both after ``cut`` seconds."""
    records = [one for phase in phases for one in phase]
    good = [one for one in records if one.ok and cut <= one.ended_at <= end]
    late = [one for one in records if one.shot.at >= cut]
    latencies = [one.latency_s for one in late if one.ok]
    refusals = [one.latency_s for one in late if one.status == 429]
    seconds = (end - cut) * len(phases)
    return {
        "goodput_jobs_per_s": len(good) / seconds,
        "goodput_audio_s_per_s": sum(lengths[one.shot.file] for one in good) / seconds,
        "admitted": len(latencies),
        "p50_s": percentile(latencies, 0.5),
        "p99_s": percentile(latencies, 0.99),
        "refused": len(refusals),
        "refusal_p50_ms": percentile(refusals, 0.5) * 1000,
        "refusal_p99_ms": percentile(refusals, 0.99) * 1000,
        "wrong": sum(one.status == 200 and not one.right for one in records),
        "lost": sum(one.lost for one in records),
    }


async def run(bench: Bench, into: Path, parts: frozenset[str]) -> None:
    """The parts; each is written down as soon as it has been measured."""
    path = into / "overload.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def found(name: str, result: Any) -> None:
        results[name] = result
        path.write_text(json.dumps(results, indent=1, default=asdict))

    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), keys=10, **CONTROL) as server:
        bench.prepare(server)
        await bench.learn(server)
        bench.capacity = await bench.measure_capacity(server)
        found("capacity_jobs_per_s", bench.capacity)
        print(f"capacity {bench.capacity:.2f} jobs/s, mean length {sum(bench.lengths) / len(bench.lengths):.1f} s", flush=True)
        if "levels" in parts:
            found("levels", await _levels(bench, server))
        if "obeying" in parts:
            found("obeying", await obeying(bench, server))
            print("obeying", results["obeying"], flush=True)
        if "flood" in parts:
            found("flood", await flood(bench, server))
            print("flood", results["flood"], flush=True)
        found("capacity_after", server.get("/capacity"))
    if "uploads" in parts:
        with tempfile.TemporaryDirectory() as folder, serving(Path(folder), keys=10, **CROWDED) as server:
            bench.prepare(server)
            found("uploads", await uploads(bench, server))
            print("uploads", results["uploads"], flush=True)
    if "baselines" in parts:
        found("baselines", await _baselines(bench))
    overload_plots.draw(results, into)


async def _levels(bench: Bench, server: Server) -> list[dict[str, Any]]:
    levels = [Level(factor) for factor in FACTORS]
    for number in range(ROUNDS):
        bench.capacity = await bench.measure_capacity(server)  # afresh: the machine's speed drifts from minute to minute
        print(f"capacity {bench.capacity:.2f} jobs/s", flush=True)
        for level in levels:
            await level.run(bench, server, seed=5 + number)
            _print(f"{level.factor:g}x", level.result(bench))
    return [level.result(bench) for level in levels]


async def _baselines(bench: Bench) -> dict[str, dict[str, Any]]:
    results = {}
    for name, settings in BASELINES.items():
        with tempfile.TemporaryDirectory() as folder, serving(Path(folder), keys=10, **settings) as server:
            bench.prepare(server)
            level = Level(5.0)
            await level.run(bench, server, seed=5)
            results[name] = level.result(bench)
            _print(name, results[name])
    return results


def _print(name: str, row: dict[str, Any]) -> None:
    shown = {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items() if key != "timeline"}
    print(name, shown, flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True, help="folder for overload.json and the plots")
    parser.add_argument("--phase", type=float, default=50.0, help="seconds of each phase")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="what to measure; all unless told")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    asyncio.run(run(Bench(options.phase), options.into, frozenset(options.parts)))


if __name__ == "__main__":
    main()
