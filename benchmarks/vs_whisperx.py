"""Stock WhisperX against this project's worker, and the worker against the limit: one long file, and many short clips.

    python -m benchmarks.vs_whisperx --quick                                     # the demo model, under a minute
    python -m benchmarks.random_models tiny small --into DIR --quantization int8 --tokens 40
    python -m benchmarks.vs_whisperx --models demo tiny small --models-dir DIR --into OUT

Needs a quiet machine. Every side is a process of its own that stays loaded and is idle while another runs: stock WhisperX
(:mod:`benchmarks.stock`), a real worker with the settings it would choose, and the limit (:mod:`benchmarks.limit`). In every
round each side runs each case once; ratios are taken within a round, and their medians count. The last line has all ratios;
the exit status is 1 where one falls short. ``--into`` also gets all figures as ``vs_whisperx.json``.
"""

from __future__ import annotations

import argparse
import difflib
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from app.catalogue import DEMO_ALIGNER, MODELS, local_path
from app.settings import PROJECT_ROOT
from benchmarks.corpus import write_corpus
from benchmarks.ratios import ROUNDS, Found, Target, conditions, finish, per_round, save, show, table
from benchmarks.sides import Ours, Remote, can, pcm_file, start_stock

WORDS = ("none", "aligned", "fast")
CLIP_S = 5.0
LIMIT = Target(0.85)
CLIPS = Target(5.0)
TARGETS = {"none": Target(5.0), "aligned": Target(3.0), "fast": Target(5.0)}
SAME = Target(0.99, unit="")
SMALL = {"none": Target(3.0)}
"""Of small only the speed without words was promised; the others are told."""
SAID = {"none": "long file", "aligned": "long file, aligned words", "fast": "long file, fast words"}


class Case:
    """One model: its sides, and what they took in every round, in seconds."""

    def __init__(self, model: str, ours: Ours, stock: Remote, limit: Remote, words: list[str]) -> None:
        self.model, self._ours, self._stock, self._limit, self._words = model, ours, stock, limit, words
        self.seconds: dict[str, list[float]] = {}
        self.texts: dict[str, list[list[str]]] = {}
        self.counts: dict[str, list[int]] = {}
        self.chosen: dict[str, Any] = {}

    def warm(self, long: list[str], clips: list[str], *, quick: bool) -> None:
        """One run of everything on a clip; the limit chooses its arrangement of threads (``quick``: a thread on each core)."""
        self.round(clips[:1], clips[:1])
        self.seconds.clear()
        self.chosen = self._limit.ask("chosen") if quick else self._limit.ask("choose", files=long)

    def round(self, long: list[str], clips: list[str]) -> None:
        """Every side once, in turns. Stock WhisperX runs the long file once; what ``align`` took is known apart."""
        stock = self._stock.ask("run", files=long, language="en", words="aligned" in self._words)
        self._note("stock", stock["asr_s"], stock)
        self._add("stock with words", stock["asr_s"] + stock["align_s"])
        limit = self._limit.ask("run", files=long)
        self._note("limit", limit["s"], limit)
        self._add("limit, mels", limit["mel_s"])
        for words in self._words:
            ours = self._ours.run(long, words)
            self._note(f"ours, {words}", ours["s"], ours)
        stock = self._stock.ask("run", files=clips, language=None, words=False)
        self._note("stock, clips", stock["asr_s"], stock)
        limit = self._limit.ask("run", files=clips, languages=True)
        self._note("limit, clips", limit["s"], limit)
        self._add("limit, languages", limit["language_s"])
        ours = self._ours.run(clips, language=None)
        self._note("ours, clips", ours["s"], ours)

    def _note(self, side: str, seconds: float, result: dict[str, Any]) -> None:
        self._add(side, seconds)
        self.texts[side] = result["texts"]
        self.counts[side] = result.get("words", [])

    def _add(self, side: str, seconds: float) -> None:
        self.seconds.setdefault(side, []).append(seconds)

    def found(self) -> list[Found]:
        """All ratios."""
        targets = SMALL if self.model == "small" else TARGETS
        found = []
        for words in self._words:
            stock = "stock" if words == "none" else "stock with words"
            found.append(self._ratio(SAID[words], stock, f"ours, {words}", targets.get(words)))
        found.append(self._ratio("clips", "stock, clips", "ours, clips", CLIPS))
        found.append(self._ratio("long file, of the limit", "limit", "ours, none", LIMIT))
        found.append(self._ratio("clips, of the limit", "limit, clips", "ours, clips", LIMIT))
        for what, limit, more, ours in (
            ("long file, of the limit with its mels", "limit", "limit, mels", "ours, none"),
            ("clips, of the limit with its languages", "limit, clips", "limit, languages", "ours, clips"),
        ):
            longer = [sum(both) for both in zip(self.seconds[limit], self.seconds[more], strict=True)]
            found.append(Found(f"{self.model} {what}", per_round(longer, self.seconds[ours])))
        for ours, limit in (("ours, none", "limit"), ("ours, clips", "limit, clips")):
            same = agreement(self.texts[ours], self.texts[limit])
            found.append(Found(f"{self.model} words as of the {limit}", (same,), SAME))
        return found

    def _ratio(self, what: str, above: str, below: str, target: Target | None) -> Found:
        return Found(f"{self.model} {what}", per_round(self.seconds[above], self.seconds[below]), target)

    def outputs(self) -> list[list[Any]]:
        """What was said, of the last round: windows, words with times, and how much is equal."""
        pairs = [
            ("ours, none", "limit"),
            ("ours, none", "stock"),
            ("ours, clips", "limit, clips"),
            ("ours, clips", "stock, clips"),
        ]
        rows = []
        for ours, other in pairs:
            counts = [sum(map(len, self.texts[side])) for side in (ours, other)]
            rows.append([self.model, ours, other, *counts, f"{agreement(self.texts[ours], self.texts[other]):.1%}"])
        return rows


def agreement(ours: list[list[str]], other: list[list[str]]) -> float:
    """Share of words that two sides have in common, in order, whatever the windows; 1 where all are equal."""
    said = [" ".join(text for file in files for text in file).lower().split() for files in (ours, other)]
    if said[0] == said[1]:
        return 1.0
    return difflib.SequenceMatcher(None, *said, autojunk=False).ratio()


def distinct(texts: list[list[str]]) -> set[str]:
    """Different texts of windows; a model with random weights has one."""
    return {text.strip() for file in texts for text in file}


def aligner_for(model: str, folder: Path) -> str:
    """The demo's, or a wav2vec2-base with random weights in ``folder``, made at the first call."""
    if model == "demo":
        return str(DEMO_ALIGNER)
    if not (folder / "align-en" / "vocab.json").exists():
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.random_models", "aligner", "--into", str(folder)]
        subprocess.run(command, cwd=PROJECT_ROOT, check=True, stdout=subprocess.DEVNULL)
    return str(folder / "align-en")


def models_folder(given: Path | None, models: list[str], folder: Path) -> Path:
    """A folder with the models that were named, to which an aligner can be added."""
    folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        if model != "demo" and not (folder / model).exists():
            if given is None or not (given / model).is_dir():
                raise SystemExit(
                    f"{model} is not in --models-dir; make it: python -m benchmarks.random_models {model} --into DIR"
                )
            (folder / model).symlink_to((given / model).resolve())
    return folder


def compare(model: str, ours: Ours, folder: Path, args: argparse.Namespace) -> Case:
    """Load all sides of one model, run all rounds, end them."""
    path = local_path(model, ours.settings)
    assert path is not None
    words = [one for one in args.words if can(one)]
    with ExitStack() as stack:
        stock = start_stock(model, str(path), aligner_for(model, folder) if "aligned" in words else None)
        stack.callback(stock.close)
        stock.wait()  # one after the other: a worker measures which encoder is the fastest while it loads
        ours.load(model)
        stack.callback(ours.unload)
        limit = ours.start_limit(model)
        stack.callback(limit.close)
        limit.wait()
        case = Case(model, ours, stock, limit, words)
        case.warm(args.long, args.clip_files, quick=args.quick)
        print(f"{model}: the limit's arrangement of threads: {case.chosen['chosen']}", flush=True)
        for number in range(args.rounds):
            case.round(args.long, args.clip_files)
            last = {side: round(values[-1], 2) for side, values in case.seconds.items()}
            print(f"{model}, round {number + 1}, seconds: {last}", flush=True)
    return case


def run(args: argparse.Namespace, folder: Path) -> int:
    """All models; the exit status."""
    given = conditions()
    show(given)
    for words in (one for one in args.words if not can(one)):
        print(f"skipped: this version has no {words!r} word times", flush=True)
    paths = [pcm_file(path) for path in write_corpus(folder / "audio", [args.seconds, *[CLIP_S] * args.clips])]
    args.long, args.clip_files = paths[:1], paths[1:]
    models_dir = models_folder(args.models_dir, args.models, folder / "models")
    ours = Ours(folder / "data", models_dir)
    cases = []
    try:
        for model in args.models:
            cases.append(compare(model, ours, models_dir, args))
            save(args.into, "vs_whisperx", {**given, **result(cases, args)})
    finally:
        ours.close()
    for case in cases:
        counted = {side: sum(counts) for side, counts in case.counts.items() if any(counts)}
        print(f"\n{case.model}: words with times: {counted}")
    rows = [[case.model, *row] for case in cases for row in medians(case)]
    print("\n" + table(["model", "side", "median, s", "all rounds, s"], rows))
    heads = ["model", "ours", "beside", "windows", "windows there", "words in common"]
    print("\n" + table(heads, [row for case in cases for row in case.outputs()]))
    for case in cases:
        if case.model != "demo":
            said = distinct([file for side, texts in case.texts.items() if "aligned" not in side for file in texts])
            print(f"\n{case.model}: different texts of windows, all sides and cases together (random weights: 1): {len(said)}")
    return finish([one for case in cases for one in case.found()])


def medians(case: Case) -> list[list[str]]:
    """Seconds of every side."""
    found = [Found(side, tuple(values)) for side, values in case.seconds.items()]
    return [[one.what, f"{one.median:.2f}", ", ".join(f"{value:.2f}" for value in one.values)] for one in found]


def result(cases: list[Case], args: argparse.Namespace) -> dict[str, Any]:
    """All figures, as JSON values."""
    return {
        "audio_s": args.seconds,
        "clips": args.clips,
        "models": {
            case.model: {
                "seconds": case.seconds,
                "words": case.counts,
                "limit": case.chosen,
                "ratios": [one.to_dict() for one in case.found()],
                "outputs": case.outputs(),
            }
            for case in cases
        },
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["demo"], choices=MODELS)
    parser.add_argument("--models-dir", type=Path, help="folder of real or random models, one sub-folder per name")
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the long file")
    parser.add_argument("--clips", type=int, default=24, help=f"clips of {CLIP_S:g} s")
    parser.add_argument("--words", nargs="+", default=WORDS, choices=WORDS, help="word times of the long file")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="demo model, a file of 40 s, 4 clips, 3 rounds")
    parser.add_argument("--into", type=Path, help="folder for vs_whisperx.json")
    args = parser.parse_args()
    if args.quick:
        args.models, args.seconds, args.clips, args.rounds = ["demo"], 40.0, 4, 3
    with tempfile.TemporaryDirectory(prefix="stenopool-vs-") as folder:
        sys.exit(run(args, Path(folder)))


if __name__ == "__main__":
    main()
