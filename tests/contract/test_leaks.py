"""Starting and stopping the whole application again and again leaves nothing behind, and never takes long."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from pathlib import Path

import psutil

from tests.fakes.server import fake_service, make_settings, serving, wav

CYCLES = 10
DEADLINE_S = 5.0


def held() -> tuple[int, int, int]:
    """Descriptors, threads (but for the bounded pool of the loop itself), children of this process."""
    gc.collect()
    threads = [thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]
    return len(os.listdir("/proc/self/fd")), len(threads), len(psutil.Process().children(recursive=True))


def opened() -> list[str]:
    """What the descriptors lead to, to be told where there are too many."""
    return sorted(str(file) for number in Path("/proc/self/fd").glob("*") if (file := number.resolve()) != number)


async def settled(limit: tuple[int, int, int]) -> tuple[int, int, int]:
    """What is held once ends that are under way have come, waiting for them for two seconds at most."""
    until = time.monotonic() + 2
    while any(now > most for now, most in zip(held(), limit, strict=True)) and time.monotonic() < until:
        await asyncio.sleep(0.02)
    return held()


async def cycle(folder: Path, number: int) -> None:
    """One life of a server: by turns unused, after a job, in the middle of one."""
    async with serving(make_settings(folder), fake_service) as live:
        if number % 3 == 1:
            assert (await live.client.post("/transcribe", content=wav(streamed=True))).status_code == 200
        if number % 3 == 2:
            job = asyncio.create_task(live.client.post("/transcribe?initial_prompt=sleep:60", content=wav(streamed=True)))
            while not live.busy():
                await asyncio.sleep(0.01)
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)


async def test_ten_lives_of_the_application_leak_nothing_and_each_starts_and_stops_in_time(tmp_path: Path) -> None:
    for number in range(3):
        await asyncio.wait_for(cycle(tmp_path, number), 15)
    before = await settled((0, 0, 0))
    for number in range(CYCLES):
        began = time.monotonic()
        await asyncio.wait_for(cycle(tmp_path, number), DEADLINE_S * 3)
        assert time.monotonic() - began < DEADLINE_S, number
    after = await settled(before)
    assert all(now <= most for now, most in zip(after, before, strict=True)), (before, after, opened())
    assert os.listdir(tmp_path / "data" / "jobs") == []


async def test_requests_leak_no_descriptor_thread_or_process(tmp_path: Path) -> None:
    async with serving(make_settings(tmp_path), fake_service) as live:
        bad = [
            live.client.post("/transcribe", content=b"nonsense"),
            live.client.post("/transcribe?initial_prompt=fail", content=wav(streamed=True)),
            live.client.post("/nope", content=b"x" * 100_000),
            live.client.post("/transcribe?audio_file=nothing", content=b""),
        ]
        for request in bad:
            await request
        await live.settled()
        before = await settled((0, 0, 0))
        for _ in range(5):
            await asyncio.gather(
                *(live.client.post("/transcribe", content=wav(streamed=streamed)) for streamed in (False, True, False)),
                live.client.post("/transcribe", content=b"nonsense"),
                live.client.post("/transcribe?initial_prompt=fail", content=wav(streamed=True)),
                live.client.post("/nope", content=b"x" * 100_000),
            )
        await live.settled()
        limit = before[0] + 12, before[1], before[2]  # connections that the client keeps, two ends each
        after = await settled(limit)
        assert all(now <= most for now, most in zip(after, limit, strict=True)), (before, after, opened())
