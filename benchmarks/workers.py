"""A real worker process, spoken to over its pipe without the pool."""

from __future__ import annotations

import asyncio
from typing import Any

from app.pool import messages
from app.pool.spawn import Child
from app.work import Task

PATIENCE_S = 3600.0


class Worker:
    """The far end of a child that :class:`app.pool.spawn.Spawner` has started. Failures are :class:`RuntimeError`."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._ready = self._expect("")
        self._listening = asyncio.create_task(self._listen())

    async def ready(self) -> dict[str, Any]:
        """When it has loaded its model: what it says of itself."""
        return await asyncio.wait_for(self._ready, PATIENCE_S)

    async def run(self, task: Task) -> dict[str, Any]:
        """When it has done a task: what it says of that; the result lies at ``task.result_path``."""
        done = self._expect(task.job_id)
        self.child.writer.write(messages.encode("run", task=task.to_dict()))
        return await asyncio.wait_for(done, PATIENCE_S)

    async def end(self) -> None:
        """Kill it and wait for its end."""
        self.child.kill()
        await self.child.reap()
        await self._listening

    def _expect(self, job_id: str) -> asyncio.Future[dict[str, Any]]:
        self._waiting[job_id] = asyncio.get_running_loop().create_future()
        return self._waiting[job_id]

    async def _listen(self) -> None:
        try:
            while line := await self.child.reader.readline():
                self._handle(messages.decode(line))
        except OSError:
            pass  # it was killed
        for future in self._waiting.values():
            future.set_exception(RuntimeError("the worker ended"))
            future.exception()  # seen, where nobody waits any more

    def _handle(self, message: dict[str, Any]) -> None:
        if message["type"] in ("ready", "setup_failed", "done", "failed"):
            future = self._waiting.pop(message.get("job_id", ""))
            if message["type"] in ("ready", "done"):
                future.set_result(message)
            else:
                future.set_exception(RuntimeError(f"{message['code']}: {message['message']}"))
