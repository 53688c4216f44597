"""The whole application inside the test's own event loop: on a real socket, or called as ASGI."""

from __future__ import annotations

import asyncio
import os
import wave
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp

from app.admission.ticket import Phase
from app.build import build_service
from app.http.app import create_app
from app.http.server import Server, listeners
from app.service import Service
from app.settings import Settings

KEY = "unit-test-key-0123456789"
OTHER_KEY = "another-unit-test-key-9876"
HEADERS = {"X-API-Key": KEY}
Build = Callable[[Settings], Service]


def fake_service(settings: Settings) -> Service:
    """Real worker processes with the fake engine in them."""
    return build_service(settings, "tests.fakes.engine", ())


def make_settings(folder: Path, **changes: Any) -> Settings:
    """Settings of a test's own; nothing outside ``folder`` is written."""
    own: dict[str, Any] = {
        "data_dir": folder / "data",
        "api_keys": f"{KEY},{OTHER_KEY}",
        "model_size": "demo",
        "warm_models": ("demo",),
        "disk_reserve_mb": 1,
        "streams": 2,
        "threads": 1,
        "ping_interval_s": 0.2,
        "ping_timeout_s": 5.0,
    }
    return Settings(_env_file=None, **(own | changes))


def inner(app: Any) -> FastAPI:
    """The FastAPI application inside the middleware."""
    while not isinstance(app, FastAPI):
        app = app.app
    return app


@asynccontextmanager
async def alive(app: ASGIApp) -> AsyncIterator[None]:
    """Start and stop ``app`` by the lifespan protocol."""
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.ensure_future(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, inbox.get, outbox.put))
    await inbox.put({"type": "lifespan.startup"})
    message = await outbox.get()
    assert message["type"] == "lifespan.startup.complete", message
    try:
        yield
    finally:
        await inbox.put({"type": "lifespan.shutdown"})
        message = await outbox.get()
        await task
        assert message["type"] == "lifespan.shutdown.complete", message


@dataclass
class Live:
    """A running application. ``client`` sends the key; ``raw`` opens a plain socket."""

    app: ASGIApp
    settings: Settings
    client: httpx.AsyncClient
    port: int = 0
    opened: list[asyncio.StreamWriter] = field(default_factory=list)
    server: Server | None = None

    @property
    def service(self) -> Service:
        service: Service = inner(self.app).state.service
        return service

    async def raw(self, head: str, body: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which ``head`` (lines joined by \\n, no Host) and ``body`` were sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.opened.append(writer)
        first, *rest = head.strip().splitlines()
        writer.write("\r\n".join([first, "Host: test", *rest, "", ""]).encode("latin-1") + body)
        await writer.drain()
        return reader, writer

    def folders(self) -> list[str]:
        """What lies in the jobs folder."""
        return os.listdir(self.settings.jobs_dir)

    async def settled(self, timeout_s: float = 10.0) -> None:
        """Wait until nothing is held any more: no ticket, no memory, no disk, no folder, no job in a worker."""

        async def wait() -> None:
            while held(self.service) or self.folders() or self.busy():
                await asyncio.sleep(0.01)

        try:
            await asyncio.wait_for(wait(), timeout_s)
        except asyncio.TimeoutError:
            raise AssertionError(f"still held: {held(self.service)}, {self.folders()}, {self.busy()} jobs") from None

    def busy(self) -> int:
        """Jobs that wait for a worker or run in one."""
        lanes = self.service.pool.stats().values()
        waiting = sum(ticket.phase is Phase.WAITING for ticket in self.service.desk.jobs.inside)
        return waiting + sum(worker["running"] for lane in lanes for worker in lane["workers"])


def held(service: Service) -> dict[str, Any]:
    """What the desk still holds for requests, by its name; empty where all of them are gone."""
    desk = service.desk
    found: dict[str, Any] = {
        "memory": {name: size for name, size in desk.memory.holders().items() if not name.startswith(("base", "worker-"))},
        "disk": desk.disk.reserved or desk.disk.holders(),
    }
    for one in desk.controllers:
        found |= {
            f"{one.what} inside": one.inside,
            f"{one.what} running": one.running,
            f"{one.what} in line": len(one.line) or one.line.active or one._front,
            f"{one.what} in the bounds": one.bounds.total.count or one.bounds.total.seconds or one.bounds._by_key,
            f"{one.what} in the quotas": [key for key, use in one.quotas._uses.items() if use.jobs or use.audio_s],
            f"{one.what} not counted": one.admitted - one.ended,
        }
    return {name: what for name, what in found.items() if what}


@asynccontextmanager
async def serving(settings: Settings, build: Build) -> AsyncIterator[Live]:
    """uvicorn on a free port."""
    app = create_app(settings, build=build)
    (listener,) = listeners("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = Server(app, settings)
    server.config.timeout_graceful_shutdown = 3
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        assert not task.done(), task.exception()
        await asyncio.sleep(0.005)
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS, timeout=30, trust_env=False)
    live = Live(app, settings, client, port, server=server)
    try:
        yield live
    finally:
        for writer in live.opened:
            writer.transport.abort()
        await client.aclose()
        server.should_exit = True
        await task
        listener.close()


@asynccontextmanager
async def calling(settings: Settings, build: Build) -> AsyncIterator[Live]:
    """No socket: ``client`` calls the application directly."""
    app = create_app(settings, build=build)
    transport = httpx.ASGITransport(app)
    async with alive(app), httpx.AsyncClient(transport=transport, base_url="http://test", headers=HEADERS) as client:
        yield Live(app, settings, client)


def wav(seconds: float = 0.1, value: int = 0, *, streamed: bool = False) -> bytes:
    """A mono recording of one constant sample value. ``streamed``: it does not say how long it is, so ffmpeg must read it."""
    out = BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(value.to_bytes(2, "little", signed=True) * int(seconds * 16_000))
    made = out.getvalue()
    return made[:40] + b"\xff" * 4 + made[44:] if streamed else made
