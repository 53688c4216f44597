"""Death of a process, or a full disk, at one exact moment: before or after its n-th fsync, rename or commit.

``FAILPOINT=role:what:when:n`` (``api:commit:after:2``) with role api or worker, what fsync, replace or commit. Nothing is
counted before the file that ``FAILPOINT_ARMED`` names is there. With ``FAILPOINT_FILL`` the disk is filled with the file of
that name, and the process lives on. Patched in from outside: the server knows nothing of it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app import database
from tests.fakes.engine import fill

_lock = threading.Lock()
_count = 0


def act() -> None:
    """What happens there."""
    if ballast := os.environ.get("FAILPOINT_FILL"):
        fill(Path(ballast))
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def install(role: str) -> None:
    """Patch this process, and those forked from it, if the failpoint is meant for it."""
    wanted, what, when, number = os.environ.get("FAILPOINT", "::  :0").split(":")
    if wanted != role:
        return

    def reached(kind: str, moment: str) -> None:
        global _count
        if (kind, moment) != (what, when) or not Path(os.environ["FAILPOINT_ARMED"]).exists():
            return
        with _lock:
            _count += 1
            if _count == int(number):
                act()

    def around(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def patched(*arguments: Any, **named: Any) -> Any:
            reached(kind, "before")
            result = function(*arguments, **named)
            reached(kind, "after")
            return result

        return patched

    os.fsync = around("fsync", os.fsync)
    os.replace = around("replace", os.replace)
    original = database.Database.writing

    @contextmanager
    def writing(self: database.Database) -> Iterator[Any]:
        with original(self) as db:
            yield db
            reached("commit", "before")
        reached("commit", "after")

    database.Database.writing = writing  # type: ignore[method-assign]
