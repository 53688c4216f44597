"""Which level to set, and why, in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.records import Load
from loadtest.stats import Summary, percentile

CLOSE_TO_BEST = 0.95
MOST_MEMORY = 0.90
_LEAST_BUSY = 0.75
_QUEUED_SHARE = 0.35
_MOST_LATE_S = 0.1
_BRIEF_S = 20.0
_FALLING_BEHIND = 2.0
_LEAST_TO_COMPARE = 4


@dataclass(frozen=True)
class Advice:
    """``level`` is the recommended setting, ``None`` where nothing can be recommended."""

    level: int | None
    text: str
    warnings: tuple[str, ...] = ()


INTERRUPTED = Advice(None, "The test was interrupted, so no setting is recommended.")


def recommend(summaries: Sequence[Summary], latencies: Sequence[float] = ()) -> Advice:
    """The smallest level whose throughput comes within 5 % of the best; for an open loop, whether the server kept up.

    ``latencies``: those of the right answers of an open loop in seconds, in the order of arrival.
    """
    warnings = tuple(_warnings(summaries))
    if summaries and summaries[0].load.level is None:
        return Advice(None, _kept_up(summaries[0], latencies), warnings)
    clean = sorted((one for one in summaries if one.ok and not one.failed), key=_level)
    if not clean:
        return Advice(None, "No setting can be recommended: at no level did the server only give right answers.", warnings)
    if len(summaries) == 1:
        return Advice(None, "One level alone shows no knee: --test-all compares several and recommends a setting.", warnings)
    best = max(clean, key=lambda one: one.audio_per_s)
    chosen = next(one for one in clean if one.audio_per_s >= CLOSE_TO_BEST * best.audio_per_s)
    text = f"Recommended: MAX_CONCURRENT_TRANSCRIPTIONS={_level(chosen)}. {_reason(chosen, best, clean)}"
    return Advice(_level(chosen), text, warnings + tuple(_doubts(chosen, clean)))


def _level(summary: Summary) -> int:
    assert summary.load.level is not None
    return summary.load.level


def _reason(chosen: Summary, best: Summary, clean: Sequence[Summary]) -> str:
    rate = f"{_level(chosen)} at once gives {chosen.audio_per_s:.2f} s of audio per second"
    if chosen is best:
        share = "the best of all levels"
    else:
        share = f"{100 * chosen.audio_per_s / best.audio_per_s:.0f} % of the best ({best.audio_per_s:.2f} at {_level(best)})"
    highest = clean[-1]
    if highest is chosen:
        return f"{rate}, {share}. It was the highest level tried: more may give more yet (--levels)."
    past = f"{_level(highest)} at once gives {highest.audio_per_s:.2f}"
    if chosen.latency is None or highest.latency is None:
        return f"{rate}, {share}; {past}."
    if highest.latency.p95 <= chosen.latency.p95:
        return f"{rate}, {share}; {past}: more at once brings nothing."
    waits = f"p95 goes from {chosen.latency.p95:.2f} s to {highest.latency.p95:.2f} s"
    return f"{rate}, {share}; {past}, while {waits}: past the knee you buy only latency."


def _doubts(chosen: Summary, clean: Sequence[Summary]) -> list[str]:
    """What makes the recommendation less sure."""
    doubts = []
    if idle := [one.load.label for one in clean if one.busy < _LEAST_BUSY]:
        doubts.append(
            f"At level {', '.join(idle)} some users had nothing left to send for more than a quarter of the time, so the "
            "throughput there is understated: give more --requests."
        )
    if brief := [one.wall_s for one in clean if one.wall_s < _BRIEF_S]:
        doubts.append(
            f"A level took as little as {min(brief):.0f} s. Runs shorter than {_BRIEF_S:g} s easily differ by more than "
            "the 5 % that the recommendation goes by: give --requests or --duration for a surer one."
        )
    if limited := [one for one in clean if _level(one) >= _level(chosen) and _at_the_limit(one)]:
        doubts.append(
            f"From level {limited[0].load.label} on, requests waited in the server's own line or were refused: its present "
            "MAX_CONCURRENT_TRANSCRIPTIONS was reached. To try more at work at once, raise it and test again."
        )
    return doubts


def _at_the_limit(summary: Summary) -> bool:
    """Did the server hold requests back, by its own rules?"""
    if summary.refused or summary.retried:
        return True
    waits, latency = summary.queue_wait, summary.latency
    return waits is not None and latency is not None and waits.avg > _QUEUED_SHARE * latency.avg


def _warnings(summaries: Sequence[Summary]) -> list[str]:
    found = []
    for one in summaries:
        where = _place(one.load)
        if one.memory_share is not None and one.memory_share > MOST_MEMORY:
            share = f"{100 * one.memory_share:.0f} % of its limit"
            found.append(f"{where} memory was at {share}: take a lower level or a smaller model.")
        if one.failed:
            found.append(f"{where} {one.wrong} answers were wrong and {one.lost} requests were lost.")
        if one.vitals.health_failed:
            found.append(f"{where} /health did not answer {one.vitals.health_failed} times.")
        if one.late_s > _MOST_LATE_S:
            found.append(
                f"{where} this tool sent a request {one.late_s:.2f} s too late: the client machine is overloaded. "
                "(Latency counts from the planned instant.)"
            )
    return found


def _place(load: Load) -> str:
    return f"At level {load.label}" if load.level is not None else f"At {load.rate:g} requests per second"


def _kept_up(summary: Summary, latencies: Sequence[float]) -> str:
    rate = f"{summary.load.rate:g} requests per second"
    if not summary.ok:
        return f"At {rate} the server gave no right answer."
    if summary.refused:
        share = 100 * summary.refused / summary.requests
        served = f"served {summary.files_per_hour:.0f} files per hour"
        return f"{rate} are too many: the server refused {share:.0f} % of the requests and {served}."
    half = len(latencies) // 2
    early, late = (percentile(sorted(part), 0.5) if part else 0.0 for part in (latencies[:half], latencies[half:]))
    if half >= _LEAST_TO_COMPARE and late > _FALLING_BEHIND * early:
        return (
            f"At {rate} the server fell behind: the median latency was {early:.2f} s in the first half of the run and "
            f"{late:.2f} s in the second."
        )
    if summary.retried:
        times = sum(summary.retried.values())
        return f"The server served all of {rate}, but it refused {times} times first: callers had to come back."
    return f"The server kept up with {rate}: nothing was refused, and latency did not grow in the course of the run."
