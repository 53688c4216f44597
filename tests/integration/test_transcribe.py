"""The way through with the demo model: right words, right times, every form of answer."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.accuracy import Score, ask, measure, utterances
from tests.integration.conftest import Sample
from tests.integration.server import Server

needs_speech = pytest.mark.skipif(
    not (shutil.which("espeak-ng") and shutil.which("flite")), reason="espeak-ng and flite speak the fresh utterances"
)


def test_bundled_samples_give_their_texts_and_word_times(server: Server, samples: list[Sample]) -> None:
    score = Score()
    for sample in samples:
        score.add(
            sample.text, sample.language, list(sample.words), ask(server.client, sample.path.read_bytes(), sample.path.name)
        )
    assert score.wer <= 0.05, list(zip(score.said, score.heard, strict=True))
    assert score.languages_right == len(samples)
    assert score.median_start_error_s <= 0.060


@needs_speech
@pytest.mark.timeout(600)
def test_200_fresh_utterances_have_at_most_5_percent_wer_and_60_ms_word_start_error(server: Server) -> None:
    score = measure(server.client, list(utterances(200, seed=2026)))
    print(score.summary())
    assert score.wer <= 0.05
    assert score.median_start_error_s <= 0.060
    assert score.languages_right >= 190


@pytest.mark.parametrize(
    ("form", "media_type", "marker"),
    [
        ("json", "application/json", '"text"'),
        ("verbose_json", "application/json", '"segments"'),
        ("text", "text/plain", ""),
        ("srt", "application/x-subrip", "-->"),
        ("vtt", "text/vtt", "WEBVTT"),
        ("tsv", "text/tab-separated-values", "start\tend\ttext"),
    ],
)
def test_every_response_format_has_its_type_and_the_words(
    server: Server, samples: list[Sample], form: str, media_type: str, marker: str
) -> None:
    sample = samples[0]
    answer = server.client.post(
        "/transcribe", params={"model_size": "demo", "response_format": form}, files={"file": sample.path.read_bytes()}
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media_type)
    assert marker in answer.text
    assert sample.text.split()[0] in answer.text


def test_options_may_come_in_the_form_and_the_body_may_be_the_file_itself(server: Server, samples: list[Sample]) -> None:
    sample = samples[0]
    form = server.client.post("/transcribe", data={"model_size": "demo"}, files={"file": sample.path.read_bytes()})
    raw = server.client.post("/transcribe?model=demo", content=sample.path.read_bytes(), headers={"Content-Type": "audio/flac"})
    assert form.json()["text"] == raw.json()["text"] == sample.text


def test_given_language_is_not_detected_again(server: Server, samples: list[Sample]) -> None:
    sample = next(sample for sample in samples if sample.language == "de")
    detected = ask(server.client, sample.path.read_bytes(), sample.path.name)
    given = ask(server.client, sample.path.read_bytes(), sample.path.name, language="german")
    assert detected["language"] == given["language"] == "german"
    assert detected["language_probability"] > 0.5
    assert given["language_probability"] is None
    assert given["text"] == detected["text"]


def test_fast_words_are_those_of_the_aligned_and_their_times_are_near(server: Server, samples: list[Sample]) -> None:
    audio = samples[0].path.read_bytes()
    fast, aligned = (ask(server.client, audio, samples[0].path.name, word_timestamps=kind) for kind in ("fast", "aligned"))
    assert [word["word"] for word in fast["words"]] == [word["word"] for word in aligned["words"]] == samples[0].text.split()
    apart = sorted(abs(word["start"] - other["start"]) for word, other in zip(fast["words"], aligned["words"], strict=True))
    assert apart[len(apart) // 2] < 0.3


def test_translate_gives_english_words_of_german_digits(server: Server, samples: list[Sample]) -> None:
    sample = next(sample for sample in samples if sample.language == "de")
    digits = dict(
        zip(
            ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"],
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
            strict=True,
        )
    )
    answer = ask(server.client, sample.path.read_bytes(), sample.path.name, task="translate", word_timestamps="false")
    assert answer["text"].split() == [digits[word] for word in sample.text.split()]


@pytest.mark.parametrize("kind", ["silence", "noise"])
def test_no_speech_gives_an_empty_transcript(server: Server, kind: str) -> None:
    import io
    import wave

    import numpy as np

    rng = np.random.default_rng(1)
    sound = np.zeros(48000) if kind == "silence" else rng.normal(0, 0.05, 48000)
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    answer = ask(server.client, target.getvalue())
    assert answer["text"] == ""
    assert answer["segments"] == []
    assert answer["duration"] == 3.0


@needs_speech
def test_long_recording_of_many_windows_keeps_order_and_times(server: Server) -> None:
    import numpy as np

    from benchmarks.accuracy import wav_bytes
    from demo.synth import draw, join

    rng = np.random.default_rng(11)
    whole = join([draw(rng, foreign=0) for _ in range(40)], rng)
    answer = ask(server.client, wav_bytes(whole))
    score = Score()
    score.add(whole.text, "en", whole.words, answer)
    assert answer["duration"] > 120
    assert score.wer <= 0.08
    starts = [word["start"] for word in answer["words"]]
    assert starts == sorted(starts)
    assert abs(starts[-1] - whole.words[-1][1]) < 1.0
