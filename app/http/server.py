"""uvicorn as it is run here: with our own connections (:mod:`app.http.connection`), and a bound on what it takes at once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from app import heap
from app.http.connection import RECEIVED_BYTES, bounded
from app.settings import Settings

log = logging.getLogger("stenopool.http")

ACCEPTS = 32
MOST_FILES = 65_536
ANSWER_S = 2
"""Seconds after the grace time for the answers of those whose requests were ended."""


def raise_file_limit() -> int:
    """Allow this process as many open files as it may have, up to ``MOST_FILES``; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return MOST_FILES if soft == resource.RLIM_INFINITY else soft


class Listener(socket.socket):
    """A listening socket that ends a turn of asyncio's accepting after ``ACCEPTS`` connections, or one failure.

    asyncio goes on as many times as the backlog is long. Where descriptors run out each of these fails, is logged and plans
    another try in a second, and those multiply until the loop does nothing else
    (https://github.com/python/cpython/issues/151615). Before that, nobody can be cut off to make room.
    """

    _taken = 0

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection."""
        if self._taken >= ACCEPTS:
            self._taken = 0
            raise BlockingIOError
        try:
            self._taken += 1
            return super().accept()
        except BlockingIOError:
            self._taken = 0
            raise
        except OSError:
            self._taken = ACCEPTS
            raise


def listeners(host: str, port: int) -> list[socket.socket]:
    """One for each address of ``host`` that this machine has: ``localhost`` may name an IPv6 address where there is no IPv6.

    Raises:
        OSError: there is no such address, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError:
        raise OSError(errno.EINVAL, "This is no host name") from None
    opened: list[socket.socket] = []
    missing = OSError(errno.EADDRNOTAVAIL, "There is no such address")
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            opened.append(_bound(family, kind, protocol, address))
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
            missing = error
    if not opened:
        raise missing
    return opened


def _bound(family: int, kind: int, protocol: int, address: Any) -> Listener:
    one = Listener(family, kind, protocol)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one


class Server(uvicorn.Server):
    """Serves ``app`` by ``settings``; ``on_signal`` is called at SIGTERM or SIGINT, from the signal's handler."""

    def __init__(self, app: ASGIApp, settings: Settings, on_signal: Callable[[], None] = lambda: None) -> None:
        self._on_signal, self._grace_s = on_signal, settings.shutdown_grace_s
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=bounded(settings, raise_file_limit()),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(settings.shutdown_grace_s) + ANSWER_S,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on these sockets, or on the address of the settings."""
        # for each layer that an upload goes through; before the pool, which puts what workers are told into the environment
        heap.keep_blocks(4 * RECEIVED_BYTES, 8 * RECEIVED_BYTES, os.environ)
        try:
            ours = sockets or listeners(self.config.host, self.config.port)
        except OSError as error:
            self._give_up(error)
        try:
            await super().startup(ours)
        except OSError as error:  # another server bound the port at the same time, and was the first to listen
            await self.lifespan.shutdown()
            self._give_up(error)
        if self.started:
            log.info("listening", extra={"addresses": [one.getsockname()[:2] for one in ours]})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests end within the grace time, then end them; there is a moment left to tell their callers."""
        late = asyncio.get_running_loop().call_later(self._grace_s, self._end_requests)
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()

    def _end_requests(self) -> None:
        for task in list(self.server_state.tasks):
            task.cancel()

    def _give_up(self, error: OSError) -> NoReturn:
        log.error("cannot listen on %s port %s: %s", self.config.host, self.config.port, error.strerror)
        sys.exit(STARTUP_FAILURE)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Tells of the signal at once, not only when the last connection is closed."""
        self._on_signal()
        super().handle_exit(sig, frame)
