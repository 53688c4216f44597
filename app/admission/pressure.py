"""The ladder under memory pressure: what is done before the kernel would do worse. Pure; the clock is injected."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from enum import IntEnum

log = logging.getLogger("stenopool.admission")

_MB = 1 << 20
_SWAP_GROWTH = 64 * _MB
_SWAP_WINDOW_S = 60.0
_SHED_INTERVAL_S = 2.0


class Step(IntEnum):
    """What to do. Each step includes those before it."""

    CALM = 0
    SMALLER_BATCHES = 1
    EVICT_IDLE = 2
    STOP_STARTING = 3
    SHED_NEWEST = 4


# Shares of the limit in real use: a step is entered at the first and left below the second. Between the two it stays as
# it was, so that one job's last megabytes do not switch it on and off.
_STEPS = {
    Step.SMALLER_BATCHES: (0.70, 0.67),
    Step.EVICT_IDLE: (0.75, 0.72),
    Step.STOP_STARTING: (0.80, 0.77),
    Step.SHED_NEWEST: (0.92, 0.89),
}
_MEMORY_HIGH = (0.90, 0.87)
# Actual seconds by predicted ones.
_SLOW = (1.5, 1.4)


class Ladder:
    """Turns readings into a step and into warnings.

    ``warnings`` are the current ones in plain English. ``counts`` says how often each step was entered and each warning
    began (keys "smaller_batches", "evict_idle", "stop_starting", "shed_newest", "memory_high", "swap_growing",
    "jobs_slow", "system_pressure"); "shed_newest" counts the times it was answered. ``now`` gives seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.warnings: tuple[str, ...] = ()
        self.counts = {step.name.lower(): 0 for step in _STEPS}
        self.counts |= dict.fromkeys(_texts(None), 0)
        self._now = now
        self._use_step = Step.CALM  # by use alone
        self._held = Step.CALM  # with what the system says
        self._shed_at = -math.inf
        self._swap: deque[tuple[float, int]] = deque()
        self._active: dict[str, str] = {}

    def observe(self, used_fraction: float, swap_used: int, slowdown: float | None, os_pressure: int = 0) -> Step:
        """The step to take now.

        Args:
            used_fraction: bytes in use by the limit.
            swap_used: bytes.
            slowdown: decayed actual by predicted seconds of jobs; None: unknown.
            os_pressure: macOS's level (1 normal, 2 warning, 4 critical); 0: unknown.

        ``SHED_NEWEST`` is answered at most once in 2 s, else ``STOP_STARTING``: what a killed job held needs a moment to
        come back, and a second job should not die for it.
        """
        self._use_step = _by_use(self._use_step, used_fraction)
        self._hold(max(self._use_step, _by_system(os_pressure)))
        holds = {
            "memory_high": self._above("memory_high", used_fraction, _MEMORY_HIGH),
            "swap_growing": self._swap_grows(swap_used),
            "jobs_slow": self._above("jobs_slow", slowdown, _SLOW),
            "system_pressure": os_pressure >= 2,
        }
        self._warn({name: text for name, text in _texts(slowdown).items() if holds[name]})
        return self._answer()

    def _hold(self, step: Step) -> None:
        for entered in range(self._held + 1, min(step, Step.STOP_STARTING) + 1):
            self.counts[Step(entered).name.lower()] += 1
        self._held = step

    def _answer(self) -> Step:
        if self._held < Step.SHED_NEWEST:
            return self._held
        now = self._now()
        if now - self._shed_at < _SHED_INTERVAL_S:
            return Step.STOP_STARTING
        self._shed_at = now
        self.counts["shed_newest"] += 1
        return Step.SHED_NEWEST

    def _swap_grows(self, swap_used: int) -> bool:
        now = self._now()
        self._swap.append((now, swap_used))
        while now - self._swap[0][0] > _SWAP_WINDOW_S:
            self._swap.popleft()
        return swap_used - min(size for _, size in self._swap) > _SWAP_GROWTH

    def _above(self, name: str, value: float | None, bounds: tuple[float, float]) -> bool:
        """Whether the warning holds: above the first bound, or once it has begun, above the second."""
        return value is not None and value > bounds[name in self._active]

    def _warn(self, active: dict[str, str]) -> None:
        """Make these the current warnings; log those that begin and those that end, each once."""
        for name in [each for each in active if each not in self._active]:
            self.counts[name] += 1
            log.warning("pressure: %s", active[name])
        for name in [each for each in self._active if each not in active]:
            log.info("pressure is over: %s", self._active[name])
        self._active = active
        self.warnings = tuple(active.values())


def _texts(slowdown: float | None) -> dict[str, str]:
    return {
        "memory_high": "memory above 90 %",
        "swap_growing": "swap is growing",
        "jobs_slow": f"jobs take {slowdown or 0:.1f} times as long as predicted",
        "system_pressure": "the system reports memory pressure",
    }


def _by_use(step: Step, used_fraction: float) -> Step:
    """The step after ``step`` at this use: up as soon as a threshold is met, down only below the lower bounds."""
    entered = max((each for each, (enter, _) in _STEPS.items() if used_fraction >= enter), default=Step.CALM)
    kept = max((each for each, (_, leave) in _STEPS.items() if used_fraction >= leave), default=Step.CALM)
    return max(entered, min(step, kept))


def _by_system(os_pressure: int) -> Step:
    if os_pressure >= 4:
        return Step.STOP_STARTING
    return Step.EVICT_IDLE if os_pressure >= 2 else Step.CALM
