"""Who may change an upload: one request at a time, which can be asked to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from app.errors import StenopoolError

T = TypeVar("T")
Read = Callable[[], Awaitable["bytes | None"]]
"""The next bytes of a request; None at their end."""


class Turn:
    """One request's right to change an upload."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.heard_at = now()
        self.over = asyncio.Event()
        self._asked: asyncio.Future[StenopoolError] = asyncio.get_running_loop().create_future()

    def give_up(self, why: StenopoolError) -> None:
        """Ask whoever has it to read no further."""
        if not self._asked.done():
            self._asked.set_result(why)

    async def next(self, read: Read) -> bytes | None:
        """The next bytes.

        Raises:
            StenopoolError: it was asked to give up.
        """
        if self._asked.done():
            raise self._asked.result()
        piece = asyncio.ensure_future(read())
        try:
            either: set[asyncio.Future[Any]] = {piece, self._asked}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not piece.done():
                raise self._asked.result()
            self.heard_at = self._now()
            return piece.result()
        finally:
            piece.cancel()
            await asyncio.gather(piece, return_exceptions=True)


async def to_its_end(work: Awaitable[T]) -> T:
    """The result of ``work``, which goes on to its end where the caller is cancelled: a thread cannot be stopped."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
