"""Records, runs and summaries with defaults, for the tests of the load tool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loadtest.records import Load, Record, Recording, Run, Vitals
from loadtest.stats import Summary, summarize

NO_VITALS = Vitals()


def recording(name: str = "a.wav", **changes: Any) -> Recording:
    own: dict[str, Any] = {"name": name, "path": Path(name), "size_bytes": 1}
    return Recording(**(own | changes))


def record(number: int = 0, **changes: Any) -> Record:
    """A right answer after one second, unless changed."""
    own: dict[str, Any] = {
        "load": "1",
        "number": number,
        "user": 0,
        "file": "a.wav",
        "kind": "ok",
        "reason": "",
        "detail": "",
        "status": 200,
        "text": "hello",
        "audio_s": 4.0,
        "queue_wait_s": None,
        "request_id": "r1",
        "tries": 1,
        "refusals": (),
        "due_s": 0.0,
        "sent_s": 0.0,
        "done_s": 1.0,
        "last_try_s": 1.0,
    }
    return Record(**(own | changes))


def summary(level: int, audio_per_s: float, latency_s: float = 1.0, vitals: Vitals = NO_VITALS, **changes: Any) -> Summary:
    """Four users' worth of answers at ``level`` that all took ``latency_s``, with this throughput."""
    wall_s = 100.0
    count = 4 * level
    records = tuple(
        record(n, done_s=latency_s, audio_s=audio_per_s * wall_s / count, load=str(level), **changes) for n in range(count)
    )
    made = summarize(Run(Load(level=level), records, wall_s, vitals))
    return Summary(**(vars(made) | {"busy": 1.0}))
