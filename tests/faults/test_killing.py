"""The server dies, and what it had acknowledged does not."""

from __future__ import annotations

from pathlib import Path

from tests.faults import killing


def test_every_acknowledged_job_ends_once_with_the_right_text_however_often_the_server_is_killed(tmp_path: Path) -> None:
    outcome = killing.run(tmp_path, rounds=2, seed=5)
    assert outcome.acknowledged
    assert outcome.statuses == {"succeeded": len(outcome.acknowledged)}
    assert outcome.wrong == []
