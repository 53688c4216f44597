"""One client's connection: uvicorn's, with the deadlines and the bound that it lacks.

uvicorn waits for ever for the head of a request, and for ever for a client that does not read its answer; and it takes as many
connections as there are descriptors, whereupon nothing in the process can open a file any more
(https://github.com/Kludex/uvicorn/issues/157). Slow bodies: :mod:`app.http.middleware`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import secrets
import socket
import struct
import termios
from dataclasses import dataclass
from typing import Any, ClassVar

import h11
from h11._readers import ContentLengthReader
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.errors import CapacityError, HeaderTimeout, NotHttp, StenopoolError
from app.http.middleware import RequestMiddleware, error_headers
from app.settings import Settings

log = logging.getLogger("stenopool.http")

SEND_BUFFER = 256 * 1024
"""Bytes of an answer that the kernel keeps for a client; else it may be megabytes each, and progress is seen late."""

RECEIVED_BYTES = 2 << 20
"""Bytes of a body that are taken at once. asyncio takes 256 kB, so that all layers are gone through eight times as often."""
_LEAST_RECEIVED_BYTES = 1 << 18
"""As many as asyncio takes. More of heads, or of a body in chunks, would stop the event loop for longer: all is parsed."""
_ALL_RECEIVED_BYTES = 16 << 20
"""About that many of all bodies together: what was taken is held until the application asks for it."""
_RECEIVED = memoryview(bytearray(RECEIVED_BYTES))

_RESET = struct.pack("ii", 1, 0)
_ALIVE = "/health"
_LINGER_S = 2.0


@dataclass(frozen=True)
class Bounds:
    """Seconds for a request's head, without progress of an answer, and for a whole answer; connections at once.

    Where all of these are at work, ``spare`` more may say what they want, and are told that it is too much.
    """

    head_s: float
    idle_s: float
    total_s: float
    most: int

    @property
    def spare(self) -> int:
        return max(1, min(self.most // 4, 64))


def bounded(settings: Settings, descriptors: int) -> type[Connection]:
    """The connections of one server, which may have so many open files."""
    most = settings.max_connections or max(1, min(descriptors // 2, 8192))
    limits = Bounds(settings.header_timeout_s, settings.send_idle_timeout_s, settings.send_timeout_s, most)

    class Bounded(Connection):
        bounds, quiet, busy = limits, {}, set()

    return Bounded


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """Ends a client whose head comes too slowly (408) or who reads too slowly, and those that wait where there are too many.

    ``busy`` are all connections of the server with a request or an answer, ``quiet`` the others, who has been so longest first.
    """

    bounds: ClassVar[Bounds]
    quiet: ClassVar[dict[Connection, None]]
    busy: ClassVar[set[Connection]]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._served, self._head, self._stalled = self.app, _Timer(), _Timer()
        self._left, self._moved_at, self._late_at, self._deaf = 0, 0.0, 0.0, False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client. Where there are too many, who has been quiet for longest makes room, so that a newcomer is heard."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that we hear of every byte that the kernel does not take at once
        if (ours := transport.get_extra_info("socket")) is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if len(self.connections) > self.bounds.most and len(self.quiet) >= self.bounds.spare:
            next(iter(self.quiet)).cut_off("there are too many connections", logging.DEBUG)
        self._look_at_head(heard=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._head.stop()
        self._stalled.stop()
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        self.quiet.pop(self, None)
        self.busy.discard(self)

    # -- heads

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: one place for all, as none of them stay there. With many clients each is given less."""
        share = _ALL_RECEIVED_BYTES // max(1, len(self.busy))
        left = known._remaining if (known := self._known) is not None else 0
        return _RECEIVED[: max(_LEAST_RECEIVED_BYTES, min(RECEIVED_BYTES, share, left))]

    @property
    def _known(self) -> ContentLengthReader | None:
        """h11's account of a body of known length. What comes after that body is parsed, and is not to be much."""
        return reader if isinstance(reader := self.conn._reader, ContentLengthReader) else None

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come. h11 copies what it is given several times; the midst of a body has nothing to be parsed."""
        if (known := self._known) is not None and self._is_midst(known, nbytes):
            known._remaining -= nbytes
            self._take(nbytes)
        else:
            self.data_received(_RECEIVED[:nbytes])  # type: ignore[arg-type]

    def _is_midst(self, known: ContentLengthReader, nbytes: int) -> bool:
        """Whether h11 has heard of this body and keeps none of it, more comes after these bytes, and it may be asked for."""
        begun = self.conn.their_state is h11.SEND_BODY and not self.conn._receive_buffer and not self._deaf
        return begun and known._length > known._remaining > nbytes and self.conn.our_state is h11.SEND_RESPONSE

    def _take(self, nbytes: int) -> None:
        """What uvicorn's ``handle_events`` does with a part of a body."""
        self.cycle.body += _RECEIVED[:nbytes]
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Some bytes of a head or a body."""
        if self._deaf:
            return
        self.app = self._served if len(self.busy) < self.bounds.most else _crowded(self._served)
        super().data_received(data)
        self._look_at_head(heard=True)

    def on_response_complete(self) -> None:
        """The answer was handed to the transport. How long silence may last now is uvicorn's: ``timeout_keep_alive``."""
        super().on_response_complete()
        self._look_at_head(heard=False)

    def _look_at_head(self, *, heard: bool) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.quiet.pop(self, None)
            self.busy.add(self)
            self._head.stop()
        elif not self.transport.is_closing() and not self.flow.write_paused:
            self.busy.discard(self)
            self.quiet[self] = None
            if heard and not self._head.runs:  # the rest of a body that nobody wants counts as well
                self._head.start(self.loop, self.bounds.head_s, self._head_is_late)

    def _head_is_late(self) -> None:
        if self.conn.states == {h11.CLIENT: h11.IDLE, h11.SERVER: h11.IDLE} and self.conn.trailing_data[0]:
            self._refuse(HeaderTimeout("The request's headers came too slowly."))
        else:
            self.cut_off("it sends no request")

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP. uvicorn answers with plain text, and fails where an answer has begun."""
        error = NotHttp("This is not a valid HTTP request.")
        if self.conn.our_state is h11.IDLE:
            self._refuse(error)
            return
        if self.conn.our_state is h11.SEND_RESPONSE:  # the body that a request waits for is not valid
            self._write(error)
        self.transport.close()

    def _refuse(self, error: StenopoolError) -> None:
        """Answer to what is no request yet, and listen no more. It is closed a little later: else the answer could be lost."""
        self._write(error)
        self.transport.write_eof()
        self._deaf = True
        self._head.start(self.loop, _LINGER_S, lambda: self.cut_off("it was answered and goes on sending"))

    def _write(self, error: StenopoolError) -> None:
        body = json.dumps(error.to_wire(secrets.token_hex(8))).encode()
        named = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        headers = list((named | error_headers(error)).items())
        for event in (h11.Response(status_code=error.status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    # -- answers

    def pause_writing(self) -> None:
        """The kernel's buffer is full: the client reads more slowly than we write, or not at all."""
        super().pause_writing()
        self._left, self._moved_at = self._unread(), self.loop.time()
        self._late_at = self._moved_at + self.bounds.total_s
        self._look_later()

    def resume_writing(self) -> None:
        """The kernel has taken everything."""
        self._stalled.stop()
        super().resume_writing()
        self._look_at_head(heard=False)

    def _unread(self) -> int:
        """Bytes that the client's machine has not taken yet.

        With what the kernel keeps, where it tells (Linux): it takes more from us only when a third of its buffer is free, and
        by that alone a client that reads little by little would look as if it read nothing.
        """
        unsent = self.transport.get_write_buffer_size()
        if (ours := self.transport.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError):
                unsent += struct.unpack("i", fcntl.ioctl(ours.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        return unsent

    def _look_later(self) -> None:
        self._stalled.start(self.loop, min(self.bounds.idle_s / 4, self.bounds.total_s), self._look_at_progress)

    def _look_at_progress(self) -> None:
        left, now = self._unread(), self.loop.time()
        if left < self._left:
            self._left, self._moved_at = left, now
        if now >= self._late_at or now - self._moved_at >= self.bounds.idle_s:
            self.cut_off("it does not read its answer")
        else:
            self._look_later()

    def cut_off(self, reason: str, level: int = logging.INFO) -> None:
        """End the connection at once; the kernel too shall keep nothing for the client."""
        log.log(level, "connection cut off: %s", reason, extra={"client": self.client})
        self._forget()
        if (ours := self.transport.get_extra_info("socket")) is not None and ours.fileno() != -1:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()


class _Timer:
    """One call that is due later, or none."""

    def __init__(self) -> None:
        self._due: asyncio.TimerHandle | None = None

    @property
    def runs(self) -> bool:
        return self._due is not None

    def start(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Any) -> None:
        self.stop()
        self._due = loop.call_later(seconds, self._ring, call)

    def stop(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _ring(self, call: Any) -> None:
        self._due = None
        call()


def _crowded(app: Any) -> Any:
    """``app`` where there are more connections than there may be: it is alive, and that is all."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        raise CapacityError("The server has too many connections.")

    refusing = RequestMiddleware(refuse)

    async def choose(scope: Scope, receive: Receive, send: Send) -> None:
        await (app if scope["path"] == _ALIVE else refusing)(scope, receive, send)

    return choose
