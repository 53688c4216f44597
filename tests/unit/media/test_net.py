"""Fetching from a server that does what it wants."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import DiskFull, DownloadFailed, TooLarge, UrlRefused
from app.media.net import fetch
from app.media.urls import Policy, check_url

from .conftest import Handler, send, serving


def answering(body: bytes, *headers: str, status: str = "200 OK") -> Handler:
    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        await send(writer, body, *headers, status=status)

    return handler


async def fails(handler: Handler, dst: Path, error: type[Exception], within_s: float = 4.0, **changes: object) -> str:
    """Fetch, expect ``error`` in good time and no file; the message."""
    async with serving(handler) as (url, policy, _):
        began = time.monotonic()
        with pytest.raises(error) as caught:
            await fetch(f"{url}/x.mp3?token=1", dst, replace(policy, **changes))  # type: ignore[arg-type]
        assert time.monotonic() - began < within_s
    assert not dst.exists()
    return str(caught.value)


async def test_body_with_length_arrives_whole(tmp_path: Path) -> None:
    body = bytes(range(256)) * 3000
    async with serving(answering(body, f"Content-Length: {len(body)}", "Content-Type: audio/mpeg; x=1")) as (url, policy, seen):
        got = await fetch(f"{url}/a/Some%20Talk.mp3?token=1", tmp_path / "f", policy)
    assert (tmp_path / "f").read_bytes() == body
    assert (got.size_bytes, got.content_type, got.name) == (len(body), "audio/mpeg", "Some Talk.mp3")
    assert got.final.redacted == f"{url}/a/Some%20Talk.mp3"
    head = seen[0].lower()
    assert head.startswith(b"get /a/some%20talk.mp3?token=1 http/1.1")
    assert b"accept-encoding: identity" in head
    assert b"cookie" not in head
    assert b"authorization" not in head


async def test_chunked_body_and_body_until_close_arrive_whole(tmp_path: Path) -> None:
    chunked = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    async with serving(answering(chunked, "Transfer-Encoding: chunked")) as (url, policy, _):
        await fetch(url, tmp_path / "a", policy)
    async with serving(answering(b"hello world")) as (url, policy, _):
        await fetch(url, tmp_path / "b", policy)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"hello world"


async def test_empty_body_is_an_empty_file(tmp_path: Path) -> None:
    async with serving(answering(b"", "Content-Length: 0")) as (url, policy, _):
        assert (await fetch(url, tmp_path / "f", policy)).size_bytes == 0


async def test_existing_file_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "f").symlink_to(tmp_path / "elsewhere")
    async with serving(answering(b"hello")) as (url, policy, _):
        with pytest.raises(DownloadFailed):
            await fetch(url, tmp_path / "f", policy)
    assert (tmp_path / "elsewhere").read_text() == "precious"


async def test_announced_length_over_the_cap_is_too_large_at_once(tmp_path: Path) -> None:
    await fails(answering(b"x" * 100, "Content-Length: 99999999999"), tmp_path / "f", TooLarge)


async def test_endless_body_is_too_large(tmp_path: Path) -> None:
    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    await fails(handler, tmp_path / "f", TooLarge)


async def test_length_that_promises_more_than_comes_is_a_failure(tmp_path: Path) -> None:
    await fails(answering(b"x" * 100, "Content-Length: 1000"), tmp_path / "f", DownloadFailed)


async def test_length_that_promises_less_cuts_there(tmp_path: Path) -> None:
    async with serving(answering(b"x" * 1000, "Content-Length: 10")) as (url, policy, _):
        assert (await fetch(url, tmp_path / "f", policy)).size_bytes == 10


async def test_silence_ends_at_the_idle_time(tmp_path: Path) -> None:
    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        await asyncio.sleep(30)

    assert "slow" in await fails(handler, tmp_path / "f", DownloadFailed, 1.5)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_slow_drip_ends_at_the_total_time(start: bytes, tmp_path: Path) -> None:
    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.write(start)
        for letter in b"HTTP/1.1 200 OK\r\nX-B: cccccccccccccccccccccccccccccccccccccccccccccccccc":
            writer.write(bytes([letter]) if b"\r\n\r\n" not in start else b"x")
            await asyncio.sleep(0.1)

    assert "slow" in await fails(handler, tmp_path / "f", DownloadFailed, 2.0, timeout_s=1.0)


async def test_reset_in_the_body_is_a_failure(tmp_path: Path) -> None:
    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nabc")
        await writer.drain()
        writer.transport.abort()

    await fails(handler, tmp_path / "f", DownloadFailed)


async def test_endless_headers_are_a_failure(tmp_path: Path) -> None:
    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X: " + b"y" * 8000 + b"\r\n")
            await writer.drain()

    await fails(handler, tmp_path / "f", DownloadFailed)


@pytest.mark.parametrize(
    "garbage", [b"\0" * 300, b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 100 Go on\r\n\r\n"]
)
async def test_what_is_not_http_is_a_failure(garbage: bytes, tmp_path: Path) -> None:
    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.write(garbage)
        await writer.drain()

    await fails(handler, tmp_path / "f", DownloadFailed)


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "204 No Content", "206 Partial Content", "304 Not Modified"])
async def test_other_status_is_a_failure_that_names_it(status: str, tmp_path: Path) -> None:
    assert status[:3] in await fails(answering(b"", status=status), tmp_path / "f", DownloadFailed)


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "unknown"])
async def test_compressed_body_is_refused(coding: str, tmp_path: Path) -> None:
    await fails(answering(b"x", f"Content-Encoding: {coding}"), tmp_path / "f", DownloadFailed)


async def test_web_page_is_refused(tmp_path: Path) -> None:
    assert "web page" in await fails(
        answering(b"<html>", "Content-Type: text/html; charset=utf-8"), tmp_path / "f", DownloadFailed
    )


async def test_redirect_is_followed_three_times(tmp_path: Path) -> None:
    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        hop = int(head.split(b" ")[1].strip(b"/") or 0)
        if hop < 3:
            await send(writer, b"", f"Location: /{hop + 1}", "Content-Length: 0", status="302 Found")
        else:
            await send(writer, b"end", "Content-Length: 3")

    async with serving(handler) as (url, policy, seen):
        got = await fetch(f"{url}/0", tmp_path / "f", policy)
        assert got.final.path == "/3"
        assert len(seen) == 4
        with pytest.raises(UrlRefused, match="redirects"):
            await fetch(f"{url}/0", tmp_path / "g", replace(policy, max_redirects=2))
    assert not (tmp_path / "g").exists()


async def test_redirect_loop_ends(tmp_path: Path) -> None:
    async with serving(answering(b"", "Location: /x.mp3", status="301 Moved")) as (url, policy, seen):
        with pytest.raises(UrlRefused):
            await fetch(url, tmp_path / "f", policy)
        assert len(seen) == 4


@pytest.mark.parametrize(
    "location", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://user:pw@127.0.0.1/", "gopher://x", "//127.0.0.1:22/"]
)
async def test_redirect_to_a_forbidden_address_is_refused(location: str, tmp_path: Path) -> None:
    await fails(answering(b"", f"Location: {location}", status="302 Found"), tmp_path / "f", UrlRefused)


async def test_closed_port_is_a_failure(tmp_path: Path) -> None:
    async with serving(answering(b"")) as (url, policy, _):
        pass
    await asyncio.sleep(0.05)
    with pytest.raises(DownloadFailed):
        await fetch(url, tmp_path / "f", policy)


async def test_plain_server_behind_https_is_a_failure(tmp_path: Path) -> None:
    async with serving(answering(b"hello")) as (url, policy, _):
        with pytest.raises(DownloadFailed):
            await fetch(url.replace("http", "https"), tmp_path / "f", policy)


async def test_full_disk_is_reported_as_such(tmp_path: Path) -> None:
    await fails(answering(b"x", "Content-Length: 1"), tmp_path / "f", DiskFull, reserve_mb=1 << 40)


async def test_cancelled_fetch_leaves_no_file(tmp_path: Path) -> None:
    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await asyncio.sleep(30)

    async with serving(handler) as (url, policy, seen):
        task = asyncio.ensure_future(fetch(url, tmp_path / "f", replace(policy, idle_s=30, timeout_s=30)))
        while not seen or not (tmp_path / "f").exists():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not (tmp_path / "f").exists()


async def test_name_server_that_hangs_is_a_failure(tmp_path: Path) -> None:
    async def hang(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    with pytest.raises(DownloadFailed):
        await fetch("http://example.com/", tmp_path / "f", Policy(resolver=hang, connect_s=0.2))


async def test_host_header_keeps_the_name_while_the_number_is_connected_to(tmp_path: Path) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        assert host == "media.example"
        return ["127.0.0.1"]

    async with serving(answering(b"ok")) as (_, policy, seen):
        port = policy.ports[0]
        await fetch(f"http://Media.Example:{port}/x", tmp_path / "f", replace(policy, resolver=resolver))
    assert f"Host: media.example:{port}".encode() in seen[0]


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("HTTP://Example.COM", "http://example.com/"),
        ("https://example.com:443/a b".replace(" ", "%20"), "https://example.com/a%20b"),
        ("http://example.com./x?q=1#fragment", "http://example.com/x?q=1"),
        ("http://bücher.example/ü", "http://xn--bcher-kva.example/%C3%BC"),
        ("http://[2606:4700::1111]/x", "http://[2606:4700::1111]/x"),
        ("http://1.1.1.1/", "http://1.1.1.1/"),
        ("http://my_host.example/", "http://my_host.example/"),
    ],
)
def test_url_gets_its_clean_form(url: str, clean: str) -> None:
    assert check_url(url, Policy()).url == clean
