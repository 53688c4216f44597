"""A server in a small memory control group, offered several times as much as fits: nothing may be killed or lost.

    python -m benchmarks.cgroup --limit-mb 2048 --into /tmp/cgroup --models tiny --streams 8
    python -m benchmarks.cgroup --limit-mb 4096 --into /tmp/cgroup --models tiny base small --streams 24

Needs root and a cgroup v1 memory controller that can be written. Mixed jobs: short and long ones of the demo model, with and
without word times, and a fifth of short ones of ``--models`` with random weights, which are made first. Many streams on few
cores are slow; here they are what fills the memory. Clients obey Retry-After until their job is done.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.corpus import lognormal_lengths, write_corpus
from benchmarks.openloop import Client, Shot, percentile, poisson
from benchmarks.serving import Server, serving

MB = 1 << 20
SHORT, LONG = 16, 8
LENGTHS = lognormal_lengths(SHORT, 12.0, 0.6, 4.0, 30.0, seed=4) + lognormal_lengths(LONG, 150.0, 0.4, 90.0, 280.0, seed=5)
OTHERS = 0.2
"""Share of the jobs that are for other models than demo."""
TOKENS = 40


@dataclass(frozen=True)
class Mix:
    """How many different recordings of each kind are used, and for which models beside demo; 30 % of the others are long.

    A job is a number: that of its recording, and for other models that of the model times 100 more.
    """

    short: int = SHORT
    long: int = LONG
    models: tuple[str, ...] = ()

    def draw(self, chance: random.Random) -> int:
        """One of them."""
        if self.models and chance.random() < OTHERS:
            return 100 * (1 + chance.randrange(len(self.models))) + chance.randrange(self.short)
        return chance.randrange(self.short) if chance.random() < 0.7 else SHORT + chance.randrange(self.long)

    def all(self) -> list[int]:
        """Every one."""
        others = [100 * (1 + number) + file for number in range(len(self.models)) for file in range(self.short)]
        return [*range(self.short), *range(SHORT, SHORT + self.long), *others]

    def target(self, job: int) -> str:
        """The request: every third of demo's with word times."""
        model, file = ("demo", *self.models)[job // 100], job % 100
        words = "&word_timestamps=true" if model == "demo" and file % 3 == 0 else ""
        return f"/transcribe?model_size={model}&audio_file=recording-{file:02d}.wav{words}"


def group_root() -> Path | None:
    """Where a group can be made; None where it cannot."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        own = next(path for _, controllers, path in lines if controllers == "memory")
    except (OSError, StopIteration):
        return None
    for root in (Path("/sys/fs/cgroup/memory") / own.lstrip("/"), Path("/sys/fs/cgroup/memory")):
        if (root / "memory.limit_in_bytes").is_file() and os.access(root, os.W_OK):
            return root
    return None


@contextmanager
def limited(limit: int) -> Iterator[Path]:
    """A new group that may use ``limit`` bytes."""
    root = group_root()
    if root is None:
        raise SystemExit("there is no cgroup v1 memory controller here that can be written")
    group = root / f"stenopool-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(limit))
    try:
        yield group
    finally:
        end = time.monotonic() + 10
        while group.exists() and time.monotonic() < end:
            with contextlib.suppress(OSError):  # the last process is still going
                group.rmdir()
            time.sleep(0.1)


@dataclass
class Watch:
    """Samples of a group: bytes in use without the page cache that can be dropped at once, and anonymous ones."""

    group: Path
    working: list[int] = field(default_factory=list)
    anonymous: list[int] = field(default_factory=list)
    full: list[tuple[float, float]] = field(default_factory=list)

    async def run(self, server: Server, stop: asyncio.Event) -> None:
        """Sample 10 times a second; once a second also the reservations, while the line is full."""
        number = refused = 0
        while not stop.is_set():
            self.sample()
            if number % 10 == 0:
                now = await asyncio.to_thread(server.get, "/capacity")
                memory, queue = now["memory"], now["queue"]
                if sum(queue["refused"].values()) > refused:  # somebody was refused in the last second
                    self.full.append((memory["reserved_bytes"] / memory["budget_bytes"], self.working[-1]))
                refused = sum(queue["refused"].values())
            number += 1
            await asyncio.sleep(0.1)

    def sample(self) -> None:
        """One look."""
        stat = dict(line.split() for line in (self.group / "memory.stat").read_text().splitlines())
        usage = int((self.group / "memory.usage_in_bytes").read_text())
        self.working.append(usage - int(stat["total_inactive_file"]))
        self.anonymous.append(int(stat["total_rss"]))

    def oom_kills(self) -> int:
        """Processes that the kernel killed in the group."""
        control = dict(line.split() for line in (self.group / "memory.oom_control").read_text().splitlines())
        return int(control.get("oom_kill", 0))


async def load(server: Server, group: Path, jobs: int, factor: float, capacity_s: float, mix: Mix) -> dict[str, Any]:
    """Measure the capacity of this very server for ``capacity_s`` seconds, then offer ``jobs`` jobs at ``factor`` times it."""
    texts: dict[int, str] = {}
    for number in mix.all():
        client = Client(server.url, server.keys, mix.target, lambda file: None, 300)
        (record,) = await client.run([Shot(0.0, number)])
        assert record.status == 200, record
        texts[number] = record.text
    watch, stop = Watch(group), asyncio.Event()
    capacity = await _capacity(server, texts, capacity_s, mix)
    rate = factor * capacity
    files = random.Random(8)
    shots = [Shot(shot.at, mix.draw(files)) for shot in poisson(rate, 2 * jobs / rate, 1, 0, random.Random(2))][:jobs]
    watching = asyncio.create_task(watch.run(server, stop))
    client = Client(server.url, server.keys, mix.target, texts.get, 1800, max_tries=100)
    began = time.monotonic()
    records = await client.run(shots)
    took = time.monotonic() - began
    stop.set()
    await watching
    after = server.get("/capacity")
    limit = after["memory"]["limit_bytes"]
    return {
        "limit_mb": limit / MB,
        "source": after["memory"]["source"],
        "capacity_jobs_per_s": capacity,
        "offered_jobs_per_s": rate,
        "jobs": len(records),
        "right": sum(one.ok for one in records),
        "wrong": sum(one.status == 200 and not one.right for one in records),
        "lost": sum(one.lost for one in records),
        "not_served": sum(not one.ok for one in records),
        "refusals": len(client.told),
        "seconds": took,
        "p50_s": percentile([one.latency_s for one in records if one.ok], 0.5),
        "p99_s": percentile([one.latency_s for one in records if one.ok], 0.99),
        "oom_kills": watch.oom_kills(),
        "peak_working_share": max(watch.working) / limit,
        "peak_anonymous_share": max(watch.anonymous) / limit,
        "budget_mb": after["memory"]["budget_bytes"] / MB,
        "reserved_share_when_full_median": statistics.median(share for share, _ in watch.full) if watch.full else None,
        "used_share_when_full_median": statistics.median(used for _, used in watch.full) / limit if watch.full else None,
        "retries_admitted": statistics.fmean(client.retries) if client.retries else None,
        "longest_retry_after_s": max(client.told, default=0),
        "estimates": after["estimates"],
        "pressure": after["pressure"],
    }


async def _capacity(server: Server, texts: dict[int, str], seconds: float, mix: Mix) -> float:
    """Jobs per second of a closed loop of six clients."""
    end = time.monotonic() + seconds
    files = random.Random(1)

    async def always() -> int:
        done = 0
        while time.monotonic() < end:
            (record,) = await Client(server.url, server.keys, mix.target, texts.get, 300).run([Shot(0.0, mix.draw(files))])
            done += record.ok
        return done

    began = time.monotonic()
    done = sum(await asyncio.gather(*(always() for _ in range(6))))
    return done / (time.monotonic() - began)


def run(
    limit_mb: int,
    jobs: int,
    factor: float,
    capacity_s: float = 30.0,
    mix: Mix = Mix(),
    streams: int = 4,
    models_dir: Path | None = None,
) -> dict[str, Any]:
    """The whole benchmark for one limit."""
    with tempfile.TemporaryDirectory() as folder, limited(limit_mb * MB) as group:
        settings = {"STENOPOOL_BATCH_SIZE": "16", "STENOPOOL_STREAMS": str(streams), "STENOPOOL_MAX_QUEUE_S": "20"}
        if models_dir is not None:
            settings["STENOPOOL_MODELS_DIR"] = str(models_dir)
        write_corpus(Path(folder) / "data" / "media", LENGTHS)
        with serving(Path(folder), procs_file=group / "cgroup.procs", **settings) as server:
            return asyncio.run(load(server, group, jobs, factor, capacity_s, mix))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-mb", type=int, default=2048, help="limit of the group, MB of 2^20 bytes")
    parser.add_argument("--jobs", type=int, default=320)
    parser.add_argument("--factor", type=float, default=5.0, help="offered load / capacity")
    parser.add_argument("--models", nargs="*", default=[], help="models beside demo; made with random weights")
    parser.add_argument("--streams", type=int, default=4, help="jobs at once per model")
    parser.add_argument("--into", type=Path, required=True, help="folder for cgroup-LIMIT.json, and models-random")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    made = options.into / "models-random"
    missing = [name for name in options.models if not (made / name).exists()]
    if missing:  # in a process of its own: what it needs of memory goes with it
        own = [sys.executable, "-m", "benchmarks.random_models", *missing, "--into", str(made), "--tokens", str(TOKENS)]
        subprocess.run(own, check=True)
    mix = Mix(models=tuple(options.models))
    result = run(options.limit_mb, options.jobs, options.factor, mix=mix, streams=options.streams, models_dir=made)
    (options.into / f"cgroup-{options.limit_mb}.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
