"""Tasks and set-ups cross the pipe as JSON and come out the same."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from app.jobs import TranscribeOptions, VadOptions
from app.work import Task, WorkerSetup

texts = st.none() | st.text(max_size=20)


@given(st.text(max_size=20), texts, texts, st.sampled_from(["", "fast", "aligned"]), st.floats(0, 1), st.integers(1, 10))
def test_a_task_survives_the_pipe(name: str, prompt: str | None, hotwords: str | None, words: str, t: float, b: int) -> None:
    vad = VadOptions("none", t, 0.2, 1.0, 0.1, 12.5)
    options = TranscribeOptions("demo", "de", "translate", words, prompt, hotwords, b, t, vad)
    task = Task(name, 3, "/a b/ü.pcm", "/r.json", options)
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_a_set_up_survives_the_pipe() -> None:
    setup = WorkerSetup("demo", "engine", None, "repo", None, "/hub", None, True, "cpu", "mps", "int8", 2, 3, 4)
    assert WorkerSetup.from_dict(json.loads(json.dumps(setup.to_dict()))) == setup


def test_options_of_another_version_are_ignored() -> None:
    data = Task("j", 1, "p", "r", TranscribeOptions("demo")).to_dict()
    data["options"]["from_the_future"] = 1
    data["options"]["vad"]["from_the_future"] = 1
    assert Task.from_dict(data).options == TranscribeOptions("demo")
