"""What is different on a GPU: its libraries, its memory, and its failures. Nothing here was run on one.

CTranslate2 cannot say how much memory a device has, torch can (``torch.cuda.mem_get_info``). Both raise plain ``RuntimeError``
where CUDA fails: CTranslate2 "CUDA failed with error ..." (also for a lack of memory) and "cuBLAS failed with status ...",
torch "CUDA error: ..." and "CUDA out of memory".
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from app.engine import cublas
from app.engine.devices import asr_device, index_of
from app.errors import ModelUnavailable
from app.work import DeviceLost, DeviceMemory, WorkerSetup, kind_of

log = logging.getLogger("stenopool.engine")

P = TypeVar("P")
R = TypeVar("R")

_OUT_OF_MEMORY = re.compile("out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
_LOST = re.compile("CUDA failed with error|cuBLAS failed with status|CUDA error|CUBLAS_STATUS|CUDNN_STATUS_(EXEC|INTERNAL)")
_TOO_OLD = re.compile("no kernel image|invalid device function")
"""A GPU that torch was not built for: only what torch does there fails."""


class OnDevice(Protocol):
    """What :func:`on_its_device` makes."""

    device_memory: DeviceMemory | None


E = TypeVar("E", bound=OnDevice)


def on_its_device(make: Callable[[WorkerSetup], E], setup: WorkerSetup) -> E:
    """``make(setup)``; on a GPU only if there is room, with as large batches as there is room for, and its memory measured.

    Raises:
        ModelUnavailable: the device is not there, has no room, or fails.
    """
    device = asr_device(setup.device)
    if kind_of(device) != "cuda" or not torch.cuda.is_available():  # a torch for CPUs beside a GPU that CTranslate2 can use
        return make(setup)
    try:
        cublas.preload()
        torch.cuda.set_device(index_of(device))  # what does not say which one takes this one
        free, total = torch.cuda.mem_get_info(index_of(device))
        setup = _fitting(setup, device, DeviceMemory(total, free, 0))
        made = make(setup)
        left, _ = torch.cuda.mem_get_info(index_of(device))
        made.device_memory = DeviceMemory(total, free, max(setup.gpu_bytes, free - left))
        return made
    except (RuntimeError, OSError) as error:
        log.exception("model %s could not be set up on %s", setup.model, setup.device)
        raise _failed(setup, error) from error


def _fitting(setup: WorkerSetup, device: str, memory: DeviceMemory) -> WorkerSetup:
    """As large batches as fit.

    Raises:
        ModelUnavailable: not even the smallest do.
    """
    fitting = setup.within(memory.free - memory.reserve)
    if fitting is None:
        needed = setup.gpu_fixed_bytes + setup.gpu_window_bytes
        raise ModelUnavailable(
            f"The model {setup.model!r} takes {needed / 1e9:.1f} GB of {device}, where {memory.free / 1e9:.1f} GB are free.",
            hint="Use a smaller model, STENOPOOL_COMPUTE_TYPE=int8_float16, or another device.",
        )
    if fitting != setup:
        shown = {"device": device, "runners": fitting.runners, "batch_size": fitting.batch_size}
        log.warning("batches are smaller than set: the device has no room for more", extra=shown)
    return fitting


def _failed(setup: WorkerSetup, error: Exception) -> ModelUnavailable:
    what = "ran out of memory" if _OUT_OF_MEMORY.search(str(error)) else "failed"
    return ModelUnavailable(
        f"The device {setup.device!r} {what} while it loaded the model {setup.model!r}.",
        hint="See the server's log, and what else uses the device (nvidia-smi).",
    )


def halving(run: Callable[[Sequence[P]], list[R]], batch: Sequence[P]) -> list[R]:
    """``run(batch)``; where the device has no memory for that, in two halves, and so on."""
    try:
        return run(batch)
    except RuntimeError as error:
        if len(batch) < 2 or not _OUT_OF_MEMORY.search(str(error)):
            raise
        log.warning("a batch of %d windows ran out of the device's memory, and is tried in halves", len(batch))
    middle = len(batch) // 2
    return halving(run, batch[:middle]) + halving(run, batch[middle:])


def raise_if_lost(error: RuntimeError) -> None:
    """Tell a device that does not work any more from an input that does not.

    After any error of CUDA but a lack of memory, everything else in the process fails too.

    Raises:
        DeviceLost: it is one.
    """
    harmless = _OUT_OF_MEMORY.search(str(error)) or _TOO_OLD.search(str(error))
    if _LOST.search(str(error)) and not harmless:
        raise DeviceLost(str(error)) from error
