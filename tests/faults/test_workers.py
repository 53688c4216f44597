"""Workers that are killed, stopped or hang under async jobs: who is tried again, who is blamed, and what is left (nothing).

Without HTTP: tests/unit/pool/test_supervisor.py, tests/unit/test_service.py.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.cgroup import MB, group_root, limited
from tests.faults.jobs import DEADLINE_S, Rest, blame, eventually, submit, succeeded, until, worker
from tests.faults.process import Process, started
from tests.integration.server import still_there, title

SETTINGS = {
    "STENOPOOL_STREAMS": "2",
    "STENOPOOL_PING_INTERVAL_S": "0.5",
    "STENOPOOL_PING_TIMEOUT_S": "3",
    "STENOPOOL_JOB_TIMEOUT_S": "6",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with started(tmp_path_factory.mktemp("workers"), **SETTINGS) as running:
        yield running


@pytest.fixture
def rest(server: Process) -> Iterator[Rest]:
    """At the end of every test a healthy job must succeed, and nothing may be left of the others."""
    before = Rest.of(server)
    yield before
    before.reached_again()


class Batch:
    """Two jobs that share the worker until :meth:`go`, and a third that waits for a place."""

    def __init__(self, server: Process, folder: Path, first: str = "until") -> None:
        self.server, self._go = server, folder / "go"
        self.inside = [submit(server, f"{first}:{self._go}"), submit(server, f"until:{self._go}")]
        for job_id in self.inside:
            until(server, job_id, "running")
        self.waiting = submit(server)

    def go(self) -> None:
        self._go.touch()


def again(server: Process, *jobs: str) -> None:
    """Wait until one of these is being tried again (each has the worker to itself then, so the others wait)."""
    eventually(lambda: any(blame(server, job_id)[0] > 1 for job_id in jobs), lambda: "nobody is tried again")


def died(process: psutil.Process) -> None:
    assert not still_there([process], timeout_s=DEADLINE_S)


def test_sigkill_of_an_idle_worker_is_seen_by_no_job(server: Process, rest: Rest) -> None:
    before = worker(server)
    before.kill()
    died(before)
    assert succeeded(server, submit(server)) == (1, 1)
    assert worker(server).pid != before.pid


def test_job_whose_worker_dies_as_soon_as_it_has_begun_is_blamed_and_tried_again(
    server: Process, rest: Rest, tmp_path: Path
) -> None:
    before = worker(server)
    job_id = submit(server, f"kill-once:{tmp_path}/killed")
    assert succeeded(server, job_id) == (2, 2)
    assert worker(server).pid != before.pid


def test_worker_killed_under_two_jobs_both_run_again_unblamed_and_who_waited_never_notices(
    server: Process, rest: Rest, tmp_path: Path
) -> None:
    batch = Batch(server, tmp_path)
    worker(server).kill()
    again(server, *batch.inside)
    batch.go()
    assert [succeeded(server, job_id) for job_id in batch.inside] == [(2, 1), (2, 1)]
    assert succeeded(server, batch.waiting) == (1, 1)


def test_worker_killed_while_it_writes_a_result_the_half_result_is_gone_and_the_job_succeeds(
    server: Process, rest: Rest, tmp_path: Path
) -> None:
    assert succeeded(server, submit(server, f"kill-writing-once:{tmp_path}/killed")) == (2, 2)


def test_forkserver_that_is_killed_takes_its_worker_along_and_both_come_back_and_the_job_runs_again(
    server: Process, rest: Rest, tmp_path: Path
) -> None:
    job_id = submit(server, f"until:{tmp_path}/go")
    until(server, job_id, "running")
    before = worker(server)
    (forkserver,) = [one for one in server.family() if title(one) == "stenopool forkserver"]
    forkserver.kill()
    died(before)
    (tmp_path / "go").touch()
    assert succeeded(server, job_id) == (2, 2)


def test_stopped_worker_is_killed_at_the_ping_deadline_with_what_it_started_and_its_job_runs_again(
    server: Process, rest: Rest, tmp_path: Path
) -> None:
    before = worker(server)
    job_id = submit(server, f"child-once:{tmp_path}/go")
    eventually(lambda: bool(before.children()), lambda: "it started nothing")
    (child,) = before.children()
    before.send_signal(signal.SIGSTOP)
    for process in (before, child):
        died(process)
    (tmp_path / "go").touch()
    assert succeeded(server, job_id) == (2, 2)


def test_endless_loop_that_ignores_sigterm_ends_at_its_deadline_and_its_neighbour_runs_again_unblamed(
    server: Process, rest: Rest, tmp_path: Path
) -> None:
    before = worker(server)
    burning = submit(server, f"burn:{tmp_path}/burns")
    eventually((tmp_path / "burns").exists, lambda: "it does not burn")
    before.terminate()
    neighbour = submit(server, f"until:{tmp_path}/go")
    failed = until(server, burning, "failed")
    assert (failed["error"]["code"], failed["attempts"]) == ("deadline_exceeded", 1)
    assert server.client.get(f"/transcribe/{burning}").status_code == 504
    died(before)
    (tmp_path / "go").touch()
    assert succeeded(server, neighbour) == (2, 1)


def test_poison_ends_as_worker_lost_after_three_deaths_of_its_own_and_its_neighbour_succeeds_unblamed(
    server: Process, rest: Rest, tmp_path: Path
) -> None:
    neighbour = submit(server, f"until:{tmp_path}/go")
    until(server, neighbour, "running")
    poison = submit(server, "kill")
    again(server, poison, neighbour)
    (tmp_path / "go").touch()
    failed = until(server, poison, "failed")
    assert failed["error"]["code"] == "worker_lost"
    assert server.client.get(f"/transcribe/{poison}").status_code == 500
    assert blame(server, poison) == (4, 3)  # the first death may have been the neighbour's fault
    assert succeeded(server, neighbour) == (2, 1)


@pytest.mark.skipif(group_root() is None, reason="no cgroup v1 memory controller that can be written")
def test_who_takes_all_the_memory_of_the_control_group_fails_as_out_of_memory_and_the_server_lives(tmp_path: Path) -> None:
    patient = {**SETTINGS, "STENOPOOL_JOB_TIMEOUT_S": "60", "STENOPOOL_CONTAINER_RESERVE_MB": "50"}
    patient["STENOPOOL_LOG_LEVEL"] = "warning"
    with limited(1000 * MB) as group, started(tmp_path, group, **patient) as server:
        rest = Rest.of(server)
        greedy = submit(server, "allocate:4000")
        until(server, greedy, "running")
        healthy = submit(server)
        failed = until(server, greedy, "failed")
        assert failed["error"]["code"] == "out_of_memory"
        assert (blame(server, greedy)[1], succeeded(server, healthy)[1]) == (3, 1)
        control = dict(line.split() for line in (group / "memory.oom_control").read_text().splitlines())
        foreseen = (tmp_path / "server.log").read_text().count("memory is nearly full")
        assert int(control["oom_kill"]) + foreseen >= 3  # by the kernel, or by the server, which may have seen it coming
        assert server.process.poll() is None
        server.wait_ready()  # not before the memory has been looked at again
        rest.reached_again()
