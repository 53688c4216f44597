"""Figures of a run. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.records import Kind, Load, Record, Run, Vitals


@dataclass(frozen=True)
class Spread:
    """Distribution of some times, in seconds. Percentiles are values that were seen (nearest rank)."""

    min: float
    avg: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class Summary:
    """The figures of one load. Latency, queue wait and throughput count right answers only.

    ``busy`` is the share of the time in which the users had a request under way: where it is low, there were too few
    requests for the level. ``retried`` counts refusals after which the client came back; ``refused_by`` those that were
    the last word. ``late_s`` is by how much this tool itself sent a request too late (open loop).
    """

    load: Load
    requests: int
    ok: int
    wrong: int
    lost: int
    refused: int
    wrong_by: dict[str, int]
    lost_by: dict[str, int]
    refused_by: dict[str, int]
    retried: dict[str, int]
    wall_s: float
    latency: Spread | None
    queue_wait: Spread | None
    audio_per_s: float
    files_per_hour: float
    busy: float
    late_s: float
    vitals: Vitals

    @property
    def memory_share(self) -> float | None:
        """Peak memory as a share of the limit, if the server tells both."""
        peak, limit = self.vitals.memory_peak_bytes, self.vitals.memory_limit_bytes
        return peak / limit if peak is not None and limit else None

    @property
    def failed(self) -> int:
        """Requests with a wrong answer or none."""
        return self.wrong + self.lost


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that at least ``share`` (0 to 1) of the ``ordered`` values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> Spread | None:
    """``None`` where there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    p50, p95, p99 = (percentile(ordered, share) for share in (0.5, 0.95, 0.99))
    return Spread(ordered[0], sum(ordered) / len(ordered), p50, p95, p99, ordered[-1])


def summarize(run: Run) -> Summary:
    """The figures of ``run``."""
    kinds = Counter(record.kind for record in run.records)
    right = [record for record in run.records if record.kind == "ok"]
    wall_s = max(run.wall_s, 1e-9)
    retried = Counter(reason for record in run.records for reason in _obeyed(record))
    return Summary(
        load=run.load,
        requests=len(run.records),
        ok=kinds["ok"],
        wrong=kinds["wrong"],
        lost=kinds["lost"],
        refused=kinds["refused"],
        wrong_by=_reasons(run.records, "wrong"),
        lost_by=_reasons(run.records, "lost"),
        refused_by=_reasons(run.records, "refused"),
        retried=dict(retried.most_common()),
        wall_s=run.wall_s,
        latency=spread([record.latency_s for record in right]),
        queue_wait=spread([record.queue_wait_s for record in right if record.queue_wait_s is not None]),
        audio_per_s=sum(record.audio_s or 0.0 for record in right) / wall_s,
        files_per_hour=len(right) * 3600 / wall_s,
        busy=sum(record.done_s - record.sent_s for record in run.records) / (wall_s * (run.load.level or 1)),
        late_s=max((record.sent_s - record.due_s for record in run.records), default=0.0),
        vitals=run.vitals,
    )


def _reasons(records: Sequence[Record], kind: Kind) -> dict[str, int]:
    return dict(Counter(record.reason for record in records if record.kind == kind).most_common())


def _obeyed(record: Record) -> tuple[str, ...]:
    return record.refusals[:-1] if record.kind == "refused" else record.refusals
