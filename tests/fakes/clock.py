"""A wall clock for what is stored."""

from __future__ import annotations

from datetime import datetime, timedelta


class Clock:
    """Moves one second per look; ``moment`` may be set."""

    def __init__(self, start: datetime) -> None:
        self.moment = start

    def __call__(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment
