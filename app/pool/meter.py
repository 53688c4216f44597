"""What a worker process really takes, measured by itself.

Counted is memory of its own: pages that it shares with the forkserver since the fork belong to the base, file pages can be
given back. While it loads or works, a thread samples ``/proc/self/statm`` (some microseconds each); elsewhere than on Linux
the resident size stands in.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from app import heap

INTERVAL_S = 0.03
REST_S = 10.0
"""Seconds for which an idle worker may hold :data:`app.heap.SPARE_BYTES` more than it is said to keep; what is beyond goes at
once. With a second, whoever sent one recording after the other had it mapped and cleared again each time."""
TRIMS_S = 1.0
"""Seconds between two times that memory is given back for the sake of jobs that still run."""
_ROLLUP = Path("/proc/self/smaps_rollup")


class Meter:
    """Samples from its creation on; call :meth:`loaded` when the model is there.

    ``work_bytes`` is what it should take while there are jobs; above it, memory is given back whenever a job ends.
    ``on_rest`` hears what the worker keeps (bytes) whenever it has given back what it does not need, some time after its jobs.
    """

    def __init__(self, work_bytes: int = 0, on_rest: Callable[[int], None] = lambda kept: None) -> None:
        self._work_bytes, self._on_rest = work_bytes, on_rest
        self._lock = threading.Lock()
        self._busy = threading.Event()
        self._busy.set()
        self._offset = _private() - heap.anonymous()
        self._base = self._peak = heap.anonymous()
        self._own: dict[str, int] = {}
        self._rests_at, self._trimmed_at = math.inf, -math.inf
        self._highest: dict[str, int] = {}
        threading.Thread(target=self._sample_for_ever, name="meter", daemon=True).start()

    def loaded(self) -> tuple[int, int]:
        """Bytes of its own now, and the most while it was loading."""
        with self._lock:
            self._look()
            peak = self._peak
            kept = self._rest()
        return kept, max(0, peak + self._offset)

    def began(self, job_id: str, own: int) -> None:
        """A job starts that is expected to take ``own`` bytes beside what all jobs of the worker take together."""
        with self._lock:
            if not self._own and self._still_heavy():
                self._rest()  # it shall not be blamed for what others left behind
            self._own[job_id], self._highest[job_id] = own, 0
            self._rests_at = math.inf
            self._busy.set()

    def ended(self, job_id: str) -> int:
        """The most bytes that all jobs took together while it was there."""
        with self._lock:
            self._look()
            del self._own[job_id]
            highest = self._highest.pop(job_id)
            if self._own:
                if self._shared() > self._work_bytes and time.monotonic() - self._trimmed_at > TRIMS_S:
                    self._trimmed_at = time.monotonic()
                    heap.give_back()  # what ended jobs left behind must not be held beside the reservations of the others
            else:
                self._rests_at = time.monotonic() + REST_S
            return highest

    def _heavy(self) -> bool:
        """Whether jobs left more behind than the next one may begin with."""
        return heap.anonymous() - self._base > heap.SPARE_BYTES

    def _still_heavy(self) -> bool:
        """The same after what is too much has been given back: then it is there to stay."""
        if not self._heavy():
            return False
        heap.give_back(heap.KEPT_BYTES)
        return self._heavy()

    def _rest(self) -> int:
        """Give back what is not needed; bytes that it keeps."""
        self._rests_at = math.inf
        self._busy.clear()
        heap.give_back()
        self._base = self._peak = heap.anonymous()
        return max(0, self._base + self._offset)

    def _sample_for_ever(self) -> None:
        while True:
            self._busy.wait()
            with self._lock:
                self._look()
                ended = math.isfinite(self._rests_at)
                kept = self._rest() if ended and (time.monotonic() > self._rests_at or self._still_heavy()) else None
            if kept is not None:
                self._on_rest(kept)
            time.sleep(INTERVAL_S)

    def _look(self) -> None:
        self._peak = max(self._peak, heap.anonymous())
        shared = self._shared()
        for job_id, highest in self._highest.items():
            self._highest[job_id] = max(highest, shared)

    def _shared(self) -> int:
        """Growth since it was idle, beyond what each of the jobs takes for itself."""
        return max(0, heap.anonymous() - self._base - sum(self._own.values()))


def _private() -> int:
    """Bytes that no other process shares: exact, but slow (milliseconds)."""
    try:
        lines = dict(line.split(":", 1) for line in _ROLLUP.read_text().splitlines()[1:])
        return int(lines["Private_Dirty"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return heap.anonymous()
