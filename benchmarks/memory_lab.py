"""What :mod:`benchmarks.memory` measures with: real workers, real servers, real copies of WhisperX. Linux only."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import httpx
import imageio_ffmpeg
import numpy as np
import psutil

from app.catalogue import MODELS, worker_setup
from app.jobs import TranscribeOptions, VadOptions
from app.pool.spawn import Spawner
from app.settings import PROJECT_ROOT, Settings
from app.work import Task
from benchmarks.processes import Peak, anonymous_of, by_file, family, files_of, group_of, memory_of, pss_of
from benchmarks.serving import Server, inherited, serving
from benchmarks.workers import Worker

RATE = 16_000
STREAM_S = 120
"""Seconds of audio per stream or copy: more than one batch of four windows."""
WORKER_EVERY_S, GROUP_EVERY_S = 0.02, 0.1
"""Seconds between two samples of one worker, and of a whole group of processes."""

COPY_KINDS = {"stock-int8": ("stock", "int8"), "stock-float32": ("stock", "float32"), "ours-int8": ("ours", "int8")}
"""WhisperX's own ``load_model`` (its default on a CPU is float32, and pyannote finds the speech), or this project's engine."""

COPY = """
import os, sys
import numpy as np
model, pcm, kind, compute_type, chunk_s = sys.argv[1:]
if kind == "stock":
    import whisperx
    asr = whisperx.load_model(model, "cpu", compute_type=compute_type, threads=1, local_files_only=True)
    def run():
        audio = np.fromfile(pcm, "<i2").astype(np.float32) / 32768
        return asr.transcribe(audio, batch_size=4, chunk_size=int(float(chunk_s)))
else:
    import app.engine.preload
    from app.engine.pipeline import create
    from app.jobs import TranscribeOptions, VadOptions
    from app.work import Task, WorkerSetup
    setup = WorkerSetup("x", "", model, None, None, "", None, True, "cpu", "cpu", compute_type, 1, 1, 4)
    engine = create(setup)
    def run():
        options = TranscribeOptions("x", vad=VadOptions(chunk_s=float(chunk_s)))
        return engine.transcribe(Task("x", 1, pcm, "", options), lambda *_: None, lambda: False)
print("@ready", flush=True)
sys.stdin.readline()
print("@" + str(len(run()["segments"])), flush=True)
sys.stdin.readline()
os._exit(0)
"""


def speech(folder: Path, seconds: float) -> Path:
    """The bundled samples, again and again: 16 kHz mono s16le."""
    path = folder / f"{seconds:g}.pcm"
    if not path.exists():
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error"]
        form = ["-f", "s16le", "-ac", "1", "-ar", str(RATE), "-"]
        files = sorted((PROJECT_ROOT / "demo" / "samples").glob("*.flac"))
        raw = b"".join(subprocess.run([*command, "-i", f, *form], check=True, capture_output=True).stdout for f in files)
        path.write_bytes(np.resize(np.frombuffer(raw, "<i2"), int(seconds * RATE)).tobytes())
    return path


class Lab:
    """Measures; everything it writes goes into ``folder``."""

    def __init__(self, folder: Path, models_dir: Path | None) -> None:
        self._folder, self._models_dir = folder, models_dir
        self._spawner = Spawner(("app.engine.preload",))
        main: Any = sys.modules["__main__"]  # a worker imports it once more: let it be the server's, which is small
        main.__spec__, main.__file__ = None, str(PROJECT_ROOT / "main.py")

    def settings(self, **values: Any) -> Settings:
        """Settings of a server that never fetches anything and gives each stream one thread."""
        places = {"data_dir": self._folder / "data", "models_dir": self._models_dir}
        return Settings(**places, offline=True, threads=1, **values)

    async def base(self) -> dict[str, Any]:
        """The forkserver after its imports, when no worker runs; seconds until its first worker is ready."""
        first = await self.job("demo", 1, None)
        pid = getattr(forkserver._forkserver, "_forkserver_pid", 0)
        return {"idle": group_of([pid]), "first_worker_s": first["load_s"], "by_file": by_file(pid)}

    def close(self) -> None:
        """End the forkserver."""
        self._spawner.close()

    async def job(
        self, model: str, batch: int, seconds: float | None, vad: str = "silero", words: bool = False
    ) -> dict[str, Any]:
        """Load a fresh worker, run one job in it (None: no job), end it."""
        setup = worker_setup(self.settings(streams=1, batch_size=batch), model)
        began = time.monotonic()
        child = await self._spawner.start(setup)
        with Peak(lambda: anonymous_of(child.pid), WORKER_EVERY_S) as loading:
            worker = Worker(child)
            await worker.ready()
            took = time.monotonic() - began
        idle = memory_of([child.pid])
        figures: dict[str, Any] = {
            "load_s": round(took, 2),
            "load_cpu_s": _cpu_s(child.pid),
            "load_peak_own": _own(loading, idle),
            "idle": idle,
        }
        if seconds is not None:
            figures |= {"audio_s": seconds, "batch": batch, "vad": vad, "words": words}
            figures |= await self._run(worker, model, speech(self._folder, seconds), vad, words)
            figures["extra"] = figures["peak_own"] - idle["own"]
            figures["kept"] = figures["after"]["own"] - idle["own"]
        await worker.end()
        return figures

    async def _run(self, worker: Worker, model: str, pcm: Path, vad: str, words: bool) -> dict[str, Any]:
        result, pid = self._folder / "result.json", worker.child.pid
        chosen = VadOptions(method=vad, chunk_s=MODELS[model].chunk_s)
        options = TranscribeOptions(model, word_timestamps="aligned" if words else "", vad=chosen)
        task = Task("job", 1, str(pcm), str(result), options)
        began, used = time.monotonic(), _cpu_s(pid)
        with Peak(lambda: anonymous_of(pid), WORKER_EVERY_S) as peak:
            await worker.run(task)
        took, used, after = time.monotonic() - began, _cpu_s(pid) - used, memory_of([pid])
        segments = len(json.loads(result.read_text())["segments"])
        return {
            "job_s": round(took, 2),
            "cpu_s": round(used, 2),
            "segments": segments,
            "peak_own": _own(peak, after),
            "after": after,
        }

    async def at_work(self, model: str, streams: int) -> dict[str, Any]:
        """A fresh worker with so many streams, each with one job, all at once: its memory when idle, and its highest at work.

        All else is the server's default: one stream has one runner, several have as many as there are cores.
        """
        setup = worker_setup(self.settings(streams=streams), model)
        child = await self._spawner.start(setup)
        worker = Worker(child)
        await worker.ready()
        idle, pcm = pss_of(child.pid), speech(self._folder, STREAM_S)
        options = TranscribeOptions(model, language="en", vad=VadOptions(chunk_s=MODELS[model].chunk_s))
        names = [f"job-{number}" for number in range(streams)]
        tasks = [Task(name, 1, str(pcm), str(self._folder / f"{name}.json"), options) for name in names]
        with Peak(lambda: pss_of(child.pid), GROUP_EVERY_S) as peak:
            await asyncio.gather(*map(worker.run, tasks))
        segments = [len(json.loads(Path(task.result_path).read_text())["segments"]) for task in tasks]  # noqa: ASYNC240
        await worker.end()
        return {"runners": setup.runners, "idle": idle, "peak": peak.high, "segments": segments}

    # -- N streams, N copies

    def streams(self, model: str, count: int) -> dict[str, Any]:
        """A whole server with one worker: idle, then ``count`` uploads at once."""
        wav = wav_of(speech(self._folder, STREAM_S))
        with self._server(model, count) as (server, client):
            pids = family(server.pid)
            each = {psutil.Process(pid).cmdline()[0].strip(): memory_of([pid]) for pid in pids}
            idle = group_of(pids)
            with Peak(lambda: memory_of(family(server.pid)), GROUP_EVERY_S) as peak, ThreadPoolExecutor(count) as threads:
                answers = list(threads.map(lambda _: ask(client, model, wav), range(count)))
            return {"idle": idle, "peak": peak.high | {"files": files_of(pids)}, "each": each, "segments": answers}

    @contextmanager
    def _server(self, model: str, count: int) -> Iterator[tuple[Server, httpx.Client]]:
        own = {"STENOPOOL_WARM_MODELS": model, "STENOPOOL_STREAMS": str(count), "STENOPOOL_THREADS": "1"}
        if self._models_dir:
            own["STENOPOOL_MODELS_DIR"] = str(self._models_dir)
        with tempfile.TemporaryDirectory(dir=self._folder) as data, serving(Path(data), **own) as server:
            headers = {"X-API-Key": server.keys[0]}
            with httpx.Client(base_url=server.url, headers=headers, timeout=3600, trust_env=False) as client:
                yield server, client

    def copies(self, model: str, count: int, kind: str) -> dict[str, Any]:
        """``count`` interpreters that load the model each for itself and run one job each, all at once."""
        setup = worker_setup(self.settings(), model)
        assert setup.model_path is not None
        pcm = speech(self._folder, STREAM_S)
        command = [sys.executable, "-W", "ignore", "-c", COPY, setup.model_path, str(pcm), *COPY_KINDS[kind]]
        command.append(str(MODELS[model].chunk_s))
        own = {"PYANNOTE_METRICS_ENABLED": "false", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started = [subprocess.Popen(command, cwd=PROJECT_ROOT, env=inherited() | own, **pipes) for _ in range(count)]
        pids = [one.pid for one in started]
        try:
            for one in started:
                until(one)
            idle = group_of(pids)
            with Peak(lambda: memory_of(pids), GROUP_EVERY_S) as peak:
                for one in started:
                    say(one)
                segments = [int(until(one)) for one in started]
            peak.high["files"] = files_of(pids)
        finally:
            for one in started:
                one.kill()
                one.wait()
        return {"idle": idle, "peak": peak.high, "segments": segments}


def _cpu_s(pid: int) -> float:
    """Seconds of processor time a process has used; unlike wall time, hardly changed by what else runs."""
    times = psutil.Process(pid).cpu_times()
    return round(times.user + times.system, 2)


def _own(peak: Peak, afterwards: dict[str, int]) -> int:
    """The highest ``own`` of a worker: its highest ``anon``, less what it shares with the forkserver."""
    return peak.high["anon"] - (afterwards["anon"] - afterwards["own"])


def until(process: subprocess.Popen[str]) -> str:
    """What a copy says next; lines without its mark are WhisperX's own."""
    assert process.stdout is not None
    line = ""
    for line in process.stdout:
        if line.startswith("@"):
            return line[1:].strip()
    raise RuntimeError(f"a copy ended with {process.wait()}: {line.strip()}")


def say(process: subprocess.Popen[str]) -> None:
    """Let a copy go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def ask(client: httpx.Client, model: str, wav: bytes) -> int:
    """Post one recording; the number of segments of the answer."""
    params = {"model_size": model, "response_format": "verbose_json", "word_timestamps": "false"}
    answer = client.post("/transcribe", params=params, files={"file": ("a.wav", wav)})
    answer.raise_for_status()
    return len(answer.json()["segments"])


def wav_of(pcm: Path) -> bytes:
    """16-bit mono WAV of a PCM file."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(pcm.read_bytes())
    return target.getvalue()
