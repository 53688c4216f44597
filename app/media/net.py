"""Fetch a caller's URL without being turned against the inside of the network.

A host is resolved once; every address that comes back must be public; the connection goes to one of those very addresses,
while ``Host``, SNI and the certificate check keep the name. So a name server that answers differently the second time
(rebinding) is not asked a second time. Redirects start again from the top, three times at most. Proxies, cookies and
credentials are never used.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import certifi
import h11

from app.errors import DiskFull, DownloadFailed, StenopoolError, TooLarge, UrlRefused
from app.media.paths import require_disk
from app.media.process import MB
from app.media.urls import Policy, Target, authority, check_url, resolve

_READ = 256 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_PAGES = ("text/html", "application/xhtml+xml")
_AGENT = b"stenopool/0.1"


@dataclass(frozen=True)
class Fetched:
    """``size_bytes`` were written. ``name`` is the last part of the path, decoded, for a title: foreign text."""

    final: Target
    size_bytes: int
    content_type: str
    name: str


async def fetch(url: str, dst: Path, policy: Policy) -> Fetched:
    """Stream ``url`` into the new file ``dst``. On an error ``dst`` is gone.

    Raises:
        UrlRefused: the policy forbids the URL or a redirect of it.
        DownloadFailed: the remote side failed, stalled or took too long.
        TooLarge: more than ``policy.max_bytes``.
        DiskFull: no room.
    """
    try:
        return await asyncio.wait_for(_follow(url, dst, policy), policy.timeout_s)
    except BaseException as error:
        await asyncio.to_thread(dst.unlink, missing_ok=True)
        if isinstance(error, StenopoolError):
            raise
        if isinstance(error, asyncio.TimeoutError):
            raise DownloadFailed("The remote server was too slow.", param="url") from error
        if isinstance(error, (OSError, EOFError, ssl.SSLError, h11.RemoteProtocolError, h11.LocalProtocolError)):
            raise DownloadFailed("The connection to the remote server failed.", param="url") from error
        raise


async def post(url: str, body: bytes, headers: dict[str, str], policy: Policy) -> int:
    """Send JSON to ``url``; the status of the answer, whose body is not read. Redirects are not followed.

    Raises:
        UrlRefused: the policy forbids the URL.
        DownloadFailed: the remote side failed, stalled or took too long.
    """
    try:
        return await asyncio.wait_for(_post(url, body, headers, policy), policy.timeout_s)
    except asyncio.TimeoutError as error:
        raise DownloadFailed("The remote server was too slow.", param="url") from error
    except (OSError, EOFError, h11.RemoteProtocolError, h11.LocalProtocolError) as error:
        raise DownloadFailed("The connection to the remote server failed.", param="url") from error


async def _post(url: str, body: bytes, headers: dict[str, str], policy: Policy) -> int:
    target = check_url(url, policy)
    reader, writer = await _connect(target, await resolve(target, policy), policy)
    try:
        sent = {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
        return (await _Exchange(reader, writer, policy).ask(target, sent, body)).status_code
    finally:
        writer.transport.abort()


async def _follow(url: str, dst: Path, policy: Policy) -> Fetched:
    for _ in range(policy.max_redirects + 1):
        target = check_url(url, policy)
        reader, writer = await _connect(target, await resolve(target, policy), policy)
        try:
            exchange = _Exchange(reader, writer, policy)
            answer = await exchange.ask(target)
            location = _location(answer)
            if location is None:
                return await _save(exchange, answer, target, dst)
        finally:
            # Not an orderly close: a remote that never reads must not hold us.
            writer.transport.abort()
        url = urljoin(target.url, location)
    raise UrlRefused("The URL redirects too often.", param="url")


async def _connect(target: Target, addresses: list[str], policy: Policy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to one of the *checked* addresses, by number."""
    deadline = time.monotonic() + policy.connect_s
    secure = {"ssl": _tls(), "server_hostname": target.host} if target.scheme == "https" else {}
    failure: Exception = OSError("no address")
    for address in addresses:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            return await asyncio.wait_for(
                asyncio.open_connection(address, target.port, limit=_READ, **secure),  # type: ignore[arg-type]
                left,
            )
        except (OSError, asyncio.TimeoutError) as error:
            failure = error
    raise failure


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    # Slim images and python.org's macOS builds have no system store.
    context.load_verify_locations(certifi.where())
    return context


class _Exchange:
    """One request and its answer over one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, policy: Policy) -> None:
        self._reader, self._writer = reader, writer
        self._wire = h11.Connection(h11.CLIENT)
        self.policy = policy

    async def ask(self, target: Target, more: dict[str, str] | None = None, body: bytes = b"") -> h11.Response:
        """GET, or POST where there is a body."""
        headers = [
            (b"Host", authority(target).encode()),
            (b"User-Agent", _AGENT),
            (b"Accept", b"audio/*, video/*, application/octet-stream, */*;q=0.5"),
            (b"Accept-Encoding", b"identity"),
            (b"Connection", b"close"),
            *((name.encode(), value.encode()) for name, value in (more or {}).items()),
        ]
        request = h11.Request(method=b"POST" if body else b"GET", target=target.path.encode(), headers=headers)
        events = [request, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()]
        self._writer.write(b"".join(self._wire.send(event) or b"" for event in events))
        while True:
            event = await self.next()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("no answer")

    async def next(self) -> h11.Event:
        while True:
            event = self._wire.next_event()
            if event is h11.NEED_DATA:
                data = await asyncio.wait_for(self._reader.read(_READ), self.policy.idle_s)
                self._wire.receive_data(data)
            elif isinstance(event, h11.Event):
                return event
            else:
                raise h11.RemoteProtocolError("the connection is paused")


def _header(answer: h11.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in answer.headers if key == name), "")


def _content_type(answer: h11.Response) -> str:
    return _header(answer, b"content-type").split(";")[0].strip().lower()


def _location(answer: h11.Response) -> str | None:
    """Where a redirect points, or None for an answer to keep.

    Raises:
        DownloadFailed: any other status, a web page, or a compressed body (a bomb could hide in it).
    """
    status = answer.status_code
    if status in _REDIRECTS:
        location = _header(answer, b"location")
        if location:
            return location
    if status != 200:
        raise DownloadFailed(f"The remote server answered with status {status}.", param="url")
    if _header(answer, b"content-encoding").strip().lower() not in ("", "identity"):
        raise DownloadFailed("The remote server compressed the file, which is not accepted.", param="url")
    if _content_type(answer) in _PAGES:
        raise DownloadFailed("The URL leads to a web page, not to a media file.", param="url")
    return None


async def _save(exchange: _Exchange, answer: h11.Response, target: Target, dst: Path) -> Fetched:
    policy = exchange.policy
    announced = _header(answer, b"content-length")
    expected = int(announced) if announced.isdecimal() else 0
    if expected > policy.max_bytes:
        raise _too_large(policy)
    require_disk(dst.parent, expected, policy.reserve_mb)
    size = await _write_body(exchange, dst)
    name = unquote(urlsplit(target.url).path.rsplit("/", 1)[-1])
    return Fetched(target, size, _content_type(answer), name)


async def _write_body(exchange: _Exchange, dst: Path) -> int:
    """Write until the end of the body; the announced length is not trusted."""
    policy, size, pending = exchange.policy, 0, bytearray()
    with await asyncio.to_thread(dst.open, "xb") as file:
        while True:
            event = await exchange.next()
            if isinstance(event, h11.Data):
                size += len(event.data)
                if size > policy.max_bytes:
                    raise _too_large(policy)
                pending += event.data
            done = isinstance(event, h11.EndOfMessage)
            if done or len(pending) >= MB:
                require_disk(dst.parent, 0, policy.reserve_mb)
                try:
                    await asyncio.to_thread(file.write, bytes(pending))
                except OSError as error:
                    raise DiskFull("The server ran out of disk space.") from error
                pending.clear()
            if done:
                return size


def _too_large(policy: Policy) -> TooLarge:
    return TooLarge(f"The remote file is larger than {policy.max_bytes // MB} MB.", param="url")
