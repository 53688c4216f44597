"""An engine whose behaviour the job chooses: ``initial_prompt`` holds a command.

``echo`` answers with the PCM's bytes, ``sleep:S`` computes for S seconds (cancellable), ``hang`` never looks at its
cancel flag, ``stop`` freezes the whole process, ``kill`` ends it, ``kill-once:FILE`` ends it the first time,
``kill-once-when:FILE`` does so as soon as there is such a file, ``until:FILE`` computes until there is one, ``fail`` raises,
``refuse`` raises one of our errors, ``garbage`` writes nonsense into the pipe. ``kill-writing-once:FILE`` ends the process
while it writes the result, ``burn:FILE`` ignores SIGTERM, says so by the file and computes for ever, ``child-once:FILE``
starts a process and waits for the file, ``fill-once:FILE`` fills the disk with the file, ``allocate:MB`` takes memory.
``once`` is as long as a marker or the file is not there. Model names choose set-up behaviour.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from app.errors import Cancelled, ModelUnavailable, NotMedia
from app.work import DeviceMemory, Task, WorkerSetup


def create(setup: WorkerSetup) -> FakeEngine:
    if setup.model == "tiny":
        raise ModelUnavailable("not here", hint="none")
    if setup.model == "base":
        os.kill(os.getpid(), signal.SIGKILL)
    if setup.model == "small":
        time.sleep(3600)
    return FakeEngine()


class FakeEngine:
    device = "cpu"
    device_memory: DeviceMemory | None = None
    chosen: ClassVar[dict[str, Any]] = {"encoder": None, "decoder": None, "arrangement": {"runners": 2, "threads": 1}}

    def transcribe(self, task: Task, report: Callable[[str, float], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
        report("transcribe", 0.5)
        command, _, argument = (task.options.initial_prompt or "echo").partition(":")
        getattr(self, f"_{command.replace('-', '_')}")(argument, cancelled)
        return {
            "task": "transcribe",
            "model": task.options.model,
            "language": "en",
            "language_probability": 1.0,
            "duration": 1.0,
            "segments": [_segment(_samples(task)[:64].hex())],
        }

    def _echo(self, argument: str, cancelled: Callable[[], bool]) -> None:
        pass

    def _sleep(self, argument: str, cancelled: Callable[[], bool]) -> None:
        end = time.monotonic() + float(argument)
        while time.monotonic() < end:
            if cancelled():
                raise Cancelled("cancelled")
            time.sleep(0.01)

    def _hang(self, argument: str, cancelled: Callable[[], bool]) -> None:
        time.sleep(3600)

    def _stop(self, argument: str, cancelled: Callable[[], bool]) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(3600)  # the signal may reach another thread first, and that one late

    def _kill(self, argument: str, cancelled: Callable[[], bool]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _kill_once(self, argument: str, cancelled: Callable[[], bool]) -> None:
        if not Path(argument).exists():
            Path(argument).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def _kill_once_when(self, argument: str, cancelled: Callable[[], bool]) -> None:
        self._until(argument, cancelled)
        self._kill_once(f"{argument}-seen", cancelled)

    def _kill_writing_once(self, argument: str, cancelled: Callable[[], bool]) -> None:
        if not Path(argument).exists():
            Path(argument).touch()
            os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)

    def _burn(self, argument: str, cancelled: Callable[[], bool]) -> None:
        ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(1))  # SIG_IGN; signal.signal wants the main thread
        Path(argument).touch()
        while True:
            pass

    def _child_once(self, argument: str, cancelled: Callable[[], bool]) -> None:
        if not Path(f"{argument}-seen").exists():
            Path(f"{argument}-seen").touch()
            subprocess.Popen(["sleep", "3600"])
        self._until(argument, cancelled)

    def _fill_once(self, argument: str, cancelled: Callable[[], bool]) -> None:
        if not Path(argument).exists():
            fill(Path(argument))

    def _allocate(self, argument: str, cancelled: Callable[[], bool]) -> None:
        held = [b"x" * (1 << 20) for _ in range(int(argument))]
        del held

    def _until(self, argument: str, cancelled: Callable[[], bool]) -> None:
        while not Path(argument).exists():
            self._sleep("0.01", cancelled)

    def _fail(self, argument: str, cancelled: Callable[[], bool]) -> None:
        raise RuntimeError("secret detail")

    def _refuse(self, argument: str, cancelled: Callable[[], bool]) -> None:
        raise NotMedia("refused")

    def _garbage(self, argument: str, cancelled: Callable[[], bool]) -> None:
        for fd in range(3, 64):  # the pipe is one of these
            try:
                if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                    os.write(fd, b"\xff not json\n")
            except OSError:
                continue
        time.sleep(3600)


def fill(ballast: Path) -> None:
    """Fill the disk of ``ballast`` with it, to the last byte; larger than it is now."""
    with contextlib.suppress(OSError), open(ballast, "ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


def _samples(task: Task) -> bytes:
    end = None if task.pcm_bytes is None else task.pcm_start + task.pcm_bytes
    return Path(task.pcm_path).read_bytes()[task.pcm_start : end]


def _segment(text: str) -> dict[str, Any]:
    return {
        "id": 0,
        "start": 0.0,
        "end": 1.0,
        "text": text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": -0.1,
        "compression_ratio": 1.0,
        "no_speech_prob": 0.0,
    }
