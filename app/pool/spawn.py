"""How worker processes are made.

Linux: from a forkserver that has imported the heavy packages once (a worker then starts in well under a second and shares
those pages with the others); no model and no thread may exist in the forkserver (CTranslate2 is not fork-safe). macOS:
``spawn``, because forking after Apple's frameworks have started is unsafe.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess

import psutil

from app import heap
from app.pool import messages, worker
from app.work import WorkerSetup

METHOD = "forkserver" if sys.platform == "linux" else "spawn"


class Child:
    """A running worker process and its pipe, as the event loop sees it."""

    def __init__(
        self,
        process: BaseProcess,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        threads: ThreadPoolExecutor,
    ) -> None:
        self.process = process
        self.reader = reader
        self.writer = writer
        self._threads = threads
        self._reaped = False
        assert process.pid is not None
        self.pid: int = process.pid
        self._identity: psutil.Process | None = None
        with contextlib.suppress(psutil.Error, OSError):  # gone already, or no file can be opened
            self._identity = psutil.Process(self.pid)

    @property
    def alive(self) -> bool:
        """Whether the process runs; false once it has been reaped.

        Asked of the system (pid and start time), because ``Process.is_alive`` takes a worker for dead whose forkserver died.
        Where no file can be opened to find out, one that has not been reaped is taken for alive, so that it is killed.
        """
        try:
            if self._reaped:
                return False
            if self._identity is None:  # no file could be opened when it started
                return bool(self.process.is_alive())
            return bool(self._identity.is_running()) and self._identity.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False
        except OSError:
            return not self._reaped

    def kill(self) -> None:
        """SIGKILL the worker and whatever it started."""
        for send in (os.killpg, os.kill):  # the group may not exist yet
            if self.alive:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    send(self.pid, signal.SIGKILL)

    async def reap(self, timeout_s: float = 5.0) -> int | None:
        """Close the pipe, wait for the end (killing where it is late), free its descriptors, return the exit code."""
        self.writer.close()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(RuntimeError):  # no thread can be started
            await loop.run_in_executor(self._threads, self.process.join, timeout_s)
        if self.alive:
            self.kill()
            with contextlib.suppress(RuntimeError):
                await loop.run_in_executor(self._threads, self._wait, timeout_s)
        code = self.process.exitcode
        if code is not None:
            self._reaped = True
            self.process.close()
        return code

    def _wait(self, timeout_s: float) -> None:
        self.process.join(timeout_s)
        with contextlib.suppress(psutil.Error, OSError):
            if self._identity is not None and self.alive:
                self._identity.wait(timeout_s)


class Spawner:
    """Makes workers. Starting one blocks (the first waits for the forkserver's imports), so it happens in a thread."""

    def __init__(self, preload: tuple[str, ...]) -> None:
        self._context = multiprocessing.get_context(METHOD)
        os.environ.update(heap.settings(heap.libc(), os.environ))  # inherited by the forkserver, and so by the workers
        if METHOD == "forkserver":
            self._context.set_forkserver_preload(["app.pool.forkserver", *preload])
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="spawn")

    async def start(self, setup: WorkerSetup) -> Child:
        """Start one worker process. Its ``ready`` message comes later, over the pipe."""
        ours, theirs = socket.socketpair()
        process = self._context.Process(target=worker.main, args=(theirs, setup.to_dict()), daemon=True)  # type: ignore[attr-defined]
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, process.start)
            ours.setblocking(False)
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=messages.MAX_LINE)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return Child(process, reader, writer, self._threads)

    def close(self) -> None:
        """End the helper threads, and the forkserver with them."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        server = forkserver._forkserver
        pid = getattr(server, "_forkserver_pid", None)
        if METHOD == "forkserver" and pid is not None:
            os.kill(pid, signal.SIGKILL)  # it may still be importing and would not notice for half a minute
            server._stop()  # type: ignore[attr-defined]
