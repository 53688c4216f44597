"""The parts of the overload benchmark beside plain overload: clients that obey, slow uploads, one key that floods."""

from __future__ import annotations

import asyncio
import random
import statistics
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from benchmarks.openloop import Record, percentile, poisson, probe_health
from benchmarks.serving import Server

if TYPE_CHECKING:
    from benchmarks.overload import Bench

UPLOADS = 50
UPLOAD_BYTES = 4_000_000
NORMAL_KEYS = 9
NORMAL_LOAD = 0.7
FLOOD = 50


async def obeying(bench: Bench, server: Server) -> dict[str, Any]:
    """Twice the capacity for one and a half phases; every refused client waits as long as it was told and comes again."""
    client = bench.client(server, timeout_s=600, max_tries=20)
    shots = poisson(2 * bench.capacity, bench.phase_s * 1.5, len(bench.lengths), 1, random.Random(7))
    records = await client.run(shots)
    return {
        "requests": len(records),
        "ok": sum(one.ok for one in records),
        "tries": len(client.retries),
        "admitted_on_the_try_told": statistics.fmean(client.retries) if client.retries else None,
        "longest_retry_after_s": max(client.told, default=0.0),
        "median_retry_after_s": statistics.median(client.told) if client.told else 0.0,
        "lost": sum(one.lost for one in records),
    }


async def uploads(bench: Bench, server: Server) -> dict[str, Any]:
    """50 uploads that come in slowly, beside twice the capacity: /health, and memory of the API process."""
    before = server.api_rss()
    stop = asyncio.Event()
    writers = [await _slow_upload(server, stop) for _ in range(UPLOADS)]
    stop_health = asyncio.Event()
    health = asyncio.create_task(probe_health(server.url, stop_health))
    client = bench.client(server, timeout_s=300)
    load = asyncio.create_task(
        client.run(poisson(2 * bench.capacity, bench.phase_s * 2, len(bench.lengths), 1, random.Random(9)))
    )
    rss, inside = [], []
    for _ in range(int(bench.phase_s * 2)):
        await asyncio.sleep(1)
        rss.append(server.api_rss())
        inside.append((await asyncio.to_thread(server.get, "/capacity"))["queue"])
    stop_health.set()
    latencies = await health
    stop.set()
    await asyncio.gather(*writers)
    await load
    return {
        "uploads_open": UPLOADS,
        "waiting_median": statistics.median(one["waiting"] for one in inside),
        "running_median": statistics.median(one["running"] for one in inside),
        "busy_share": statistics.fmean(one["running"] > 0 for one in inside),
        "refused": inside[-1]["refused"],
        "health_probes": len(latencies),
        "health_p50_ms": percentile(latencies, 0.5) * 1000,
        "health_p99_ms": percentile(latencies, 0.99) * 1000,
        "health_max_ms": max(latencies) * 1000,
        "api_rss_before_mb": before / 1e6,
        "api_rss_most_mb": max(rss) / 1e6,
        "api_rss_quarters_mb": [statistics.median(part) / 1e6 for part in _quarters(rss)],
    }


def _quarters(values: list[int]) -> list[list[int]]:
    size = len(values) // 4
    return [values[part * size : (part + 1) * size] for part in range(4)]


async def _slow_upload(server: Server, stop: asyncio.Event) -> asyncio.Task[None]:
    parts = urlsplit(server.url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = (
        f"POST /transcribe?model_size=demo HTTP/1.1\r\nHost: x\r\nX-API-Key: {server.keys[0]}\r\n"
        f"Content-Type: audio/wav\r\nContent-Length: {UPLOAD_BYTES}\r\n\r\n"
    )
    writer.write(head.encode())

    async def drip() -> None:
        sent = 0
        while not stop.is_set() and sent < UPLOAD_BYTES - 20_000:
            writer.write(bytes(8_000))
            sent += 8_000
            await writer.drain()
            await asyncio.sleep(0.25)
        await stop.wait()
        writer.transport.abort()

    return asyncio.create_task(drip())


async def flood(bench: Bench, server: Server) -> dict[str, Any]:
    """Nine keys at 0.7 of the capacity together, alone and then beside one that sends 50 times what one of them sends."""
    rate = NORMAL_LOAD * bench.capacity / NORMAL_KEYS
    end = bench.phase_s * 2
    normal = [
        shot for key in range(1, NORMAL_KEYS + 1) for shot in poisson(rate, end, len(bench.lengths), key, random.Random(key))
    ]
    flooding = poisson(FLOOD * rate, end, len(bench.lengths), 0, random.Random(99))
    quiet = await bench.client(server).run(normal)
    beside = await bench.client(server).run(normal + flooding)
    mine = [one for one in beside if one.shot.key]
    shares = [_share(mine, key) for key in sorted({one.shot.key for one in mine})]
    return {
        "quiet_p50_s": percentile([one.latency_s for one in quiet if one.ok], 0.5),
        "quiet_p95_s": percentile([one.latency_s for one in quiet if one.ok], 0.95),
        "quiet_p99_s": percentile([one.latency_s for one in quiet if one.ok], 0.99),
        "flooded_p50_s": percentile([one.latency_s for one in mine if one.ok], 0.5),
        "flooded_p95_s": percentile([one.latency_s for one in mine if one.ok], 0.95),
        "flooded_p99_s": percentile([one.latency_s for one in mine if one.ok], 0.99),
        "normal_requests": len(normal),
        "normal_ok_quiet": sum(one.ok for one in quiet),
        "normal_ok_flooded": sum(one.ok for one in mine),
        "flooder_requests": len(flooding),
        "flooder_ok": sum(one.ok for one in beside if not one.shot.key),
        "jain": sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares)),
        "lost": sum(one.lost for one in beside),
    }


def _share(records: list[Record], key: int) -> float:
    mine = [one for one in records if one.shot.key == key]
    return sum(one.ok for one in mine) / len(mine)
