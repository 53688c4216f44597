"""The same jobs run one after the other, in threads, on asyncio and in processes: remote, local, and local in pure Python.

    python -m benchmarks.concurrency_models --into OUT

Needs a quiet machine. ``remote`` waits for another machine's answer (a local HTTP server that sleeps 200 ms); ``engine`` is a
window of the demo model (mel, encoder, decoder on one thread), whose libraries let go of Python's lock; ``pure Python`` is
an edit distance, which holds it. Every way does the same jobs in every round, in turns; answers are compared. Threads and
processes exist before the clock starts. ``loop stood still`` is the longest that asyncio's event loop did not get its turn.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx

from benchmarks import concurrency_models as own  # in processes this file is not __main__
from benchmarks.ratios import ROUNDS, Found, conditions, cores, in_turns, per_round, save, show, table

SLEEP_S = 0.2
TICK_S = 0.005
PYTHON_LENGTH = 1200
SYNC, THREADS, ASYNCIO, PROCESSES = "one after the other", "threads", "asyncio", "processes"
Job = Callable[[int], Any]


# -- jobs


class Slow(BaseHTTPRequestHandler):
    """A speech API that takes its time."""

    def do_GET(self) -> None:
        """Sleep, then echo the path."""
        time.sleep(SLEEP_S)
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class SlowServer(ThreadingHTTPServer):
    """Takes as many connections at once as anybody opens."""

    request_queue_size = 1024
    daemon_threads = True


@contextmanager
def slow_server() -> Iterator[str]:
    """Its address."""
    server = SlowServer(("127.0.0.1", 0), Slow)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@cache
def client() -> httpx.Client:
    """One per process; safe in threads."""
    return httpx.Client(trust_env=False, verify=False, timeout=60, limits=httpx.Limits(max_connections=None))


def remote(url: str, number: int) -> str:
    """One call of the remote API."""
    return client().get(f"{url}/{number}").text


@cache
def engine(runners: int) -> Any:
    """The demo model, one copy per process, ``runners`` calls at once on one thread each; and a window of speech."""
    import numpy as np
    import torch

    from app.catalogue import worker_setup
    from app.engine.models import load
    from app.engine.vad import samples
    from app.settings import Settings
    from benchmarks.corpus import pcm_of
    from benchmarks.serving import ROOT

    torch.set_num_threads(1)
    model, *_ = load(worker_setup(Settings(offline=True, device="cpu", runners=runners, streams=runners, threads=1), "demo"))
    pcm = np.frombuffer(pcm_of(ROOT / "demo" / "samples" / "commands.flac"), "<i2")
    return model, samples(pcm, 0.0, len(pcm) / 16_000)


def window(runners: int, number: int) -> str:
    """One window of the demo model: what it says."""
    from app.jobs import TranscribeOptions

    model, audio = engine(runners)
    heard = model.hear(1)
    heard.add(next(iter(model.encoded([model.log_mel(audio)]))))
    tokenizer, options = model.tokenizer_for("en", "transcribe"), TranscribeOptions("demo", language="en")
    (decoded,) = model.decode(heard, [tokenizer], [options])
    return str(decoded.text)


def edit_distance(number: int) -> int:
    """Of two sequences, in plain Python, which holds the interpreter's lock all the time."""
    first, second = range(number, number + PYTHON_LENGTH), range(PYTHON_LENGTH)
    row = list(range(PYTHON_LENGTH + 1))
    for above, one in enumerate(first, 1):
        before, row[0] = row[0], above
        for column, other in enumerate(second, 1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (one != other))
    return row[-1]


# -- ways


async def lag(stop: asyncio.Event) -> float:
    """The longest that the loop did not get its turn, seconds."""
    longest = 0.0
    while not stop.is_set():
        began = time.perf_counter()
        await asyncio.sleep(TICK_S)
        longest = max(longest, time.perf_counter() - began - TICK_S)
    return longest


async def watched(jobs: Any) -> tuple[list[Any], float]:
    """Results of coroutines that run at once, and the longest stand-still of the loop."""
    stop = asyncio.Event()
    watching = asyncio.create_task(lag(stop))
    await asyncio.sleep(2 * TICK_S)
    results = await asyncio.gather(*jobs)
    stop.set()
    return list(results), await watching


async def called(job: Job, number: int) -> Any:
    """A job called in a coroutine, as beginners do: it blocks the loop."""
    return job(number)


async def remotely(url: str, count: int) -> tuple[list[str], float]:
    """All calls of the remote API at once on one loop."""
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=60, limits=httpx.Limits(max_connections=None)) as http:

        async def one(number: int) -> str:
            return (await http.get(f"{url}/{number}")).text

        return await watched([one(number) for number in range(count)])


class Ways:
    """One kind of job done in all ways. ``job`` must be known to other processes by its name."""

    def __init__(self, job: Job, count: int, threads: int, processes: int, url: str | None = None) -> None:
        self._job, self._count, self._url = job, count, url
        self._threads = ThreadPoolExecutor(threads)
        context = multiprocessing.get_context("spawn")
        self._processes = ProcessPoolExecutor(processes, mp_context=context)
        self._right: list[Any] = []
        self.lags: list[float] = []
        job(0)  # what is made at first use
        list(self._threads.map(job, range(2 * threads)))
        list(self._processes.map(job, range(4 * processes)))

    def sides(self) -> dict[str, Callable[[], float]]:
        """What to measure."""
        numbers = range(self._count)
        return {
            SYNC: lambda: self._timed(lambda: [self._job(number) for number in numbers]),
            THREADS: lambda: self._timed(lambda: list(self._threads.map(self._job, numbers))),
            ASYNCIO: lambda: self._timed(self._on_loop),
            PROCESSES: lambda: self._timed(lambda: list(self._processes.map(self._job, numbers))),
        }

    def _on_loop(self) -> list[Any]:
        jobs = (called(self._job, number) for number in range(self._count))
        results, longest = asyncio.run(remotely(self._url, self._count) if self._url else watched(jobs))
        self.lags.append(longest)
        return results

    def _timed(self, run: Callable[[], list[Any]]) -> float:
        began = time.perf_counter()
        results = run()
        seconds = time.perf_counter() - began
        self._right = self._right or results
        if results != self._right:
            raise SystemExit("two ways of doing the same jobs gave different results")
        return seconds

    def close(self) -> None:
        """End threads and processes."""
        self._threads.shutdown()
        self._processes.shutdown()


def kinds(url: str, args: argparse.Namespace) -> dict[str, Callable[[], Ways]]:
    """The kinds of jobs; engine and pure Python have a thread or process per core, remote ones as many as they like."""
    own_cores = cores()
    local = {"threads": own_cores, "processes": own_cores}
    return {
        "remote": lambda: Ways(partial(own.remote, url), args.remote, args.remote, args.processes, url),
        "engine": lambda: Ways(partial(own.window, own_cores), args.windows, **local),
        "pure Python": lambda: Ways(own.edit_distance, args.python, **local),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--remote", type=int, default=40, help="remote calls, and threads for them")
    parser.add_argument("--processes", type=int, default=8, help="processes for remote calls")
    parser.add_argument("--windows", type=int, default=24, help="windows of the demo model")
    parser.add_argument("--python", type=int, default=8, help="jobs in pure Python")
    parser.add_argument("--kinds", nargs="+", help="remote, engine, 'pure Python'; all unless told")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--into", type=Path, help="folder for concurrency_models.json")
    args = parser.parse_args()
    given = conditions()
    show(given)
    if not args.kinds or "engine" in args.kinds:
        import app.engine.preload  # noqa: F401  # it refuses to be imported beside threads
    results: dict[str, Any] = {}
    rows, ratios = [], []
    with slow_server() as url:
        for kind, make in kinds(url, args).items():
            if args.kinds and kind not in args.kinds:
                continue
            ways = make()
            try:
                seconds = in_turns(ways.sides(), args.rounds)
            finally:
                ways.close()
            results[kind] = {"seconds": seconds, "loop_stood_still_s": ways.lags}
            faster = {way: Found(way, per_round(seconds[SYNC], values)).median for way, values in seconds.items()}
            cells = [f"{Found(way, tuple(values)).median:.2f} s ({faster[way]:.1f}x)" for way, values in seconds.items()]
            rows.append([kind, *cells, f"{1000 * max(ways.lags):.0f} ms"])
            ratios += [f"{kind} {way} {ratio:.1f}" for way, ratio in faster.items() if way != SYNC]
            save(args.into, "concurrency_models", {**given, "kinds": results})
    print("\n" + table(["jobs", SYNC, THREADS, ASYNCIO, PROCESSES, "loop stood still"], rows))
    print(f"\nratios to one after the other: {'; '.join(ratios)}")


if __name__ == "__main__":
    main()
