"""A progress bar on a terminal; nothing where stderr is a file or a pipe."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """One bar for each run."""

    def __init__(self, shown: bool | None = None) -> None:
        self._make = _tqdm() if (sys.stderr.isatty() if shown is None else shown) else None
        self._bar: Any = None

    def begin(self, what: str, total: int | None) -> None:
        """Start a bar of ``total`` steps; ``None``: nobody knows how many."""
        self.end()
        if self._make is not None:
            self._bar = self._make(total=total, desc=what, unit="file", leave=False, file=sys.stderr, dynamic_ncols=True)

    def step(self) -> None:
        """One request is over."""
        if self._bar is not None:
            self._bar.update(1)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _tqdm() -> Any:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return None
    tqdm.monitor_interval = 0  # no thread of its own
    return tqdm
