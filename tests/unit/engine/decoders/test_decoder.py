"""OpenVINO's decoder with the demo model's weights, beside CTranslate2's."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctranslate2
import numpy as np
import pytest

from app import catalogue, cpu
from app.jobs import TranscribeOptions
from tests.unit.engine.conftest import noise, speech, unusable

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not cpu.multiplies_int8(), reason="a processor without instructions for int8 products (VNNI)"),
]
PROMPT = [50258, 50259, 50359, 50363]
RECORDINGS = 8


@pytest.fixture(scope="session")
def decoder(engine: SimpleNamespace, pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    machine = engine.encoders.choice.Machine(2, 1, "int8")
    return engine.decoders.choice.build(catalogue.DEMO_MODEL, pipeline._model, machine, tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def encoded(pipeline: Any) -> list[np.ndarray]:
    """Speech, then noise, then silence."""
    sounds = [*(speech(number) for number in range(RECORDINGS)), noise(3.0), np.zeros(16_000, np.int16)]
    model = pipeline._model
    return list(model.encoded(model.log_mel(sound.astype(np.float32) / 32768) for sound in sounds))


def remembered(engine: SimpleNamespace, decoder: Any, encoded: list[np.ndarray]) -> Any:
    memory = engine.decoders.runtime.Memory(decoder.sizes, len(encoded))
    for number, output in enumerate(encoded):
        decoder.remember(output, memory, number)
    return memory


def means(found: list[Any]) -> list[float]:
    return [one.logprob / len(one.tokens) for one in found]


def said(found: list[Any]) -> list[tuple[int, ...]]:
    return [one.tokens for one in found]


def theirs(pipeline: Any, encoded: list[np.ndarray], prompt: list[int], beams: int, max_length: int = 448) -> list[Any]:
    results: list[Any] = pipeline._model.model.generate(
        ctranslate2.StorageView.from_array(np.stack(encoded)),
        [prompt] * len(encoded),
        beam_size=beams,
        max_length=max_length,
        return_scores=True,
        return_no_speech_prob=True,
    )
    return results


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_a_batch_of_recordings_says_what_it_says_with_ctranslate2(
    engine: SimpleNamespace, pipeline: Any, decoder: Any, encoded: list[np.ndarray], beams: int
) -> None:
    spoken = encoded[:RECORDINGS]
    memory, expected = remembered(engine, decoder, spoken), theirs(pipeline, spoken, PROMPT, beams)
    for number, other in enumerate(expected):
        each = decoder.logprobs(memory.only([number]), PROMPT, other.sequences_ids[0])
        assert each.sum() / (len(each) - 1) == pytest.approx(other.scores[0], abs=0.02)
    found = decoder.generate(memory, [PROMPT] * RECORDINGS, beams, 448)
    same = [list(one.tokens) == other.sequences_ids[0] for one, other in zip(found, expected, strict=True)]
    assert sum(same) >= RECORDINGS - 1  # two beams: one ends in a word that is said again and again, once more or once less
    assert len({len(one.tokens) for one in found}) > 2  # they end at different steps
    both = [(one, other) for one, other, equal in zip(means(found), expected, same, strict=True) if equal]
    assert [one for one, _ in both] == pytest.approx([other.scores[0] for _, other in both], abs=0.02)
    assert [one.no_speech_prob for one in found] == pytest.approx([one.no_speech_prob for one in expected], abs=0.01)


def test_sounds_that_are_no_speech_say_what_is_as_likely_as_with_ctranslate2(
    engine: SimpleNamespace, pipeline: Any, decoder: Any, encoded: list[np.ndarray]
) -> None:
    sounds = encoded[RECORDINGS:]
    found = decoder.generate(remembered(engine, decoder, sounds), [PROMPT] * len(sounds), 5, 448)
    for one, other in zip(found, theirs(pipeline, sounds, PROMPT, 5), strict=True):
        assert one.logprob / max(1, len(one.tokens)) >= other.scores[0] - 0.05
        assert one.no_speech_prob == pytest.approx(other.no_speech_prob, abs=0.02)


@pytest.mark.parametrize("beams", [1, 5])
def test_windows_say_in_a_batch_what_they_say_alone(
    engine: SimpleNamespace, decoder: Any, encoded: list[np.ndarray], beams: int
) -> None:
    spoken = encoded[:RECORDINGS]  # what is said of noise hangs on the last bits
    together = decoder.generate(remembered(engine, decoder, spoken), [PROMPT] * RECORDINGS, beams, 448)
    alone = [decoder.generate(remembered(engine, decoder, [one]), [PROMPT], beams, 448)[0] for one in spoken]
    assert said(together) == said(alone)
    assert [one.logprob for one in together] == pytest.approx([one.logprob for one in alone], abs=1e-3)


@pytest.mark.parametrize("length", [1, 28, 29, 100, 220])
def test_a_prompt_of_any_length_stands_before_the_text_as_with_ctranslate2(
    engine: SimpleNamespace, pipeline: Any, decoder: Any, encoded: list[np.ndarray], length: int
) -> None:
    words = pipeline._model.tokenizer_for("en", "transcribe").encode(" seven red and one") * 100
    prompt = [50361, *words[:length], *PROMPT]
    memory = remembered(engine, decoder, encoded[:2])
    each = decoder.logprobs(memory.only([1]), prompt, (text := theirs(pipeline, encoded[1:2], prompt, 5)[0]).sequences_ids[0])
    assert each.sum() / len(each) == pytest.approx(text.scores[0] * (len(each) - 1) / len(each), abs=0.05)
    found = decoder.generate(memory, [prompt] * 2, 5, 448)
    for mean, other in zip(means(found), theirs(pipeline, encoded[:2], prompt, 5), strict=True):
        assert mean >= other.scores[0] - 0.05


def test_a_text_takes_half_of_the_positions_at_most(
    engine: SimpleNamespace, pipeline: Any, decoder: Any, encoded: list[np.ndarray]
) -> None:
    found = decoder.generate(remembered(engine, decoder, encoded[:2]), [PROMPT] * 2, 5, 8)
    assert [list(one.tokens) for one in found] == [one.sequences_ids[0] for one in theirs(pipeline, encoded[:2], PROMPT, 5, 8)]
    assert [len(one.tokens) for one in found] == [4, 4]


def test_languages_are_as_likely_as_with_ctranslate2(
    engine: SimpleNamespace, pipeline: Any, decoder: Any, encoded: list[np.ndarray]
) -> None:
    each = decoder.languages(remembered(engine, decoder, encoded))
    for found, output in zip(each, encoded, strict=True):
        expected = pipeline._model.model.detect_language(ctranslate2.StorageView.from_array(output[None]))[0]
        token = pipeline._model.hf_tokenizer.id_to_token(found[0][0])
        assert token == expected[0][0]
        assert found[0][1] == pytest.approx(expected[0][1], abs=0.02)
        assert sum(chance for _, chance in found) == pytest.approx(1, abs=1e-4)


def test_only_some_windows_of_a_batch_say_what_they_say_otherwise(
    engine: SimpleNamespace, decoder: Any, encoded: list[np.ndarray]
) -> None:
    all_of_them = decoder.generate(remembered(engine, decoder, encoded[:4]), [PROMPT] * 4, 5, 448)
    for some in ([0, 2], [1, 2], [3]):
        memory = remembered(engine, decoder, encoded[:4])
        found = decoder.generate(memory.only(some), [PROMPT] * len(some), 5, 448)
        assert said(found) == [all_of_them[number].tokens for number in some]


def test_threads_at_once_do_not_disturb_each_other(engine: SimpleNamespace, decoder: Any, encoded: list[np.ndarray]) -> None:
    def alone(number: int) -> Any:
        return decoder.generate(remembered(engine, decoder, [encoded[number]]), [PROMPT], 5, 448)

    with ThreadPoolExecutor(4) as threads:
        at_once = list(threads.map(alone, [*range(RECORDINGS)] * 2))
    assert at_once == [alone(number) for number in range(RECORDINGS)] * 2


# -- the choice


def test_a_model_that_is_told_to_gets_the_decoder_and_says_the_same(
    engine: SimpleNamespace, pipeline: Any, fitted: tuple[Any, Any]
) -> None:
    _, model = fitted
    assert model.decoder is not None
    assert model.decoder_choice.errors["openvino_int8"] < 0.02
    options = [TranscribeOptions("demo", beam_size=beams) for beams in (5, 8, 5, 2, 2, 5)]  # eight are CTranslate2's
    texts_of = []
    for one in (model, pipeline._model):
        pieces = [engine.batch.Speech(speech(number), wanted, None) for number, wanted in enumerate(options)]
        window = engine.vad.Window(0.0, 10.0)
        texts = engine.batch.recognise(one, [engine.batch.Piece(piece, window, lambda: None) for piece in pieces])
        texts_of.append([(piece.language, text.tokens) for piece, text in zip(pieces, texts, strict=True)])
    assert texts_of[0] == texts_of[1]


def test_the_second_load_measures_nothing_and_leaves_no_file_behind(
    engine: SimpleNamespace, fitted: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, model = fitted
    monkeypatch.delattr(engine.fitting, "choose_decoder")
    again, *_ = engine.models.load(setup)
    assert again.decoder is not None
    assert again.decoder_choice.seconds == model.decoder_choice.seconds
    assert [path.suffix for path in Path(setup.encoders_dir).iterdir()] == [".npz"]


def test_sampling_is_left_to_ctranslate2(fitted: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = fitted
    monkeypatch.setattr(type(model.decoder), "generate", lambda *_: pytest.fail("it cannot sample"))
    heard = model.hear(1)
    heard.add(next(iter(model.encoded([model.log_mel(speech(0).astype(np.float32) / 32768)]))))
    (said,) = model.decode(heard, [model.tokenizer_for("en", "transcribe")], [TranscribeOptions("demo", temperature=0.5)])
    assert said.avg_logprob <= 0


@pytest.mark.parametrize(("forced", "chosen"), [(False, "ctranslate2"), (True, "openvino_int8")])
def test_one_that_is_slower_is_used_only_where_somebody_wants_it(
    engine: SimpleNamespace, pipeline: Any, decoder: Any, monkeypatch: pytest.MonkeyPatch, forced: bool, chosen: str
) -> None:
    took = iter([1.0, 1.0])
    monkeypatch.setattr(engine.decoders.choice, "least_time", lambda calls: ([calls[0]()], next(took)))
    choice = engine.decoders.choice.choose(pipeline._model, decoder, catalogue.DEMO_SAMPLES, forced=forced)
    assert choice.name == chosen


@pytest.mark.parametrize("wrong", [-5.0, np.nan])
def test_one_that_says_something_else_is_never_used(
    engine: SimpleNamespace, pipeline: Any, decoder: Any, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    monkeypatch.setattr(type(decoder), "logprobs", lambda self, memory, prompt, tokens: np.full(len(tokens) + 1, wrong))
    choice = engine.decoders.choice.choose(pipeline._model, decoder, catalogue.DEMO_SAMPLES, forced=True)
    assert choice.name == "ctranslate2"


def test_where_it_cannot_be_made_ctranslate2_decodes(engine: SimpleNamespace, fitted: tuple[Any, Any], tmp_path: Path) -> None:
    setup, _ = fitted
    for broken in unusable(setup, tmp_path):
        model, *_ = engine.models.load(broken)
        assert model.decoder is None
        assert model.decoder_choice is None


def test_it_is_not_tried_where_nothing_is_rounded_or_the_processor_cannot_multiply_int8(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = engine.encoders.choice.Machine(1, 1, "int8")
    assert engine.decoders.choice.possible(machine)
    assert not engine.decoders.choice.possible(replace(machine, compute_type="float32"))
    monkeypatch.setattr(cpu, "multiplies_int8", lambda: False)
    assert not engine.decoders.choice.possible(machine)


class HalfPrecision:
    """The demo model's weights as a file in float16 has them."""

    def __init__(self, weights: Any) -> None:
        self._weights = weights
        self.same = weights.same

    def __contains__(self, name: str) -> bool:
        return name in self._weights and not name.endswith("_scale")

    def raw(self, name: str) -> np.ndarray:
        stored: np.ndarray = self._weights.raw(name)
        return stored if stored.dtype != np.int8 or not stored.ndim else self._weights.float32(name).astype(np.float16)

    def float32(self, name: str) -> np.ndarray:
        return self.raw(name).astype(np.float32)


def test_weights_that_are_stored_in_float16_are_rounded_as_ctranslate2_rounds_them(
    engine: SimpleNamespace,
    pipeline: Any,
    decoder: Any,
    encoded: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    real = engine.encoders.weights.Weights
    monkeypatch.setattr(engine.decoders.choice, "Weights", lambda path: HalfPrecision(real(path)))
    machine = engine.encoders.choice.Machine(1, 1, "int8")
    again = engine.decoders.choice.build(catalogue.DEMO_MODEL, pipeline._model, machine, tmp_path)
    results = [one.generate(remembered(engine, one, encoded[:3]), [PROMPT] * 3, 5, 448) for one in (decoder, again)]
    assert said(results[0]) == said(results[1])
    assert [one.logprob for one in results[0]] == pytest.approx([one.logprob for one in results[1]], abs=0.1)


def test_words_of_a_model_whose_files_do_not_name_them_are_none(engine: SimpleNamespace, pipeline: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"suppress_ids": [1]}))
    words = engine.decoders.choice._words(tmp_path, pipeline._model)
    assert (words.never, words.not_first, words.languages) == ((1,), (), ())
    assert (words.start, words.end) == (50258, 50257)


def test_a_projection_of_its_own_is_used_instead_of_the_embeddings(engine: SimpleNamespace) -> None:
    weights = engine.encoders.weights.Weights(catalogue.DEMO_MODEL / "model.bin")
    tied = engine.decoders.graph.DecoderGraph(weights)
    assert tied._projection is tied._words
    for what in ("weight", "weight_scale"):  # as if it were another one
        weights._found[f"decoder/projection/{what}"] = weights._found[f"decoder/layer_0/ffn/linear_0/{what}"]
    apart = engine.decoders.graph.DecoderGraph(weights)
    assert apart._projection[0].get_output_shape(0) != apart._words[0].get_output_shape(0)
