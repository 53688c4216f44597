"""Where inputs and results lie so that every machine can reach them: a shared folder, or S3 and the like, by fsspec URL."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from app.durable import sync
from app.errors import CapacityError, DiskFull, StenopoolError

log = logging.getLogger("stenopool.cluster")


class Media:
    """Files by key (``jobs/<id>/input``). Every method blocks.

    Raises:
        DiskFull, CapacityError: it has no room, or does not answer. StenopoolError: the URL cannot be used.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, url: str) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:  # the cause may quote the URL, and that may hold a password
            raise StenopoolError(
                f"The media URL cannot be used ({type(error).__name__}).",
                hint="STENOPOOL_MEDIA_URL is a shared folder (file:///...), or s3://bucket/folder with `pip install s3fs`.",
            ) from None
        self._is_local = isinstance(self._files, LocalFileSystem)

    def put(self, source: Path, key: str) -> None:
        """Keep a file under ``key``; when this returns it is safe. Whoever reads the key sees all of it or nothing."""
        target = self._at(key)
        with _translated():
            if not self._is_local:
                self._files.put_file(str(source), target)
                return
            temporary = Path(f"{target}.{uuid4().hex}")
            self._files.makedirs(str(temporary.parent), exist_ok=True)
            try:
                self._files.put_file(str(source), str(temporary))
                sync(temporary)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            sync(temporary.parent)
            sync(temporary.parent.parent)

    def get(self, key: str, target: Path) -> None:
        """Copy what is under ``key`` to a local file, which is whole if it is there."""
        temporary = target.with_name(f"{target.name}.{uuid4().hex}")
        with _translated():
            try:
                self._files.get_file(self._at(key), str(temporary))
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        """Forget a file, or a folder with all that is in it; nothing where there is none."""
        with _translated(), contextlib.suppress(FileNotFoundError):
            self._files.rm(self._at(key), recursive=True)

    def _at(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:  # botocore's and the like are OSError too, through fsspec
        log.error("the media store failed: %s: %s", type(error).__name__, error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("The media store has no room left.") from error
        raise CapacityError("The media store is not available.") from error


def input_key(job_id: str) -> str:
    """Where the input of a job lies."""
    return f"{folder_key(job_id)}/input"


def result_key(job_id: str, attempt: int) -> str:
    """Where the result of an attempt lies."""
    return f"{folder_key(job_id)}/result-{attempt}.json"


def folder_key(job_id: str) -> str:
    """Where all that belongs to a job lies."""
    return f"jobs/{job_id}"
