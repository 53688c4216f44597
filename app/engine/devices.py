"""Which device each stage runs on.

Speech recognition is CTranslate2: CUDA or CPU (it has no MPS). Alignment is torch: CUDA, MPS or CPU. ``auto`` takes the
fastest that is there; a device that was asked for and is not there is an error, not a silent fall-back.
"""

from __future__ import annotations

import ctranslate2
import torch

from app.errors import ModelUnavailable


def asr_device(wanted: str) -> str:
    """``cuda`` or ``cpu`` for CTranslate2.

    Raises:
        ModelUnavailable: ``cuda`` was asked for and there is none.
    """
    available = bool(ctranslate2.get_cuda_device_count() > 0)
    return _choose(wanted, {"cuda": available, "cpu": True})


def align_device(wanted: str) -> str:
    """``cuda``, ``mps`` or ``cpu`` for torch.

    Raises:
        ModelUnavailable: the device that was asked for is not there.
    """
    return _choose(wanted, {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True})


def _choose(wanted: str, available: dict[str, bool]) -> str:
    if wanted == "auto":
        return next(device for device, there in available.items() if there)
    if not available.get(wanted, False):
        raise ModelUnavailable(
            f"The device {wanted!r} is not available on this machine.",
            hint="Set STENOPOOL_DEVICE and STENOPOOL_ALIGN_DEVICE to auto or cpu.",
        )
    return wanted


def compute_type(wanted: str, device: str) -> str:
    """CTranslate2's compute type: ``auto`` is int8 on a CPU (WhisperX: float32) and float16 on CUDA."""
    if wanted != "auto":
        return wanted
    return "float16" if device == "cuda" else "int8"
