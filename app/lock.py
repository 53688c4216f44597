"""One server per data folder: a lock that the kernel gives back when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from app.errors import StenopoolError


def claim(folder: Path) -> int:
    """Take the folder's lock and return its descriptor; closing that gives the lock back.

    Raises:
        StenopoolError: another running server has it. At its start a server clears what it takes for leftovers, so two
            on one folder would delete each other's work.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        hint = "Stop it, or give this one a STENOPOOL_DATA_DIR of its own."
        raise StenopoolError("Another running server uses this data folder.", hint=hint) from None
    return lock
