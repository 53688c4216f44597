"""Tasks and set-ups cross the pipe as JSON and come out the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
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


GPU = WorkerSetup("demo", "engine", None, "repo", None, "/hub", None, True, "cuda:0", "cuda", "auto", 8, 1, 16, 4)


@pytest.mark.parametrize(
    ("room", "batch_size", "runners"),
    [(7400, 16, 4), (7399, 8, 4), (1400, 1, 4), (1399, 1, 2), (1100, 1, 1), (1099, 0, 0), (-5, 0, 0)],
)
def test_batches_get_smaller_then_calls_fewer_until_the_room_on_a_gpu_does(room: int, batch_size: int, runners: int) -> None:
    setup = replace(GPU, gpu_fixed_bytes=1000, gpu_window_bytes=100)
    assert setup.gpu_bytes == 7400
    within = setup.within(room)
    assert (within.batch_size, within.runners) == (batch_size, runners) if within else batch_size == 0


def test_worker_that_takes_nothing_of_a_gpu_fits_any() -> None:
    assert GPU.within(0) == GPU


def test_options_of_another_version_are_ignored() -> None:
    data = Task("j", 1, "p", "r", TranscribeOptions("demo")).to_dict()
    data["options"]["from_the_future"] = 1
    data["options"]["vad"]["from_the_future"] = 1
    assert Task.from_dict(data).options == TranscribeOptions("demo")
