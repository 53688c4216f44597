"""The deadlines of a worker: of its set-up, and then of its answers to pings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.errors import ModelUnavailable, StenopoolError
from app.pool.handle import Handle
from app.pool.lane import PoolLimits


async def set_up(handle: Handle, limits: PoolLimits) -> str | None:
    """Wait until the worker is ready: None, or why it is to be killed; "" where it ends by itself."""
    try:
        await asyncio.wait_for(asyncio.shield(handle.ready), limits.setup_timeout_s)
    except asyncio.TimeoutError:
        late = f"The model {handle.model!r} took too long to load."
        handle.ready.set_exception(ModelUnavailable(late, hint="Raise STENOPOOL_SETUP_TIMEOUT_S."))
        return "set-up took too long"
    except StenopoolError:
        return ""
    return None


def setup_error(handle: Handle) -> StenopoolError | None:
    """What set-up said, if it failed and said something."""
    if handle.ready.done() and not handle.ready.cancelled():
        error = handle.ready.exception()
        return error if isinstance(error, StenopoolError) else None
    handle.ready.cancel()
    return None


async def until_silent(handle: Handle, limits: PoolLimits, now: Callable[[], float]) -> None:
    """Return when pings stay unanswered. Counted in pings, so that a paused server does not kill healthy workers."""
    number = missed = 0
    while missed * limits.ping_interval_s < limits.ping_timeout_s:
        sent_at, number = now(), number + 1
        handle.send("ping", n=number)
        await asyncio.sleep(limits.ping_interval_s)
        missed = 0 if handle.last_pong >= sent_at else missed + 1
