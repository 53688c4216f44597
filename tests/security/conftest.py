"""A listener on loopback that must never be reached, and settings with small caps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from app.settings import Settings


class Listener:
    """Counts connections and answers each with a little audio-like body."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 6\r\n\r\ninside")
        try:
            await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@pytest_asyncio.fixture()
async def listener() -> AsyncIterator[Listener]:
    made = Listener()
    servers = [await asyncio.start_server(made.answer, "127.0.0.1", 0)]
    made.port = servers[0].sockets[0].getsockname()[1]
    for address in ("127.0.0.2", "::1"):  # where the machine has them
        with contextlib.suppress(OSError):
            servers.append(await asyncio.start_server(made.answer, address, made.port))
    yield made
    for server in servers:
        server.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        _env_file=None, data_dir=tmp_path / "data", max_audio_s=60, decode_timeout_s=20, disk_reserve_mb=0, max_download_mb=64
    )
