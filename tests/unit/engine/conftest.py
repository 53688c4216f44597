"""The engine, imported once and only where its tests run: its imports take half a minute and their warnings are theirs."""

from __future__ import annotations

import importlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import setproctitle

from app import catalogue, cpu
from app.work import Task, WorkerSetup

ROOMS = (
    "alignment",
    "arrangement",
    "asr",
    "attention",
    "batch",
    "devices",
    "fitting",
    "gpu",
    "lease",
    "models",
    "pipeline",
    "sharing",
    "silero",
    "spreading",
    "vad",
)
ENCODERS = ("cache", "choice", "graph", "int8", "runtime", "sounds", "weights")
DECODERS = ("choice", "graph", "past", "runtime", "search")
SETUP = WorkerSetup(
    "demo",
    "app.engine.pipeline",
    str(catalogue.DEMO_MODEL),
    None,
    str(catalogue.DEMO_ALIGNER),
    "/nonexistent/hub",
    None,
    True,
    "cpu",
    "cpu",
    "auto",
    4,
    1,
    2,
    runners=2,
)


@pytest.fixture(scope="session")
def engine() -> Iterator[SimpleNamespace]:
    """The modules of ``app.engine`` by name. The test process is no forkserver: it may have threads, and keeps its title."""
    before, title = dict(os.environ), setproctitle.getproctitle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "active_count", lambda: 1)
        modules = {room: importlib.import_module(f"app.engine.{room}") for room in ROOMS}
        encoders = {room: importlib.import_module(f"app.engine.encoders.{room}") for room in ENCODERS}
        decoders = {room: importlib.import_module(f"app.engine.decoders.{room}") for room in DECODERS}
    setproctitle.setproctitle(title)
    yield SimpleNamespace(**modules, encoders=SimpleNamespace(**encoders), decoders=SimpleNamespace(**decoders))
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def pipeline(engine: SimpleNamespace) -> Any:
    """The demo model, batches of two."""
    return engine.pipeline.create(SETUP)


@pytest.fixture(scope="session")
def fitted(engine: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The demo model with OpenVINO's decoder, and the setup that it was loaded with."""
    folder = tmp_path_factory.mktemp("decoders")
    setup = replace(SETUP, decoder="openvino", encoders_dir=str(folder), samples_dir=str(catalogue.DEMO_SAMPLES))
    return setup, engine.models.load(setup)[0]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every try to reach another machine fails, and is noted here."""
    tries: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        tries.append(arguments)
        raise OSError("no network in tests")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    return tries


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Task]:
    """``task(pcm, **options)``: samples or bytes in a file, ready for the pipeline."""
    from app.jobs import TranscribeOptions, VadOptions

    count = 0

    def make(pcm: np.ndarray | bytes, **options: Any) -> Task:
        nonlocal count
        count += 1
        path = tmp_path / f"{count}.pcm"
        path.write_bytes(pcm if isinstance(pcm, bytes) else pcm.astype("<i2").tobytes())
        wanted = replace(TranscribeOptions("demo", vad=VadOptions(method="none")), **options)
        return Task(f"job{count}", 1, str(path), str(tmp_path / f"{count}.json"), wanted)

    return make


def unusable(setup: WorkerSetup, folder: Path) -> list[WorkerSetup]:
    """The same where nothing can be kept on disk, and where there are no recordings to measure with."""
    (folder / "file").touch()
    return [
        replace(setup, encoders_dir=str(folder / "file" / "encoders")),
        replace(setup, samples_dir=str(folder), encoders_dir=str(folder / "new")),
    ]


def speech(number: int) -> np.ndarray:
    """A bundled sample; before there are any, noise."""
    samples = sorted((catalogue.DEMO_MODEL.parent / "samples").glob("*.[fw]*[cv]"))
    if not samples:
        return noise(2, number)
    return decoded(samples[number % len(samples)])


def decoded(sample: Path) -> np.ndarray:
    """16 kHz samples of a file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-i", str(sample)]
    raw = subprocess.run([*command, "-f", "s16le", "-ac", "1", "-ar", "16000", "-"], check=True, capture_output=True).stdout
    return np.frombuffer(raw, "<i2")


def noise(seconds: float, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3000, int(seconds * 16_000)).astype(np.int16)


@pytest.fixture(
    params=[
        "ctranslate2",
        pytest.param("openvino", marks=pytest.mark.skipif(not cpu.multiplies_int8(), reason="a processor without VNNI")),
    ]
)
def either_model(request: pytest.FixtureRequest) -> Any:
    """The demo model, with CTranslate2's decoder and with OpenVINO's."""
    return request.getfixturevalue("fitted")[1] if request.param == "openvino" else request.getfixturevalue("pipeline")._model
