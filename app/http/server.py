"""uvicorn as it is run here: with our own connections (:mod:`app.http.connection`), and a bound on what it takes at once."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from app.http.connection import bounded
from app.settings import Settings

BACKLOG = 2048
ACCEPTS = 32
"""Connections that are accepted in one turn of the event loop.

asyncio takes the backlog for this number, and where descriptors run out it fails, logs and plans a retry as often, once a
second: with a backlog of 2048 the loop does nothing else any more (https://github.com/python/cpython/issues/151615).
"""

MOST_FILES = 65_536


def raise_file_limit() -> int:
    """Allow this process as many open files as it may have, up to ``MOST_FILES``; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return MOST_FILES if soft == resource.RLIM_INFINITY else soft


class Server(uvicorn.Server):
    """Serves ``app`` by ``settings``; ``on_signal`` is called at SIGTERM or SIGINT, from the signal's handler."""

    def __init__(self, app: ASGIApp, settings: Settings, on_signal: Callable[[], None] = lambda: None) -> None:
        self._on_signal = on_signal
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=bounded(settings, raise_file_limit()),
            ws="none",
            lifespan="on",
            backlog=ACCEPTS,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(settings.shutdown_grace_s),
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does, but the kernel keeps ``BACKLOG`` connections until they are accepted."""
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            for listener in server.sockets:
                with socket.fromfd(listener.fileno(), listener.family, listener.type) as again:
                    again.listen(BACKLOG)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Tells of the signal at once, not only when the last connection is closed."""
        self._on_signal()
        super().handle_exit(sig, frame)
