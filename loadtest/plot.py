"""The picture: against the level (closed loop) or over time (open loop). matplotlib is only imported here, and late."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.records import Record, Run, Unusable
from loadtest.stats import Summary

_BLUE, _ORANGE, _RED, _GREY = "#1f5fa8", "#d9822b", "#b3261e", "#8a8f98"
_LATENCY = (("p50", _BLUE, "o"), ("p95", _ORANGE, "s"), ("p99", _RED, "^"))
_KINDS = (("ok", _BLUE, "o"), ("refused", _ORANGE, "v"), ("wrong", _RED, "x"), ("lost", "black", "x"))
_SLICES = 15


def draw(path: Path, title: str, runs: Sequence[Run], summaries: Sequence[Summary], recommended: int | None) -> None:
    """Write a PNG.

    Raises:
        Unusable: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Unusable("No plot: matplotlib is not installed (pip install matplotlib).") from None
    open_loop = runs[0].load.level is None
    figure = Figure(figsize=(8, 9 if open_loop else 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(3 if open_loop else 2, 1, sharex=True)
    if open_loop:
        _over_time(panels, runs[0])
    else:
        _against_level(panels, summaries, recommended)
    for axes in panels:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.grid(color="#d8dbe0", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="best")
    figure.suptitle(title)
    figure.savefig(path, format="png", dpi=120)


def _against_level(panels: Any, summaries: Sequence[Summary], recommended: int | None) -> None:
    upper, lower = panels
    levels = [one.load.level for one in summaries]
    with_latency = [one for one in summaries if one.latency is not None]
    for name, colour, marker in _LATENCY:
        values = [getattr(one.latency, name) for one in with_latency]
        upper.plot([one.load.level for one in with_latency], values, color=colour, marker=marker, label=name)
    waits = [(one.load.level, one.queue_wait.p50) for one in summaries if one.queue_wait is not None]
    if waits:
        upper.plot(*zip(*waits, strict=True), color=_GREY, linestyle="--", marker=".", label="p50 in the server's line")
    upper.set_ylabel("latency of right answers, s")
    lower.plot(levels, [one.audio_per_s for one in summaries], color=_BLUE, marker="o", label="throughput")
    if recommended is not None:
        lower.axvline(recommended, color=_GREY, linestyle=":", label=f"recommended: {recommended}")
    if bad := [one for one in summaries if one.failed]:
        where = [one.load.level for one in bad]
        lower.plot(where, [one.audio_per_s for one in bad], "x", color=_RED, ms=12, mew=2, label="wrong or lost")
    lower.set_ylabel("throughput, s of audio per s")
    lower.set_xlabel("requests at once")
    lower.set_xticks(levels)


def _over_time(panels: Any, run: Run) -> None:
    upper, middle, lower = panels
    for kind, colour, marker in _KINDS:
        some = [record for record in run.records if record.kind == kind]
        if some:
            times, waits = [one.due_s for one in some], [one.latency_s for one in some]
            upper.scatter(times, waits, s=18, color=colour, marker=marker, label=f"{kind} ({len(some)})")
    upper.set_ylabel("latency, s")
    width_s = max(run.wall_s, 1e-9) / _SLICES
    edges = [number * width_s for number in range(_SLICES + 1)]
    sent = [(one.due_s, one.audio_s or 0.0) for one in run.records]
    served = [(one.done_s, one.audio_s or 0.0) for one in run.records if one.kind == "ok"]
    known = all(one.audio_s is not None for one in run.records)
    if known:
        middle.stairs(_rates(sent, width_s), edges, color=_GREY, label="arriving")
    middle.stairs(_rates(served, width_s), edges, color=_BLUE, linewidth=1.8, label="transcribed")
    lower.plot(*zip(*_in_flight(run.records), strict=True), color=_ORANGE, drawstyle="steps-post", label="under way")
    middle.set_ylabel("throughput, s of audio per s")
    lower.set_ylabel("requests")
    lower.set_xlabel("seconds from the start")


def _rates(events: Sequence[tuple[float, float]], width_s: float) -> list[float]:
    """Sums of the second numbers per second, in slices of ``width_s`` by the first numbers."""
    sums = [0.0] * _SLICES
    for when, amount in events:
        sums[min(_SLICES - 1, int(when / width_s))] += amount / width_s
    return sums


def _in_flight(records: Sequence[Record]) -> list[tuple[float, int]]:
    """How many requests were under way, from instant to instant."""
    steps = sorted([(one.due_s, 1) for one in records] + [(one.done_s, -1) for one in records])
    curve, now = [(0.0, 0)], 0
    for when, step in steps:
        now += step
        curve.append((when, now))
    return curve
