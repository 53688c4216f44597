"""glibc's heap: what processes tell it, and giving back what has been freed (``docs/decisions/0010``)."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

import psutil

_MIB = 1 << 20
_NEVER = 1 << 40
"""Free bytes at the heap's end above which glibc gives them back by itself."""
SPARE_BYTES = 96 << 20
"""What may be left behind for the next piece of work. To give all back after each short clip cost the next one 20 of 85 ms, for
pages that had to be mapped and cleared again."""
KEPT_BYTES = 80 << 20
"""What stays of it where it was more: less than :data:`SPARE_BYTES`, or the next little more would be given back again. A host
takes what its virtual machines do not use, and then a page that comes back takes ten times longer than one that stayed."""
_STATM, _PAGE = Path("/proc/self/statm"), os.sysconf("SC_PAGE_SIZE")
_NAMES = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of ``malloc.h``."""


def settings(libc: str, given: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for a process that is about to start. ``libc``: as "glibc 2.36"; ``given``: its environment so far.

    One arena that keeps what a batch has freed: the next batch would else have every page of it mapped and cleared again,
    a seventh of its time. :class:`Keeper` gives it back when there is none. Before 2.35, glibc takes no threshold above
    32 MiB for single blocks; and who has set one of them has other plans, with which keeping everything need not be right.
    """
    if not libc.startswith("glibc "):
        return {}
    version = [int(part) for part in libc.removeprefix("glibc ").split(".") if part.isdecimal()]
    values = (2, 32 * _MIB, 64 * _MIB) if _told(given) or version < [2, 35] else (1, 128 * _MIB, _NEVER)
    return {name: str(value) for name, value in zip(_NAMES, values, strict=True) if name not in given}


def _told(given: Mapping[str, str]) -> bool:
    return any(name in given for name in _NAMES) or "glibc.malloc" in given.get("GLIBC_TUNABLES", "")


def keep_blocks(size: int, freed: int, given: Mapping[str, str]) -> None:
    """Let this process take blocks of up to ``size`` bytes from its heap, which keeps so many bytes of what was ``freed`` last.

    By itself glibc gives a block of an upload back as soon as it is freed, and has the next one mapped and cleared, for as long
    as it takes to receive it. Nothing where ``given``, the environment, has other plans, or where there is no glibc.
    """
    if not _told(given) and libc():
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, size)
        mallopt(_M_TRIM_THRESHOLD, freed)


def libc() -> str:
    """Name and version of this machine's C library, where it is glibc; else ""."""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    return ""


class Keeper:
    """Where a piece of work leaves more than :data:`SPARE_BYTES` behind, it gives all but :data:`KEPT_BYTES` of that back."""

    def __init__(self) -> None:
        self._floor = anonymous()

    def settle(self) -> None:
        """To be called after the work. From any thread; two at once do no harm."""
        with contextlib.suppress(OSError, psutil.Error):  # no file can be opened: then another time
            now = anonymous()
            if now - self._floor > SPARE_BYTES:
                give_back(KEPT_BYTES)
                now = anonymous()
                self._floor = now - min(KEPT_BYTES, _at_end())  # the rest is there to stay
            self._floor = min(self._floor, now)


def give_back(spare: int = 0) -> None:
    """Give what has been freed back to the system, but for ``spare`` bytes at the heap's end.

    Takes milliseconds for each 100 MB. Elsewhere than with glibc, nothing.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(spare))


class _Mallinfo2(ctypes.Structure):
    """Of ``malloc.h``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
    ]


def _at_end() -> int:
    """Free bytes at the heap's end; 0 where nobody tells (glibc before 2.33)."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0
    mallinfo2.restype = _Mallinfo2
    return int(mallinfo2().keepcost)


def anonymous() -> int:
    """Resident bytes of this process that no file backs."""
    try:
        _, resident, shared, *_ = _STATM.read_bytes().split()
        return (int(resident) - int(shared)) * _PAGE
    except OSError:
        return int(psutil.Process().memory_info().rss)
