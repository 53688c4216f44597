"""What survives a power cut, and what it does to us where the machine runs out of disk, descriptors or processes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import CapacityError, DiskFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_USED_UP = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_safe(upload: Path) -> None:
    """Make sure that a file survives a power cut, with its name and that of its folder.

    Raises:
        DiskFull: it could not be written.
    """
    try:
        for one in (upload, upload.parent, upload.parent.parent):
            sync(one)
    except OSError as error:
        raise DiskFull("The upload could not be written to the disk.") from error


def is_full(error: BaseException) -> bool:
    """Whether there was no room on the disk, or none left of a quota."""
    return isinstance(error, OSError) and error.errno in _FULL


def shortage(error: BaseException) -> CapacityError | None:
    """The error to answer with where ``error`` means that the machine has run out of something that comes back; else None."""
    if is_full(error):
        return DiskFull("The server ran out of disk space.")
    no_thread = isinstance(error, RuntimeError) and "start new thread" in str(error)
    if no_thread or (isinstance(error, OSError) and error.errno in _USED_UP):
        return CapacityError("The server has no open files, processes or threads left for this.")
    return None


@contextmanager
def room() -> Iterator[None]:
    """What needs room on the disk, an open file, a process or a thread.

    Raises:
        DiskFull: there is no room.
        CapacityError: there are none left of the others. Other errors stay what they are.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if (short := shortage(error)) is not None:
            raise short from error
        raise


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of ``data``: a full disk takes a part, and refuses only the next."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def write_durably(path: Path, data: bytes, *, lasting: bool = True) -> None:
    """Write ``data`` to ``path`` so that after a crash either nothing or all of it is there.

    Not ``lasting``: after a crash of this process, but not after a power cut.

    Raises:
        DiskFull: there is no room for it. Nothing of it stays.
    """
    temporary = path.with_suffix(".tmp")
    try:
        with room():
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                if lasting:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            if lasting:
                sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
