"""A node: ``scripts/worker`` (``python -m app.cluster.agent``). Celery in the main thread, the engine's event loop in another.

Every thread of Celery's pool carries one job from its id to its end, so a busy node takes nothing more from Redis.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from celery.signals import worker_shutting_down

from app import logs
from app.catalogue import warm_models
from app.cluster.build import build_node
from app.cluster.node import WorkNode
from app.cluster.queue import TASK, celery_app
from app.errors import StenopoolError
from app.settings import Settings

log = logging.getLogger("stenopool.node")

START_S = 60.0


class Engine:
    """The node in an event loop in a thread of its own."""

    def __init__(self, make: Callable[[], WorkNode], warm: tuple[str, ...], grace_s: float) -> None:
        self._make, self._warm, self._grace_s = make, warm, grace_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._ending: asyncio.Future[None] | None = None
        self.node: WorkNode

    def start(self) -> None:
        """Build and start it.

        Raises:
            StenopoolError: it cannot be started.
        """
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result(START_S)

    async def _begin(self) -> None:
        self.node = self._make()
        await self.node.start(self._warm)

    def run(self, job_id: str) -> None:
        """Carry one job to its end."""
        asyncio.run_coroutine_threadsafe(self.node.offer(job_id), self._loop).result()

    def drain_soon(self) -> None:
        """Begin to stop, from a signal handler: what runs may end, within the grace time."""
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._ending = self._ending or asyncio.ensure_future(self.node.stop(self._grace_s))

    def stop(self) -> None:
        """End it, and its thread."""
        asyncio.run_coroutine_threadsafe(self._stopped(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stopped(self) -> None:
        self._drain()
        assert self._ending is not None
        await self._ending


def serve(settings: Settings, make: Callable[[], WorkNode], warm: tuple[str, ...]) -> int:
    """Run jobs until a signal; the exit code."""
    engine = Engine(make, warm, settings.shutdown_grace_s)
    engine.start()
    assert settings.redis_url is not None
    app = celery_app(settings.redis_url.get_secret_value())

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def run(job_id: str) -> None:
        engine.run(job_id)

    log.warning("node is up", extra={"places": engine.node.places})
    worker: Any = app.Worker(
        pool="threads",
        concurrency=engine.node.places,
        hostname=f"stenopool@{settings.node_name or socket.gethostname()}",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel=settings.log_level.upper(),
    )
    worker_shutting_down.connect(lambda **_: engine.drain_soon(), weak=False)  # Celery waits for its jobs, and they for us
    try:
        worker.start()
    finally:
        engine.stop()
    return 0


def main() -> int:
    """Check the settings, then serve."""
    settings = Settings()
    logs.configure(settings.log_level)
    if settings.engine != "celery":
        print("A node needs STENOPOOL_ENGINE=celery, REDIS_URL, DATABASE_URL and STENOPOOL_MEDIA_URL.", file=sys.stderr)
        return 2
    name = settings.node_name or f"{socket.gethostname()[:32]}-{secrets.token_hex(3)}"
    try:
        return serve(settings, lambda: build_node(settings, name), warm_models(settings))
    except StenopoolError as error:
        print(f"{error.message} {error.hint}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
