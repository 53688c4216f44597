"""Learning from what was measured: :class:`Peak` for bytes, :class:`Line` for seconds. Pure; times are handed in.

Both learn how reality compares with a prior, so one that has seen nothing answers with the prior. ``dump`` gives plain JSON
values, ``load`` takes them back and raises one of ``GARBLED`` for anything else.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")
Parts = tuple[float, float, float]

GARBLED = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


class Peak:
    """The factor between a prior and what is needed at the most: a decayed 95th percentile of actual / prior, plus 15 %.

    The method is that of the Kubernetes Vertical Pod Autoscaler (``pkg/recommender``): a histogram with exponential buckets
    whose weights halve in 24 h, and a bump of 1.2 after an OOM kill. Until ``trust`` samples were seen the prior has a say.
    """

    PERCENTILE = 0.95
    MARGIN = 1.15
    BUMP = 1.2
    LIMIT = 8.0
    HALF_LIFE_S = 86_400.0
    _STEP = math.log(1.05)
    _LAST = 85
    _RECENT = 40

    def __init__(self, trust: int = 10) -> None:
        self._trust = trust
        self._weights: dict[int, float] = {}
        self._count = 0
        self._recent: deque[float] = deque(maxlen=self._RECENT)
        self._at = 0.0
        self._floor = 0.0
        self._floor_at = 0.0
        self._known: float | None = None

    def factor(self, now: float) -> float:
        """What to multiply the prior by, 1/8 to 8. ``now``: wall clock seconds."""
        if self._known is None:
            self._known = self._learned()  # each request asks several times between two samples
        return _clamped(max(self._known, self._floor * self._faded(now - self._floor_at)), 1 / self.LIMIT, self.LIMIT)

    def observe(self, ratio: float, now: float) -> None:
        """Learn one actual / prior; less than nothing counts as nothing."""
        self._known = None
        bucket = self._bucket(ratio)
        total = sum(self._weights.values())
        # After a week without work a single new sample must not outweigh all that was learned.
        fade = max(self._faded(now - self._at), min(1.0, self._trust / total)) if total else 1.0
        self._weights = {key: weight * fade for key, weight in self._weights.items()}
        self._weights[bucket] = self._weights.get(bucket, 0.0) + 1.0
        self._recent.append(math.exp(bucket * self._STEP))
        self._count = min(self._count + 1, 1_000_000)
        self._at = now

    def bump(self, now: float) -> None:
        """The factor was too small and the kernel killed for it. How much was needed is unknown, so this fades again."""
        self._floor = min(self.factor(now) * self.BUMP, self.LIMIT)
        self._floor_at = now

    def _learned(self) -> float:
        if not self._count:
            return 1.0
        # Few samples say little about the tail.
        margin = self.MARGIN + self._trust / (20 * self._count)
        # What grows faster than the histogram forgets is seen here. Among enough others, one odd job is not believed.
        seen = sorted(self._recent)[-1 if self._count < self._trust else -2]
        share = min(1.0, self._count / self._trust)
        return max((1.0 - share) + share * self._percentile() * margin, seen * margin)

    def _percentile(self) -> float:
        wanted = self.PERCENTILE * sum(self._weights.values())
        bucket = self._LAST
        for bucket in sorted(self._weights):
            wanted -= self._weights[bucket]
            if wanted <= 0:
                break
        return math.exp(bucket * self._STEP)

    def _bucket(self, ratio: float) -> int:
        if ratio <= 0:
            return -self._LAST
        steps = _clamped(math.log(ratio) / self._STEP, -self._LAST, self._LAST)
        return math.ceil(steps)  # The upper edge stands for a bucket, so that rounding never predicts too little.

    def _faded(self, age_s: float) -> float:
        return float(0.5 ** (max(0.0, age_s) / self.HALF_LIFE_S))  # A clock that was set back ages nothing.

    def dump(self) -> dict[str, Any]:
        """Everything that was learned."""
        weights = [[bucket, weight] for bucket, weight in self._weights.items()]
        floor = [self._floor, self._floor_at]
        return {"weights": weights, "count": self._count, "recent": list(self._recent), "at": self._at, "floor": floor}

    @classmethod
    def load(cls, data: Any, now: float, trust: int = 10) -> Peak:
        """The inverse of :meth:`dump`."""
        peak = cls(trust)
        for bucket, weight in data["weights"]:
            peak._weights[int(number(bucket, -cls._LAST, cls._LAST))] = number(weight, 0.0, 1e12)
        peak._recent.extend(number(ratio, 0.0, 100.0) for ratio in data["recent"][-cls._RECENT :])
        peak._count = int(number(data["count"], 0, 1_000_000))
        if peak._count and len(peak._recent) < min(peak._count, 2):
            raise ValueError("samples are missing")
        peak._at = min(number(data["at"]), now)
        peak._floor = number(data["floor"][0], 0.0, cls.LIMIT)
        peak._floor_at = min(number(data["floor"][1]), now)
        return peak


class Line:
    """Seconds as ``level · Σ shape_j · part_j``, where ``part_j`` are the parts of the prior (set-up, windows, length).

    ``level`` is how fast the machine is now and follows within some ten jobs. ``shape`` is a Bayesian linear regression:
    ridge around the shipped figures (1, 1, 1), in relative errors, forgetting so that about the last 100 jobs count. A
    surprise of more than a factor of 1.5 (at first: of more) is cut to that, as Huber's estimator does, until most of the
    last five jobs agree with it.
    """

    FORGET = 0.99
    FOLLOW = 0.15
    RIDGE: Parts = (0.0001, 0.02, 0.0005)
    """How sure the prior is of each part: windows were measured, a second more of set-up is no surprise."""
    LEAST_SHAPE = 0.05
    """Above 0, so that longer audio is never predicted to take less time."""
    SPREAD = 10.0
    """How far ``shape`` may lead from the prior, in either direction."""
    _WIDEST = math.log(100)
    _HIGHEST = math.log(1000)

    def __init__(self, level: float = 0.0) -> None:
        self.count = 0
        self.ratio = 0.0
        """Mean log of actual / prior, recent jobs first: what other models may learn from this one."""
        self._level = level
        self._recent: deque[float] = deque(maxlen=5)
        self._shape: Parts = (1.0, 1.0, 1.0)
        self._products = [[0.0] * 3 for _ in range(3)]
        self._sums = [0.0] * 3

    def predict(self, parts: Parts) -> float:
        """Seconds that a job with these parts takes; more than 0."""
        prior = sum(parts)
        shaped = sum(shape * part for shape, part in zip(self._shape, parts, strict=True))
        return max(math.exp(self._level) * _clamped(shaped, prior / self.SPREAD, prior * self.SPREAD), 1e-3)

    def observe(self, parts: Parts, seconds: float) -> None:
        """Learn how long a job took, in seconds, more than 0."""
        predicted = self.predict(parts)
        surprise = self._believed(math.log(seconds) - math.log(predicted))
        believed = predicted * math.exp(surprise)
        ratio = _clamped(math.log(believed / sum(parts)), -self._HIGHEST, self._HIGHEST)
        self.ratio += max(1 / (self.count + 1), self.FOLLOW) * (ratio - self.ratio)
        follow = max(1 / (self.count + 1.5), self.FOLLOW)
        self._level = _clamped(self._level + follow * surprise, -self._HIGHEST, self._HIGHEST)
        self.count = min(self.count + 1, 1_000_000)
        # The level comes first: what it explains, the shape must not explain again.
        self._regress([part * math.exp(self._level) / believed for part in parts])

    def _believed(self, surprise: float) -> float:
        surprise = _clamped(surprise, -self._WIDEST, self._WIDEST)
        self._recent.append(surprise)
        middle = statistics.median_low(self._recent), statistics.median_high(self._recent)
        usual = min(middle, key=abs)
        odd = math.log(1.5 + 5 / (self.count + 1))  # In a kind that is new, long and short jobs surprise alike.
        return _clamped(surprise, min(-odd, usual), max(odd, usual))

    def _regress(self, row: list[float]) -> None:
        """Add one equation ``row · shape = 1`` and solve for the shape."""
        for i in range(3):
            self._products[i] = [self.FORGET * old + row[i] * row[j] for j, old in enumerate(self._products[i])]
            self._sums[i] = self.FORGET * self._sums[i] + row[i]
        self._solve()

    def _solve(self) -> None:
        matrix = [list(row) for row in self._products]
        for i, ridge in enumerate(self.RIDGE):
            matrix[i][i] += ridge
        vector = [value + ridge for value, ridge in zip(self._sums, self.RIDGE, strict=True)]
        a, b, c = solve_bounded(matrix, vector, self.LEAST_SHAPE)
        self._shape = (a, b, c)

    def dump(self) -> dict[str, Any]:
        """Everything that was learned."""
        fit = {"products": [list(row) for row in self._products], "sums": list(self._sums)}
        return fit | {"count": self.count, "ratio": self.ratio, "level": self._level, "recent": list(self._recent)}

    @classmethod
    def load(cls, data: Any) -> Line:
        """The inverse of :meth:`dump`."""
        line = cls(number(data["level"], -cls._HIGHEST, cls._HIGHEST))
        line.ratio = number(data["ratio"], -cls._HIGHEST, cls._HIGHEST)
        line.count = int(number(data["count"], 0, 1_000_000))
        line._recent.extend(number(value, -cls._WIDEST, cls._WIDEST) for value in data["recent"][-5:])
        line._products = [[number(data["products"][i][j], 0.0, 1e9) for j in range(3)] for i in range(3)]
        line._sums = [number(data["sums"][i], 0.0, 1e9) for i in range(3)]
        if line.count:
            line._solve()
        return line


def solve_bounded(matrix: list[list[float]], vector: list[float], least: float) -> list[float]:
    """The solution of ``matrix · x = vector`` with no ``x_j`` below ``least``; all 1 where the matrix has none.

    Unknowns that come out too low are set to ``least`` and the others solved again: as good as exact for three.
    """
    free = list(range(len(vector)))
    answer = [least] * len(vector)
    while free:
        fixed = [j for j in range(len(vector)) if j not in free]
        rest = [vector[i] - sum(matrix[i][j] * least for j in fixed) for i in free]
        solved = _solved([[matrix[i][j] for j in free] for i in free], rest)
        if solved is None:
            return [1.0] * len(vector)
        if min(solved) >= least:
            for j, value in zip(free, solved, strict=True):
                answer[j] = value
            break
        free = [j for j, value in zip(free, solved, strict=True) if value >= least]
    return answer


def _solved(matrix: list[list[float]], vector: list[float]) -> list[float] | None:
    """Gauss with pivoting; None where the matrix is singular."""
    rows = [[*row, value] for row, value in zip(matrix, vector, strict=True)]
    for column in range(len(rows)):
        pivot = max(range(column, len(rows)), key=lambda i: abs(rows[i][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        head = rows[column]
        if abs(head[column]) < 1e-12:
            return None
        for i, row in enumerate(rows):
            if i != column:
                share = row[column] / head[column]
                rows[i] = [value - share * above for value, above in zip(row, head, strict=True)]
    answer = [row[-1] / row[i] for i, row in enumerate(rows)]
    return answer if all(map(math.isfinite, answer)) else None


def remembered(memory: dict[K, V], key: K, make: Callable[[], V], limit: int) -> V:
    """``memory[key]``, made if it is new and moved to the end; what was not used for longest goes beyond ``limit``."""
    value = memory.pop(key) if key in memory else make()
    memory[key] = value
    while len(memory) > limit:
        del memory[next(iter(memory))]
    return value


def number(value: Any, low: float = -1e15, high: float = 1e15) -> float:
    """``value`` as a float.

    Raises:
        ValueError: it is not within the bounds. TypeError: it is no number.
    """
    if not isinstance(value, int | float):
        raise TypeError(f"{type(value).__name__} is no number")
    if not low <= value <= high:
        raise ValueError("a number is out of bounds")
    return float(value)


def _clamped(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
