"""Async jobs of a server process under test: handed in, watched, and what is left behind when all have ended."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from tests.fakes.server import wav
from tests.faults.process import Process
from tests.integration.server import title

TEXT = (7).to_bytes(2, "little").hex() * 32
DEADLINE_S = 40.0
"""Only a failure waits so long; but workers are niced, and on a busy machine it takes seconds to start one."""


def submit(server: Process, command: str = "echo") -> str:
    """An async job for the fake engine; its id."""
    params = {"wait": "false", "initial_prompt": command}
    answer = server.client.post("/transcribe", params=params, content=wav(0.05, 7, streamed=True))
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["job_id"]
    return job_id


def status(server: Process, job_id: str) -> dict[str, Any]:
    """What is to be seen of it."""
    shown: dict[str, Any] = server.client.get(f"/transcribe/{job_id}/status").json()
    return shown


def until(server: Process, job_id: str, *wanted: str) -> dict[str, Any]:
    """The first status that is one of ``wanted``."""
    shown: dict[str, Any] = {}

    def reached() -> bool:
        shown.update(status(server, job_id))
        return shown["status"] in wanted

    eventually(reached, lambda: f"never {wanted}: {shown}")
    return shown


def eventually(holds: Callable[[], bool], complaint: Callable[[], str], timeout_s: float = DEADLINE_S) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, complaint()
        time.sleep(0.02)


def succeeded(server: Process, job_id: str) -> tuple[int, int]:
    """Wait until it has, with the right text; how many attempts it took, and how many of them count against it."""
    until(server, job_id, "succeeded", "failed", "cancelled")
    assert status(server, job_id)["status"] == "succeeded", status(server, job_id)
    assert server.client.get(f"/transcribe/{job_id}", params={"response_format": "text"}).text.strip() == TEXT
    return blame(server, job_id)


def blame(server: Process, job_id: str) -> tuple[int, int]:
    """How many attempts it has had, and how many of them count against it."""
    with sqlite3.connect(server.data / "stenopool.db") as db:
        attempts, forgiven = db.execute("SELECT attempts, forgiven FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return attempts, attempts - forgiven


def workers(server: Process) -> list[psutil.Process]:
    """Its worker processes that have loaded their model."""
    return [one for one in server.family() if title(one).startswith("stenopool worker") and "loading" not in title(one)]


def worker(server: Process) -> psutil.Process:
    """The only one, as soon as it is there."""
    eventually(lambda: len(workers(server)) == 1, lambda: f"not one worker: {titles(server)}")
    return workers(server)[0]


def titles(server: Process) -> list[str]:
    """Its processes, by title."""
    return sorted(title(one) for one in server.family())


@dataclass(frozen=True)
class Rest:
    """A server at rest: what it consists of when nobody wants anything. Made before the fault, compared after it."""

    server: Process
    processes: list[str]

    @classmethod
    def of(cls, server: Process) -> Rest:
        """As it is now; it must be idle."""
        worker(server)
        return cls(server, titles(server))

    def reached_again(self) -> None:
        """One more job succeeds, and nothing is left of any but its result: no place, memory, disk, process or file."""
        assert succeeded(self.server, submit(self.server)) == (1, 1)
        eventually(lambda: not self.differences(), lambda: str(self.differences()))

    def differences(self) -> dict[str, Any]:
        """What is still held, by its name; empty at rest."""
        shown = self.server.client.get("/capacity").json()
        folders = {path.name: [file.name for file in path.iterdir()] for path in (self.server.data / "jobs").iterdir()}
        with sqlite3.connect(self.server.data / "stenopool.db") as db:
            rows = dict(db.execute("SELECT id, status FROM jobs WHERE background").fetchall())
        results = {job_id for job_id, ended in rows.items() if ended == "succeeded"}
        classes = shown["classes"].values()
        found = {
            "places": [one for one in classes if one["running"] or one["waiting"] or one["admitted"] != one["ended"]],
            "memory": {name for name, size in shown["memory"]["reservations"].items() if size} - {"base", "worker"},
            "disk": shown["disk"]["reserved_bytes"],
            "quota": shown["your_key"]["in_use"]["jobs"],
            "folders": set(folders) ^ results,
            "files": [names for names in folders.values() if len(names) != 1 or not names[0].startswith("result-")],
            "rows": [row for row in rows.items() if row[1] in ("queued", "running")],
            "processes": titles(self.server) if titles(self.server) != self.processes else [],
        }
        return {name: what for name, what in found.items() if what}
