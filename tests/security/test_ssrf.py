"""Addresses that lead inside: none of them may cause a single connection to a listener on loopback."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import DownloadFailed, UrlRefused
from app.media.addresses import is_public
from app.media.download import download
from app.media.net import fetch
from app.media.urls import Policy, check_url
from app.settings import Settings

from .conftest import Listener

ROOT = Path(__file__).resolve().parents[2]
INWARD = [
    "http://127.0.0.1:{port}/x.mp3",
    "http://127.1.2.3:{port}/x.mp3",
    "http://localhost:{port}/x.mp3",
    "http://LOCALHOST.:{port}/x.mp3",
    "http://2130706433:{port}/x.mp3",
    "http://0x7f000001:{port}/x.mp3",
    "http://0x7f.0.0.1:{port}/x.mp3",
    "http://0x7F.1:{port}/x.mp3",
    "http://017700000001:{port}/x.mp3",
    "http://0177.0.0.1:{port}/x.mp3",
    "http://127.1:{port}/x.mp3",
    "http://127.0.1:{port}/x.mp3",
    "http://0:{port}/x.mp3",
    "http://0.0.0.0:{port}/x.mp3",
    "http://127.0.0.1.:{port}/x.mp3",
    "http://127.0.0.01:{port}/x.mp3",
    "http://①②⑦.⓪.⓪.①:{port}/x.mp3",
    "http://127。0。0。1:{port}/x.mp3",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/x.mp3",
    "http://[::1]:{port}/x.mp3",
    "http://[0:0:0:0:0:0:0:1]:{port}/x.mp3",
    "http://[::]:{port}/x.mp3",
    "http://[::ffff:127.0.0.1]:{port}/x.mp3",
    "http://[::ffff:7f00:1]:{port}/x.mp3",
    "http://[::127.0.0.1]:{port}/x.mp3",
    "http://[::ffff:0:127.0.0.1]:{port}/x.mp3",
    "http://[64:ff9b::127.0.0.1]:{port}/x.mp3",
    "http://[64:ff9b:1::7f00:1]:{port}/x.mp3",
    "http://[2002:7f00:1::]:{port}/x.mp3",
    "http://[2001:0:7f00:1::]:{port}/x.mp3",
    "http://[fe80::1%25lo]:{port}/x.mp3",
    "http://[::1%25lo]:{port}/x.mp3",
    "http://[fec0::1]:{port}/x.mp3",
    "http://[fd00:ec2::254]:{port}/x.mp3",
    "http://169.254.169.254:{port}/latest/meta-data/",
    "http://100.100.100.200:{port}/x.mp3",
    "http://192.0.0.192:{port}/x.mp3",
    "http://user@127.0.0.1:{port}/x.mp3",
    "http://example.com:80@127.0.0.1:{port}/x.mp3",
    "http://example.com@127.0.0.1:{port}/x.mp3",
    "http://127.0.0.1:{port}#@example.com/x.mp3",
    "http://127.0.0.1:{port}\\@example.com/x.mp3",
    "http://example.com\\@127.0.0.1:{port}/x.mp3",
    "http:\\\\127.0.0.1:{port}/x.mp3",
    "http://127.0.0.1\t:{port}/x.mp3",
    "http://127.0.0.1:{port}/x.mp3\r\nHost: example.com",
    " http://127.0.0.1:{port}/x.mp3",
    "http:127.0.0.1:{port}/x.mp3",
    "http:///127.0.0.1:{port}/x.mp3",
    "//127.0.0.1:{port}/x.mp3",
    "http://127.0.0.1%00.example.com:{port}/x.mp3",
    "http://127.0.0.1%2eexample.com:{port}/x.mp3",
    "http://[127.0.0.1]:{port}/x.mp3",
    "http://[::1:{port}/x.mp3",
]
SCHEMES = [
    "file:///etc/passwd", "ftp://127.0.0.1:{port}/x", "gopher://127.0.0.1:{port}/x", "tcp://127.0.0.1:{port}",
    "data:audio/wav,x", "concat:/etc/passwd", "subfile:///etc/passwd", "rtmp://127.0.0.1:{port}/x", "ws://127.0.0.1:{port}/",
    "jar:http://127.0.0.1/",
    "javascript:1", "", "x", "http://", "http://:80/", "https://?x", "ytsearch:{port}", "generic:http://127.0.0.1:{port}/",
    "http://exa mple.com/", "http://-x.example/", "http://x..example/", "http://" + "a" * 3000, "http://example.com:99999/",
    "http://example.com:x/", "http://xn--\u0378/", "http://1.2.3.4.5/", "http://256.256.256.256/",
]  # fmt: skip


def open_policy(listener: Listener) -> Policy:
    """As an operator could set it at most: the listener's own port is allowed."""
    return Policy(ports=(80, 443, listener.port), timeout_s=5, connect_s=2)


@pytest.mark.parametrize("url", INWARD + SCHEMES)
async def test_inward_url_is_refused_on_both_ways_without_a_connection(
    url: str, listener: Listener, tmp_path: Path, settings: Settings
) -> None:
    url = url.replace("{port}", str(listener.port))
    policy = open_policy(listener)
    with pytest.raises((UrlRefused, DownloadFailed)):
        await fetch(url, tmp_path / "f", policy)
    # Once as a plain file, once as something that an extractor might take.
    for shape in (url, url.replace(".mp3", "")):
        with pytest.raises((UrlRefused, DownloadFailed)):
            await download(shape, tmp_path, settings, policy=policy)
    await asyncio.sleep(0)
    assert listener.connections == 0
    assert not list(tmp_path.iterdir())


async def test_listener_is_reached_where_the_policy_allows_it(listener: Listener, tmp_path: Path) -> None:
    allowed = replace(open_policy(listener), allow=(ipaddress.ip_network("127.0.0.0/8"),))
    await fetch(f"http://127.0.0.1:{listener.port}/x.mp3", tmp_path / "f", allowed)
    assert (tmp_path / "f").read_bytes() == b"inside"
    assert listener.connections == 1


@pytest.mark.parametrize("port", [22, 25, 6379, 8080, 65535])
def test_port_that_is_not_allowed_is_refused(port: int) -> None:
    with pytest.raises(UrlRefused, match="port"):
        check_url(f"http://example.com:{port}/", Policy())


async def test_name_that_rebinds_is_resolved_once_per_request_and_pinned(listener: Listener, tmp_path: Path) -> None:
    answers = [["192.0.2.9"], ["127.0.0.1"]]
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked) - 1, 1)]

    # 192.0.2.9 stands for a public address that nobody answers at.
    policy = replace(
        open_policy(listener), resolver=rebinding, allow=(ipaddress.ip_network("192.0.2.9/32"),), connect_s=0.3, timeout_s=1
    )
    with pytest.raises(DownloadFailed):
        await fetch(f"http://rebind.example:{listener.port}/x.mp3", tmp_path / "f", policy)
    assert asked == ["rebind.example"]
    assert listener.connections == 0
    with pytest.raises(UrlRefused):
        await fetch(f"http://rebind.example:{listener.port}/x.mp3", tmp_path / "f", policy)
    assert listener.connections == 0


@pytest.mark.parametrize(
    "answer", [["127.0.0.1"], ["1.1.1.1", "127.0.0.1"], ["::1"], ["::ffff:127.0.0.1"], ["fe80::1%lo"], ["x"]]
)
async def test_name_with_any_inward_address_is_refused(answer: list[str], listener: Listener, tmp_path: Path) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return answer

    with pytest.raises(UrlRefused):
        await fetch(
            f"http://mixed.example:{listener.port}/x.mp3", tmp_path / "f", replace(open_policy(listener), resolver=resolver)
        )
    assert listener.connections == 0


@pytest.mark.parametrize("inner", ["127.0.0.2", "[::1]", "2130706433", "localhost", "0x7f.2", "[::ffff:127.0.0.2]"])
async def test_redirect_inward_is_refused(inner: str, listener: Listener, tmp_path: Path) -> None:
    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: http://{inner}:{listener.port}/x\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(redirect, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    # "Outside" is 127.0.0.1 alone; the redirect leads to another address.
    outside = (ipaddress.ip_network("127.0.0.1/32"),)
    policy = Policy(ports=(port, listener.port), allow=outside, timeout_s=5)

    async def resolver(host: str, _: int) -> list[str]:
        return ["127.0.0.2"] if host == "localhost" else [host]

    with pytest.raises(UrlRefused):
        await fetch(f"http://127.0.0.1:{port}/x.mp3", tmp_path / "f", replace(policy, resolver=resolver))
    server.close()
    assert listener.connections == 0


async def test_proxy_of_the_environment_is_not_used(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{listener.port}")

    async def nowhere(host: str, port: int) -> list[str]:
        return ["192.0.2.9"]

    policy = Policy(resolver=nowhere, allow=(ipaddress.ip_network("192.0.2.0/24"),), connect_s=0.3, timeout_s=1)
    with pytest.raises(DownloadFailed):
        await fetch("http://example.com/x.mp3", tmp_path / "f", policy)
    assert listener.connections == 0


def child_of(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` under the download child's guard."""
    start = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom app.media._ytdlp import _Guard\nsys.addaudithook(_Guard([]))\n"
    )
    command = [sys.executable, "-I", "-c", start + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=30)


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', {port}))",
        "import socket; socket.create_connection(('localhost', {port}))",
        "import socket; socket.socket().connect(('2130706433', {port}))",
        "import socket; s = socket.socket(); s.settimeout(1); s.connect_ex(('127.0.0.1', {port}))",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
        "import socket; socket.socket(socket.AF_UNIX).connect('/run/docker.sock')",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/')",
        "import requests; requests.get('http://127.0.0.1:{port}/')",
        "import asyncio; asyncio.run(asyncio.open_connection('127.0.0.1', {port}))",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.fork()",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
    ],
)
async def test_download_child_cannot_connect_inward_or_start_a_program(code: str, listener: Listener, tmp_path: Path) -> None:
    done = await asyncio.to_thread(child_of, code.replace("{port}", str(listener.port)), tmp_path)
    assert done.returncode != 0
    assert "not a public address" in done.stderr or "not allowed here" in done.stderr
    assert listener.connections == 0


async def test_generic_extractor_of_yt_dlp_would_have_connected(listener: Listener, tmp_path: Path) -> None:
    """What the allow-list and the guard are for."""
    code = (
        "import sys, yt_dlp\n"
        "yt_dlp.YoutubeDL({'quiet': True, 'retries': 0, 'cachedir': False}).extract_info(sys.argv[1], download=False)"
    )
    command = [sys.executable, "-I", "-c", code, f"http://127.0.0.1:{listener.port}/page"]
    await asyncio.to_thread(subprocess.run, command, capture_output=True, cwd=tmp_path, timeout=30)
    assert listener.connections > 0


async def test_page_that_looks_like_a_site_of_the_list_does_not_reach_yt_dlp(
    listener: Listener, tmp_path: Path, settings: Settings
) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    policy = replace(open_policy(listener), resolver=resolver)
    for url in ("https://youtube.com.evil.example/watch?v=x", "http://evil.example/youtube.com/watch?v=dQw4w9WgXcQ"):
        with pytest.raises(UrlRefused):
            await download(url, tmp_path, settings, policy=policy)
    assert listener.connections == 0


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8",
        "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1",
        "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
        "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:808:808::1", "3fff::1", "fc00::1", "fd00::1", "fe80::1",
        "fec0::1", "ff02::1", "fe80::1%1", "not an address", "",
    ],
)  # fmt: skip
def test_special_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2a00:1450::1"])
def test_public_address_is_public(address: str) -> None:
    assert is_public(address)


def test_allowed_network_of_the_other_family_does_not_help() -> None:
    assert not is_public("::1", (ipaddress.ip_network("0.0.0.0/0"),))
    assert is_public("127.0.0.1", (ipaddress.ip_network("127.0.0.0/8"),))


def test_c_library_would_have_read_the_odd_forms_as_loopback() -> None:
    """Why a host that ends in a number must be four plain decimals."""
    for host in ("2130706433", "0x7f.1", "0177.0.0.1", "127.1"):
        assert socket.inet_aton(host) == b"\x7f\0\0\x01"
