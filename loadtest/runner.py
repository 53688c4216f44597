"""Puts the load on the server: closed loop (so many at once) and open loop (so many per second)."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from loadtest.audio import Shelf
from loadtest.client import Target, User
from loadtest.monitor import Monitor
from loadtest.progress import Progress
from loadtest.records import Load, Record, Recording, Reply, Run, Task
from loadtest.schedule import default_requests, tasks, timed_tasks
from loadtest.verdict import Judge

_JITTER = 0.1
_PAUSE_S = 0.5
Done = Callable[[Record], None]


@dataclass(frozen=True)
class Plan:
    """What is asked for. ``requests`` and ``duration_s`` bound one run; ``tries`` is 1 where nobody comes back."""

    target: Target
    recordings: tuple[Recording, ...]
    loads: tuple[Load, ...]
    requests: int | None
    duration_s: float | None
    tries: int
    seed: int


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def now(self) -> float:
        """Seconds."""
        return time.perf_counter() - self._began


class Session:
    """What all the runs of one call share: the files, and the first answers that later ones must equal."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self._progress = progress
        self._shelf = Shelf()
        self._judge = Judge(plan.target.model)

    async def warm_up(self) -> Record:
        """The smallest file once, so that the first run does not measure how a model is loaded."""
        smallest = min(self.plan.recordings, key=lambda one: one.seconds or one.size_bytes)
        async with User(self.plan.target, 0) as user:
            return await self._serve(user, Task(0, smallest), "warm-up", Clock(), math.inf)

    async def run(self, load: Load, runs: list[Run]) -> None:
        """Put one load on the server; what came of it goes into ``runs``, even if the run is broken off."""
        records: list[Record] = []

        def done(record: Record) -> None:
            records.append(record)
            self._progress.step()

        await self._shelf.fill(self.plan.recordings)
        monitor = Monitor(self.plan.target)
        try:
            async with monitor:
                clock = Clock()
                if load.level is None:
                    await self._open(load, clock, done)
                else:
                    await self._closed(load, load.level, clock, done)
        finally:
            if records:
                records.sort(key=lambda one: one.number)
                runs.append(Run(load, tuple(records), max(one.done_s for one in records), monitor.vitals))

    def expected_requests(self, load: Load) -> int | None:
        """How many requests a run will make; ``None``: as many as fit into its duration."""
        if load.level is None:
            return len(self._timed(load))
        if self.plan.requests is None and self.plan.duration_s is None:
            return default_requests(load.level, len(self.plan.recordings))
        return self.plan.requests

    def _timed(self, load: Load) -> list[Task]:
        assert load.rate is not None
        return timed_tasks(self.plan.recordings, self.plan.seed, load.rate, self.plan.duration_s, self.plan.requests)

    @property
    def _until_s(self) -> float:
        return math.inf if self.plan.duration_s is None else self.plan.duration_s

    async def _closed(self, load: Load, level: int, clock: Clock, done: Done) -> None:
        """``level`` users, each of whom sends the next file as soon as the last one is answered."""
        todo = tasks(self.plan.recordings, self.plan.seed, self.expected_requests(load))

        async def work(number: int) -> None:
            async with User(self.plan.target, number) as user:
                while clock.now() < self._until_s and (task := next(todo, None)) is not None:
                    record = await self._serve(user, task, load.label, clock, self._until_s)
                    done(record)
                    if record.kind == "refused":  # else users who do not come back would send thousands
                        await asyncio.sleep(_PAUSE_S)

        await _together(work(number) for number in range(level))

    async def _open(self, load: Load, clock: Clock, done: Done) -> None:
        """Requests at instants that do not depend on the answers; each has a user who is free, or a new one."""
        numbers = itertools.count()
        free: list[User] = []

        async with AsyncExitStack() as users:

            async def one(task: Task) -> None:
                await asyncio.sleep((task.due_s or 0.0) - clock.now())
                user = free.pop() if free else await users.enter_async_context(User(self.plan.target, next(numbers)))
                done(await self._serve(user, task, load.label, clock, self._until_s))
                free.append(user)

            await _together(one(task) for task in self._timed(load))

    async def _serve(self, user: User, task: Task, label: str, clock: Clock, until_s: float) -> Record:
        """One request; after a refusal it is sent again when the server says so, unless the run is over by then."""
        body = await self._shelf.body(task.recording)
        rng = random.Random(f"{self.plan.seed} {task.number}")
        refusals: list[str] = []
        sent_s = clock.now()
        while True:
            began_s = clock.now()
            reply = await user.ask(task.recording, body)
            done_s = clock.now()
            if reply.kind != "refused":
                break
            refusals.append(reply.reason)
            if reply.retry_after_s is None or len(refusals) >= self.plan.tries:
                break
            wait_s = reply.retry_after_s * (1 + _JITTER * rng.random())
            await asyncio.sleep(min(wait_s, until_s - clock.now()))
            if clock.now() >= until_s:
                break
        reply = self._judge.judge(task.recording, reply)
        return _record(task, label, user.number, reply, refusals, (sent_s, began_s, done_s))


def _record(
    task: Task, label: str, user: int, reply: Reply, refusals: Sequence[str], times: tuple[float, float, float]
) -> Record:
    sent_s, began_s, done_s = times
    return Record(
        load=label,
        number=task.number,
        user=user,
        file=task.recording.name,
        kind=reply.kind,
        reason=reply.reason,
        detail=reply.detail,
        status=reply.status,
        text=reply.text,
        audio_s=reply.audio_s if reply.audio_s is not None else task.recording.seconds,
        queue_wait_s=reply.queue_wait_s,
        request_id=reply.request_id,
        tries=len(refusals) + (reply.kind != "refused"),
        refusals=tuple(refusals),
        due_s=sent_s if task.due_s is None else task.due_s,
        sent_s=sent_s,
        done_s=done_s,
        last_try_s=done_s - began_s,
    )


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them at once. The first error, or a cancellation, ends the others."""
    running = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
