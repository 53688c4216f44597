"""An engine on devices that a test invents: the folder ``setup.hub_dir`` says how each behaves, in a file of its name.

``missing`` refuses to be set up, ``broken`` ends its worker during set-up, ``hanging`` never ends it; a number is the memory in
bytes; nothing is said of a device that works. With a file ``NAME.lost`` it stops working under the next job. Else jobs do what
:mod:`tests.fakes.engine` says.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.errors import ModelUnavailable
from app.work import DeviceLost, DeviceMemory, Task, WorkerSetup
from tests.fakes.engine import FakeEngine


def create(setup: WorkerSetup) -> DeviceEngine:
    said = Path(setup.hub_dir) / setup.device
    behaviour = said.read_text() if said.exists() else ""
    with open(f"{said}.tries", "a") as tries:
        tries.write("x")
    if behaviour == "missing":
        raise ModelUnavailable(f"The device {setup.device!r} is not there.", hint="none")
    if behaviour == "hanging":
        time.sleep(3600)
    if behaviour == "broken":
        os.kill(os.getpid(), signal.SIGKILL)
    memory = DeviceMemory(int(behaviour), int(behaviour), setup.gpu_bytes) if behaviour.isdigit() else None
    return DeviceEngine(setup, memory)


class DeviceEngine(FakeEngine):
    def __init__(self, setup: WorkerSetup, memory: DeviceMemory | None) -> None:
        self.device, self.device_memory, self._setup = setup.device, memory, setup

    def transcribe(self, task: Task, report: Callable[[str, float], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
        if (Path(self._setup.hub_dir) / f"{self.device}.lost").exists():
            raise DeviceLost("CUDA failed with error unspecified launch failure")
        return super().transcribe(task, report, cancelled)
