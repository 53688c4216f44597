"""The service around the engine: what HTTP, admission, decoding, the store and the worker's pipe add to a call of the engine.

    python -m benchmarks.overhead --into OUT                                     # the demo model
    python -m benchmarks.overhead --model tiny --models-dir DIR --into OUT

Needs a quiet machine. A clip of a word (1 s) and a long file, in turns: uploaded to the real server, and handed as samples to
``Pipeline.transcribe`` in a process of its own with the same settings. What the service adds to the clip is the difference in
milliseconds, to the long file the difference in percent; both of each round, and of those the median. The texts must be equal.
The exit status is 1 where more is added than promised.

Who comes second finds the machine as the first has left it, so they take turns in that, too. Both are started several times:
two processes that run the same code may differ by some percent for as long as they live, by where their memory lies (Mytkowicz
et al., Producing wrong data without doing anything obviously wrong!, ASPLOS 2009).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx

from app.catalogue import MODELS
from app.work import Task, WorkerSetup
from benchmarks.clients import ask, client_of, ours_params, server_settings
from benchmarks.corpus import write_corpus
from benchmarks.openloop import percentile
from benchmarks.ratios import ROUNDS, Found, Target, conditions, finish, save, show
from benchmarks.serving import serving
from benchmarks.sides import Ours, Remote, answer, options_for, pcm_file
from benchmarks.vs_whisperx import models_folder

CLIP = Target(15.0, at_most=True, unit=" ms")
LONG = Target(3.0, at_most=True, unit=" %")
WORD_S = 1.0
WARM_FILES = 3
"""Long files before those that count: heaps of both sides grow until then, and have some thousand pages cleared each time."""


class Bare:
    """The engine's pipeline, without the worker around it."""

    def __init__(self, setup: WorkerSetup) -> None:
        from app.engine.pipeline import create

        self._model, self._engine = setup.model, create(setup)

    def run(self, file: str) -> dict[str, Any]:
        """Seconds of one call, and the texts."""
        task = Task("bare", 1, file, "", options_for(self._model, "none", "en"))
        began = time.perf_counter()
        result = self._engine.transcribe(task, lambda stage, done: None, lambda: False)
        return {"s": time.perf_counter() - began, "texts": [segment["text"] for segment in result["segments"]]}


def serve(pipe: Connection) -> None:
    """Entry of the engine's process."""
    setup = WorkerSetup.from_dict(pipe.recv())
    answer(pipe, lambda: Bare(setup))


def start_bare(ours: Ours, model: str) -> Remote:
    """The engine, loaded."""
    from benchmarks import overhead  # not __main__, which a worker has not

    bare = ours.start("the engine", overhead.serve, model)
    bare.wait()
    return bare


@dataclass
class Pair:
    """One recording, both ways: seconds of every round."""

    wav: bytes
    pcm: str
    service: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path) -> Pair:
        """Of a WAV."""
        return cls(path.read_bytes(), pcm_file(path))

    def once(self, life: Life) -> None:
        """Seconds of both, the other one first each time; an error where they say different things."""
        if len(self.engine) % 2:
            said, heard = self._ask(life), self._run(life)
        else:
            heard, said = self._run(life), self._ask(life)
        if said != heard:
            raise SystemExit(f"the service says {said}, the engine {heard}")

    def _ask(self, life: Life) -> list[str]:
        began = time.perf_counter()
        texts = ask(life.client, self.wav, **ours_params(life.model))
        self.service.append(time.perf_counter() - began)
        return texts

    def _run(self, life: Life) -> list[str]:
        result = life.bare.ask("run", file=self.pcm)
        self.engine.append(result["s"])
        texts: list[str] = result["texts"]
        return texts

    def added_ms(self) -> tuple[float, ...]:
        """Of every round."""
        return tuple(1000 * (service - engine) for service, engine in zip(self.service, self.engine, strict=True))

    def added_percent(self) -> tuple[float, ...]:
        """Of every round."""
        return tuple(100 * (service / engine - 1) for service, engine in zip(self.service, self.engine, strict=True))


@dataclass(frozen=True)
class Life:
    """A server and the engine, just started."""

    model: str
    client: httpx.Client
    bare: Remote


@contextmanager
def living(folder: Path, model: str, models_dir: Path | None) -> Iterator[Life]:
    """Both, on the data that earlier ones left."""
    ours = Ours(folder / "data", models_dir)  # the server's: the choice of an encoder that was measured there holds here too
    with ExitStack() as stack:
        stack.callback(ours.close)
        server = stack.enter_context(serving(folder, **server_settings(model, models_dir)))
        client = stack.enter_context(client_of(server))
        bare = start_bare(ours, model)
        stack.callback(bare.close)
        yield Life(model, client, bare)


def run(args: argparse.Namespace, folder: Path) -> int:
    """Measure, print, write; the exit status."""
    given = conditions()
    show(given)
    models_dir = models_folder(args.models_dir, [args.model], folder / "models")
    clips, files = (Pair.of(path) for path in write_corpus(folder / "audio", [WORD_S, args.seconds]))
    for life_number in range(args.lives):
        with living(folder, args.model, models_dir) as life:
            for warm in [*[Pair(clips.wav, clips.pcm)] * 5, *[Pair(files.wav, files.pcm)] * WARM_FILES]:
                warm.once(life)
            for _ in range(args.rounds):
                for _ in range(args.clips):
                    clips.once(life)
                files.once(life)
                last = f"service {files.service[-1]:.2f}, engine {files.engine[-1]:.2f}"
                print(f"life {life_number + 1}, s: {last}", flush=True)
    for side, values in (("service", clips.service), ("engine", clips.engine)):
        quantiles = ", ".join(f"p{100 * part:.0f} {1000 * percentile(values, part):.1f} ms" for part in (0.5, 0.95))
        print(f"the clip, {side}: {quantiles}")
    found = [
        Found(f"{args.model} added to a clip of {WORD_S:g} s", clips.added_ms(), CLIP),
        Found(f"{args.model} added to a file of {args.seconds:g} s", files.added_percent(), LONG),
    ]
    seconds = {
        "clip": {"service": clips.service, "engine": clips.engine},
        "long": {"service": files.service, "engine": files.engine},
    }
    save(args.into, "overhead", {**given, "ratios": [one.to_dict() for one in found], "seconds": seconds})
    return finish(found)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", choices=MODELS)
    parser.add_argument("--models-dir", type=Path, help="folder of real or random models, one sub-folder per name")
    parser.add_argument("--clips", type=int, default=20, help="pairs of clips per round")
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the long file")
    parser.add_argument("--lives", type=int, default=ROUNDS, help="starts of both")
    parser.add_argument("--rounds", type=int, default=5, help="of each life")
    parser.add_argument("--into", type=Path, help="folder for overhead.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stenopool-overhead-") as folder:
        sys.exit(run(args, Path(folder)))


if __name__ == "__main__":
    main()
