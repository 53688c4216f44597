"""Descriptors or processes are used up: 503 for who can be answered, no job lost, and all is well once there are some again."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.fakes.server import wav
from tests.faults.jobs import Rest, eventually, status, submit, succeeded, until, worker
from tests.faults.process import Process, started
from tests.unit.http.test_middleware import shape

FILES = 256


def pids_root() -> Path | None:
    """Where a control group that bounds processes can be made; None where it cannot."""
    with contextlib.suppress(OSError, StopIteration):
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        own = next(path for _, controllers, path in lines if controllers in ("pids", ""))
        for root in (Path("/sys/fs/cgroup/pids") / own.lstrip("/"), Path("/sys/fs/cgroup") / own.lstrip("/")):
            control = root / "cgroup.subtree_control"  # v1 has none
            can = "pids" in control.read_text().split() if control.exists() else root.parts[4:5] == ("pids",)
            if can and os.access(root, os.W_OK):
                return root
    return None


@pytest.fixture(scope="module")
def group() -> Iterator[Path | None]:
    """A control group of the server's own, where one can be made."""
    root = pids_root()
    if root is None:
        yield None
        return
    group = root / f"stenopool-{os.getpid()}"
    group.mkdir()
    yield group
    eventually(lambda: not (group / "cgroup.procs").read_text().strip(), lambda: "it has processes still")
    group.rmdir()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, group: Path | None) -> Iterator[Process]:
    with started(tmp_path_factory.mktemp("files"), group, files=FILES) as running:
        yield running


def workers_mb(server: Process) -> float:
    """What workers are billed."""
    return float(server.client.get("/capacity").json()["memory"]["reservations"]["worker"]) / 1e6


@pytest.fixture
def rest(server: Process) -> Iterator[Rest]:
    """At the end of every test a healthy job must succeed, and nothing be left of the others, nor a dead worker's memory."""
    before, billed = Rest.of(server), workers_mb(server)
    yield before
    before.reached_again()
    assert workers_mb(server) < 1.5 * billed


@contextmanager
def flood(server: Process, number: int) -> Iterator[list[socket.socket]]:
    """So many connections that say nothing."""
    with ExitStack() as stack:
        address = server.client.base_url.host, server.client.base_url.port
        yield [stack.enter_context(socket.create_connection(address, 10)) for _ in range(number)]


@contextmanager
def connected(server: Process, number: int) -> Iterator[list[httpx.Client]]:
    """Clients with an open connection each."""
    with ExitStack() as stack:
        how = {"base_url": server.client.base_url, "headers": server.client.headers, "timeout": 30, "trust_env": False}
        clients = [stack.enter_context(httpx.Client(**how)) for _ in range(number)]
        for client in clients:
            assert client.get("/health").status_code == 200
        yield clients


@contextmanager
def no_files(server: Process) -> Iterator[None]:
    """The server has more open files than it may have, however many connections end."""
    process = psutil.Process(server.process.pid)
    process.rlimit(resource.RLIMIT_NOFILE, (8, FILES))
    try:
        yield
    finally:
        process.rlimit(resource.RLIMIT_NOFILE, (FILES, FILES))


def refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    error = shape(answer)
    assert (error["code"], error["retryable"]) == ("unavailable", True)
    assert int(answer.headers["retry-after"]) >= 1


def test_flood_of_silent_connections_leaves_descriptors_for_jobs_and_newcomers(server: Process, rest: Rest) -> None:
    with flood(server, 4 * FILES):
        with connected(server, 1) as (newcomer,):
            began = time.monotonic()
            assert newcomer.get("/health").status_code == 200
            assert time.monotonic() - began < 2
        assert psutil.Process(server.process.pid).num_fds() < FILES
        assert succeeded(server, submit(server)) == (1, 1)


def test_where_no_file_can_be_opened_requests_get_503_jobs_stay_and_the_loop_does_not_spin(
    server: Process, rest: Rest, tmp_path: Path
) -> None:
    jobs = submit(server, f"kill-once-when:{tmp_path}/kill"), submit(server, f"until:{tmp_path}/go")
    for job_id in jobs:
        until(server, job_id, "running")
    process, log = psutil.Process(server.process.pid), server.data.parent / "server.log"
    paths = ["/transcribe", "/transcribe?wait=false", "/extract-audio", "/transcribe?audio_file=none.wav"]
    with connected(server, 5) as clients, no_files(server), flood(server, 100):
        began, used, failures = time.monotonic(), cpu_s(process), accepts_failed(log)
        for client, path in zip(clients, paths, strict=False):
            refused(client.post(path, content=wav(0.05, 7, streamed=True) if "file" not in path else b""))
        (tmp_path / "kill").touch()
        while time.monotonic() - began < 2.0:
            asked = time.monotonic()
            assert clients[-1].get("/health").status_code == 200
            assert time.monotonic() - asked < 2
            time.sleep(0.05)
        assert cpu_s(process) - used < 1.0
        assert 1 <= accepts_failed(log) - failures <= 4  # one in a second
        (tmp_path / "go").touch()
    for job_id in jobs:
        assert succeeded(server, job_id)[0] >= 2


def accepts_failed(log: Path) -> int:
    """How often there was no descriptor for a new connection."""
    return log.read_text().count("socket.accept() out of system resource")


def cpu_s(process: psutil.Process) -> float:
    """Seconds that it has computed itself."""
    return float(sum(process.cpu_times()[:2]))


def test_where_no_process_can_be_started_jobs_wait_others_get_503_and_all_goes_on_once_there_may_be_more(
    server: Process, rest: Rest, group: Path | None, tmp_path: Path
) -> None:
    if group is None:
        pytest.skip("no pids controller that can be written")
    job_id = submit(server, f"until:{tmp_path}/go")
    until(server, job_id, "running")
    (group / "pids.max").write_text("1")
    try:
        worker(server).kill()
        (tmp_path / "go").touch()
        for path in ("/transcribe", "/extract-audio"):
            refused(server.client.post(path, content=wav(0.05, 7, streamed=True)))
        late = submit(server)
        reasons: list[str] = []

        def given_up() -> bool:
            answer = server.client.get("/ready")
            reasons[:] = answer.json()["reasons"]
            return answer.status_code == 503 and "demo: No worker can be started now." in reasons

        eventually(given_up, lambda: str(reasons))
        assert [status(server, one)["status"] for one in (job_id, late)] == ["queued", "queued"]
        assert server.client.get("/health").status_code == 200
    finally:
        (group / "pids.max").write_text("max")
    assert succeeded(server, job_id) == (2, 2)
    assert succeeded(server, late)[1] == 1
