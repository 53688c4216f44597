"""Batches: how many windows share one (B), and how long it waits for more, against throughput and the 95th percentile.

    python -m benchmarks.random_models tiny --into DIR --quantization int8 --tokens 40
    python -m benchmarks.batching --model tiny --models-dir DIR --into OUT
    python -m benchmarks.batching --model tiny --models-dir DIR --batches 4 --waits 0 --runners 1 2 4

``--runners`` compares numbers of engine calls at once, each on as many threads as leave every core one (``STENOPOOL_RUNNERS``).

Needs a quiet machine. A real worker with each setting in turn, loaded afresh every round; ``--clients`` clients, each with a
place of its own, hand in a recording of one window and the next when it is done (a closed loop), and a lone client does
the same: what a wait costs where nobody else is there. Every setting must say the same. Writes ``batching.json`` and
``batching.png``; the last line has the ratios.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.catalogue import MODELS
from benchmarks.corpus import write_corpus
from benchmarks.openloop import percentile
from benchmarks.ratios import ROUNDS, Found, conditions, per_round, save, show, table
from benchmarks.sides import Ours, pcm_file
from benchmarks.vs_whisperx import models_folder


@dataclass
class Setting:
    """One number of runners (0: the worker's own choice), B and wait (milliseconds), and what was seen in every round."""

    runners: int
    batch: int
    wait_ms: float
    rates: list[float] = field(default_factory=list)
    p95: list[float] = field(default_factory=list)
    lone: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As in the table."""
        runners = f"{self.runners} runners, " if self.runners else ""
        return f"{runners}B={self.batch}, wait {self.wait_ms:g} ms"

    def measure(self, ours: Ours, model: str, files: list[str], args: argparse.Namespace) -> list[str]:
        """One round; the texts of all files."""
        given = {"streams": args.clients, "runners": self.runners, "batch_size": self.batch}
        ours.given = {**given, "batch_wait_ms": self.wait_ms}
        ours.load(model)
        try:
            ours.run(files[: args.clients])  # what is made at first use
            crowd = ours.closed_loop(files, args.clients)
            alone = ours.closed_loop(files[: args.alone], 1)
        finally:
            ours.unload()
        self.rates.append(args.seconds * len(files) / crowd["s"])
        self.p95.append(percentile(crowd["latencies"], 0.95))
        self.lone.append(percentile(alone["latencies"], 0.5))
        return [" ".join(text) for text in crowd["texts"]]


def draw(settings: list[Setting], clients: int, path: Path) -> None:
    """Throughput and 95th percentile over B, a line for each wait."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for runners, wait in sorted({(one.runners, one.wait_ms) for one in settings}):
        mine = [one for one in settings if (one.runners, one.wait_ms) == (runners, wait)]
        label = f"{runners} runners, " * bool(runners) + f"wait {wait:g} ms"
        for axis, name in zip(axes, ("rates", "p95"), strict=True):
            values = [Found(name, tuple(getattr(one, name))).median for one in mine]
            axis.plot([one.batch for one in mine], values, "o-", label=label)
    titles = (("Throughput", "seconds of audio per second"), (f"p95 with {clients} clients", "seconds"))
    sizes = sorted({one.batch for one in settings})
    for axis, (title, label) in zip(axes, titles, strict=True):
        axis.set(xlabel="windows in a batch at most", ylabel=label, title=title, xscale="log")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(settings: list[Setting]) -> str:
    """Markdown table and, last, the ratios to the first setting, taken within rounds."""
    first, rows, ratios = settings[0], [], []
    for one in settings:
        ratio = Found(one.name, per_round(one.rates, first.rates))
        figures = [Found(one.name, tuple(values)).median for values in (one.rates, one.p95, one.lone)]
        p95 = Found(one.name, per_round(one.p95, first.p95)).median
        setting = [one.runners or "", one.batch, f"{one.wait_ms:g}"]
        rows.append([*setting, *(f"{value:.2f}" for value in figures), f"{ratio.median:.2f}x", f"{p95:.2f}x"])
        ratios.append(f"{one.name} {ratio.median:.2f}")
    head = ["runners", "B", "wait, ms", "audio s/s", "p95, s", "lone client, s"]
    head += [f"throughput beside {first.name}", "p95 beside it"]
    return f"{table(head, rows)}\n\nratios of throughput to {first.name}: {'; '.join(ratios)}"


def result(settings: list[Setting]) -> list[dict[str, Any]]:
    """All figures, as JSON values."""
    return [vars(one) for one in settings]


def run(args: argparse.Namespace, folder: Path) -> None:
    """All settings in every round, in turns."""
    given = conditions()
    show(given)
    models_dir = models_folder(args.models_dir, [args.model], folder / "models")
    paths = write_corpus(folder / "audio", [args.seconds] * args.clients * args.each)
    files = [pcm_file(path) for path in paths]
    settings = [Setting(*each) for each in itertools.product(args.runners, args.batches, args.waits)]
    ours = Ours(folder / "data", models_dir)
    right: list[str] = []
    try:
        for number in range(args.rounds):
            for setting in settings:
                said = setting.measure(ours, args.model, files, args)
                right = right or said
                if said != right:
                    raise SystemExit(f"{setting.name} says something else than {settings[0].name}")
                print(
                    f"round {number + 1}, {setting.name}: {setting.rates[-1]:.1f} s/s, p95 {setting.p95[-1]:.2f} s", flush=True
                )
            save(args.into, "batching", {**given, "clients": args.clients, "settings": result(settings)})
    finally:
        ours.close()
    if args.into is not None:
        draw(settings, args.clients, args.into / "batching.png")
    print("\n" + report(settings))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", choices=MODELS)
    parser.add_argument("--models-dir", type=Path, help="folder of real or random models, one sub-folder per name")
    parser.add_argument("--runners", nargs="+", type=int, default=[0], help="0: the worker's own choice")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--waits", nargs="+", type=float, default=[0.0, 20.0, 100.0], help="milliseconds")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--each", type=int, default=2, help="recordings of each client")
    parser.add_argument("--alone", type=int, default=4, help="recordings of the lone client")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a recording; at most one window")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--into", type=Path, help="folder for batching.json and batching.png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stenopool-batching-") as folder:
        run(args, Path(folder))
    sys.exit(0)


if __name__ == "__main__":
    main()
