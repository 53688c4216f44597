"""Choices on disk: one file for each model and machine, so that only the first load of a model measures."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import ctranslate2
import numpy as np
import openvino
import psutil

from app.durable import write_durably
from app.engine.encoders.choice import Choice, Machine
from app.engine.encoders.int8 import Range
from app.errors import DiskFull

FORMAT = 1
"""To be raised whenever graphs, ranges or the way of choosing change."""


def key(model: Path, machine: Machine) -> str:
    """Of everything that a choice depends on: the weights, the processor, the threads, the libraries."""
    digest = hashlib.sha256()
    with open(model, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    about = asdict(machine) | {"cpu": _processor(), "cores": os.cpu_count(), "format": FORMAT}
    about |= {"openvino": openvino.__version__, "ctranslate2": ctranslate2.__version__}
    digest.update(json.dumps(about, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def load(folder: Path, name: str) -> Choice | None:
    """The choice that was kept under ``name``, a :func:`key`; None where there is none, or its file is damaged."""
    try:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as kept:
            about = json.loads(str(kept["about"]))
            ranges = {layer: Range(kept[f"{layer}:low"], kept[f"{layer}:high"]) for layer in about.pop("layers")}
            return Choice(**about, ranges=ranges)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def save(folder: Path, name: str, choice: Choice) -> None:
    """Keep it. Where the disk does not take it, the next load measures again."""
    about = {"name": choice.name, "seconds": choice.seconds, "errors": choice.errors, "layers": list(choice.ranges)}
    arrays = {f"{layer}:low": seen.low for layer, seen in choice.ranges.items()}
    arrays |= {f"{layer}:high": seen.high for layer, seen in choice.ranges.items()}
    data = io.BytesIO()
    np.savez(data, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]
    with contextlib.suppress(OSError, DiskFull):
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f"{name}-{os.getpid()}.npz"  # two workers may load the same model at the same time
        write_durably(own, data.getvalue())
        own.replace(folder / f"{name}.npz")


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new folder in ``folder``, deleted at the end; those of workers that did not live to delete them go first."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("loading-*"):
        pid = left.name.split("-")[1]
        if not pid.isdigit() or int(pid) == os.getpid() or not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"loading-{os.getpid()}-", dir=folder) as made:
        yield Path(made)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
