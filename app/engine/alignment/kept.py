"""Aligners on disk as OpenVINO computes them, so that only the first worker loads the torch model, converts it and tries it.

What was converted is mapped from its file, so its constants take no memory of the worker's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import openvino
import torch
import torchaudio
import transformers

from app import cpu
from app.durable import sync
from app.engine.alignment.features import Converted, Geometry
from app.engine.encoders import cache

log = logging.getLogger("stenopool.engine")

FORMAT = 3
"""To be raised whenever the conversion or the way of choosing changes."""
_ABOUT, _PARTS = "aligner.json", ("encoder", "transformer")
_FILES = [f"{part}.{kind}" for part in _PARTS for kind in ("xml", "bin")]


@dataclass(frozen=True)
class Labels:
    """What an aligner's columns stand for: ``columns`` by character, and the column ``blank`` of no character."""

    columns: dict[str, int]
    blank: int


@dataclass(frozen=True)
class Kept:
    """An aligner: its ``runtime`` as :class:`app.engine.alignment.emissions.Emissions` names it, and its converted model."""

    runtime: str
    labels: Labels
    model: Converted


class Shelf:
    """Where the aligner of one ``source`` (a file or folder) is kept, in ``folder``.

    It is found as long as no file of the source has changed, on the same kind of processor and with the same libraries.
    """

    def __init__(self, folder: Path, source: Path) -> None:
        self._folder, self._source = folder, source
        self._seen = _state(source)

    @property
    def _prefix(self) -> str:
        return f"aligner-{_digest(self._source, cpu.name())}-"

    @property
    def _place(self) -> Path:
        libraries = [one.__version__ for one in (openvino, torch, torchaudio, transformers)]
        return self._folder / f"{self._prefix}{_digest(FORMAT, libraries, self._seen)}"

    def load(self) -> Kept | None:
        """What was kept; None where there is nothing that can be used."""
        place = self._place
        try:
            if not self._seen or not place.is_dir():
                return None
            about = json.loads((place / _ABOUT).read_text())
            if about["files"] != _digests(place):
                raise ValueError("its files are not what was written")
            labels = Labels({str(label): int(column) for label, column in about["columns"].items()}, int(about["blank"]))
            encoder, transformer = (openvino.Core().read_model(place / f"{part}.xml") for part in _PARTS)
            return Kept(str(about["runtime"]), labels, Converted(encoder, transformer, Geometry(**about["geometry"])))
        except Exception as error:  # of the many kinds that files and a runtime know
            log.warning("what was kept of an aligner cannot be used; it is made again", exc_info=True)
            if isinstance(error, FileNotFoundError) or not isinstance(error, OSError | MemoryError):
                self.forget()  # it is damaged
            return None

    def save(self, kept: Kept) -> None:
        """Keep it, where its source is still what it was. Where that fails, the next worker converts again."""
        try:
            seen = _state(self._source)
            self._seen = self._seen or seen  # it has been fetched meanwhile
            if self._seen and self._seen == seen:
                self._write(kept)
        except Exception:  # of the many kinds that a disk and a runtime know; the job has what it needs
            log.warning("an aligner was not kept on disk", exc_info=True)

    def forget(self) -> None:
        """It is of no use."""
        shutil.rmtree(self._place, ignore_errors=True)

    def _write(self, kept: Kept) -> None:
        place = self._place
        models = [kept.model.encoder, kept.model.transformer]
        size = sum(node.get_byte_size() for model in models for node in model.get_ops() if node.get_type_name() == "Constant")
        with cache.scratch(self._folder, size) as scratch:
            made = scratch / "aligner"
            made.mkdir()
            for part, model in zip(_PARTS, models, strict=True):
                openvino.save_model(model, made / f"{part}.xml", compress_to_fp16=False)
            about = {"runtime": kept.runtime, "columns": kept.labels.columns, "blank": kept.labels.blank}
            about["geometry"] = asdict(kept.model.geometry)
            (made / _ABOUT).write_text(json.dumps(about | {"files": _digests(made)}))
            for file in made.iterdir():
                sync(file)
            for other in self._folder.glob(f"{self._prefix}*"):  # of the same source as it was, or what is left of one
                if other != place or not (place / _ABOUT).exists():
                    shutil.rmtree(other, ignore_errors=True)  # who uses it has mapped it
            if not place.exists():  # another worker may have been faster
                made.rename(place)


def _state(source: Path) -> list[tuple[str, int, int, int]]:
    """Path, bytes, and times of change of every file."""
    return sorted((str(path), seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns) for path, seen in _files(source))


def _files(source: Path) -> Iterator[tuple[Path, os.stat_result]]:
    paths = [Path(folder, name) for folder, _, names in os.walk(source) for name in names] or [source]
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_file():
                yield path, path.stat()


def _digests(place: Path) -> dict[str, str]:
    return {name: cache.digest(place / name).hexdigest() for name in _FILES}


def _digest(*of: object) -> str:
    return hashlib.sha256(repr(of).encode()).hexdigest()[:16]
