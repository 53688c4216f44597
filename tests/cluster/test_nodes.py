"""Several machines: real API, nodes, Redis and PostgreSQL; the engine is the fake one."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import httpx
import psycopg
import pytest
import redis

from app.cluster.queue import SOCKET_S
from tests.cluster.machines import LEASE_S, Cluster
from tests.cluster.servers import until
from tests.fakes.server import wav


class Sent:
    """Async jobs with a number each, which their transcripts show."""

    def __init__(self, here: Cluster) -> None:
        self._here = here
        self.jobs: list[str] = []

    def more(self, count: int, command: str) -> None:
        """Hand in so many more."""
        for number in range(len(self.jobs), len(self.jobs) + count):
            self.jobs.append(self._here.submit(wav(0.1, value=number), command))

    def more_while_redis_is_silent(self, count: int) -> None:
        """The same; neither these callers nor those who ask after the server wait for Redis."""
        for _ in range(count):
            began = time.monotonic()
            self.more(1, "sleep:0.1")
            for path in ("/health", "/ready", "/capacity"):
                assert self._here.client.get(path).status_code == 200
            assert time.monotonic() - began < 0.8 * SOCKET_S

    def running(self) -> int:
        """How many run now."""
        return sum(self._here.status(job)["status"] == "running" for job in self.jobs)

    def all_end(self) -> None:
        """Well, and within a minute."""
        assert [one for one in self._here.ended(self.jobs) if one["status"] != "succeeded"] == []

    def each_once(self) -> None:
        """Its own transcript, one result among the shared media, and no input left."""
        for number, job in enumerate(self.jobs):
            text = self._here.client.get(f"/transcribe/{job}").json()["text"]
            assert text.startswith(number.to_bytes(2, "little").hex())
            attempts = self._here.status(job)["attempts"]
            until(partial(self._has_only, job, f"result-{attempts}.json"), "one result, and no input")

    def _has_only(self, job: str, name: str) -> bool:
        return [path.name for path in (self._here.folder / "shared" / "jobs" / job).iterdir()] == [name]


def test_two_nodes_share_the_jobs_and_a_waiting_caller_gets_its_transcript(here: Cluster) -> None:
    here.have("n1", "n2")
    sent = Sent(here)
    sent.more(8, "sleep:0.3")
    sent.all_end()
    sent.each_once()
    answer = here.client.post("/transcribe", content=wav(0.1, value=77))
    assert (answer.status_code, answer.json()["text"][:4]) == (200, (77).to_bytes(2, "little").hex())
    with psycopg.connect(here.settings["DATABASE_URL"]) as db:
        rows = db.execute("SELECT node, count(*) FROM leases GROUP BY node").fetchall()
    assert {node for node, _ in rows} == {"n1", "n2"}
    assert len(list((here.folder / "shared" / "jobs").iterdir())) == 8  # the caller that waited has all there was


def test_node_that_stops_gives_its_work_back_without_charge(here: Cluster, tmp_path: Path) -> None:
    leaving, _ = here.have("n1", "n2")
    gate = tmp_path / "gate"
    jobs = [here.submit(wav(), f"until:{gate}") for _ in range(4)]
    until(lambda: all(here.status(job)["status"] == "running" for job in jobs), "both nodes at work")
    leaving.drain()
    assert not list((here.folder / "n1" / "jobs").iterdir())
    gate.touch()
    assert [one["status"] for one in here.ended(jobs)] == ["succeeded"] * 4
    with psycopg.connect(here.settings["DATABASE_URL"]) as db:
        rows = db.execute("SELECT attempts, forgiven FROM jobs WHERE id = ANY(%s)", (jobs,)).fetchall()
    assert sorted(rows) == [(1, 0), (1, 0), (2, 1), (2, 1)]


def test_cancelled_job_frees_its_node_and_leaves_no_file(here: Cluster) -> None:
    here.have("n1")
    job = here.submit(wav(), "sleep:600")
    until(lambda: here.status(job)["status"] == "running", "the job")
    before = set((here.folder / "shared" / "jobs").iterdir())
    assert here.client.delete(f"/transcribe/{job}").json()["status"] == "cancelled"
    until(lambda: not list((here.folder / "n1" / "jobs").iterdir()), "the end of the job at the node")
    with pytest.raises(httpx.ReadTimeout):
        here.client.post("/transcribe", params={"initial_prompt": "sleep:600"}, content=wav(), timeout=1.5)
    until(lambda: all(one["running"] == 0 for one in here.seen()), "an idle node")
    assert {path.name for path in before} - {path.name for path in (here.folder / "shared" / "jobs").iterdir()} == {job}


def test_job_that_ends_every_worker_fails_and_the_next_one_succeeds(here: Cluster) -> None:
    here.have("n1")
    ended = here.ended([here.submit(wav(), "kill")])[0]
    assert (ended["status"], ended["error"]["code"], ended["attempts"]) == ("failed", "worker_lost", 3)
    assert here.client.post("/transcribe", content=b"no audio at all").json()["error"]["code"] == "not_media"
    assert here.ended([here.submit(wav())])[0]["status"] == "succeeded"


def test_api_that_is_killed_finds_its_jobs_again_at_the_nodes(here: Cluster, tmp_path: Path) -> None:
    here.have("n1")
    gate = tmp_path / "gate"
    sent = Sent(here)
    sent.more(4, f"until:{gate}")
    until(lambda: sent.running() == 2, "two at the node")
    here.restart_api()
    gate.touch()
    sent.all_end()
    sent.each_once()
    assert {here.status(job)["attempts"] for job in sent.jobs} == {1}


def test_nodes_die_freeze_and_lose_their_servers_and_every_job_ends_once_with_its_transcript(
    here: Cluster, tmp_path: Path
) -> None:
    killed, frozen, other = here.have("n1", "n2", "n3")
    sent = Sent(here)

    sent.more(9, f"until:{tmp_path}/first")
    until(lambda: sent.running() == 6, "three nodes at work")
    killed.kill()
    (tmp_path / "first").touch()
    sent.all_end()
    here.wait_nodes(2)

    sent.more(6, f"until:{tmp_path}/second")
    until(lambda: sent.running() == 4, "two nodes at work")
    frozen.freeze()
    (tmp_path / "second").touch()
    time.sleep(3 * LEASE_S)  # the fault itself: it says nothing for three leases
    frozen.thaw()
    sent.all_end()
    here.wait_nodes(2)
    assert any(here.status(job)["attempts"] == 2 for job in sent.jobs[-6:])

    for node in (frozen, other):
        node.freeze()
    sent.more(6, "sleep:0.1")
    until(lambda: here.redis.waiting() > 0, "messages that nobody takes")
    here.redis.flush()
    for node in (frozen, other):
        node.thaw()
    sent.all_end()

    here.redis.stop()
    sent.more(3, "sleep:0.1")
    here.redis.start()
    sent.more(3, "sleep:0.1")
    sent.all_end()

    sent.more(6, f"until:{tmp_path}/third")
    until(lambda: sent.running() == 4, "two nodes at work")
    here.postgres.stop()
    (tmp_path / "third").touch()
    here.postgres.start()
    until(lambda: here.client.get("/jobs").status_code == 200, "the API with its database")
    sent.more(3, "sleep:0.1")
    sent.all_end()

    sent.each_once()
    until(lambda: here.client.get("/capacity").json()["queue"]["running"] == 0, "nothing reserved")


def test_redis_that_is_frozen_keeps_no_caller_waiting_and_no_node_from_ending_and_every_job_ends_once(here: Cluster) -> None:
    _, leaving = here.have("n1", "n2")
    sent = Sent(here)
    here.redis.freeze()
    try:
        sent.more_while_redis_is_silent(4)
        sent.all_end()
        leaving.drain()
        assert leaving.process.returncode == 0
    finally:
        here.redis.thaw()
    sent.more(2, "sleep:0.1")
    sent.all_end()
    sent.each_once()
    assert {here.status(job)["attempts"] for job in sent.jobs} == {1}
    until(lambda: here.redis.waiting() == 0, "a node that reads messages")
    assert here.client.get("/capacity").json()["queue"]["running"] == 0


def test_redis_that_pauses_for_longer_than_its_deadline_keeps_no_caller_waiting_and_every_job_ends_once(here: Cluster) -> None:
    here.have("n1")
    sent = Sent(here)
    began = time.monotonic()
    here.redis.pause(1.2 * SOCKET_S)
    sent.more_while_redis_is_silent(3)
    sent.all_end()
    here.redis.waiting()  # this answer is late
    assert time.monotonic() - began >= 1.2 * SOCKET_S
    sent.more(2, "sleep:0.1")
    sent.all_end()
    sent.each_once()
    assert {here.status(job)["attempts"] for job in sent.jobs} == {1}
    until(lambda: here.redis.waiting() == 0, "a node that reads messages")


def test_redis_that_answers_with_errors_ends_no_node_and_is_used_again_when_it_works(here: Cluster) -> None:
    (node,) = here.have("n1")
    with redis.Redis(port=here.redis.port) as client:
        client.set("stenopool", "no list of messages")
        log = here.folder / "n1.log"
        until(lambda: "Celery has ended" in log.read_text(), "the end of Celery")
        assert here.ended([here.submit(wav())])[0]["status"] == "succeeded"
        client.delete("stenopool")
        job = here.submit(wav())
        until(lambda: client.llen("stenopool") == 0, "a node that reads messages")
    assert here.ended([job])[0]["status"] == "succeeded"
    node.drain()
    assert node.process.returncode == 0


def test_batch_of_recordings_in_the_media_folder_is_run_by_the_nodes_and_one_failure_stays_alone(here: Cluster) -> None:
    here.have("n1", "n2")
    media = here.api.data / "media"
    media.mkdir(exist_ok=True)
    for number in range(5):
        (media / f"{number}.wav").write_bytes(wav(0.1, value=number))
    items = [{"audio_file": f"{number}.wav"} for number in (0, 1, 2, 99, 3, 4)]
    answer = here.client.post("/batches", json={"items": items, "initial_prompt": "sleep:0.1"})
    assert answer.status_code == 202, answer.text
    where = answer.headers["location"]
    until(lambda: here.client.get(where).json()["status"] == "completed", "the batch")
    shown = here.client.get(where).json()["items"]
    assert [item["status"] for item in shown] == ["succeeded"] * 3 + ["failed"] + ["succeeded"] * 2
    for number, item in zip((0, 1, 2, 3, 4), [one for one in shown if one["status"] == "succeeded"], strict=True):
        text = here.client.get(f"/transcribe/{item['job_id']}").json()["text"]
        assert text.startswith(number.to_bytes(2, "little").hex())
