"""Media made by the very ffmpeg that users get, and a local HTTP server that misbehaves on request."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import imageio_ffmpeg
import pytest

from app.media.urls import Policy
from app.settings import Settings

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        _env_file=None, data_dir=tmp_path / "data", max_audio_s=60, decode_timeout_s=30, disk_reserve_mb=0, max_download_mb=64
    )


def make_media(path: Path, *arguments: str) -> Path:
    """Run ffmpeg with ``arguments`` (a test's own, trusted) and write ``path``."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-y", *arguments, str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path


SINE = ("-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000:duration=3")


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``media("x.mp3", *arguments)``: three seconds of a tone, made once per session."""
    folder = tmp_path_factory.mktemp("media")

    def make(name: str, *arguments: str, source: tuple[str, ...] = SINE) -> Path:
        path = folder / name
        return path if path.exists() else make_media(path, *source, *arguments)

    return make


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[tuple[str, Policy, list[bytes]]]:
    """A server on loopback: its URL, a policy that allows it, and the request heads it saw."""
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            seen.append(head)
            await handler(reader, writer, head)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    policy = Policy(ports=(port,), allow=LOOPBACK, max_bytes=1_000_000, timeout_s=2.0, idle_s=0.5, connect_s=2.0)
    try:
        yield f"http://127.0.0.1:{port}", policy, seen
    finally:
        server.close()


async def send(writer: asyncio.StreamWriter, body: bytes, *headers: str, status: str = "200 OK") -> None:
    """A whole answer, orderly closed."""
    lines = [f"HTTP/1.1 {status}", *headers, "Connection: close", "", ""]
    writer.write("\r\n".join(lines).encode() + body)
    await writer.drain()
    writer.write_eof()
    await asyncio.sleep(0.05)
