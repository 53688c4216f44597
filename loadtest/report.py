"""The JSON report."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from loadtest.advice import Advice
from loadtest.preflight import shown
from loadtest.records import Record, Run
from loadtest.runner import Plan
from loadtest.stats import Summary

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Everything that a call of the tool found out. ``complete`` is false where somebody pressed Ctrl-C."""

    started: datetime
    model: str | None
    warm_up: Record | None
    runs: tuple[Run, ...]
    summaries: tuple[Summary, ...]
    advice: Advice
    complete: bool = True

    @property
    def records(self) -> list[Record]:
        """Every request, the warm-up first."""
        first = [self.warm_up] if self.warm_up else []
        return [*first, *(record for run in self.runs for record in run.records)]


def as_json(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """The whole report. It never holds the API key."""
    return {
        "format": FORMAT,
        "started": outcome.started.isoformat(timespec="seconds"),
        "complete": outcome.complete,
        "url": shown(plan.target.url),
        "model": outcome.model,
        "mode": "open" if plan.loads[0].level is None else "closed",
        "settings": {
            "requests": plan.requests,
            "duration_s": plan.duration_s,
            "timeout_s": plan.target.timeout_s,
            "tries": plan.tries,
            "seed": plan.seed,
        },
        "client": {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"},
        "files": [
            {"name": one.name, "size_bytes": one.size_bytes, "seconds": one.seconds, "expected": one.expected}
            for one in plan.recordings
        ],
        "runs": [_summary(summary) for summary in outcome.summaries],
        "advice": dataclasses.asdict(outcome.advice),
        "requests": [_record(record) for record in outcome.records],
    }


def write(path: Path, plan: Plan, outcome: Outcome) -> None:
    """Write the report as UTF-8."""
    path.write_text(json.dumps(as_json(plan, outcome), indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def _summary(summary: Summary) -> dict[str, Any]:
    data = dataclasses.asdict(summary)
    load, vitals = data.pop("load"), data.pop("vitals")
    whole = {"label": summary.load.label, **load, **data, **vitals, "memory_share": summary.memory_share}
    return {name: _rounded(value) for name, value in whole.items()}


def _record(record: Record) -> dict[str, Any]:
    whole = {**dataclasses.asdict(record), "latency_s": record.latency_s}
    return {name: _rounded(value) for name, value in whole.items()}


def _rounded(value: Any) -> Any:
    """Floats to four digits after the point."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def latencies(runs: Sequence[Run]) -> list[float]:
    """Latencies of the right answers in the order of the requests, in seconds."""
    return [record.latency_s for run in runs for record in run.records if record.kind == "ok"]
