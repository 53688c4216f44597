"""The folder of an upload: ``info.json`` says what it is, the size of ``data`` how far it is. Everything here blocks."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from app.durable import sync, write_durably
from app.media.paths import remove_tree
from app.uploads.part import disk_errors, drop_unchecked

log = logging.getLogger("stenopool.uploads")

INFO, DATA = "info.json", "data"


@dataclass(frozen=True)
class Info:
    """What stays the same: bytes in all, metadata as the client sent it, and where the file goes once it is whole."""

    owner: str
    length: int
    metadata: str = ""
    suffix: str = ""
    audio_file: str | None = None


@dataclass(frozen=True)
class Found:
    """What lies in a folder: ``offset`` bytes, ``touched`` last by the time of day; ``moved``: the file is where it goes."""

    id: str
    info: Info
    offset: int
    touched: float
    moved: bool


def make(folder: Path, info: Info) -> None:
    """A new folder with no bytes in it.

    Raises:
        DiskFull: there is no room even for that.
    """
    with disk_errors():
        folder.mkdir(0o700)
        (folder / DATA).touch(0o600)
    write(folder, info)
    sync(folder.parent)


def write(folder: Path, info: Info) -> None:
    """Replace what the folder says.

    Raises:
        DiskFull: there is no room; it says what it said.
    """
    with disk_errors():
        write_durably(folder / INFO, json.dumps(asdict(info)).encode())


def read_all(root: Path) -> list[Found]:
    """Every upload under ``root``. What was cut off while it was made or deleted is deleted."""
    found = []
    for folder in root.iterdir():
        try:
            found.append(_read(folder))
        except (OSError, ValueError, TypeError):
            log.warning("a broken upload was deleted", extra={"upload_id": folder.name})
            remove_tree(folder)
    return found


def _read(folder: Path) -> Found:
    info = Info(**json.loads((folder / INFO).read_bytes()))
    data = folder / DATA
    moved = info.audio_file is not None and not data.exists()
    offset = info.length if moved else drop_unchecked(data)
    touched = max(path.stat().st_mtime for path in folder.iterdir())
    return Found(folder.name, info, offset, touched, moved)
