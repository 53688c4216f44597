"""One virtual user: a client of its own that posts recordings."""

from __future__ import annotations

import asyncio
import mimetypes
import ssl
from dataclasses import dataclass, field

import httpx

from loadtest.records import Recording, Reply
from loadtest.replies import read_reply

_KEEPALIVE_S = 2.0  # less than the server's 5 s: a request on a connection that is just being closed would be lost


@dataclass(frozen=True)
class Target:
    """The server and what is asked of it. ``timeout_s`` bounds one try as a whole."""

    url: str
    key: str = field(repr=False)
    model: str | None
    timeout_s: float
    tls: ssl.SSLContext = field(repr=False, default_factory=httpx.create_ssl_context)

    def client(self, timeout_s: float | None = None) -> httpx.AsyncClient:
        """A new client; it uses no proxy, whatever the environment says. ``timeout_s`` bounds each step of a request."""
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"X-API-Key": self.key} if self.key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, self.timeout_s)),
            limits=httpx.Limits(keepalive_expiry=_KEEPALIVE_S),
            verify=self.tls,
            trust_env=False,
        )


class User:
    """Posts one recording at a time. An async context manager."""

    def __init__(self, target: Target, number: int) -> None:
        self.number = number
        self._target = target
        self._client = target.client()

    async def __aenter__(self) -> User:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(self, recording: Recording, body: bytes) -> Reply:
        """One try. A connection that fails and a timeout are ``lost``."""
        try:
            response = await asyncio.wait_for(self._post(recording, body), self._target.timeout_s)
        except asyncio.TimeoutError:
            return Reply("lost", "timeout", f"no answer within {self._target.timeout_s:g} s")
        except httpx.RequestError as error:
            return Reply("lost", "connection", f"{type(error).__name__} {error}".strip()[:300])
        return read_reply(response.status_code, response.headers, response.content)

    async def _post(self, recording: Recording, body: bytes) -> httpx.Response:
        model = {"model_size": self._target.model} if self._target.model else {}
        kind = mimetypes.guess_type(recording.name)[0] or "application/octet-stream"
        return await self._client.post(
            "/transcribe", params={"response_format": "json", **model}, content=body, headers={"Content-Type": kind}
        )
