"""The URL policy: what a caller's address may look like, and where it may lead.

Also :class:`Policy`, the limits of one download. Names are resolved here and nowhere else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import quote, urlsplit, urlunsplit

from app.errors import DownloadFailed, UrlRefused
from app.media.addresses import Network, is_public
from app.media.process import MB
from app.settings import Settings

Resolver = Callable[[str, int], Awaitable[list[str]]]

_MAX_URL = 2048
_MAX_ADDRESSES = 4
_LABELS = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


async def _system_resolver(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(item[4][0]) for item in found]


@dataclass(frozen=True)
class Policy:
    """What a URL may be and cost: bytes, seconds, hops. ``allow`` and ``resolver`` exist for tests; no setting sets them."""

    ports: tuple[int, ...] = (80, 443)
    max_bytes: int = 2048 * MB
    timeout_s: float = 900.0
    idle_s: float = 20.0
    connect_s: float = 10.0
    max_redirects: int = 3
    reserve_mb: int = 0
    allow: tuple[Network, ...] = ()
    resolver: Resolver = _system_resolver

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        """What the operator set."""
        return cls(
            ports=settings.url_ports,
            max_bytes=settings.max_download_mb * MB,
            timeout_s=settings.download_timeout_s,
            reserve_mb=settings.disk_reserve_mb,
        )


@dataclass(frozen=True)
class Target:
    """A URL that the policy's text rules accept. ``url`` is its clean form, ``host`` in ASCII."""

    scheme: str
    host: str
    port: int
    path: str
    url: str

    @property
    def redacted(self) -> str:
        """Without the query, which may hold tokens; for logs and answers."""
        return urlunsplit((self.scheme, authority(self), urlsplit(self.url).path, "", ""))


def check_url(url: str, policy: Policy) -> Target:
    """Check the text of a URL; no name is resolved.

    Raises:
        UrlRefused: not http or https, has credentials, a port that is not allowed, or is malformed.
    """
    # urlsplit drops tabs and line breaks without a word, and browsers read "\" as "/".
    if not 0 < len(url) <= _MAX_URL or "\\" in url or not url.isprintable() or " " in url:
        raise UrlRefused("The URL is malformed.", param="url")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UrlRefused("The URL is malformed.", param="url") from error
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https"):
        raise UrlRefused("Only http and https addresses are accepted.", param="url")
    if "@" in parts.netloc:
        raise UrlRefused("The URL must not hold a user name or password.", param="url")
    port = port if port is not None else {"http": 80, "https": 443}[scheme]
    if port not in policy.ports:
        raise UrlRefused("The URL names a port that is not allowed.", param="url")
    host = _host(parts.hostname or "")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    path = f"{path}?{query}" if query else path
    target = Target(scheme, host, port, path, "")
    return Target(scheme, host, port, path, f"{scheme}://{authority(target)}{path}")


def check_text(url: str, policy: Policy) -> Target:
    """:func:`check_url`, and an address instead of a name must be public; no name is resolved.

    Raises:
        UrlRefused: the policy forbids it, whatever its name may lead to.
    """
    target = check_url(url, policy)
    literal = ":" in target.host or target.host.rsplit(".", 1)[-1].isdigit()
    if literal and not is_public(target.host, policy.allow):
        raise UrlRefused("The URL leads to an address that is not public.", param="url")
    return target


def authority(target: Target) -> str:
    """``host`` or ``host:port``, as the Host header has it."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    return host if target.port == {"http": 80, "https": 443}[target.scheme] else f"{host}:{target.port}"


def _host(host: str) -> str:
    """The host in ASCII: an address in its usual form, or a name."""
    if ":" in host:
        try:
            if "%" in host:  # a zone: only means something inside
                raise ValueError(host)
            return str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise UrlRefused("The URL is malformed.", param="url") from error
    try:
        ascii_host = host.encode("idna").decode("ascii").lower() if not host.isascii() else host.lower()
    except UnicodeError as error:
        raise UrlRefused("The URL names no host.", param="url") from error
    ascii_host = ascii_host.removesuffix(".")
    if not _LABELS.fullmatch(ascii_host):
        raise UrlRefused("The URL names no host.", param="url")
    # 2130706433, 0x7f.1 and 017700000001 are addresses to the C library and names to everyone else.
    if _NUMBER.fullmatch(ascii_host.rsplit(".", 1)[-1]):
        try:
            return str(ipaddress.IPv4Address(ascii_host))
        except ValueError as error:
            raise UrlRefused("The URL's address must be written as four decimal numbers.", param="url") from error
    return ascii_host


async def resolve(target: Target, policy: Policy) -> list[str]:
    """The addresses of the host, all of them checked.

    Raises:
        UrlRefused: any address is not public; one private address among public ones is how rebinding starts.
        DownloadFailed: the name does not resolve.
    """
    try:
        found = await asyncio.wait_for(policy.resolver(target.host, target.port), policy.connect_s)
    except (OSError, UnicodeError, asyncio.TimeoutError) as error:
        raise DownloadFailed("The host of the URL could not be found.", param="url") from error
    if not found:
        raise DownloadFailed("The host of the URL could not be found.", param="url")
    if not all(is_public(address, policy.allow) for address in found):
        raise UrlRefused("The URL leads to an address that is not public.", param="url")
    return list(dict.fromkeys(found))[:_MAX_ADDRESSES]
