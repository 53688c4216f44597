"""Choices on disk: one file for each model and machine, so that only the first load of a model measures."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import ctranslate2
import numpy as np
import openvino

from app import cpu
from app.durable import write_durably
from app.engine.encoders.choice import Choice, Machine
from app.engine.encoders.int8 import Range
from app.errors import DiskFull

MOST_TRIES = 2
OLD_S = 3600.0
"""Seconds after which a folder is left over; a load takes less (``STENOPOOL_SETUP_TIMEOUT_S``)."""
RESERVE_BYTES = 512 << 20
"""Disk that is left to others."""
FORMAT = 5
"""To be raised whenever graphs, ranges or the way of choosing change."""


def key(model: Path, machine: Machine) -> str:
    """Of everything that a choice depends on: the weights, the processor, the threads, the libraries."""
    found = digest(model)
    about = asdict(machine) | {"cpu": cpu.name(), "cores": os.cpu_count(), "format": FORMAT}
    about |= {
        "openvino": openvino.__version__,
        "ctranslate2": ctranslate2.__version__,
        "isa": os.environ.get("CT2_FORCE_CPU_ISA"),
    }
    found.update(json.dumps(about, sort_keys=True).encode())
    return found.hexdigest()[:32]


def digest(path: Path) -> hashlib._Hash:
    """SHA-256 of a file's content so far: more can be added."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found


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
def trying(folder: Path, name: str) -> Iterator[None]:
    """While a choice is made. Where the process did not survive that twice, nobody tries a third time.

    Raises:
        RuntimeError: it is not to be tried.
    """
    folder.mkdir(parents=True, exist_ok=True)
    marks = [folder / f"{name}.tried-{number}" for number in range(MOST_TRIES)]
    mark = next((mark for mark in marks if not mark.exists()), None)
    if mark is None:
        raise RuntimeError(f"the worker ended {MOST_TRIES} times while it measured (delete {name}.* to try again)")
    mark.touch()
    try:
        yield
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch(folder: Path, size: int) -> Iterator[Path]:
    """A new folder in ``folder`` for ``size`` bytes, deleted at the end; those of workers that did not live to do so go first.

    Raises:
        OSError: there is no room for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("loading-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > OLD_S:
                shutil.rmtree(left, ignore_errors=True)
    if shutil.disk_usage(folder).free < size + RESERVE_BYTES:
        raise OSError(f"no room for {size} bytes while a model is loaded")
    with tempfile.TemporaryDirectory(prefix="loading-", dir=folder) as made:
        yield Path(made)
