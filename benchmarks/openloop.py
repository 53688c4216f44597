"""Open-loop load: requests leave at the times of a schedule, whether earlier ones have been answered or not.

A closed loop hides overload: its clients wait for the server. Latency counts from the scheduled time, so a late client does
not hide it either (coordinated omission).
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True)
class Shot:
    """One request to send: when (seconds from the start), which file, with which key."""

    at: float
    file: int
    key: int = 0


@dataclass
class Record:
    """What became of a request. Times in seconds from the start; ``latency_s`` from the scheduled moment to the answer."""

    shot: Shot
    status: int
    code: str
    latency_s: float
    ended_at: float
    right: bool
    tries: int = 1
    retry_after_s: float | None = None
    text: str = ""

    @property
    def ok(self) -> bool:
        """Answered with the right transcript."""
        return self.status == 200 and self.right

    @property
    def lost(self) -> bool:
        """Neither a right transcript nor an honest refusal."""
        return not self.ok and not (self.status in (429, 503, 504, 507) and self.code not in ("", "worker_lost"))


def poisson(rate: float, duration_s: float, files: int, key: int, chance: random.Random) -> list[Shot]:
    """Arrivals of a Poisson process of ``rate`` per second that had as many arrivals as are expected of it.

    Given their number, such arrivals are independent and uniform; so a short phase offers what it says. Which file comes is
    dealt from one shuffled deck after another.
    """
    times = sorted(chance.uniform(0.0, duration_s) for _ in range(round(rate * duration_s)))
    return [Shot(at, file, key) for at, file in zip(times, dealt(files, chance), strict=False)]


def dealt(files: int, chance: random.Random) -> Iterator[int]:
    """Every file once in some order, and again, for ever: so that two phases have hardly different mixtures of lengths."""
    while True:
        yield from chance.sample(range(files), files)


class Client:
    """Sends shots. ``target(file)`` is the path and query to POST to; ``expected(file)`` the right text or None."""

    def __init__(
        self,
        url: str,
        keys: tuple[str, ...],
        target: Callable[[int], str],
        expected: Callable[[int], str | None],
        timeout_s: float,
        max_tries: int = 1,
    ) -> None:
        self._url, self._keys, self._target, self._expected = url, keys, target, expected
        self._timeout_s, self._max_tries = timeout_s, max_tries
        self.records: list[Record] = []
        self.retries: list[bool] = []
        self.told: list[float] = []

    async def run(self, shots: list[Shot]) -> list[Record]:
        """Send everything; the records in the order of their ends."""
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            began = time.monotonic()
            tasks = []
            for shot in sorted(shots, key=lambda one: one.at):
                await asyncio.sleep(max(0.0, began + shot.at - time.monotonic()))
                tasks.append(asyncio.create_task(self._one(session, shot, began)))
            await asyncio.gather(*tasks)
        return self.records

    async def _one(self, session: aiohttp.ClientSession, shot: Shot, began: float) -> None:
        scheduled = began + shot.at
        for number in range(1, self._max_tries + 1):
            status, code, text, retry_after_s = await self._post(session, shot)
            if number > 1:
                self.retries.append(status != 429)
            refused = status == 429 and retry_after_s is not None
            if refused:
                self.told.append(retry_after_s or 0.0)
            if not refused or number == self._max_tries:
                break
            await asyncio.sleep(retry_after_s or 1.0)
            scheduled = time.monotonic()
        now = time.monotonic()
        right = status == 200 and self._expected(shot.file) in (None, text)
        latency_s, ended_at = now - scheduled, now - began
        self.records.append(Record(shot, status, code, latency_s, ended_at, right, number, retry_after_s, text))

    async def _post(self, session: aiohttp.ClientSession, shot: Shot) -> tuple[int, str, str, float | None]:
        try:
            headers = {"X-API-Key": self._keys[shot.key]}
            async with session.post(self._url + self._target(shot.file), headers=headers) as answer:
                body: dict[str, Any] = json.loads(await answer.read())
                after = answer.headers.get("retry-after-ms")
                code = body.get("error", {}).get("code", "")
                return answer.status, code, body.get("text", ""), int(after) / 1000 if after else None
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError, OSError):
            return 0, "", "", None


async def probe_health(url: str, stop: asyncio.Event, interval_s: float = 0.1) -> list[float]:
    """Latencies of GET /health, seconds, until ``stop`` is set."""
    found: list[float] = []
    async with aiohttp.ClientSession() as session:
        while not stop.is_set():
            began = time.monotonic()
            async with session.get(url + "/health") as answer:
                await answer.read()
            found.append(time.monotonic() - began)
            await asyncio.sleep(interval_s)
    return found


def percentile(values: list[float], share: float) -> float:
    """Nearest-rank percentile; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
