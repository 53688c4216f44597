"""Watches the server while it is under load: answer times of /health, memory from /capacity."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from loadtest.client import Target
from loadtest.records import Vitals

_HEALTH_EVERY_S = 0.2
_CAPACITY_EVERY_S = 0.5
_TIMEOUT_S = 10.0


class MemoryGauge:
    """The peak during a run, from several looks at ``GET /capacity``. Pure.

    ``peak_bytes`` is the peak since the server started, so it counts where it rose during the run; else the highest
    ``used_bytes`` counts, and where the server does not tell that either, ``peak_bytes`` after all.
    """

    def __init__(self) -> None:
        self._peaks: list[int] = []
        self._used: list[int] = []
        self.limit_bytes: int | None = None

    def look(self, answer: Any) -> None:
        """Take an answer of ``GET /capacity``."""
        memory = answer.get("memory") if isinstance(answer, dict) else None
        if not isinstance(memory, dict):
            return
        for name, kept in (("peak_bytes", self._peaks), ("used_bytes", self._used)):
            if isinstance(memory.get(name), int):
                kept.append(memory[name])
        if isinstance(memory.get("limit_bytes"), int):
            self.limit_bytes = memory["limit_bytes"]

    @property
    def peak_bytes(self) -> int | None:
        """``None``: the server did not tell."""
        if self._peaks and (self._peaks[-1] > self._peaks[0] or not self._used):
            return max(self._peaks)
        return max(self._used, default=None)


class Monitor:
    """Asks while the ``async with`` block runs; ``vitals`` afterwards."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._gauge = MemoryGauge()
        self._has_capacity = True
        self._health: list[float] = []
        self._failed = 0

    async def __aenter__(self) -> Monitor:
        self._client = self._target.client(_TIMEOUT_S)
        await self._capacity()
        self._tasks = [
            asyncio.create_task(_repeat(self._ask_health, _HEALTH_EVERY_S)),
            asyncio.create_task(_repeat(self._capacity, _CAPACITY_EVERY_S)),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._capacity()
        finally:
            await self._client.aclose()

    @property
    def vitals(self) -> Vitals:
        """What was seen."""
        return Vitals(self._gauge.peak_bytes, self._gauge.limit_bytes, max(self._health, default=None), self._failed)

    async def _ask_health(self) -> None:
        began = time.perf_counter()
        try:
            alive = (await self._client.get("/health")).status_code == 200
        except httpx.RequestError:
            alive = False
        if alive:
            self._health.append(time.perf_counter() - began)
        else:
            self._failed += 1

    async def _capacity(self) -> None:
        if not self._has_capacity:
            return
        try:
            answer = await self._client.get("/capacity")
        except httpx.RequestError:
            return
        if answer.status_code == 200:
            try:
                self._gauge.look(answer.json())
            except ValueError:
                self._has_capacity = False
        elif answer.status_code in (401, 403, 404, 405, 501):
            self._has_capacity = False


async def _repeat(ask: Callable[[], Awaitable[None]], every_s: float) -> None:
    while True:
        await ask()
        await asyncio.sleep(every_s)
