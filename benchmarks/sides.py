"""Sides of a comparison, each in a process of its own, so that threads and memory do not mix: ours, stock WhisperX, the limit.

All three stay loaded and answer one request at a time; a side that is not asked does nothing.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from app.admission.cost import Batches, CostModel
from app.catalogue import MODELS, worker_setup
from app.errors import InputError
from app.http.schemas import TranscribeParams, parse
from app.jobs import TranscribeOptions
from app.pool.spawn import METHOD, Spawner
from app.settings import PROJECT_ROOT, Settings
from app.work import Task, WorkerSetup
from benchmarks.serving import inherited
from benchmarks.workers import PATIENCE_S, Worker

SPELLINGS = {"none": ("false",), "aligned": ("aligned", "true"), "fast": ("fast",)}
QUIET = {"PYANNOTE_METRICS_ENABLED": "false", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def options_for(model: str, words: str, language: str | None) -> TranscribeOptions:
    """Options as the service takes them. ``words``: ``none``, ``aligned`` or ``fast``.

    Raises:
        InputError: this version has no such word times.
    """
    fields = {"model_size": model} | ({"language": language} if language else {})
    refused: InputError | None = None
    for spelling in SPELLINGS[words]:
        try:
            return parse(TranscribeParams, {**fields, "word_timestamps": spelling}).options(model)
        except InputError as error:
            refused = error
    assert refused is not None
    raise refused


def can(words: str) -> bool:
    """Whether this version has such word times."""
    try:
        options_for("demo", words, None)
    except InputError:
        return False
    return True


def pcm_file(path: Path) -> str:
    """The samples of a WAV beside it, as workers read them."""
    target = path.with_suffix(".pcm")
    with wave.open(str(path)) as file:
        target.write_bytes(file.readframes(file.getnframes()))
    return str(target)


def answer(pipe: Connection, make: Callable[[], Any]) -> None:
    """Make an object, then call its methods as the other end asks, until the pipe is closed."""
    try:
        target = make()
        pipe.send({"ready": True})
        while True:
            name, arguments = pipe.recv()
            pipe.send(getattr(target, name)(**arguments))
    except EOFError:
        os._exit(0)  # exit handlers of libraries can hang
    except BaseException as error:
        pipe.send({"error": f"{type(error).__name__}: {error}"})
        raise


class Remote:
    """An object in another process, at the end of a pipe."""

    def __init__(self, name: str, pipe: Connection, kill: Callable[[], Any]) -> None:
        self._name, self._pipe, self._kill = name, pipe, kill

    def wait(self) -> dict[str, Any]:
        """The next answer; an error where none comes in an hour."""
        try:
            found: dict[str, Any] = self._pipe.recv() if self._pipe.poll(PATIENCE_S) else {"error": "no answer"}
        except EOFError:
            found = {"error": "it ended"}
        if "error" in found:
            raise SystemExit(f"{self._name}: {found['error']}")
        return found

    def ask(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Call a method there."""
        self._pipe.send((method, arguments))
        return self.wait()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._kill()


def start_stock(model: str, path: str, aligner: str | None) -> Remote:
    """Stock WhisperX, which loads meanwhile: the first :meth:`Remote.wait` tells when it is ready."""
    ours, theirs = multiprocessing.Pipe()
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.stock", str(theirs.fileno())]
    process = subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=inherited() | QUIET, pass_fds=[theirs.fileno()], stdout=sys.stderr
    )
    theirs.close()
    ours.send({"model": path, "chunk_s": MODELS[model].chunk_s, "aligner": aligner})

    def end() -> None:
        process.kill()
        process.wait()

    return Remote("stock WhisperX", ours, end)


class Ours:
    """Real workers as the pool starts them, and the limit from the same forkserver. ``given``: settings of the next worker."""

    def __init__(self, data: Path, models_dir: Path | None, **settings: Any) -> None:
        self._data, self._models_dir = data, models_dir
        self.given: dict[str, Any] = settings
        self._loop = asyncio.new_event_loop()
        self._spawner = Spawner(("app.engine.preload",))
        self._worker: Worker | None = None
        self._model = ""
        self._number = 0
        if METHOD == "forkserver":
            forkserver.ensure_running()  # its imports take half a minute: they begin now
        main: Any = sys.modules["__main__"]  # a worker imports it once more: let it be the server's, which is small
        main.__spec__, main.__file__ = None, str(PROJECT_ROOT / "main.py")

    @property
    def settings(self) -> Settings:
        """Of a server that never fetches anything; threads and runners are its own choice unless given."""
        return Settings(data_dir=self._data, models_dir=self._models_dir, offline=True, **self.given)

    def load(self, model: str) -> None:
        """Start a worker of a model and wait until it is ready."""
        self._data.mkdir(parents=True, exist_ok=True)
        self._wait(self._load(model))

    async def _load(self, model: str) -> None:
        self._model = model
        self._worker = Worker(await self._spawner.start(self._setup(model)))
        await self._worker.ready()

    def run(self, files: list[str], words: str = "none", language: str | None = "en") -> dict[str, Any]:
        """All files at once: seconds, window texts of each, word counts of each."""
        tasks = self._tasks(files, words, language)
        return {"s": self._wait(self._at_once(tasks)), **_results(tasks)}

    def closed_loop(self, files: list[str], clients: int, language: str | None = "en") -> dict[str, Any]:
        """So many clients hand in the files one after the other: seconds in all, latencies, window texts of each."""
        tasks = self._tasks(files, "none", language)
        seconds, latencies = self._wait(self._loop_of(tasks, clients))
        return {"s": seconds, "latencies": latencies, **_results(tasks)}

    def _tasks(self, files: list[str], words: str, language: str | None) -> list[Task]:
        options = options_for(self._model, words, language)
        tasks = []
        for file in files:
            self._number += 1
            result = self._data / f"result-{self._number}.json"
            tasks.append(Task(f"job-{self._number}", 1, file, str(result), options))
        return tasks

    async def _at_once(self, tasks: list[Task]) -> float:
        assert self._worker is not None
        began = time.perf_counter()
        await asyncio.gather(*map(self._worker.run, tasks))
        return time.perf_counter() - began

    async def _loop_of(self, tasks: list[Task], clients: int) -> tuple[float, list[float]]:
        waiting, latencies = iter(tasks), []

        async def client() -> None:
            latencies.extend([await self._at_once([task]) for task in waiting])

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return time.perf_counter() - began, latencies

    def start_limit(self, model: str) -> Remote:
        """The limit with the same model, which loads meanwhile."""
        from benchmarks import limit

        return self.start("the limit", limit.serve, model)

    def start(self, name: str, serve: Callable[[Connection], None], model: str) -> Remote:
        """A process of its own with the same imports, which is sent the same setup for the model and loads it meanwhile."""
        ours, theirs = multiprocessing.Pipe()
        context: Any = multiprocessing.get_context(METHOD)
        process = context.Process(target=serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        ours.send(self._setup(model).to_dict())

        def end() -> None:
            process.kill()
            process.join(10)

        return Remote(name, ours, end)

    def _setup(self, model: str) -> WorkerSetup:
        """What a new server would tell a worker, with the memory that it may take while there are jobs."""
        setup = worker_setup(self.settings, model)
        batches = Batches(setup.runners, setup.runners * setup.batch_size)
        return replace(setup, work_bytes=CostModel(time.time).batches(model, "int8", "cpu", batches))

    def unload(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._wait(self._worker.end())
            self._worker = None

    def close(self) -> None:
        """End the worker and the forkserver."""
        self.unload()
        self._spawner.close()
        self._loop.close()

    def _wait(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)


def _results(tasks: list[Task]) -> dict[str, Any]:
    """What the workers wrote: window texts and word counts of each; the files are deleted."""
    results = [json.loads(Path(task.result_path).read_text()) for task in tasks]
    for task in tasks:
        Path(task.result_path).unlink()
    texts = [[segment["text"] for segment in result["segments"]] for result in results]
    counts = [sum(len(segment.get("words") or []) for segment in result["segments"]) for result in results]
    return {"texts": texts, "words": counts}
