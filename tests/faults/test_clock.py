"""A wall clock that is set a day ahead or back while jobs wait, run and have ended: nothing expires, nothing is lost.

Retention alone: tests/unit/test_retention.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from app import webhooks
from tests.fakes.server import OTHER_KEY, Live, fake_service, make_settings, serving, wav
from tests.unit.http.test_jobs import accepted, keyed, until
from tests.unit.http.test_webhooks import SECRET, Receiver, allow, done, hand_in, receiver

HOUR_S = 3600.0
REQUESTS = 8
JUMPS = pytest.mark.parametrize("by", [timedelta(days=1), timedelta(days=-1)], ids=["ahead", "back"])
OTHER = {"X-API-Key": OTHER_KEY}

__all__ = ["receiver"]


def jump(live: Live, by: timedelta) -> None:
    """Set the clock of the store, and so of every row."""
    live.service.store.sync.now = lambda: datetime.now(timezone.utc) + by


@pytest.fixture
async def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    """Results are kept for an hour only: a day would be far too old."""
    monkeypatch.setattr(webhooks, "LOOK_S", 0.05)
    own: dict[str, Any] = {"result_ttl_s": HOUR_S, "key_requests_per_minute": REQUESTS, "webhook_secret": SECRET}
    async with serving(make_settings(tmp_path, **own), fake_service) as server:
        yield server


async def remaining(live: Live) -> int:
    """Sends one more as the other key; how many more it may send in this minute."""
    answer = await live.client.post("/transcribe?wait=false", content=wav(), headers=OTHER)
    assert answer.status_code in (202, 429)
    return int(answer.headers["ratelimit"].partition("r=")[2].partition(";")[0])


@JUMPS
async def test_clock_that_jumps_by_a_day_ends_no_job_and_forgets_no_result_idempotency_key_or_quota(
    live: Live, tmp_path: Path, by: timedelta
) -> None:
    ended = (await keyed(live)).json()
    (result,) = live.folders()
    jobs = [await accepted(live, f"until:{tmp_path}/go") for _ in range(2)]
    for job_id in jobs:
        await until(live, job_id, "running")
    jobs.append(await accepted(live))  # waits
    while await remaining(live):
        pass
    jump(live, by)
    await live.service._retention.look()
    assert await remaining(live) <= 2  # some seconds have passed, not a day
    assert (await keyed(live)).json() == ended
    (tmp_path / "go").touch()
    for job_id in jobs:
        assert (await until(live, job_id, "succeeded", "failed", "cancelled"))["attempts"] == 1
    await live.service._retention.look()
    for job_id in (result, *jobs):
        assert (await live.client.get(f"/transcribe/{job_id}")).status_code == 200


@JUMPS
async def test_webhook_that_is_to_be_sent_again_is_sent_soon_however_the_clock_jumps(
    live: Live, receiver: Receiver, by: timedelta
) -> None:
    allow(live, receiver)
    receiver.statuses = [500, 200]
    job_id = await hand_in(live, receiver)
    while not (await until(live, job_id, "succeeded") and live.service.store.sync.get(job_id).webhook_tries):  # type: ignore[union-attr]
        await asyncio.sleep(0.01)
    jump(live, by)
    await receiver.after(2)
    await done(live, job_id)
