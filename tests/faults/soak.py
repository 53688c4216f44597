"""Two hours of mixed load on the real engine while workers, ffmpeg and the server are killed, stopped and restarted at random.

    python -m tests.faults.soak --minutes 120

The first quarter is many short lives of the server, ended by SIGTERM or SIGKILL in turn. The rest is one life in which workers
and their forkserver are killed and stopped, and ffmpeg hangs; of it memory, descriptors, threads, processes and files are
written down. At the end every acknowledged job has ended with the right text.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil

from tests.faults.soak_clients import ACTS, HUNG, Ledger, collect
from tests.integration.server import Server, running, title

SETTINGS = {
    "STENOPOOL_MAX_DEATHS": "100000",  # being there at every kill is no guilt here
    "STENOPOOL_MODEL_SIZE": "demo",
    "STENOPOOL_PING_TIMEOUT_S": "5",
    "STENOPOOL_DECODE_TIMEOUT_S": "10",
    "STENOPOOL_SHUTDOWN_GRACE_S": "3",
    "STENOPOOL_LOG_LEVEL": "error",
}
LIFE_S, FAULT_EVERY_S, LOOK_S, SETTLE_S = 45.0, (10.0, 40.0), 10.0, 300.0
Sample = dict[str, float]


def kill_worker(server: Server, chance: random.Random) -> bool:
    return _signal(server, chance, signal.SIGKILL, "stenopool worker")


def stop_worker(server: Server, chance: random.Random) -> bool:
    return _signal(server, chance, signal.SIGSTOP, "stenopool worker")


def kill_forkserver(server: Server, chance: random.Random) -> bool:
    return _signal(server, chance, signal.SIGKILL, "stenopool forkserver")


def stop_ffmpeg(server: Server, chance: random.Random) -> bool:
    """One lives for a few hundredths of a second only, so it takes some looking."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if _signal(server, chance, signal.SIGSTOP, "ffmpeg"):
            return True
        time.sleep(0.002)
    return False


FAULTS = [kill_worker, stop_worker, kill_forkserver, stop_ffmpeg]


def _signal(server: Server, chance: random.Random, number: signal.Signals, name: str) -> bool:
    family = psutil.Process(server.process.pid).children(recursive=True)
    try:
        found = [one for one in family if title(one).startswith(name) or one.name().startswith(name)]
        chance.choice(found).send_signal(number)
    except (psutil.Error, IndexError):
        return False
    return True


def look(server: Server) -> Sample:
    """What the server holds now. Bytes, and numbers of things."""
    api = psutil.Process(server.process.pid)
    family = api.children(recursive=True)
    with api.oneshot():
        held = {"api_rss": api.memory_info().rss, "api_fds": api.num_fds(), "api_threads": api.num_threads()}
    rss = [0.0]
    for one in family:
        try:
            if title(one).startswith("stenopool worker"):
                rss.append(one.memory_full_info().uss)
        except psutil.Error:
            continue
    files = [path for path in server.data.rglob("*") if path.is_file() and "jobs" in path.parts]
    rows = sum(path.stat().st_size for path in server.data.glob("stenopool.db*"))
    return {**held, "workers_uss": sum(rss), "processes": len(family), "job_files": len(files), "database": rows}


class Life:
    """Load on one server process, with or without faults, until told to stop."""

    def __init__(self, server: Server, ledger: Ledger, seed: int, clients: int) -> None:
        self.server, self.ledger = server, ledger
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(random.Random(seed + n),)) for n in range(clients)]
        self._threads.append(threading.Thread(target=self._collector))
        for one in self._threads:
            one.start()

    def _client(self, chance: random.Random) -> None:
        with httpx.Client(base_url=self.server.url, headers=self.server.client.headers, timeout=120, trust_env=False) as client:
            while not self._stop.wait(chance.uniform(0.0, 0.6)):
                act = chance.choice(ACTS)
                try:
                    act(client, self.ledger, chance)
                except (httpx.TransportError, OSError):
                    self.ledger.count("hung up")  # the server was killed, or hangs up while it stops
                except Exception as error:
                    self.ledger.complain(f"{act.__name__}: {type(error).__name__}: {error}")

    def _collector(self) -> None:
        with httpx.Client(base_url=self.server.url, headers=self.server.client.headers, timeout=60, trust_env=False) as client:
            while not self._stop.wait(0.5):
                try:
                    collect(client, self.ledger)
                except httpx.TransportError:
                    self.ledger.count("hung up")

    def rest(self) -> None:
        """No new requests, and wait until those under way are answered."""
        self._stop.set()
        for one in self._threads:
            one.join(timeout=150)
            assert not one.is_alive(), "a request is not answered"


def short_lives(folder: Path, ledger: Ledger, seconds: float, chance: random.Random) -> None:
    """Start, load, end; again and again."""
    until, number = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        with running(folder, **SETTINGS) as server:
            life = Life(server, ledger, chance.randrange(1 << 30), clients=4)
            time.sleep(min(chance.uniform(0.2, 1.0) * LIFE_S, max(1.0, until - time.monotonic())))
            server.process.send_signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
            server.process.wait(30)
            life.rest()
        ledger.count(f"server ended by {'SIGKILL' if number % 2 else 'SIGTERM'}")
        number += 1


def long_life(folder: Path, ledger: Ledger, seconds: float, chance: random.Random) -> list[Sample]:
    """One server, many faults; looked at every few seconds. At the end everything that was acknowledged is waited for."""
    samples = []
    with running(folder, **SETTINGS) as server:
        life = Life(server, ledger, chance.randrange(1 << 30), clients=4)
        began, next_fault = time.monotonic(), time.monotonic() + FAULT_EVERY_S[0]
        while (now := time.monotonic()) < began + seconds:
            if now >= next_fault and server.client.get("/ready").status_code == 200:  # else a worker that loads dies thrice
                fault = chance.choice(FAULTS)
                ledger.count(fault.__name__ if fault(server, chance) else f"no chance to {fault.__name__}")
                next_fault = time.monotonic() + chance.uniform(*FAULT_EVERY_S)
            samples.append({"at_s": round(now - began, 1), **look(server)})
            time.sleep(min(LOOK_S, seconds / 20))
        life.rest()
        deadline = time.monotonic() + SETTLE_S
        while ledger.acknowledged and time.monotonic() < deadline:
            collect(server.client, ledger)
            time.sleep(0.5)
        samples.append({"at_s": round(time.monotonic() - began, 1), **look(server)})
    return samples


def quarters(samples: list[Sample], name: str) -> list[float]:
    """The median of each quarter of the time."""
    size = max(1, len(samples) // 4)
    parts = [sorted(one[name] for one in samples[start : start + size]) for start in range(0, 4 * size, size)]
    return [part[len(part) // 2] for part in parts if part]


def run(folder: Path, seconds: float, seed: int) -> tuple[Ledger, list[Sample]]:
    """The whole of it."""
    chance, ledger = random.Random(seed), Ledger.beside(folder / "data")
    short_lives(folder, ledger, seconds / 4, chance)
    samples = long_life(folder, ledger, seconds * 3 / 4, chance)
    if ledger.counts[HUNG] > ledger.counts[stop_ffmpeg.__name__]:
        ledger.complain("more recordings were refused than ffmpeg was stopped")
    return ledger, samples


def main() -> int:
    """Command line; exit 1 if anything was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--into", type=Path, help="a folder for samples.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stenopool-soak-") as folder:
        ledger, samples = run(Path(folder), 60 * options.minutes, options.seed)
    for name, count in sorted(ledger.counts.items()):
        print(f"{count:7d}  {name}")
    for name in [one for one in samples[0] if one != "at_s"]:
        print(
            f"{name:12} median by quarters: {[round(one) for one in quarters(samples, name)]}, at rest {samples[-1][name]:.0f}"
        )
    print(f"lost {len(ledger.acknowledged)}, complaints {len(ledger.complaints)}", *ledger.complaints[:20], sep="\n")
    if options.into:
        options.into.mkdir(parents=True, exist_ok=True)
        (options.into / "samples.json").write_text(json.dumps({"samples": samples, "counts": ledger.counts}, indent=1))
    return 1 if ledger.acknowledged or ledger.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
