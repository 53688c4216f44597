"""Run a child process that may hang, flood, fork or be hostile, and always come back.

The child runs under :mod:`app.media._exec` in a process group of its own, with resource limits, no stdin, a minimal
environment and bounded pipes. It ends with its program, at the deadline, when the caller is cancelled, when ``watch``
says so, or when this server dies; its whole process group ends with it. Not in a session of its own: Linux gives every
session the same share of the CPU, whatever the niceness of those in it (autogroup), so each ffmpeg weighed as much as the
server and all its workers, and a refusal took up to 40 ms (p99; 10 ms in the same session).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.durable import room, shortage
from app.errors import CapacityError
from app.rounds import happens

_LAUNCHER = str(Path(__file__).with_name("_exec.py"))
_KEEP_HEAD = 48 * 1024
_KEEP_TAIL = 16 * 1024
_KEEP_OUT = 1024 * 1024
_NO_PROCESS = b"no process\n"
_POLL_S = 0.25
_END_S = 1.0
TOOLS_PATH = "/usr/local/bin:/usr/bin:/bin"
MB = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """Resource limits of one child: CPU seconds, bytes of one file, bytes of address space, open files."""

    cpu_s: int
    file_bytes: int
    memory_bytes: int = 4096 * MB
    open_files: int = 256

    def encoded(self) -> str:
        """For the launcher's command line. Core files are always off: they would hold the caller's audio."""
        return f"cpu={self.cpu_s},fsize={self.file_bytes},as={self.memory_bytes},nofile={self.open_files},core=0"


@dataclass(frozen=True)
class Finished:
    """A child that ended by itself. ``returncode`` is 128 + n where signal n ended it.

    ``stderr`` is its first 48 KiB and its last 16 KiB, ``stdout`` its first 1 MiB.
    """

    returncode: int
    stderr: str
    stdout: bytes


class ChildFailed(Exception):
    """The child did not end by itself. For the log only: ``stderr`` may hold paths. Callers map it to their error."""

    def __init__(self, reason: str, stderr: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.stderr = stderr


class ChildTimeout(ChildFailed):
    """The deadline passed."""


class ChildStopped(ChildFailed):
    """``watch`` gave a reason to end it."""


class _Tail:
    """The first and the last bytes of a stream; the middle is dropped."""

    def __init__(self, head: int, tail: int) -> None:
        self._limits = head, tail
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    def add(self, data: bytes) -> None:
        head, tail = self._limits
        room = head - len(self._head)
        self._head += data[:room] if room > 0 else b""
        self._tail += data[max(room, 0) :]
        extra = len(self._tail) - tail
        if extra > 0:
            self._dropped += extra
            del self._tail[:extra]

    def head(self) -> bytes:
        return bytes(self._head)

    def text(self) -> str:
        gap = f"\n[{self._dropped} bytes dropped]\n".encode() if self._dropped else b""
        return (bytes(self._head) + gap + bytes(self._tail)).decode("utf-8", "replace")


class _Child(asyncio.SubprocessProtocol):
    """Collects output; its callbacks never wait, so a flood cannot fill a pipe for ever."""

    def __init__(self) -> None:
        self.out = _Tail(_KEEP_OUT, 0)
        self.err = _Tail(_KEEP_HEAD, _KEEP_TAIL)
        self.exited = asyncio.Event()
        self.drained = asyncio.Event()
        self._open = {1, 2}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        (self.out if fd == 1 else self.err).add(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self.drained.set()

    def process_exited(self) -> None:
        self.exited.set()


async def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    timeout_s: float,
    limits: Limits,
    env: Mapping[str, str] | None = None,
    watch: Callable[[], str | None] | None = None,
    pass_fds: Sequence[int] = (),
) -> Finished:
    """Run ``argv`` in ``cwd`` for at most ``timeout_s`` seconds.

    ``env`` is added to the minimal environment. ``watch`` is called four times a second; a text that it returns ends
    the child. It runs on the event loop, so it must be quick.

    Raises:
        ChildTimeout: the deadline passed.
        ChildStopped: ``watch`` ended the child.
        ChildFailed: it could not start, or something else killed it.
        CapacityError: there is no descriptor or process left for it.
    """
    loop = asyncio.get_running_loop()
    with room():
        status, status_end = os.pipe()
    command = [sys.executable, "-I", "-S", _LAUNCHER, str(status_end), limits.encoded(), "--", *map(str, argv)]
    try:
        transport, child = await loop.subprocess_exec(
            _Child,
            *command,
            cwd=str(cwd),
            env=minimal_env(cwd, env),
            pass_fds=(status_end, *pass_fds),
        )
    except OSError as error:
        os.close(status)
        raise shortage(error) or ChildFailed(f"could not start: {type(error).__name__}") from error
    except BaseException:  # cancelled while it started
        os.close(status)
        raise
    finally:
        os.close(status_end)
    try:
        await _until_exit(child, time.monotonic() + timeout_s, watch)
        # Everything in the group is dead by now; only a process that left the group could still hold a pipe.
        await happens(child.drained, _END_S)
        return _finished(child, status)
    finally:
        # Shielded: a second cancellation must not leave the group behind.
        await asyncio.shield(asyncio.ensure_future(_end(transport, child, status)))


def minimal_env(cwd: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of a child: none of the server's variables, so no secret and no proxy."""
    private = str(cwd)
    return {"PATH": TOOLS_PATH, "HOME": private, "TMPDIR": private, "LC_ALL": "C", "TZ": "UTC", **(extra or {})}


async def _until_exit(child: _Child, deadline: float, watch: Callable[[], str | None] | None) -> None:
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ChildTimeout("the deadline passed", child.err.text())
        if await happens(child.exited, min(left, _POLL_S) if watch else left):
            return
        reason = watch() if watch else None
        if reason:
            raise ChildStopped(reason, child.err.text())


def _finished(child: _Child, status: int) -> Finished:
    os.set_blocking(status, False)
    try:
        code = os.read(status, 16)
    except BlockingIOError:
        code = b""
    if not code.strip():
        raise ChildFailed("the launcher was killed", child.err.text())
    if code == _NO_PROCESS:
        raise CapacityError("The server has no process left for this.")
    return Finished(int(code), child.err.text(), child.out.head())


async def _end(transport: asyncio.SubprocessTransport, child: _Child, status: int) -> None:
    """Make sure that the group is dead and every descriptor closed."""
    group = transport.get_pid()
    try:
        lifeline = transport.get_pipe_transport(0)
        if lifeline is not None and not child.exited.is_set():
            lifeline.close()  # the launcher kills and reaps the program; what follows is for a stuck launcher
            await happens(child.exited, _END_S)
    finally:
        # Also after its exit: where the launcher itself was killed (out of memory), the program still runs.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        if not child.exited.is_set():  # a launcher that has not run yet has no group
            with contextlib.suppress(ProcessLookupError):
                transport.kill()
        os.close(status)
        await happens(child.exited, _END_S)
        transport.close()
