"""CTranslate2 opens cuBLAS by name. Where the CUDA build of torch is installed, it lies in a wheel that no linker knows."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

LIBRARIES = ("libcublasLt.so.12", "libcublas.so.12")
"""CTranslate2 4.8 opens the second, and that one needs the first."""


def preload() -> None:
    """Load it from the wheel; who opens it by name then finds it in the process.

    Where there is no such wheel the system's is used, if the linker knows it.

    Raises:
        OSError: it is there and cannot be loaded.
    """
    spec = importlib.util.find_spec("nvidia.cublas") if importlib.util.find_spec("nvidia") else None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for name in LIBRARIES:
            if (path := Path(folder) / "lib" / name).is_file():
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
