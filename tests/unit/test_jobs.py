"""A job's life as data."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError, replace
from datetime import datetime, timezone
from itertools import product

import pytest

from app.jobs import TRANSITIONS, Job, Status, TranscribeOptions, VadOptions, new_id

NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)
JOB = Job("a", "owner", TranscribeOptions("demo"), NOW)
ALLOWED = {
    ("queued", "running"),
    ("queued", "cancelled"),
    ("queued", "failed"),
    ("running", "queued"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelled"),
}


@pytest.mark.parametrize(("before", "after"), list(product(Status, Status)), ids=lambda status: status.value)
def test_a_job_moves_only_where_it_may(before: Status, after: Status) -> None:
    job = replace(JOB, status=before)
    if (before.value, after.value) in ALLOWED:
        assert job.moved(after).status is after
    else:
        with pytest.raises(ValueError, match=f"{before.value} job cannot become {after.value}"):
            job.moved(after)


def test_a_final_status_is_one_that_nothing_follows() -> None:
    assert {status for status in Status if status.final} == {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}
    assert set(TRANSITIONS) == {Status.QUEUED, Status.RUNNING}


def test_a_move_takes_changes_and_leaves_the_old_job_alone() -> None:
    moved = JOB.moved(Status.RUNNING, attempts=1, started_at=NOW)
    assert (moved.status, moved.attempts, moved.started_at) == (Status.RUNNING, 1, NOW)
    assert (JOB.status, JOB.attempts, JOB.started_at) == (Status.QUEUED, 0, None)
    with pytest.raises(FrozenInstanceError):
        JOB.attempts = 2  # type: ignore[misc]


@pytest.mark.parametrize("name", ["created_at", "started_at", "finished_at"])
def test_a_moment_without_a_timezone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        replace(JOB, **{name: datetime(2026, 1, 2)})


def test_options_survive_json() -> None:
    options = TranscribeOptions("demo", language="de", temperature=0.2, hotwords="Ärger", vad=VadOptions(onset=0.7))
    assert TranscribeOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options


def test_options_of_another_version_open() -> None:
    data = {"model": "demo", "of_tomorrow": 1, "vad": {"onset": 0.4, "of_tomorrow": 2}}
    assert TranscribeOptions.from_dict(data) == TranscribeOptions("demo", vad=VadOptions(onset=0.4))
    assert TranscribeOptions.from_dict({"model": "demo"}) == TranscribeOptions("demo")


@pytest.mark.parametrize(
    ("stored", "read"), [(True, "aligned"), (False, ""), ("fast", "fast"), ("aligned", "aligned"), ("", "")]
)
def test_word_times_are_read_as_earlier_versions_wrote_them(stored: bool | str, read: str) -> None:
    assert TranscribeOptions.from_dict({"model": "demo", "word_timestamps": stored}).word_timestamps == read


def test_ids_are_safe_in_a_path_and_differ() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)
