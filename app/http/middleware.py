"""Pure ASGI middleware, outermost first: request id and errors → key → byte-counted body.

Pure ASGI, because FastAPI reads a whole multipart body before its dependencies run, and because ``BaseHTTPMiddleware``
hides the client's disconnect.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.durable import shortage
from app.errors import AuthError, BodyTimeout, Interrupted, StenopoolError, TooLarge, UnsupportedEncoding
from app.keys import Key
from app.settings import Settings

log = logging.getLogger("stenopool.http")

PUBLIC = frozenset({"/health", "/ready", "/docs", "/openapi.json"})
TUS_VERSION = "1.0.0"
_OF_EVERY_ANSWER = {"uploads": {"tus-resumable": TUS_VERSION}}
"""Headers by the first part of the path; also of those that no route gives."""
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_RETRY_AFTER_S = 120.0
_LINGER_S = 2.0
_LINGER_BYTES = 32_000_000
_LINGER_BYTES_UNKNOWN = 32_000


class RequestMiddleware:
    """Gives each request an id, logs it, and turns what nobody caught into the one error shape."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SAFE_ID.fullmatch(given) else secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state["request_id"], state["unread"] = request_id, _has_body(Headers(scope=scope))
        state["headers"] = dict(_OF_EVERY_ANSWER.get(scope["path"].lstrip("/").partition("/")[0], {}))
        token = logs.request_id.set(request_id)
        try:
            await self._serve(scope, _watched(receive, state), send)
        finally:
            logs.request_id.reset(token)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = scope["state"]["request_id"]
                headers["x-content-type-options"] = "nosniff"
                headers.update(scope["state"]["headers"])
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except StenopoolError as error:
            if not status:
                await ErrorResponse(error)(scope, receive, counted)
        except asyncio.CancelledError:  # the server stops, and its grace time is over
            if status:
                raise
            await ErrorResponse(Interrupted("The server was stopped before the answer was there."))(scope, receive, counted)
        except Exception as error:
            log.exception("unhandled error")
            if not status:
                await ErrorResponse(shortage(error) or StenopoolError())(scope, receive, counted)
        finally:
            seconds = round(time.monotonic() - began, 4)
            log.info("request", extra={"method": scope["method"], "path": scope["path"], "status": status, "seconds": seconds})


class AuthMiddleware:
    """Default-deny: every path needs a valid key unless it is on the public list. Runs before a byte of the body is read."""

    def __init__(self, app: ASGIApp, verify: Callable[[str], Awaitable[Key | None]]) -> None:
        self.app, self._verify = app, verify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in PUBLIC):
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no sockets yet: refuse the handshake
            await send({"type": "websocket.close", "code": 1008})
            return
        plain = _key(Headers(scope=scope))
        key = await self._verify(plain) if plain else None
        if key is None:
            raise AuthError("The API key is missing." if not plain else "The API key is not valid.")
        scope.setdefault("state", {}).update(owner=key.id, limits=key.limits)
        await self.app(scope, receive, send)


def _key(headers: Headers) -> str | None:
    if (plain := headers.get("x-api-key")) is not None:
        return plain.strip()
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


class BodyMiddleware:
    """Counts the bytes of a body as they come (chunked ones too) and bounds the time they may take."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._max_bytes = settings.max_upload_mb * 1_000_000
        self._idle_s, self._total_s = settings.body_idle_timeout_s, settings.body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedEncoding("Bodies with a Content-Encoding are not accepted.")
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise self._too_large()
        await self.app(scope, self._bounded(receive), send)

    def _bounded(self, receive: Receive) -> Receive:
        taken = 0
        complete = False
        deadline = time.monotonic() + self._total_s

        async def bounded() -> Message:
            nonlocal taken, complete
            if complete:  # what follows is the disconnect, hours away perhaps, or after a refusal what `_linger` drops
                return await receive()
            wait_s = min(self._idle_s, deadline - time.monotonic())
            # not wait_for: before Python 3.12 it swallows a cancellation that comes together with its result
            receiving = asyncio.ensure_future(receive())
            try:
                in_time = (await asyncio.wait({receiving}, timeout=max(0.0, wait_s)))[0]
            finally:
                if not receiving.done():
                    receiving.cancel()
            if not in_time:
                complete = True
                raise BodyTimeout("The request's body came too slowly.")
            message = receiving.result()
            taken += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if taken > self._max_bytes:
                complete = True
                raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The request's body is larger than {self._max_bytes // 1_000_000} MB, the most that is accepted.")


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _watched(receive: Receive, state: dict[str, object]) -> Receive:
    """Keeps ``state["unread"]``: whether a part of the body has not been read yet."""

    async def watched() -> Message:
        message = await receive()
        state["unread"] = message["type"] == "http.request" and message.get("more_body", False)
        return message

    return watched


class ErrorResponse(Response):
    """An error in the one shape.

    Where the body has not been read, the answer goes out first and the connection then lingers a little: closing a socket
    with unread bytes resets it, and the client would lose the answer.
    """

    def __init__(self, error: StenopoolError) -> None:
        super().__init__(b"", error.status, error_headers(error), "application/json")
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        state = scope["state"]
        unread = bool(state["unread"])
        self.body = json.dumps(self._error.to_wire(state["request_id"])).encode()
        headers = self.headers | {"content-length": str(len(self.body))} | ({"connection": "close"} if unread else {})
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self._error.status, "headers": raw})
        await send({"type": "http.response.body", "body": self.body, "more_body": unread})
        if unread:
            await _linger(receive, _LINGER_BYTES if "owner" in state else _LINGER_BYTES_UNKNOWN)
            await send({"type": "http.response.body", "body": b""})


async def _linger(receive: Receive, most: int) -> None:
    """Read and drop at most ``most`` bytes of the rest of a body, for a short time."""
    deadline = time.monotonic() + _LINGER_S
    with contextlib.suppress(asyncio.TimeoutError, StenopoolError):
        while most > 0:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            most -= len(message.get("body", b""))
            if not message.get("more_body", False):
                return


def error_headers(error: StenopoolError) -> dict[str, str]:
    """Headers that go with an error: when to come back, and whether coming back makes sense."""
    headers = {} if error.retryable else {"x-should-retry": "false"}
    if error.retry_after_s is not None:
        seconds = min(_MAX_RETRY_AFTER_S, max(1.0, error.retry_after_s))
        headers |= {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(int(seconds * 1000))}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers
