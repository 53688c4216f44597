"""Decoding windows. Structure only: the tests do not depend on what the demo model has learned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from whisperx.audio import log_mel_spectrogram

from app.jobs import TranscribeOptions
from tests.unit.engine.conftest import speech

pytestmark = pytest.mark.filterwarnings("ignore")


def hear(model: Any, windows: list[np.ndarray]) -> Any:
    heard = model.hear(len(windows))
    for output in model.encoded(map(model.log_mel, windows)):
        heard.add(output)
    return heard


def decode(pipeline: Any, windows: list[np.ndarray], **options: Any) -> list[Any]:
    model = pipeline._model
    heard = hear(model, windows)
    tokenizer = model.tokenizer_for(options.pop("language", "en"), "transcribe")
    wanted = TranscribeOptions("demo", **options)
    decoded: list[Any] = model.decode(heard, [tokenizer] * len(windows), [wanted] * len(windows))
    return decoded


def loud(number: int) -> np.ndarray:
    return speech(number).astype(np.float32) / 32768


@pytest.mark.parametrize("options", [{"beam_size": 1}, {"beam_size": 5}, {"initial_prompt": "seven", "hotwords": "red"}])
def test_a_batch_says_what_its_windows_say_alone(pipeline: Any, options: dict[str, Any]) -> None:
    together = decode(pipeline, [loud(0), loud(1), loud(2)], **options)
    alone = [decode(pipeline, [loud(number)], **options)[0] for number in range(3)]
    assert [window.tokens for window in together] == [window.tokens for window in alone]
    assert [window.avg_logprob for window in together] == pytest.approx([window.avg_logprob for window in alone], abs=1e-3)


def test_a_batch_of_languages_tasks_beams_and_prompts_says_what_its_windows_say_alone(pipeline: Any) -> None:
    model = pipeline._model
    windows = [loud(number) for number in range(5)]
    kinds = [("en", {}), ("de", {}), ("es", {"task": "translate"}), ("en", {"beam_size": 1}), ("en", {"initial_prompt": "red"})]
    options = [TranscribeOptions("demo", **kind) for _, kind in kinds]
    tokenizers = [model.tokenizer_for(language, one.task) for (language, _), one in zip(kinds, options, strict=True)]
    together = model.decode(hear(model, windows), tokenizers, options)
    alone = [
        model.decode(hear(model, [one]), *([each[n]] for each in (tokenizers, options)))[0] for n, one in enumerate(windows)
    ]
    assert [window.tokens for window in together] == [window.tokens for window in alone]


@pytest.mark.parametrize("count", [0, 1, 100, 80_000, 80_001, 479_599, 479_600, 479_999, 480_000, 40 * 16_000])
def test_features_of_any_length_are_those_of_whisperx_for_30_s(pipeline: Any, count: int) -> None:
    model = pipeline._model
    audio = np.random.default_rng(count).standard_normal(count).astype(np.float32) / 10
    found = model.log_mel(audio)
    expected = log_mel_spectrogram(audio[:480_000], model.model.n_mels, padding=max(0, 480_000 - count)).numpy()
    assert found.shape == (model.model.n_mels, 3000)
    assert np.abs(found - expected).max() < 1e-6


def test_language_comes_with_a_probability(pipeline: Any) -> None:
    model = pipeline._model
    ((language, probability),) = model.languages_of(hear(model, [loud(1)]), [0])
    assert 2 <= len(language) <= 3
    assert 0 < probability <= 1


def test_tokens_hold_text_only_and_numbers_are_in_range(pipeline: Any) -> None:
    (window,) = decode(pipeline, [loud(2)])
    end = pipeline._model.tokenizer_for("en", "transcribe").eot
    assert all(0 <= token < end for token in window.tokens)
    assert window.avg_logprob <= 0
    assert 0 <= window.no_speech_prob <= 1
    assert window.compression_ratio >= 0


@pytest.mark.parametrize(("beam_size", "temperature"), [(1, 0.0), (10, 0.0), (5, 0.01), (5, 1.0)])
def test_beams_and_sampling_both_answer(pipeline: Any, beam_size: int, temperature: float) -> None:
    assert len(decode(pipeline, [loud(1), loud(2)], beam_size=beam_size, temperature=temperature)) == 2


def test_sampling_is_asked_for_only_above_temperature_zero(engine: SimpleNamespace) -> None:
    search = engine.asr._search
    assert search(TranscribeOptions("demo", beam_size=3)) == {"beam_size": 3, "patience": 1, "length_penalty": 1}
    assert search(TranscribeOptions("demo", beam_size=3, temperature=0.3)) == {
        "beam_size": 1,
        "sampling_topk": 0,
        "sampling_temperature": 0.3,
    }


@pytest.mark.parametrize("prompt", [None, " x ", "字" * 2000, "hello " * 300])
@pytest.mark.parametrize("hotwords", [None, " y ", "字" * 500])
def test_the_longest_prompt_and_hotwords_leave_half_of_the_positions_to_the_text(
    pipeline: Any, prompt: str | None, hotwords: str | None
) -> None:
    options = TranscribeOptions("demo", initial_prompt=prompt, hotwords=hotwords)
    model = pipeline._model
    tokenizer = model.tokenizer_for("en", "transcribe")
    ids = model.prompt(tokenizer, options)
    assert len(ids) <= model.max_length // 2 + 5
    assert ids[-1] == tokenizer.no_timestamps
    assert (ids[0] == tokenizer.sot_prev) == bool(prompt or hotwords)


def test_a_prompt_keeps_its_end_and_hotwords_come_first(pipeline: Any) -> None:
    model = pipeline._model
    tokenizer = model.tokenizer_for("en", "transcribe")
    ids = model.prompt(tokenizer, TranscribeOptions("demo", initial_prompt="one " * 400 + "last", hotwords="first"))
    assert tokenizer.decode(ids[1:]).startswith(" first one")
    assert " one last" in tokenizer.decode(ids)


def test_longest_prompt_and_hotwords_can_be_decoded(pipeline: Any) -> None:
    decode(pipeline, [loud(0)], initial_prompt="字" * 2000, hotwords="字" * 500, beam_size=1)


@pytest.mark.parametrize(
    ("no_speech", "logprob", "silent"),
    [(0.9, -2.0, True), (0.9, -0.5, False), (0.3, -2.0, False), (0.6, -2.0, False), (0.9, -1.0, False)],
)
def test_a_window_is_silent_where_whisper_thinks_so_and_is_unsure_of_its_words(
    engine: SimpleNamespace, no_speech: float, logprob: float, silent: bool
) -> None:
    assert engine.asr.Decoded("x", (1,), logprob, no_speech).silent is silent


def test_repetition_shows_in_the_compression_ratio(engine: SimpleNamespace) -> None:
    assert engine.asr.Decoded("", (), 0.0, 0.0).compression_ratio == 0
    assert engine.asr.Decoded("again " * 50, (), 0.0, 0.0).compression_ratio > 2.4
    assert engine.asr.Decoded("seven red boats", (), 0.0, 0.0).compression_ratio < 1.5
