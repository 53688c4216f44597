"""One of two GPUs fails, again and again, under a real server: the other serves everything. The devices are invented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.jobs import eventually, submit, succeeded, until
from tests.faults.process import Process, started

SETTINGS = {"FAKE_ENGINE": "tests.fakes.devices", "STENOPOOL_DEVICES": "cuda:0,cuda:1", "STENOPOOL_STREAMS": "2"}


def device(server: Process, name: str) -> dict[str, Any]:
    shown: dict[str, Any] = server.client.get("/capacity").json()["devices"][name]
    return shown


def becomes(server: Process, name: str, state: str) -> None:
    eventually(lambda: device(server, name)["state"] == state, lambda: f"{name} is {device(server, name)}")


def tries(hub: Path, name: str) -> int:
    path = hub / f"{name}.tries"
    return len(path.read_text()) if path.exists() else 0


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """Where the test says how devices behave."""
    folder = tmp_path / "data" / "hub"
    folder.mkdir(parents=True)
    return folder


def test_a_device_that_keeps_failing_costs_no_job_anything_and_serves_again_once_it_works(tmp_path: Path, hub: Path) -> None:
    (hub / "cuda:1").write_text("broken")
    with started(tmp_path, **SETTINGS) as server:
        eventually(lambda: tries(hub, "cuda:1") >= 3, lambda: "it was not tried again")
        jobs = [submit(server) for _ in range(12)]
        assert {succeeded(server, job_id) for job_id in jobs} == {(1, 1)}
        becomes(server, "cuda:1", "failing")
        assert device(server, "cuda:1")["failures"]["demo"]["code"] == "worker_lost"
        assert tries(hub, "cuda:0") == 1
        assert server.client.get("/health").json() == {"status": "ok", "devices": {"cuda:0": "ready", "cuda:1": "failing"}}
        assert server.client.get("/ready").status_code == 200
        demo = next(one for one in server.client.get("/models").json()["models"] if one["name"] == "demo")
        assert demo["devices"] == {"cuda:0": "ready", "cuda:1": "failing"}
        (hub / "cuda:1").unlink()
        becomes(server, "cuda:1", "ready")
        inside = [submit(server, f"until:{tmp_path}/go") for _ in range(4)]
        for job_id in inside:
            until(server, job_id, "running")
        assert [device(server, name)["running"] for name in ("cuda:0", "cuda:1")] == [2, 2]
        (tmp_path / "go").touch()
        assert {succeeded(server, job_id) for job_id in inside} == {(1, 1)}


def test_a_device_that_is_lost_under_jobs_loses_none_of_them(tmp_path: Path, hub: Path) -> None:
    with started(tmp_path, **SETTINGS) as server:
        becomes(server, "cuda:0", "ready")
        becomes(server, "cuda:1", "ready")
        (hub / "cuda:1").write_text("missing")
        (hub / "cuda:1.lost").touch()
        inside = [submit(server, f"until:{tmp_path}/go") for _ in range(4)]  # the second one at the latest goes to the lost one
        becomes(server, "cuda:1", "failing")
        (tmp_path / "go").touch()
        assert max(succeeded(server, job_id)[0] for job_id in inside) == 2
        assert {succeeded(server, submit(server)) for _ in range(3)} == {(1, 1)}
