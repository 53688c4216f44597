"""What a job takes, in bytes and in seconds: the shipped table, corrected by what was measured on this machine. Pure.

Bytes are predicted so that hardly any job needs more, seconds so that the error is small either way. Not for several
threads.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from app.admission import prior, table
from app.admission.estimate import GARBLED, Line, Peak, remembered
from app.admission.prior import Batches, Cost, Footprint, Work
from app.admission.uploads import Uploads

__all__ = ["Batches", "Cost", "CostModel", "Footprint", "Work"]

VERSION = 5
"""Of what :meth:`CostModel.dump` gives. Raise it where the formulas of ``prior.py`` change: ratios to them are kept."""
MAX_KINDS = 256
WORKER_TRUST = 3
"""Workers are measured rarely, and one is much like the next: few samples are enough."""
RECENT_S = 1800.0
"""Seconds after which a job says nothing any more about how slow the machine is now."""

Key = tuple[str, ...]
T = TypeVar("T")


class CostModel:
    """Prices of jobs and workers, and what becomes of them.

    ``worked_s``: seconds of engine calls of all jobs since the start. ``now`` is the wall clock in seconds; it may jump.
    ``dirty``: something was learned since the owner of this object last saved :meth:`dump` and cleared the flag.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.dirty = False
        self._now = now
        self._bytes: dict[Key, Peak] = {}
        self._seconds: dict[Key, Line] = {}
        self._workers: dict[Key, Peak] = {}
        self._uploads = Uploads()
        self._jobs = 0
        self.worked_s = 0.0
        self._byte_history: deque[tuple[float, float]] = deque(maxlen=500)
        self._second_history: deque[tuple[float, float, float]] = deque(maxlen=100)

    # -- predictions

    def job(self, work: Work) -> Cost:
        """The price of a job in a worker that is at work already."""
        line = self._seconds.get(_time_kind(work)) or self._unmeasured(work)
        return Cost(math.ceil(prior.job_bytes(work)), line.predict(prior.job_seconds(work)), prior.audio_s_of(work))

    def batches(self, model: str, compute_type: str, device: str, batches: Batches) -> int:
        """Bytes that a worker takes for its engine calls while it has jobs, over what it keeps when idle."""
        return math.ceil(prior.batch_bytes(model, batches, device) * self._factor(self._bytes, model, compute_type, device))

    def worker(self, model: str, compute_type: str, device: str) -> Footprint:
        """What one worker process takes beside the shared base."""
        expected = prior.footprint(model, compute_type, device)
        kind = (model, compute_type, device)
        resident = math.ceil(expected.resident_bytes * self._factor(self._workers, *kind, "resident_bytes"))
        peak = math.ceil(expected.load_peak_bytes * self._factor(self._workers, *kind, "load_peak_bytes"))
        return Footprint(resident, max(resident, peak), expected.load_s * self._factor(self._workers, *kind, "load_s"))

    def audio_s_of(self, owner: str, upload_bytes: int | None) -> float:
        """Seconds of audio that an upload of ``owner`` is likely to be, before it was probed. None: its length is unknown."""
        return self._uploads.audio_s(owner, upload_bytes)

    @property
    def slowdown(self) -> float | None:
        """Actual / predicted seconds of the last 20 jobs, newest first; None where none ended within ``RECENT_S``."""
        now, weight, total, sum_logs = self._now(), 1.0, 0.0, 0.0
        for at, predicted, actual in list(self._second_history)[:-21:-1]:
            if abs(now - at) <= RECENT_S:
                # One job that met a busy neighbour does not make a slow machine.
                sum_logs += weight * min(max(math.log(actual / predicted), math.log(0.1)), math.log(10))
                total += weight
            weight *= 0.9
        return math.exp(sum_logs / total) if total else None

    def accuracy(self) -> dict[str, Any]:
        """How good the predictions were, as they stood before the job was learned from. None where there is no job.

        ``jobs``: since the start. ``bytes_covered``: share of the last 500 that needed no more than predicted.
        ``bytes_ratio_median``, ``seconds_ratio_median``: predicted / actual. ``seconds_error_median``: |predicted −
        actual| / actual of the last 100.
        """
        times = [(predicted, actual) for _, predicted, actual in self._second_history]
        return {
            "jobs": self._jobs,
            "bytes_covered": _mean(predicted >= actual for predicted, actual in self._byte_history),
            "bytes_ratio_median": _median(predicted / max(actual, 1.0) for predicted, actual in self._byte_history),
            "seconds_error_median": _median(abs(predicted - actual) / actual for predicted, actual in times),
            "seconds_ratio_median": _median(predicted / actual for predicted, actual in times),
        }

    # -- measurements

    def observe_job(self, work: Work, *, actual_seconds: float) -> None:
        """Learn how long a job took that ran to its end: seconds of engine calls, waiting not included."""
        predicted = self.job(work)
        self._jobs += 1
        self.dirty = True
        if 0 <= actual_seconds < math.inf:
            seconds = max(actual_seconds, 1e-3)
            self.worked_s += seconds
            self._second_history.append((self._now(), predicted.seconds, seconds))
            line = remembered(self._seconds, _time_kind(work), lambda: self._unmeasured(work), MAX_KINDS)
            line.observe(prior.job_seconds(work), seconds)

    def observe_batches(
        self, model: str, compute_type: str, device: str, *, actual_bytes: int, used: Batches, billed: Batches
    ) -> None:
        """Learn what a worker took for its engine calls while a job was there, beside what its jobs took themselves.

        ``used`` is what was at work at once then at the most, ``billed`` what the worker may have at work.
        """
        actual = float(min(max(actual_bytes, 0), 10**15))
        self._byte_history.append((self.batches(model, compute_type, device, billed), actual))
        peak = remembered(self._bytes, (model, compute_type, device), Peak, MAX_KINDS)
        peak.observe(actual / prior.batch_bytes(model, used, device), self._now())
        self.dirty = True

    def observe_worker(
        self,
        model: str,
        compute_type: str,
        device: str,
        *,
        resident_bytes: int | None = None,
        load_peak_bytes: int | None = None,
        load_s: float | None = None,
    ) -> None:
        """Learn what a worker took beside the shared base; None where it was not measured."""
        expected = prior.footprint(model, compute_type, device)
        measured = {"resident_bytes": resident_bytes, "load_peak_bytes": load_peak_bytes, "load_s": load_s}
        for name, actual in measured.items():
            if actual is not None and 0 <= actual < math.inf:
                kind = (model, compute_type, device, name)
                peak = remembered(self._workers, kind, lambda: Peak(WORKER_TRUST), 3 * MAX_KINDS)
                peak.observe(min(actual, 10**15) / getattr(expected, name), self._now())
                self.dirty = True

    def observe_upload(self, owner: str, upload_bytes: int, audio_s: float) -> None:
        """Learn how long an upload turned out to be."""
        self._uploads.observe(owner, upload_bytes, audio_s)
        self.dirty = True

    def out_of_memory(self, model: str, compute_type: str, device: str) -> None:
        """The kernel killed such a worker: predict 1.2 times the bytes from now on, fading over days."""
        remembered(self._bytes, (model, compute_type, device), Peak, MAX_KINDS).bump(self._now())
        self.dirty = True

    # -- across restarts

    def dump(self) -> dict[str, Any]:
        """Everything that was learned, as JSON values; the history behind :meth:`accuracy` is not in it."""
        return {
            "version": VERSION,
            "table": table.fingerprint(),
            "bytes": [[list(kind), peak.dump()] for kind, peak in self._bytes.items()],
            "seconds": [[list(kind), line.dump()] for kind, line in self._seconds.items()],
            "workers": [[list(kind), peak.dump()] for kind, peak in self._workers.items()],
            "uploads": self._uploads.dump(),
        }

    def load(self, data: dict[str, Any]) -> None:
        """Take back a :meth:`dump`. What is not understood, and what was learned beside another table, is passed over."""
        if not isinstance(data, dict) or data.get("version") != VERSION:
            return
        self._uploads.load(data.get("uploads"))
        if data.get("table") != table.fingerprint():
            return
        now = self._now()
        self._bytes.update(_loaded(data.get("bytes"), 3, MAX_KINDS, lambda state: Peak.load(state, now)))
        self._seconds.update(_loaded(data.get("seconds"), 6, MAX_KINDS, Line.load))
        self._workers.update(_loaded(data.get("workers"), 4, 3 * MAX_KINDS, lambda state: Peak.load(state, now, WORKER_TRUST)))

    def _factor(self, peaks: dict[Key, Peak], *kind: str) -> float:
        peak = peaks.get(kind)
        return peak.factor(self._now()) if peak else 1.0

    def _unmeasured(self, work: Work) -> Line:
        """The prior, as wrong as it was for other kinds of work on this device, those of the same model first."""
        total, sum_logs = 0.2, 0.0
        for (model, _, device, *_), line in self._seconds.items():
            if device == work.device:
                weight = line.count / (line.count + 5) * (4 if model == work.model else 1)
                total += weight
                sum_logs += weight * line.ratio
        return Line(sum_logs / total)


def _time_kind(work: Work) -> Key:
    search = "beam" if work.beam_size > 1 else "greedy"
    return work.model, work.compute_type, work.device, work.word_timestamps, work.vad, search


def _loaded(entries: Any, length: int, limit: int, parse: Callable[[Any], T]) -> dict[Key, T]:
    """Those of ``entries`` that can be read, at most ``limit``, the last ones."""
    found: dict[Key, T] = {}
    for entry in entries[-limit:] if isinstance(entries, list) else []:
        try:
            kind, state = entry
            if len(kind) == length and all(isinstance(part, str) for part in kind):
                found[tuple(kind)] = parse(state)
        except GARBLED:
            continue
    return found


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


def _median(values: Iterable[float]) -> float | None:
    listed = list(values)
    return statistics.median(listed) if listed else None
