"""SIGTERM: idle, busy, over the grace time, with a line; and the next start goes on."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.fakes.server import wav
from tests.faults.jobs import TEXT, submit, until
from tests.faults.process import Process, started


def terminate(server: Process, timeout_s: float = 15.0) -> int:
    server.process.send_signal(signal.SIGTERM)
    return server.process.wait(timeout_s)


def test_idle_server_ends_at_once(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        began = time.monotonic()
        terminate(server)
        assert time.monotonic() - began < 5


def test_running_job_ends_within_the_grace_time_and_its_result_is_there_after_the_next_start(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        job_id = submit(server, f"until:{tmp_path}/go")
        until(server, job_id, "running")
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        (tmp_path / "go").touch()
        server.process.wait(15)
    with started(tmp_path) as server:
        shown = until(server, job_id, "succeeded")
        assert shown["attempts"] == 1
        assert server.client.get(f"/transcribe/{job_id}?response_format=text").text.strip() == TEXT


@pytest.mark.parametrize("signals", [1, 2])
def test_job_over_the_grace_time_goes_back_and_is_done_after_the_next_start(tmp_path: Path, signals: int) -> None:
    with started(tmp_path, STENOPOOL_SHUTDOWN_GRACE_S="1", STENOPOOL_STREAMS="1") as server:
        running, waiting = submit(server, f"until:{tmp_path}/go"), submit(server, "echo")
        until(server, running, "running")
        for _ in range(signals):
            server.process.send_signal(signal.SIGTERM)
        server.process.wait(15)
    (tmp_path / "go").touch()
    with started(tmp_path) as server:
        assert until(server, running, "succeeded")["attempts"] == 2
        assert until(server, waiting, "succeeded")["attempts"] == 1
        for job_id in (running, waiting):
            assert server.client.get(f"/transcribe/{job_id}?response_format=text").text.strip() == TEXT


def test_caller_who_waits_in_line_is_sent_away_at_once_and_the_running_one_is_answered(tmp_path: Path) -> None:
    with started(tmp_path, STENOPOOL_STREAMS="1") as server, ThreadPoolExecutor(2) as callers:

        def post(command: str) -> httpx.Response:
            return server.client.post("/transcribe", params={"initial_prompt": command}, content=wav(0.05, 7))

        running = callers.submit(post, f"until:{tmp_path}/go")
        while server.client.get("/capacity").json()["queue"]["running"] != 1:
            time.sleep(0.02)
        waiting = callers.submit(post, "echo")
        while server.client.get("/capacity").json()["queue"]["waiting"] != 1:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        refused = waiting.result(4)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        (tmp_path / "go").touch()
        assert running.result(10).status_code == 200
        server.process.wait(15)


def test_caller_whose_job_takes_longer_than_the_grace_time_is_told_so_in_the_one_shape(tmp_path: Path) -> None:
    with started(tmp_path, STENOPOOL_SHUTDOWN_GRACE_S="1") as server, ThreadPoolExecutor(1) as callers:
        params = {"initial_prompt": f"until:{tmp_path}/never"}
        caller = callers.submit(server.client.post, "/transcribe", params=params, content=wav(0.05, 7))
        while server.client.get("/capacity").json()["queue"]["running"] != 1:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        answer = caller.result(10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "interrupted")
        server.process.wait(15)
        assert "Traceback" not in (tmp_path / "server.log").read_text()
