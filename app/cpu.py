"""What the system tells about its processor. Light: it is read before anything heavy is imported."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import MutableMapping
from pathlib import Path

INFO = Path("/proc/cpuinfo")

_AVX512 = {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"}
"""What CTranslate2's AVX-512 kernels need."""
_UNTHROTTLED = "avx512_bf16"
"""Processors with it (Cooper Lake, Sapphire Rapids, Zen 4 and later) hardly lower their clock for 512 bits, as Skylake did."""


def name(info: Path = INFO) -> str:
    """The processor's name, as far as the system tells it."""
    return _line("model name", info) or platform.processor() or platform.machine()


def wide_vectors(info: Path = INFO) -> bool:
    """Whether CTranslate2 should be told to use AVX-512 (``CT2_FORCE_CPU_ISA``), which it never does by itself."""
    return {*_AVX512, _UNTHROTTLED} <= set(_line("flags", info).split())


def multiplies_int8(info: Path = INFO) -> bool:
    """Whether it has instructions for sums of products of 8-bit integers (VNNI)."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(_line("flags", info).split())


def advise(environ: MutableMapping[str, str], info: Path = INFO) -> None:
    """Tell CTranslate2 to use AVX-512 where it should, unless somebody has said already what it shall use."""
    if wide_vectors(info):
        environ.setdefault("CT2_FORCE_CPU_ISA", "AVX512")


def _line(key: str, info: Path) -> str:
    with contextlib.suppress(OSError):
        for line in info.read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""
