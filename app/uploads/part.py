"""The bytes of one request on their way to the end of a larger file. Everything here blocks."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from app.durable import sync, write_all, write_durably
from app.errors import DiskFull
from app.media.paths import require_disk

ALGORITHMS = ("sha1", "sha256")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Checksum:
    """What the bytes must hash to; ``algorithm`` is one of ``ALGORITHMS``."""

    algorithm: str
    digest: bytes


class Part:
    """Bytes that follow after the first ``offset`` of ``data``. Nothing is opened before the first :meth:`write`."""

    def __init__(self, data: Path, offset: int, checksum: Checksum | None, reserve_mb: int) -> None:
        self._data, self._offset, self._checksum, self._reserve_mb = data, offset, checksum, reserve_mb
        self._hash = hashlib.new(checksum.algorithm) if checksum else None
        self._file: FileIO | None = None

    def write(self, piece: bytes) -> None:
        """Add bytes.

        Raises:
            DiskFull: the disk would be left with less than the reserve, or is full. A part of the piece may be there.
        """
        with disk_errors():
            require_disk(self._data.parent, len(piece), self._reserve_mb)
            if self._file is None:
                self._file = self._open()
            write_all(self._file.fileno(), piece)
        if self._hash is not None:
            self._hash.update(piece)

    def _open(self) -> FileIO:
        if self._checksum is not None:
            write_durably(_mark(self._data), str(self._offset).encode())
        file = open(self._data, "r+b", buffering=0)  # noqa: SIM115  (closed by close())
        file.truncate(self._offset)
        file.seek(self._offset)
        return file

    def is_right(self) -> bool:
        """Whether the bytes match their checksum; True where there is none."""
        return self._hash is None or self._checksum is None or self._hash.digest() == self._checksum.digest

    def close(self, end: int) -> None:
        """Leave the file with its first ``end`` bytes, on the disk."""
        if self._file is None:
            return
        try:
            self._file.truncate(end)
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
        _mark(self._data).unlink(missing_ok=True)


def drop_unchecked(data: Path) -> int:
    """Cut off what a killed server had not yet compared with its checksum; the bytes that are left."""
    mark = _mark(data)
    if mark.exists():
        os.truncate(data, int(mark.read_bytes()))
        sync(data)
        mark.unlink()
    return data.stat().st_size


def move(data: Path, target: Path, reserve_mb: int) -> None:
    """Move a file, to another file system too, so that it survives a power cut. A second call does nothing.

    Raises:
        DiskFull: the other file system has too little room.
    """
    if data.exists():
        sync(data)  # a killed server may have left it without
        try:
            os.replace(data, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy(data, target, reserve_mb)
            data.unlink()
    sync(target.parent)


def _copy(data: Path, target: Path, reserve_mb: int) -> None:
    with disk_errors():
        try:
            require_disk(target.parent, data.stat().st_size, reserve_mb)
            shutil.copyfile(data, target)
            sync(target)
            sync(target.parent)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _mark(data: Path) -> Path:
    return data.with_name("unchecked")


@contextmanager
def disk_errors() -> Iterator[None]:
    """A full disk as our own error."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull("The server ran out of disk space.") from error
        raise
