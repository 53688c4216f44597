"""The recordings that are sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from loadtest.records import Recording, Unusable

SAMPLES = Path(__file__).resolve().parents[1] / "demo" / "samples"
SUFFIXES = frozenset(
    {".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".oga", ".opus", ".webm", ".mp4", ".mkv", ".mov", ".avi"}
    | {".aif", ".aiff", ".wma", ".amr", ".mpga", ".mpeg"}
)
_MOST_CACHED_BYTES = 256_000_000


def find(given: Sequence[str]) -> list[Recording]:
    """The recordings in ``given`` files and folders (not in folders inside them); none given: the bundled samples.

    Raises:
        Unusable: something is missing, or no audio is there.
    """
    bundled = _bundled()
    paths = [path for name in given for path in _expand(Path(name).expanduser())] if given else list(bundled)
    if not paths:
        raise Unusable(f"There is no audio file in {', '.join(given) or SAMPLES}.")
    once = list(dict.fromkeys(path.resolve() for path in paths))
    return [bundled.get(path) or Recording(path.name, path, path.stat().st_size) for path in once]


def _expand(path: Path) -> list[Path]:
    try:
        if path.is_dir():
            return sorted(one for one in path.iterdir() if one.is_file() and one.suffix.lower() in SUFFIXES)
        with open(path, "rb") as file:
            if not file.read(1):
                raise Unusable(f"The audio file {path} is empty.")
    except OSError as error:
        raise Unusable(f"The audio file {path} cannot be read: {error.strerror or error}.") from None
    return [path]


def _bundled() -> dict[Path, Recording]:
    """The samples that ship with the project, by path, with what is said in them."""
    manifest = SAMPLES / "manifest.json"
    if not manifest.is_file():
        return {}
    entries = json.loads(manifest.read_text("utf-8"))
    paths = {SAMPLES / entry["file"]: entry for entry in entries}
    return {
        path: Recording(path.name, path, path.stat().st_size, entry["seconds"], entry["text"])
        for path, entry in paths.items()
        if path.is_file()
    }


class Shelf:
    """Bytes of recordings. Small ones are kept in memory, so that the disk does not disturb the measurement."""

    def __init__(self) -> None:
        self._kept: dict[Path, bytes] = {}
        self._room = _MOST_CACHED_BYTES

    async def fill(self, recordings: Sequence[Recording]) -> None:
        """Read beforehand what there is room for."""
        for recording in recordings:
            if recording.size_bytes <= self._room:
                await self.body(recording)

    async def body(self, recording: Recording) -> bytes:
        """The whole file.

        Raises:
            Unusable: it is not there any more.
        """
        if (kept := self._kept.get(recording.path)) is not None:
            return kept
        try:
            data = await asyncio.to_thread(recording.path.read_bytes)
        except OSError as error:
            raise Unusable(f"The audio file {recording.path} cannot be read: {error.strerror or error}.") from None
        if len(data) <= self._room and recording.path not in self._kept:
            self._kept[recording.path] = data
            self._room -= len(data)
        return data
