"""The media folder: names that callers may give, names that the server makes, free disk.

A caller's path is opened one component at a time, each relative to the descriptor of the one before and never through a
symbolic link, so a link that is swapped in between check and use gains nothing. Missing, forbidden and malformed all
look the same to the caller.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import shutil
import stat
import unicodedata
from pathlib import Path
from typing import BinaryIO

from app.durable import room, shortage, write_all
from app.errors import DiskFull, MediaNotFound
from app.media.process import MB

_MAX_PATH = 1024
_MAX_NAME = 255
_MAX_TITLE = 120
_COPY_CHUNK = 8 * MB
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO that someone put there would wait for a writer for ever.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


def open_inside(root: Path, relative: str) -> BinaryIO:
    """Open the regular file ``relative`` (slashes between components) under ``root`` for reading.

    Raises:
        MediaNotFound: no such file, not a regular file, a symbolic link on the way, or a malformed name.
    """
    return os.fdopen(_open(root, relative), "rb")


def resolve_inside(root: Path, relative: str) -> Path:
    """The absolute path of an existing regular file under ``root``; the same refusals.

    For listing and deleting. What is going to be *read* should come from :func:`open_inside` or :func:`copy_inside`:
    between this answer and its use the file can be another one.

    Raises:
        MediaNotFound: as :func:`open_inside`.
    """
    os.close(_open(root, relative))
    return root.joinpath(*_components(relative))


async def copy_inside(root: Path, relative: str, dst: Path, *, reserve_mb: int = 0) -> int:
    """Copy a media file into the new file ``dst`` (mode 0600), from the descriptor that was checked; bytes copied.

    A copy, not a hard link: the job then owns its input, whatever happens to the media folder.

    Raises:
        MediaNotFound: as :func:`open_inside`.
        DiskFull: fewer than ``reserve_mb`` MB would be left, or the disk filled up. ``dst`` is gone.
    """
    return await asyncio.to_thread(_copy, root, relative, dst, reserve_mb)


def new_name(suffix: str = "") -> str:
    """A random file name. ``suffix`` (such as ".mp3") is dropped unless it is short and plain."""
    plain = suffix.lower()
    return secrets.token_hex(16) + (plain if _SUFFIX.fullmatch(plain) else "")


def safe_title(title: str | None, default: str = "audio") -> str:
    """A foreign title as something to show or to offer as a download name: letters, digits, spaces and ``-_.()``."""
    text = unicodedata.normalize("NFKC", (title or "")[: _MAX_TITLE * 4])
    kept = "".join(c if c.isalnum() or c in "-_.()" else " " for c in text)
    return " ".join(kept.split())[:_MAX_TITLE].strip(" .") or default


def remove_tree(folder: Path, keep: str = "") -> None:
    """Delete a folder; or all that is in it but the file ``keep``. What is not there, or goes meanwhile, is no error."""
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.glob("*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != keep:
            path.unlink(missing_ok=True)


_late: dict[Path, str] = {}


def discard_tree(folder: Path, keep: str = "") -> None:
    """:func:`remove_tree` of what nobody will use again. Where no file can be opened, it goes later (:func:`discard_late`)."""
    try:
        remove_tree(folder, keep)
        gone = bool(keep) or not folder.exists()
    except OSError as error:
        if shortage(error) is None:
            raise
        gone = False
    if not gone:
        _late[folder] = keep


def anything_late() -> bool:
    """Whether :func:`discard_late` has anything to do."""
    return bool(_late)


def discard_late() -> None:
    """Try again what could not be deleted, now that files may be opened again."""
    for folder, keep in list(_late.items()):
        del _late[folder]
        discard_tree(folder, keep)


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written to the disk of ``folder``."""
    return shutil.disk_usage(folder).free


def require_disk(folder: Path, size: int, reserve_mb: int) -> None:
    """Check that ``size`` bytes fit and leave the reserve (MB).

    Raises:
        DiskFull: they do not.
    """
    if free_bytes(folder) < size + reserve_mb * MB:
        raise DiskFull("The server has too little free disk space for this.")


def _components(relative: str) -> list[str]:
    if not relative or len(relative) > _MAX_PATH or any(c in relative for c in "\\:") or not relative.isprintable():
        raise _missing()
    parts = relative.split("/")
    # An empty component is an absolute path, a double slash or a trailing one. A leading dot hides a file: the server
    # gives no such names, so ".", ".." and dot files all go.
    if any(not part or part.startswith(".") or len(part.encode("utf-8", "replace")) > _MAX_NAME for part in parts):
        raise _missing()
    return parts


def _missing() -> MediaNotFound:
    return MediaNotFound("There is no such file in the media folder.", param="audio_file")


def _open(root: Path, relative: str) -> int:
    *folders, name = _components(relative)
    held: list[int] = []
    try:
        # The root is the operator's and may itself be a link.
        held.append(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        for folder in folders:
            held.append(os.open(folder, _DIRECTORY, dir_fd=held[-1]))
        file = os.open(name, _FILE, dir_fd=held[-1])
    except (OSError, ValueError) as error:
        raise shortage(error) or _missing() from error
    finally:
        for fd in held:
            os.close(fd)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise _missing()
    return file


def _copy(root: Path, relative: str, dst: Path, reserve_mb: int) -> int:
    source = _open(root, relative)
    try:
        require_disk(dst.parent, os.fstat(source).st_size, reserve_mb)
        target = os.open(dst, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with room():
                return _pump(source, target)
        except BaseException:
            dst.unlink(missing_ok=True)
            raise
        finally:
            os.close(target)
    finally:
        os.close(source)


def _pump(source: int, target: int) -> int:
    """Copy to the end, inside the kernel where it can do that."""
    copied = 0
    in_kernel = hasattr(os, "copy_file_range")
    while True:
        if in_kernel:
            try:
                count = os.copy_file_range(source, target, _COPY_CHUNK)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                    raise
                in_kernel = False  # two file systems, or one that cannot; both offsets are where they were
                continue
        else:
            data = os.read(source, _COPY_CHUNK)
            write_all(target, data)
            count = len(data)
        if not count:
            return copied
        copied += count
