"""SIGKILL of the server at random moments, round after round, on one data folder.

    python -m tests.faults.killing --rounds 200

While clients hand in async jobs, the server is killed and started again. At the end every job that was acknowledged has ended,
each with exactly one result, the right one, and nothing else lies in the data folder.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.fakes.server import wav
from tests.faults.process import Process, started

SETTINGS = {"STENOPOOL_MAX_DEATHS": "1000", "STENOPOOL_STREAMS": "3"}  # being there at every kill is no guilt here


@dataclass
class Outcome:
    """``acknowledged``: job ids and the texts they must have."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def hand_in(server: Process, outcome: Outcome, chance: random.Random, stop: threading.Event) -> None:
    """Async jobs, one after the other, until told to stop or the server is gone."""
    while not stop.is_set():
        value = chance.randrange(1, 30_000)
        command = chance.choice(["echo", "sleep:0.02", "sleep:0.2"])
        try:
            params = {"wait": "false", "initial_prompt": command}
            answer = server.client.post("/transcribe", params=params, content=wav(0.05, value))
        except httpx.TransportError:
            return
        if answer.status_code == 202:
            outcome.acknowledged[answer.json()["job_id"]] = value.to_bytes(2, "little").hex() * 32
        else:
            assert answer.status_code in (429, 503), answer.text


def run(folder: Path, rounds: int, seed: int) -> Outcome:
    """So many kills, and then an end in peace."""
    chance, outcome = random.Random(seed), Outcome()
    for number in range(rounds):
        with started(folder, **SETTINGS) as server:
            stop = threading.Event()
            seeds = [chance.random() for _ in range(2)]
            clients = [threading.Thread(target=hand_in, args=(server, outcome, random.Random(one), stop)) for one in seeds]
            for client in clients:
                client.start()
            time.sleep(chance.uniform(0.0, 1.0))
            server.kill()
            stop.set()
            for client in clients:
                client.join()
        print(f"round {number + 1}: {len(outcome.acknowledged)} acknowledged", flush=True)
    with started(folder, **SETTINGS) as server:
        settle(server, outcome)
    return outcome


def settle(server: Process, outcome: Outcome) -> None:
    """Wait for the end of everything, then compare."""
    deadline = time.monotonic() + 120
    while any(server.client.get("/jobs", params={"status": one}).json()["jobs"] for one in ("queued", "running")):
        assert time.monotonic() < deadline, "jobs do not end"
        time.sleep(0.1)
    for job_id, text in outcome.acknowledged.items():
        shown = server.client.get(f"/transcribe/{job_id}/status").json()
        outcome.statuses[shown["status"]] += 1
        outcome.attempts[shown["attempts"]] += 1
        answer = server.client.get(f"/transcribe/{job_id}", params={"response_format": "text"})
        if answer.text.strip() != text:
            outcome.wrong.append(job_id)
    check_disk(server, outcome)


def check_disk(server: Process, outcome: Outcome) -> None:
    """One folder per job that succeeded, with its result and nothing else; a row for each that was acknowledged, once."""
    deadline = time.monotonic() + 10
    while True:
        folders = {path.name: [file.name for file in path.iterdir()] for path in (server.data / "jobs").iterdir()}
        if all(len(files) == 1 for files in folders.values()) or time.monotonic() > deadline:
            break
        time.sleep(0.05)  # what is left of the last job is being deleted
    with sqlite3.connect(server.data / "stenopool.db") as db:
        rows = dict(db.execute("SELECT id, status FROM jobs WHERE background").fetchall())
    assert set(outcome.acknowledged) <= set(rows)
    assert set(folders) == {job_id for job_id, status in rows.items() if status == "succeeded"}
    assert all(len(files) == 1 and files[0].startswith("result-") for files in folders.values()), folders


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stenopool-killing-") as folder:
        outcome = run(Path(folder), options.rounds, options.seed)
    print(f"{len(outcome.acknowledged)} acknowledged, {dict(outcome.statuses)}, {len(outcome.wrong)} wrong")
    print(f"attempts: {dict(sorted(outcome.attempts.items()))}")


if __name__ == "__main__":
    main()
