"""The application with no workers (quick) and with the fake engine in real ones, on real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.pool import quiet_service
from tests.fakes.server import Live, calling, fake_service, make_settings, serving

Start = Callable[..., Any]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """``await start(**settings)`` serves on a socket; ``fake=True``: with workers, ``direct=True``: called as ASGI."""
    async with AsyncExitStack() as stack:

        async def begin(*, fake: bool = False, direct: bool = False, **settings: Any) -> Live:
            build = fake_service if fake else quiet_service
            serve = calling if direct else serving
            running: AbstractAsyncContextManager[Live] = serve(make_settings(tmp_path, **settings), build)
            return await stack.enter_async_context(running)

        yield begin


@pytest.fixture
async def direct(start: Start) -> Live:
    """No workers, no socket."""
    live: Live = await start(direct=True)
    return live


@pytest.fixture
async def quiet(start: Start) -> Live:
    """No workers, but a socket."""
    live: Live = await start()
    return live
