"""A desk over a pool without processes and a memory that the test decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.admission.memory import Reading
from app.desk.desk import Desk
from app.measurements import Measurements
from app.store import Store
from tests.fakes.pool import QuietPool
from tests.fakes.server import make_settings

GB = 1_000_000_000
READING = Reading("cgroup v2", True, 8 * GB, 1 * GB, 7 * GB, 1 * GB, 0, 0, 0)


class Probe:
    """Says what the test set."""

    def __init__(self) -> None:
        self.reading = READING

    def set(self, **changes: Any) -> Reading:
        self.reading = replace(self.reading, **changes)
        return self.reading

    def read(self) -> Reading:
        return self.reading


class WatchedPool(QuietPool):
    """Remembers what it was told; ``workers`` is what it says runs."""

    def __init__(self) -> None:
        self.workers: dict[str, list[dict[str, Any]]] = {}
        self.ticks: list[bool] = []
        self.shed = 0

    def stats(self) -> dict[str, Any]:
        return {model: {"workers": workers, "starting": 0} for model, workers in self.workers.items()}

    def tick(self, *, evict_idle: bool = False) -> None:
        self.ticks.append(evict_idle)

    def shed_newest(self) -> bool:
        self.shed += 1
        return True


class Clock:
    """Monotonic seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A desk with everything around it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = make_settings(folder, **settings)
        self.settings.jobs_dir.mkdir(parents=True)
        self.pool, self.probe, self.clock = WatchedPool(), Probe(), Clock()
        self.store = Store(self.settings.store_url)
        self.store.create_schema()
        self.measurements = Measurements(self.store)
        self.desk = self.again()

    def again(self) -> Desk:
        """Another desk over the same things, as after a restart."""
        pool: Any = self.pool
        probe: Any = self.probe
        return Desk(self.settings, pool, self.measurements, probe, self.clock)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Bench]:
    return lambda **settings: Bench(tmp_path, **settings)
