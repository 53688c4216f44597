"""What one API key may have: jobs at once, queued seconds of audio, requests per minute. Pure, clock injected.

The answers tell each key what is left (``RateLimit`` and ``RateLimit-Policy``, IETF draft-ietf-httpapi-ratelimit-headers).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from app.admission.promises import MAX_WAIT_S, NOTHING, Booked, Promises
from app.errors import QuotaExceeded

WINDOW_S = 60.0
MAX_KEYS = 10_000
PLACE_MARGIN = 1.25
TINY = 1e-6


@dataclass(frozen=True)
class Quota:
    """0 means: no limit. ``audio_s`` is seconds of audio that wait or run."""

    jobs: int = 0
    audio_s: float = 0.0
    requests_per_minute: int = 0

    def with_own(self, own: Mapping[str, Any] | None) -> Quota:
        """These limits with a key's own ones instead, where it has any."""
        given = own or {}
        known = {name: given[name] for name in ("jobs", "audio_s", "requests_per_minute") if name in given}
        return replace(self, **known)


@dataclass
class _Use:
    """``spent`` requests are missing in the bucket, which fills up with time."""

    jobs: int = 0
    audio_s: float = 0.0
    spent: float = 0.0
    at: float = 0.0


Ends = Callable[[], list[tuple[float, float]]]


class Quotas:
    """Counts what each key has in hand. Requests per minute are a token bucket that holds one minute's worth.

    Whoever is refused gets a promise (see :mod:`app.admission.promises`): a request of the minute to come, or the place of
    a job that will have ended; newcomers of the same key queue up behind.
    """

    def __init__(self, now: Callable[[], float], jitter: Callable[[], float] = lambda: 0.0) -> None:
        self._now = now
        self._uses: OrderedDict[str, _Use] = OrderedDict()
        self._requests, self._places = Promises(now, jitter), Promises(now, jitter)

    def check(
        self,
        key: str,
        quota: Quota,
        audio_s: float,
        ends: Ends,
        fingerprint: str = "",
        *,
        paid: bool = False,
        dry: bool = False,
    ) -> None:
        """Count one request of ``key`` for a job of ``audio_s`` seconds.

        ``ends`` says when each of the key's jobs will probably end (seconds from now) and how long its audio is. A request
        that was sent away before, and told when to come, is not counted again (``paid``); with ``dry`` nothing is counted.

        Raises:
            QuotaExceeded: the key has used up what it may have; says when to come back.
        """
        if not (dry or paid or self._places.is_due(key, fingerprint)):
            self._check_requests(key, quota, fingerprint)
        self._check_places(key, quota, audio_s, ends, fingerprint, dry)

    def _check_requests(self, key: str, quota: Quota, fingerprint: str) -> None:
        most = quota.requests_per_minute
        if not most:
            return
        use, promised = self._use(key, quota), self._requests.of(key).expected
        missing = use.spent + 1.0 - most - TINY
        if missing + (0.0 if self._requests.is_due(key, fingerprint) else promised) > 0:
            wait_s = self._requests.make(key, fingerprint, 0.0, (missing + promised) * WINDOW_S / most)
            raise _exceeded("requests per minute", most, wait_s)
        self._requests.claim(key, fingerprint)
        use.spent += 1.0

    def _check_places(self, key: str, quota: Quota, audio_s: float, ends: Ends, fingerprint: str, dry: bool) -> None:
        promised = NOTHING if self._places.is_due(key, fingerprint) else self._places.of(key)
        over, over_s = self._over(key, quota, audio_s, promised)
        if over > 0 or over_s > 0:
            wait_s = min(MAX_WAIT_S, PLACE_MARGIN * _until_free(sorted(ends()), over, over_s))
            wait_s = wait_s if dry else self._places.make(key, fingerprint, audio_s, wait_s)
            what, most = ("jobs at once", quota.jobs) if over > 0 else ("queued seconds of audio", quota.audio_s)
            raise _exceeded(what, most, wait_s)
        if not dry:
            self._places.claim(key, fingerprint)

    def _over(self, key: str, quota: Quota, audio_s: float, promised: Booked) -> tuple[float, float]:
        """By how many jobs, and seconds of audio, one more would be too much. A single job may be longer than the quota."""
        use = self._uses.get(key, _Use())
        over = use.jobs + promised.expected + 1 - quota.jobs - TINY if quota.jobs else 0.0
        alone = use.audio_s + promised.seconds <= 0
        return over, 0.0 if alone or not quota.audio_s else use.audio_s + promised.seconds + audio_s - quota.audio_s

    def take(self, key: str, audio_s: float) -> None:
        """A job was admitted."""
        use = self._uses.setdefault(key, _Use(at=self._now()))
        use.jobs += 1
        use.audio_s += audio_s

    def settle(self, key: str, audio_s: float) -> None:
        """A job turned out to be longer by ``audio_s`` (negative: shorter)."""
        self._uses[key].audio_s += audio_s

    def give_back(self, key: str, audio_s: float) -> None:
        """A job has ended."""
        use = self._uses[key]
        use.jobs -= 1
        use.audio_s = max(0.0, use.audio_s - audio_s) if use.jobs else 0.0

    def headers(self, key: str, quota: Quota) -> dict[str, str]:
        """``RateLimit`` and ``RateLimit-Policy`` of ``key``; empty where it has no limits."""
        use = self._use(key, quota)
        policies, left = [], []
        if most := quota.requests_per_minute:
            policies.append(f'"requests";q={most};w={int(WINDOW_S)}')
            left.append(f'"requests";r={max(0, int(most - use.spent + TINY))};t={math.ceil(use.spent * WINDOW_S / most)}')
        if quota.jobs:
            policies.append(f'"jobs";q={quota.jobs};qu="concurrent-requests"')
            left.append(f'"jobs";r={max(0, quota.jobs - use.jobs)}')
        if quota.audio_s:
            policies.append(f'"audio-seconds";q={int(quota.audio_s)};qu="concurrent-seconds"')
            left.append(f'"audio-seconds";r={max(0, int(quota.audio_s - use.audio_s))}')
        return {"ratelimit-policy": ", ".join(policies), "ratelimit": ", ".join(left)} if policies else {}

    def in_use(self, key: str) -> dict[str, float]:
        """Jobs and seconds of audio of ``key`` that wait or run."""
        use = self._uses.get(key, _Use())
        return {"jobs": use.jobs, "audio_s": round(use.audio_s, 1)}

    def _use(self, key: str, quota: Quota) -> _Use:
        now = self._now()
        use = self._uses.get(key)
        if use is None:
            use = self._uses[key] = _Use(at=now)
            self._forget()
        use.spent = max(0.0, use.spent - (now - use.at) * quota.requests_per_minute / WINDOW_S)
        use.at = now
        self._uses.move_to_end(key)
        return use

    def _forget(self) -> None:
        """Keys that hold nothing and were not seen for long; a full bucket is what a new one gets anyway."""
        while len(self._uses) > MAX_KEYS:
            oldest = next((name for name, use in self._uses.items() if not use.jobs), None)
            if oldest is None:
                return
            del self._uses[oldest]


def _until_free(ends: list[tuple[float, float]], jobs: float, audio_s: float) -> float:
    """Seconds until so many jobs, and so many seconds of audio, have ended.

    Those who take the places of the last ones need twice what these still need on average: they are half done.
    """
    ended, ended_s, end_s, sum_s = 0, 0.0, 1.0, 0.0
    for end_s, length_s in ends:
        ended, ended_s, sum_s = ended + 1, ended_s + length_s, sum_s + end_s
        if ended >= jobs and ended_s >= audio_s:
            return end_s
    rounds = max(jobs / max(1, ended), audio_s / max(1.0, ended_s)) - 1.0
    return end_s + rounds * 2.0 * sum_s / max(1, ended)


def _exceeded(what: str, limit: float, wait_s: float) -> QuotaExceeded:
    return QuotaExceeded(
        f"This key may have {limit:g} {what}, and has used them up.",
        retry_after_s=wait_s,
        details={"reason": "key_quota", "limit": what, "most": limit},
    )
