"""The table on the terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from loadtest.records import Record
from loadtest.stats import Spread, Summary

_HEAD = ("at once", "requests", "ok", "wrong", "lost", "refused", "total s")
_LATENCY = ("min", "avg", "p50", "p95", "p99")
_TAIL = ("queue p50", "queue p95", "audio s/s", "files/h", "memory", "health ms")
NOTE = (
    "Times in seconds; latency and queue wait (in the server's line) of right answers. audio s/s: seconds of audio "
    "transcribed per second."
)


def render(summaries: Sequence[Summary]) -> str:
    """One line for each load, under a head, and below it why requests were refused, wrong or lost."""
    head = (("rate",) if summaries and summaries[0].load.level is None else _HEAD[:1]) + _HEAD[1:] + _LATENCY + _TAIL
    rows = [head, *(_row(one) for one in summaries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, NOTE, *reasons(summaries)])


def _row(one: Summary) -> tuple[str, ...]:
    counts = (one.requests, one.ok, one.wrong, one.lost, one.refused)
    latency = _cells(one.latency, _LATENCY)
    health_s = one.vitals.health_max_s
    return (
        one.load.label,
        *(str(count) for count in counts),
        f"{one.wall_s:.1f}",
        *latency,
        *_cells(one.queue_wait, ("p50", "p95")),
        f"{one.audio_per_s:.2f}",
        f"{one.files_per_hour:.0f}",
        memory(one),
        "-" if health_s is None else f"{1000 * health_s:.0f}",
    )


def _cells(values: Spread | None, names: Iterable[str]) -> list[str]:
    return ["-" if values is None else f"{getattr(values, name):.2f}" for name in names]


def memory(one: Summary) -> str:
    """Peak in GB and as a share of the limit."""
    peak = one.vitals.memory_peak_bytes
    if peak is None:
        return "-"
    share = one.memory_share
    return f"{peak / 1e9:.2f} GB" + ("" if share is None else f" {100 * share:.0f}%")


def reasons(summaries: Sequence[Summary]) -> list[str]:
    """``level 8: refused 3 × too_many_active; came back after 5 × too_many_active``."""
    lines = []
    for one in summaries:
        parts = [
            f"{what} {', '.join(f'{count} × {reason}' for reason, count in by.items())}"
            for what, by in (
                ("refused", one.refused_by),
                ("came back after", one.retried),
                ("wrong", one.wrong_by),
                ("lost", one.lost_by),
            )
            if by
        ]
        if parts:
            where = f"level {one.load.label}" if one.load.level is not None else one.load.label
            lines.append(f"{where}: {'; '.join(parts)}")
    return lines


def failures(records: Iterable[Record], most: int = 5) -> list[str]:
    """The first wrong and lost requests, one line each."""
    bad = [record for record in records if record.kind in ("wrong", "lost")]
    lines = [_failure(record) for record in bad[:most]]
    return [*lines, f"  … and {len(bad) - most} more (--json lists all)"] if len(bad) > most else lines


def _failure(record: Record) -> str:
    request = f", request id {record.request_id}" if record.request_id else ""
    detail = f": {record.detail}" if record.detail else ""
    return f"  {record.kind}, {record.file} at {record.load}: {record.reason}{detail}{request}"
