"""Memory: the shared base, one worker, one job, N streams of one model against N copies of it. Linux only.

    python -m benchmarks.random_models tiny small --into DIR --tokens 100
    python -m benchmarks.memory --models demo tiny small --models-dir DIR --streams 1 2 4 8 --json OUT

Prints Markdown tables in MB (10^6 bytes) and writes all figures to OUT in bytes. Peaks are the highest of samples.
What the figures mean: :mod:`benchmarks.processes`. OUT is written after every step; with ``--resume`` what it holds is kept.

    python -m benchmarks.memory --four-streams --models small --models-dir DIR --json OUT

Only this: the PSS of a worker with four streams, all at work, beside that of one with one; fresh workers in turns. The last
line is the ratio, the exit status 1 where it is above 1.6.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.catalogue import MODELS
from benchmarks.memory_lab import COPY_KINDS, STREAM_S, Lab
from benchmarks.ratios import ROUNDS, Found, Target, conditions, finish, per_round, show, table

MB = 1e6
QUARTER = 0.25
FOUR = Target(1.6, at_most=True)


def job_cases(model: str, lengths: list[float]) -> list[dict[str, Any]]:
    """One job at a time; word times only where an aligner is on disk."""
    cases = [{"seconds": s, "batch": b, "vad": "silero", "words": False} for s in lengths for b in (1, 4)]
    cases += [{"seconds": s, "batch": 16, "vad": "silero", "words": False} for s in lengths if s >= 600]
    if model == "demo":
        cases += [case | {"words": True} for case in cases]
        cases += [{"seconds": s, "batch": 4, "vad": "pyannote", "words": False} for s in lengths]
    return cases


class Results:
    """Figures by name, saved after each."""

    def __init__(self, path: Path | None, resume: bool) -> None:
        self._path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path and resume and path.exists() else {}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """What is known, or what ``measure`` finds; a failure is a finding too."""
        if name not in self.data:
            try:
                self.data[name] = measure()
            except (RuntimeError, TimeoutError, OSError) as error:
                self.data[name] = {"error": f"{type(error).__name__}: {error}"}
            print(f"{name}: {json.dumps(self.data[name])[:300]}", flush=True)
            if self._path:
                self._path.write_text(json.dumps(self.data, indent=1) + "\n")
        return self.data[name]


def measure(lab: Lab, results: Results, args: argparse.Namespace) -> None:
    """Everything that was asked for, one thing at a time."""
    wait = asyncio.new_event_loop().run_until_complete
    results.get("base", lambda: wait(lab.base()))
    for model in args.models:
        results.get(f"load {model}", lambda model=model: wait(lab.job(model, 1, None)))
        for case in job_cases(model, args.lengths):
            name = " ".join([f"job {model}", *(f"{key}={value}" for key, value in case.items())])
            results.get(name, lambda model=model, case=case: wait(lab.job(model, **case)))
    lab.close()
    for model in args.models:
        for count in args.streams:
            results.get(f"streams {model} {count}", lambda model=model, count=count: lab.streams(model, count))
            for kind in args.copies:
                name = f"copies {model} {count} {kind}"
                results.get(name, lambda model=model, count=count, kind=kind: lab.copies(model, count, kind))


def four_streams(lab: Lab, args: argparse.Namespace) -> int:
    """The highest PSS of a worker with four jobs over that of one with one job; the exit status."""
    given = conditions()
    show(given)
    wait = asyncio.new_event_loop().run_until_complete
    found, data = [], {}
    try:
        for model in args.models:
            runs: dict[int, list[dict[str, Any]]] = {1: [], 4: []}
            for _ in range(args.rounds):
                for count, seen in runs.items():
                    seen.append(wait(lab.at_work(model, count)))
                    print(f"{model}, {count} streams: {json.dumps(seen[-1])}", flush=True)
            ratios = [
                Found(
                    f"{model}, four streams beside one, {kind.upper()}",
                    per_round(*(_peaks(runs[count], kind) for count in (4, 1))),
                    goal,
                )
                for kind, goal in (("pss", FOUR), ("own", None))
            ]
            found += ratios
            data[model] = {**runs, "ratios": [one.to_dict() for one in ratios]}
            if args.json:
                args.json.write_text(json.dumps({**given, "four_streams": data}, indent=1) + "\n")
    finally:
        lab.close()
    return finish(found)


def _peaks(runs: list[dict[str, Any]], kind: str) -> list[float]:
    return [float(run["peak"][kind]) for run in runs]


# -- tables


def mb(value: float) -> str:
    """Bytes as MB."""
    return f"{value / MB:,.0f}"


def load_table(data: dict[str, Any], models: list[str]) -> str:
    """A worker when it has loaded its model, and the highest point on the way."""
    rows = []
    for model in models:
        found = data.get(f"load {model}", {})
        if "idle" in found:
            rows.append([model, mb(found["idle"]["own"]), mb(found["load_peak_own"]), found["load_s"], found["load_cpu_s"]])
    return table(["model", "worker, own MB", "peak while loading", "load, s", "load, CPU s"], rows) + "\n"


def job_table(data: dict[str, Any], models: list[str]) -> str:
    """Peak of one job over the idle worker; what stays afterwards; seconds and, per window, processor seconds."""
    rows = []
    for model in models:
        for found in (value for name, value in data.items() if name.startswith(f"job {model} ") and "extra" in value):
            windows = found["segments"] if not found["words"] else 0
            each = f"{found['cpu_s'] / windows:.2f}" if windows else ""
            words = "yes" if found["words"] else "no"
            row = [model, found["vad"], words, found["batch"], f"{found['audio_s']:g}", mb(found["extra"]), mb(found["kept"])]
            rows.append([*row, found["job_s"], each])
    head = ["model", "VAD", "words", "batch", "audio, s", "peak over idle, MB", "kept, MB", "job, s", "CPU s per window"]
    return table(head, rows) + "\n"


def ratio_table(data: dict[str, Any], models: list[str], streams: list[int], kinds: list[str]) -> str:
    """One server with N jobs at once against N copies with one job each."""
    rows = []
    for model in models:
        for count in streams:
            ours = data.get(f"streams {model} {count}", {})
            for kind in kinds:
                theirs = data.get(f"copies {model} {count} {kind}", {})
                if "peak" in ours and "peak" in theirs:
                    rows.append([model, count, kind, *compared(ours, theirs)])
    columns = ["server idle", "copies idle", "server peak", "copies peak", "ratio", "of anonymous", "of idle", "a quarter?"]
    head = ["model", "N", "copies of", *columns]
    return table(head, rows) + "\n"


def compared(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Both when idle and at their peak; ratios of the peaks, of their anonymous part, of the idle state."""

    def taken(found: dict[str, Any], state: str, files: bool = True) -> float:
        return float(found[state]["pss_anon"] + (found[state]["files"] if files else 0))

    def ratio(state: str, files: bool = True) -> float:
        return taken(ours, state, files) / taken(theirs, state, files)

    sizes = [mb(taken(found, state)) for state in ("idle", "peak") for found in (ours, theirs)]
    ratios = [f"{value:.2f}" for value in (ratio("peak"), ratio("peak", files=False), ratio("idle"))]
    return [*sizes, *ratios, "yes" if ratio("peak") <= QUARTER else "no"]


def report(data: dict[str, Any], args: argparse.Namespace) -> str:
    """All tables."""
    base = data.get("base", {})
    parts = []
    if "idle" in base:
        idle = base["idle"]
        parts.append(f"Forkserver without a worker: {mb(idle['anon'])} MB anonymous, {mb(idle['files'])} MB of files.\n")
        files = [[name, mb(found["rss"]), mb(found["anon"])] for name, found in base["by_file"].items()]
        parts.append(table(["mapped", "resident MB", "of it anonymous"], files) + "\n")
    parts += [load_table(data, args.models), job_table(data, args.models)]
    parts.append(f"N times {STREAM_S} s of audio at once, batches of 4:\n")
    parts.append(ratio_table(data, args.models, args.streams, args.copies))
    failures = [f"- {name}: {found['error']}" for name, found in data.items() if "error" in found]
    if failures:
        parts.append("Failed:\n" + "\n".join(failures) + "\n")
    return "\n".join(parts)


def main() -> None:
    """Measure, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["demo"], choices=MODELS)
    parser.add_argument("--models-dir", type=Path, help="folder of real or random models, one sub-folder per name")
    parser.add_argument("--lengths", nargs="*", type=float, default=[30.0, 120.0, 600.0], help="seconds of audio per job")
    parser.add_argument("--streams", nargs="*", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--copies", nargs="*", default=["stock-int8"], choices=COPY_KINDS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--resume", action="store_true", help="keep what the JSON file already holds")
    parser.add_argument("--four-streams", action="store_true", help="only four streams beside one")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of --four-streams")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that servers and copies are ended as well
    results = Results(args.json, args.resume)
    with tempfile.TemporaryDirectory(prefix="stenopool-memory-") as folder:
        lab = Lab(Path(folder), args.models_dir)
        if args.four_streams:
            sys.exit(four_streams(lab, args))
        measure(lab, results, args)
    print(report(results.data, args))


if __name__ == "__main__":
    main()
