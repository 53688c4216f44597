"""The server dies, and what it had acknowledged does not."""

from __future__ import annotations

import time
from pathlib import Path

from tests.fakes.server import wav
from tests.faults import killing
from tests.faults.process import started


def test_every_acknowledged_job_ends_once_with_the_right_text_however_often_the_server_is_killed(tmp_path: Path) -> None:
    outcome = killing.run(tmp_path, rounds=2, seed=5)
    assert outcome.acknowledged
    assert outcome.statuses == {"succeeded": len(outcome.acknowledged)}
    assert outcome.wrong == []


def test_every_item_of_a_batch_ends_once_with_the_right_text_although_the_server_is_killed_in_the_middle(
    tmp_path: Path,
) -> None:
    media = tmp_path / "data" / "media"
    media.mkdir(parents=True)
    for number in range(8):
        (media / f"{number}.wav").write_bytes(wav(0.05, number + 1))
    items = [{"audio_file": f"{number}.wav"} for number in range(8)]
    items[3]["audio_file"] = "nowhere.wav"
    with started(tmp_path, **killing.SETTINGS) as server:
        body = {"items": items, "initial_prompt": "sleep:0.3"}
        answer = server.client.post("/batches", json=body, headers={"Idempotency-Key": "night"})
        batch = answer.headers["location"]
        while (shown := server.client.get(batch).json())["counts"]["succeeded"] < 2:
            time.sleep(0.02)
        server.kill()
    assert shown["status"] == "running"
    with started(tmp_path, **killing.SETTINGS) as server:
        again = server.client.post("/batches", json=body, headers={"Idempotency-Key": "night"})
        assert again.headers["location"] == batch
        deadline = time.monotonic() + 60
        while (shown := server.client.get(batch).json())["status"] != "completed":
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
        assert [one["index"] for one in shown["failures"]] == [3]
        right = {number: (number + 1).to_bytes(2, "little").hex() * 32 for number in range(8) if number != 3}
        texts = {
            one["index"]: server.client.get(f"/transcribe/{one['job_id']}?response_format=text").text.strip()
            for one in shown["items"]
            if one["status"] == "succeeded"
        }
        assert texts == right
        killing.check_disk(server, killing.Outcome())
