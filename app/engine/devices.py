"""Which device each stage runs on.

Speech recognition is CTranslate2: CUDA or CPU (it has no MPS). Alignment is torch: CUDA, MPS or CPU. ``auto`` takes the
fastest that is there; a device that was asked for and is not there is an error, not a silent fall-back.
"""

from __future__ import annotations

import ctranslate2
import torch

from app.errors import ModelUnavailable
from app.work import kind_of


def asr_device(wanted: str) -> str:
    """``cuda``, ``cuda:N`` or ``cpu`` for CTranslate2.

    Raises:
        ModelUnavailable: the device that was asked for is not there.
    """
    if wanted == "cpu":  # a driver that hangs or fails must not harm who does not want it
        return wanted
    return _choose(wanted, {"cuda": index_of(wanted) < ctranslate2.get_cuda_device_count(), "cpu": True})


def align_device(wanted: str, own: str = "auto") -> str:
    """``cuda``, ``cuda:N``, ``mps`` or ``cpu`` for torch.

    ``own`` is the device of the worker: where that is a GPU, ``cuda`` is that one. ``same`` (a list of devices is set) is
    ``auto``, but a worker on the CPU takes no GPU, which others are billed for.

    Raises:
        ModelUnavailable: the device that was asked for is not there.
    """
    if wanted == "cpu":
        return wanted
    mine = own if kind_of(own) == "cuda" else "cuda"
    cuda = torch.cuda.is_available() and index_of(mine) < torch.cuda.device_count()
    there = {"cuda": cuda, "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "same":
        wanted = "cuda" if mine == own else "auto"
        there["cuda"] = cuda and mine == own
    found = _choose(wanted, there)
    return mine if found == "cuda" else found


def index_of(device: str) -> int:
    """N of ``cuda:N``; 0 of ``cuda``."""
    return int(device.partition(":")[2] or 0)


def _choose(wanted: str, available: dict[str, bool]) -> str:
    if wanted == "auto":
        return next(device for device, there in available.items() if there)
    if not available.get(kind_of(wanted), False):
        raise ModelUnavailable(
            f"The device {wanted!r} is not available on this machine.",
            hint="Set STENOPOOL_DEVICE (or STENOPOOL_DEVICES) and STENOPOOL_ALIGN_DEVICE to what is there, auto or cpu.",
        )
    return wanted


def compute_type(wanted: str, device: str) -> str:
    """CTranslate2's compute type: ``auto`` is int8 on a CPU (WhisperX: float32) and float16 on CUDA."""
    if wanted != "auto":
        return wanted
    return "float16" if kind_of(device) == "cuda" else "int8"
