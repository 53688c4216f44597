"""One transcription from PCM to result: structure, progress, cancellation, threads."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.errors import Cancelled
from app.formats import Transcript, render
from app.jobs import TranscribeOptions, VadOptions
from app.work import Task
from tests.unit.engine.conftest import noise, speech

pytestmark = pytest.mark.filterwarnings("ignore")

SHORT = VadOptions(method="none", chunk_s=1.0)
MakeTask = Callable[..., Task]


def run(pipeline: Any, task: Task) -> dict[str, Any]:
    result: dict[str, Any] = pipeline.transcribe(task, lambda *_: None, lambda: False)
    return result


def said(pipeline: Any, task: Task) -> dict[str, Any]:
    """The result without what differs from run to run: seconds, and the last digits of probabilities in other batches."""
    result = run(pipeline, task)
    del result["spent"]
    for segment in result["segments"]:
        for name in ("avg_logprob", "no_speech_prob"):
            segment[name] = round(segment[name], 2)
    return result


def test_result_is_json_and_a_transcript_that_every_format_can_show(pipeline: Any, task: MakeTask) -> None:
    result = run(pipeline, task(noise(3), word_timestamps="aligned", language="en"))
    transcript = Transcript.from_dict(json.loads(json.dumps(result)))
    assert (transcript.model, transcript.task, transcript.duration) == ("demo", "transcribe", 3.0)
    assert (transcript.language, transcript.language_probability) == ("en", None)
    for name in ("json", "verbose_json", "text", "srt", "vtt", "tsv"):
        assert isinstance(render(transcript, name, words=True).body, bytes)


def test_language_is_detected_with_a_probability_where_none_is_given(pipeline: Any, task: MakeTask) -> None:
    result = run(pipeline, task(noise(2)))
    assert result["language"]
    assert 0 < result["language_probability"] <= 1


@pytest.mark.parametrize("count", [1, 2])
def test_the_language_is_told_at_once_only_where_other_windows_wait_for_it(
    engine: SimpleNamespace, pipeline: Any, count: int
) -> None:
    taken: list[Any] = []

    class Seat:
        def windows(self, pieces: list[Any], *, hold: bool) -> list[Any]:
            taken.extend(pieces)
            return []

    windows = [engine.vad.Window(0.0, 0.5), engine.vad.Window(0.5, 1.0)][:count]
    speech = engine.batch.Speech(np.zeros(16_000, np.int16), TranscribeOptions("demo"), None)
    pipeline._recognise(Seat(), windows, speech, lambda stage, done: None)
    assert [piece.told is not None for piece in taken] == [count > 1] * count


@pytest.mark.parametrize("method", ["silero", "none"])
def test_silence_is_an_empty_transcript_in_every_format(pipeline: Any, task: MakeTask, method: str) -> None:
    pcm = np.zeros(16_000 if method == "silero" else 0)
    result = run(pipeline, task(pcm, vad=VadOptions(method=method), word_timestamps="aligned"))
    assert (result["segments"], result["language"]) == ([], None)
    transcript = Transcript.from_dict(json.loads(json.dumps(result)))
    for name in ("json", "verbose_json", "text", "srt", "vtt", "tsv"):
        assert isinstance(render(transcript, name, words=True).body, bytes)


@pytest.mark.parametrize(
    ("data", "duration"), [(b"", 0.0), (b"\x01", 0.0), (b"\x01\x02\x03", 0.0), (b"\x00\x01" * 16_000 + b"\x07", 1.0)]
)
def test_any_number_of_bytes_is_whole_samples(pipeline: Any, task: MakeTask, data: bytes, duration: float) -> None:
    assert run(pipeline, task(data))["duration"] == duration


def test_samples_in_the_middle_of_a_file_are_found_and_nothing_around_them(pipeline: Any, task: MakeTask) -> None:
    spoken = speech(0)
    before = b"x" * 46 + noise(3).astype("<i2").tobytes()
    around = task(before + spoken.astype("<i2").tobytes() + noise(3).astype("<i2").tobytes(), language="en")
    inside = replace(around, pcm_start=len(before), pcm_bytes=2 * len(spoken))
    assert said(pipeline, inside) == said(pipeline, task(spoken, language="en"))


def test_times_of_segments_are_inside_the_recording_and_in_order(pipeline: Any, task: MakeTask) -> None:
    result = run(pipeline, task(noise(4.5), vad=SHORT, word_timestamps="aligned", language="en", beam_size=1))
    starts = [segment["start"] for segment in result["segments"]]
    assert starts == sorted(starts)
    assert [segment["id"] for segment in result["segments"]] == list(range(len(starts)))
    assert all(0 <= segment["start"] <= segment["end"] <= 4.5 for segment in result["segments"])


def test_progress_comes_after_every_window_and_rises(pipeline: Any, task: MakeTask) -> None:
    seen: list[tuple[str, float]] = []
    pipeline.transcribe(task(noise(5), vad=SHORT, beam_size=1), lambda *step: seen.append(step), lambda: False)
    assert [fraction for stage, fraction in seen if stage == "transcribe"] == [0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.mark.parametrize("stage", ["vad", "transcribe", "align"])
def test_cancellation_is_noticed_after_the_next_step_of_every_stage(
    pipeline: Any, task: MakeTask, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    if stage == "align":
        found = [{"start": float(start), "end": start + 1.0, "text": "seven"} for start in range(3)]
        monkeypatch.setattr(pipeline, "_recognise", lambda *_: found)
    vad = VadOptions(method="silero") if stage == "vad" else SHORT
    with pytest.raises(Cancelled):
        pipeline.transcribe(
            task(noise(5), vad=vad, beam_size=1, word_timestamps="aligned", language="en"),
            lambda now, _: seen.append(now),
            lambda: stage == "vad" or seen.count(stage) == 1,
        )
    assert seen.count(stage) == (0 if stage == "vad" else 1)


def test_jobs_with_different_languages_that_share_batches_say_what_they_say_alone(pipeline: Any, task: MakeTask) -> None:
    jobs = [
        task(speech(seed), language=language, vad=SHORT, beam_size=beam, initial_prompt=prompt, word_timestamps=words)
        for seed, (language, beam, prompt, words) in enumerate(
            [("en", 1, None, "aligned"), ("de", 2, "sieben", "fast"), ("es", 1, None, "aligned"), (None, 2, "x", "")]
        )
    ]
    alone = [said(pipeline, job) for job in jobs]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            assert list(threads.map(lambda job: said(pipeline, job), jobs)) == alone


def test_sampling_prompt_and_hotwords_go_through(pipeline: Any, task: MakeTask) -> None:
    result = run(pipeline, task(noise(1), temperature=0.7, initial_prompt="字" * 2000, hotwords="red " * 100, language="de"))
    assert all(segment["temperature"] == 0.7 for segment in result["segments"])


def test_translation_is_marked_as_one(pipeline: Any, task: MakeTask) -> None:
    assert run(pipeline, task(noise(1), task="translate", language="de"))["task"] == "translate"


def test_device_is_reported(pipeline: Any) -> None:
    assert pipeline.device == "cpu"
