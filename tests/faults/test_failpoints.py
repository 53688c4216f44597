"""Death before and after every fsync, rename and commit of a job's way; a store whose n-th write fails.

Every case ends in the same way: what was acknowledged has succeeded, once, with the right text, and nothing else is left.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import background
from app.database import Database
from app.errors import CapacityError
from tests.fakes.server import Live, fake_service, make_settings, serving, wav
from tests.faults.killing import Outcome, settle
from tests.faults.process import started
from tests.unit.http.test_jobs import quiet, submit, until

TEXT = (7).to_bytes(2, "little").hex() * 32
STEPS = [("api", "fsync", 3), ("api", "commit", 4), ("worker", "fsync", 2), ("worker", "replace", 1)]
ALL = [f"{role}:{what}:{when}:{n}" for role, what, most in STEPS for when in ("before", "after") for n in range(1, most + 1)]
FEW = ["api:commit:after:1", "api:commit:before:4", "worker:replace:after:1"]
POINTS = ALL if os.environ.get("STENOPOOL_ALL_FAILPOINTS") else FEW
"""Two server starts each: every run takes a few of them, STENOPOOL_ALL_FAILPOINTS=1 all twenty."""


@pytest.mark.parametrize("point", POINTS)
def test_death_at_any_step_loses_no_acknowledged_job_and_leaves_nothing(tmp_path: Path, point: str) -> None:
    outcome = Outcome()
    patient = {"STENOPOOL_MAX_DEATHS": "10"}
    with started(tmp_path, FAILPOINT=point, FAILPOINT_ARMED=str(tmp_path / "armed"), **patient) as server:
        (tmp_path / "armed").touch()
        with contextlib.suppress(httpx.TransportError):
            answer = server.client.post("/transcribe?wait=false", content=wav(0.05, 7))
            assert answer.status_code == 202
            outcome.acknowledged[answer.json()["job_id"]] = TEXT
        if point.startswith("worker"):  # each new worker of this server dies at the same step
            (job_id,) = outcome.acknowledged
            while server.client.get(f"/transcribe/{job_id}/status").json()["attempts"] < 2:
                time.sleep(0.02)
            server.kill()
        else:
            server.process.wait(20)
    with started(tmp_path, **patient) as server:
        settle(server, outcome)
    assert outcome.statuses == ({"succeeded": 1} if outcome.acknowledged else {})
    assert outcome.wrong == []


# -- a store that fails


class Failing:
    """``some`` writes of the store fail, from the ``n``-th on: before the commit, or after it, so only the answer is lost."""

    def __init__(self, n: int, when: str, some: int) -> None:
        self.n, self.when, self.some, self.count = n, when, some, 0

    @contextmanager
    def writing(self, original: Any, database: Database) -> Iterator[Any]:
        self.count += 1
        fails = self.n <= self.count < self.n + self.some
        with original(database) as db:
            yield db
            if fails and self.when == "before":
                raise CapacityError("The job store is not available.")
        if fails:
            raise CapacityError("The job store is not available.")


@pytest.fixture
async def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    monkeypatch.setattr(background, "FIRST_PAUSE_S", 0.01)
    async with serving(make_settings(tmp_path), fake_service) as server:
        yield server


@pytest.mark.parametrize(("when", "some"), [("before", 1), ("after", 1), ("before", 2)])
async def test_store_whose_nth_write_fails_loses_no_acknowledged_job_whichever_it_is(
    live: Live, monkeypatch: pytest.MonkeyPatch, when: str, some: int
) -> None:
    original, n = Database.writing, 0
    while True:
        n += 1
        failing = Failing(n, when, some)
        with monkeypatch.context() as patch:
            patch.setattr(Database, "writing", lambda self, failing=failing: failing.writing(original, self))
            answer = await submit(live)
            if answer.status_code == 202:
                await until(live, answer.json()["job_id"], "succeeded")
            else:
                assert answer.status_code == 503
            await quiet(live)
        if answer.status_code == 202:
            text = await live.client.get(answer.headers["location"], params={"response_format": "text"})
            assert text.text.strip() == TEXT
        if failing.count < n:
            break
    assert n > 4
    waiting = [
        one for state in ("queued", "running") for one in (await live.client.get(f"/jobs?status={state}")).json()["jobs"]
    ]
    assert waiting == []
    succeeded = (await live.client.get("/jobs?status=succeeded")).json()["jobs"]
    assert {job["job_id"] for job in succeeded} == set(live.folders())
