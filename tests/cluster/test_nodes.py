"""Several machines: real API, nodes, Redis and PostgreSQL; the engine is the fake one."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.cluster.machines import LEASE_S, Cluster, cluster
from tests.cluster.servers import Postgres, Redis, until
from tests.fakes.server import wav
from tests.faults.process import started


def test_two_nodes_share_the_jobs_of_one_api_and_a_waiting_caller_gets_its_transcript(
    tmp_path: Path, redis: Redis, postgres: Postgres
) -> None:
    with cluster(tmp_path, redis, postgres) as here:
        here.node("n1")
        here.node("n2")
        here.wait_nodes(2)
        jobs = [here.submit(wav(0.1, value=n), "sleep:0.3") for n in range(8)]
        ended = here.ended(jobs)
        assert [one["status"] for one in ended] == ["succeeded"] * 8
        answer = here.client.post("/transcribe", content=wav(0.1, value=77))
        assert answer.status_code == 200
        assert answer.json()["text"].startswith((77).to_bytes(2, "little").hex())
        for number, job in enumerate(jobs):
            text = here.client.get(f"/transcribe/{job}").json()["text"]
            assert text.startswith(number.to_bytes(2, "little").hex())


def test_nodes_die_freeze_and_lose_their_servers_and_every_job_ends_once_with_its_transcript(
    tmp_path: Path, redis: Redis, postgres: Postgres
) -> None:
    with cluster(tmp_path, redis, postgres) as here:
        killed, frozen, _ = (here.node(name) for name in ("n1", "n2", "n3"))
        here.wait_nodes(3)
        sent = Sent(here)

        sent.more(9, "sleep:1")
        until(lambda: sent.running() >= 4, "work at the nodes")
        killed.kill()
        sent.more(3, "sleep:0.2")
        sent.all_end()

        sent.more(6, "sleep:1")
        until(lambda: sent.running() >= 3, "work at the nodes")
        frozen.freeze()
        time.sleep(3 * LEASE_S)  # the fault itself: it says nothing for three leases
        frozen.thaw()
        sent.more(3, "sleep:0.2")
        sent.all_end()
        here.wait_nodes(2)

        sent.more(8, "sleep:0.5")
        redis.flush()
        sent.more(4, "sleep:0.2")
        sent.all_end()

        sent.more(4, "sleep:0.5")
        redis.stop()
        sent.more(3, "sleep:0.2")
        redis.start()
        sent.more(3, "sleep:0.2")
        sent.all_end()

        sent.more(6, "sleep:1")
        postgres.stop()
        postgres.start()
        until(lambda: here.client.get("/capacity").status_code == 200, "the API with its database")
        sent.more(3, "sleep:0.2")
        sent.all_end()

        sent.each_once()
        until(lambda: here.client.get("/capacity").json()["queue"]["running"] == 0, "nothing reserved")


def test_node_that_stops_gives_its_work_back_without_charge(tmp_path: Path, redis: Redis, postgres: Postgres) -> None:
    with cluster(tmp_path, redis, postgres) as here:
        leaving = here.node("n1", STENOPOOL_SHUTDOWN_GRACE_S="0")
        here.wait_nodes(1)
        gate = tmp_path / "gate"
        job = here.submit(wav(), f"until:{gate}")
        until(lambda: here.status(job)["status"] == "running", "the job")
        here.node("n2")
        here.wait_nodes(2)
        leaving.drain()
        assert not (tmp_path / "n1" / "jobs").exists() or not list((tmp_path / "n1" / "jobs").iterdir())
        gate.touch()
        assert here.ended([job])[0]["status"] == "succeeded"
        with psycopg.connect(here.settings["DATABASE_URL"]) as db:
            row = db.execute("SELECT attempts, forgiven FROM jobs WHERE id = %s", (job,)).fetchone()
        assert row == (2, 1)


def test_cancelled_job_frees_its_node_and_leaves_no_file(tmp_path: Path, redis: Redis, postgres: Postgres) -> None:
    with cluster(tmp_path, redis, postgres) as here:
        here.node("n1")
        here.wait_nodes(1)
        job = here.submit(wav(), "sleep:600")
        until(lambda: here.status(job)["status"] == "running", "the job")
        assert here.client.delete(f"/transcribe/{job}").json()["status"] == "cancelled"
        until(lambda: not list((tmp_path / "n1" / "jobs").iterdir()), "the end of the job at the node")
        assert not (tmp_path / "shared" / "jobs" / job).exists()
        with pytest.raises(httpx.ReadTimeout):
            here.client.post("/transcribe", params={"initial_prompt": "sleep:600"}, content=wav(), timeout=1.5)
        until(lambda: not list((tmp_path / "shared" / "jobs").iterdir()), "the end of the job whose caller hung up")
        until(lambda: all(one["running"] == 0 for one in here.seen()), "an idle node")


def test_job_that_ends_every_worker_fails_and_the_next_one_succeeds(tmp_path: Path, redis: Redis, postgres: Postgres) -> None:
    with cluster(tmp_path, redis, postgres) as here:
        here.node("n1")
        here.wait_nodes(1)
        ended = here.ended([here.submit(wav(), "kill")])[0]
        assert (ended["status"], ended["error"]["code"], ended["attempts"]) == ("failed", "worker_lost", 3)
        assert here.client.post("/transcribe", content=b"no audio at all").json()["error"]["code"] == "not_media"
        assert here.ended([here.submit(wav())])[0]["status"] == "succeeded"


def test_api_that_is_killed_finds_its_jobs_again_at_the_nodes(tmp_path: Path, redis: Redis, postgres: Postgres) -> None:
    with cluster(tmp_path, redis, postgres) as here:
        here.node("n1")
        here.wait_nodes(1)
        gate = tmp_path / "gate"
        jobs = [here.submit(wav(0.1, value=n), f"until:{gate}") for n in range(4)]
        until(lambda: [here.status(job)["status"] for job in jobs].count("running") == 2, "two at the node")
        here.api.kill()
        with started(tmp_path, ready="/health", **here.settings) as again:
            here.api = again
            gate.touch()
            ended = here.ended(jobs)
            assert [(one["status"], one["attempts"]) for one in ended] == [("succeeded", 1)] * 4
            for number, job in enumerate(jobs):
                text = here.client.get(f"/transcribe/{job}").json()["text"]
                assert text.startswith(number.to_bytes(2, "little").hex())


class Sent:
    """Jobs with a number each, which their transcripts show."""

    def __init__(self, here: Cluster) -> None:
        self._here = here
        self._jobs: list[str] = []

    def more(self, count: int, command: str) -> None:
        """Hand in so many more."""
        for number in range(len(self._jobs), len(self._jobs) + count):
            self._jobs.append(self._here.submit(wav(0.1, value=number), command))

    def running(self) -> int:
        """How many run now."""
        return sum(self._here.status(job)["status"] == "running" for job in self._jobs)

    def all_end(self) -> None:
        """Well, and within a minute."""
        assert {one["status"] for one in self._here.ended(self._jobs)} == {"succeeded"}

    def each_once(self) -> None:
        """Its own transcript, one result among the shared media, and no input left."""
        for number, job in enumerate(self._jobs):
            text = self._here.client.get(f"/transcribe/{job}").json()["text"]
            assert text.startswith(number.to_bytes(2, "little").hex())
            attempts = self._here.status(job)["attempts"]
            left = {path.name for path in (self._here.folder / "shared" / "jobs" / job).iterdir()}
            assert left == {f"result-{attempts}.json"}, job
