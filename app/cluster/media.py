"""Where inputs and results lie so that every machine can reach them: a shared folder, or S3 and the like, by fsspec URL."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from app.durable import sync
from app.errors import CapacityError, DiskFull, StenopoolError

log = logging.getLogger("stenopool.cluster")

T = TypeVar("T")

JOBS = "jobs"
AT_ONCE = 8
COPY_S, DELETE_S = 600.0, 30.0
"""So long the store may take; a network file system that has lost its server hangs for ever."""


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

    def folders(self) -> list[str]:
        """The jobs of which anything is here."""
        with _translated(), contextlib.suppress(FileNotFoundError):
            return [str(name).rstrip("/").rpartition("/")[2] for name in self._files.ls(self._at(JOBS), detail=False)]
        return []

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


class AsyncMedia:
    """Calls a :class:`Media` on threads of its own. One that hangs keeps nobody waiting for ever, nor the process from ending.

    Beside what is listed there, every method raises CapacityError after ``COPY_S`` or ``DELETE_S`` seconds.
    """

    def __init__(self, media: Media) -> None:
        self.sync = media
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._threads = 0

    async def put(self, source: Path, key: str) -> None:
        """As :meth:`Media.put`; if the caller is cancelled, nothing is kept, however late the store is."""
        gone = threading.Event()

        def put() -> None:
            self.sync.put(source, key)
            if gone.is_set():
                self.sync.delete(key)

        try:
            await self._run(COPY_S, put)
        except asyncio.CancelledError:
            gone.set()
            self._begin(partial(self.sync.delete, key))  # it may have been kept in this very moment
            raise

    async def get(self, key: str, target: Path) -> None:
        """As :meth:`Media.get`."""
        await self._run(COPY_S, partial(self.sync.get, key, target))

    async def delete(self, key: str) -> None:
        """As :meth:`Media.delete`."""
        await self._run(DELETE_S, partial(self.sync.delete, key))

    async def folders(self) -> list[str]:
        """:meth:`Media.folders`."""
        return await self._run(COPY_S, self.sync.folders)

    async def _run(self, within_s: float, call: Callable[[], T]) -> T:
        answer = asyncio.wrap_future(self._begin(call))
        try:
            if not (await asyncio.wait({answer}, timeout=within_s))[0]:
                log.error("the media store does not answer")
                raise CapacityError("The media store does not answer.")
            return answer.result()
        finally:
            answer.cancel()  # where it has not begun it never will

    def _begin(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._calls.put((future, call))
        if self._threads < AT_ONCE:
            self._threads += 1
            threading.Thread(target=self._work, name="media", daemon=True).start()
        return future

    def _work(self) -> None:
        while True:
            future, call = self._calls.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)


def input_key(job_id: str) -> str:
    """Where the input of a job lies."""
    return f"{folder_key(job_id)}/input"


def result_key(job_id: str, attempt: int) -> str:
    """Where the result of an attempt lies."""
    return f"{folder_key(job_id)}/result-{attempt}.json"


def earlier_results(job_id: str, kept: str) -> list[str]:
    """Where attempts before that of ``kept`` (its result's name) may have left theirs: a node that was killed in between."""
    return [result_key(job_id, attempt) for attempt in range(1, int(kept.rpartition("-")[2].partition(".")[0]))]


def folder_key(job_id: str) -> str:
    """Where all that belongs to a job lies."""
    return f"{JOBS}/{job_id}"
