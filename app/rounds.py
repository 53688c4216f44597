"""Work that is done again whenever there is news, and now and then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable


async def happens(event: asyncio.Event, within_s: float) -> bool:
    """Wait for ``event``, but no longer than that; whether it happened.

    Not ``wait_for``: before Python 3.12 it swallows a cancellation that comes together with its result.
    """
    waiting = asyncio.ensure_future(event.wait())
    try:
        news, _ = await asyncio.wait({waiting}, timeout=within_s)
    finally:
        waiting.cancel()
    return bool(news)


async def rounds(
    work: Callable[[], Awaitable[object]], news: asyncio.Event, every_s: float, log: logging.Logger, failure: str
) -> None:
    """For ever: call ``work`` until it says that nothing is left, then wait for ``news`` or ``every_s`` seconds.

    What it raises is logged as ``failure``, and it is called again in the next round.
    """
    while True:
        try:
            while await work():
                pass
        except Exception:
            log.exception(failure)
        await happens(news, every_s)
        news.clear()
