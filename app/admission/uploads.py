"""How long an upload is, guessed from its bytes before anything of it was read."""

from __future__ import annotations

import math
from typing import Any

from app.admission.estimate import GARBLED, number, remembered

DEFAULT_BYTES_PER_S = 16_000.0
DEFAULT_AUDIO_S = 60.0
MAX_OWNERS = 256
_RATES = (100.0, 1e7)
_LENGTHS = (0.1, 1e6)


class Uploads:
    """What owners send: bytes per second of audio, and seconds. At most ``MAX_OWNERS`` are kept, the latest ones."""

    def __init__(self) -> None:
        self._everybody = _Habit(follow=0.05)
        self._owners: dict[str, _Habit] = {}

    def audio_s(self, owner: str, upload_bytes: int | None) -> float:
        """Seconds of audio in an upload of that many bytes (None: not said), as this owner's or else others' were."""
        habits = [self._owners.get(owner, self._everybody), self._everybody]
        if upload_bytes is None:
            return next((math.exp(habit.length) for habit in habits if habit.length is not None), DEFAULT_AUDIO_S)
        rate = next((math.exp(habit.rate) for habit in habits if habit.rate is not None), DEFAULT_BYTES_PER_S)
        return _within(float(min(max(upload_bytes, 0), 10**15)) / rate, _LENGTHS)

    def observe(self, owner: str, upload_bytes: int, audio_s: float) -> None:
        """Learn what an upload turned out to be; nothing is learned from one without audio."""
        if not 0 < audio_s < math.inf:
            return
        rate = min(max(upload_bytes, 0), 10**15) / audio_s
        for habit in (self._everybody, remembered(self._owners, owner, _Habit, MAX_OWNERS)):
            habit.observe(rate, audio_s)

    def dump(self) -> dict[str, Any]:
        """Plain JSON values."""
        owners = [[owner, habit.dump()] for owner, habit in self._owners.items()]
        return {"everybody": self._everybody.dump(), "owners": owners}

    def load(self, data: Any) -> None:
        """The inverse of :meth:`dump`; what is not understood is passed over."""
        try:
            self._everybody.load(data["everybody"])
            for owner, habit in data["owners"][-MAX_OWNERS:]:
                self._owners.setdefault(str(owner), _Habit()).load(habit)
        except GARBLED:
            return


class _Habit:
    """Decayed mean logs: most owners send small files and a few large ones, and one of those must not decide."""

    def __init__(self, follow: float = 0.3) -> None:
        self._follow = follow
        self.rate: float | None = None
        self.length: float | None = None

    def observe(self, rate: float, audio_s: float) -> None:
        self.length = self._moved(self.length, math.log(_within(audio_s, _LENGTHS)))
        if rate > 0:
            self.rate = self._moved(self.rate, math.log(_within(rate, _RATES)))

    def _moved(self, old: float | None, new: float) -> float:
        return new if old is None else old + self._follow * (new - old)

    def dump(self) -> list[float | None]:
        return [self.rate, self.length]

    def load(self, data: Any) -> None:
        rate, length = (None if value is None else number(value, -20, 20) for value in data)
        self.rate, self.length = rate, length


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
