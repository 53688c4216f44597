"""Encoders made of the demo model's weights: the same as CTranslate2's, and chosen for what they are worth."""

from __future__ import annotations

import os
import struct
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import catalogue
from tests.unit.engine.conftest import SETUP, noise, speech, unusable

pytestmark = pytest.mark.filterwarnings("ignore")

MODEL = catalogue.DEMO_MODEL / "model.bin"
Parts = SimpleNamespace


@pytest.fixture(scope="session")
def parts(engine: SimpleNamespace) -> Any:
    return engine.encoders


@pytest.fixture(scope="session")
def weights(parts: Parts) -> Any:
    return parts.weights.Weights(MODEL)


@pytest.fixture(scope="session")
def mels(pipeline: Any, parts: Parts) -> list[np.ndarray]:
    """Windows that differ much; the last but one is speech, the last a mixture."""
    sounds = parts.sounds.sounds(catalogue.DEMO_SAMPLES)
    return [pipeline._model.log_mel(sound) for sound in [*sounds[:5], *sounds[-2:]]]


@pytest.fixture(scope="session")
def observed(parts: Parts, weights: Any, mels: list[np.ndarray]) -> Any:
    return parts.runtime.observe(weights, mels, 5, 2)


def own(model: Any, mel: np.ndarray) -> np.ndarray:
    return np.asarray(model.encode(mel[None]))[0]


def missed(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


# -- the weights' file


def test_weights_that_are_left_out_are_all_that_is_missing_from_the_file_that_is_written(
    parts: Parts, weights: Any, tmp_path: Path
) -> None:
    weights.write_without(lambda name: name.startswith("encoder/layer_1/"), tmp_path / "model.bin")
    again = parts.weights.Weights(tmp_path / "model.bin")
    assert {name for name in weights._found if name not in again} == {
        n for n in weights._found if n.startswith("encoder/layer_1/")
    }
    assert all(np.array_equal(again.raw(name), weights.raw(name)) for name in again._found)
    assert again._aliases == weights._aliases != {}


def test_a_weight_that_equals_one_that_is_left_out_is_written_out(parts: Parts, weights: Any, tmp_path: Path) -> None:
    (name, stored), *_ = weights._aliases.items()
    weights.write_without(lambda one: one == stored, tmp_path / "model.bin")
    again = parts.weights.Weights(tmp_path / "model.bin")
    assert stored not in again
    assert np.array_equal(again.raw(name), weights.raw(name))


@pytest.mark.parametrize("content", [b"x" * 100, struct.pack("<I", 7) + b"x" * 100, MODEL.read_bytes()[:50_000]])
def test_what_is_no_model_file_that_is_known_is_refused(parts: Parts, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(ValueError, match="file"):
        parts.weights.Weights(tmp_path / "model.bin")


# -- the graph and its numbers


def test_the_graph_in_float32_gives_what_ctranslate2_gives_in_float32(
    engine: SimpleNamespace, parts: Parts, weights: Any, mels: list[np.ndarray]
) -> None:
    model, *_ = engine.models.load(replace(SETUP, compute_type="float32"))
    graph = parts.graph.Graph(weights, parts.graph.Numbers()).whole()
    encoder = parts.runtime.Encoder(graph, 1, 2, parts.runtime.FLOAT32)
    assert max(missed(encoder.encode(mel), own(model, mel)) for mel in mels) < 1e-5


def test_stage_by_stage_the_output_is_that_of_the_whole_graph(
    parts: Parts, weights: Any, mels: list[np.ndarray], observed: Any
) -> None:
    graph = parts.graph.Graph(weights, parts.graph.Numbers()).whole()
    encoder = parts.runtime.Encoder(graph, 1, 2, parts.runtime.FLOAT32)
    ranges, exact = observed
    assert missed(exact[0], encoder.encode(mels[5])) < 1e-5
    assert ranges["conv1"].low.min() == pytest.approx(min(mel.min() for mel in mels[:5]))


@pytest.mark.parametrize("end", ["", "_float32"])
@pytest.mark.parametrize(("name", "most"), [("openvino_int8", 0.03), ("openvino_int8_dynamic", 0.015)])
def test_eight_bits_stay_near_float32_on_windows_that_no_range_was_taken_from(
    parts: Parts, weights: Any, mels: list[np.ndarray], observed: Any, name: str, most: float, end: str
) -> None:
    ranges, exact = observed
    machine = parts.choice.Machine(1, 2, "int8")
    encoder = parts.choice.run(name + end, parts.choice.build(name + end, weights, ranges), machine)
    assert 1e-5 < max(missed(encoder.encode(mel), wanted) for mel, wanted in zip(mels[5:], exact, strict=True)) < most


@pytest.mark.parametrize(
    ("kind", "precision", "least", "most"),
    [("DynamicInt8", "f32", 1e-3, 0.02), ("DynamicInt8", "bf16", 1e-3, 0.05), ("FloatAttention", "f32", -1, 1e-5)],
)
def test_attention_in_eight_bits_is_near_that_in_float32_where_all_keys_have_much_in_common(
    parts: Parts, kind: str, precision: str, least: float, most: float
) -> None:
    import openvino
    from openvino import opset13 as op

    chance = np.random.default_rng(0)
    given = [chance.normal(size=(1, 2, 300, 32)).astype(np.float32) for _ in range(3)]
    given[0][:, 1] /= 100  # a head that is far smaller than the other
    given[0][:, :, 7] *= 3  # a query that is larger than the others
    given[1] += 10 * chance.normal(size=32).astype(np.float32)

    def attended(numbers: Any, precision: str) -> np.ndarray:
        inputs = [op.parameter([-1, 2, -1, 32], np.float32) for _ in given]
        model = openvino.Model([numbers.attention(*inputs)], inputs, "attention")
        options = {"INFERENCE_PRECISION_HINT": precision}
        found: np.ndarray = openvino.Core().compile_model(model, "CPU", options)(given)[0]
        return found

    if kind == "DynamicInt8" and not parts.int8.cpu.multiplies_int8():
        pytest.skip("int8 scores are not used on this processor")
    wanted = attended(parts.graph.Numbers(), "f32")
    assert least < missed(attended(getattr(parts.int8, kind)(), precision), wanted) < most


@pytest.mark.parametrize(("able", "rounds"), [(True, True), (False, False)])
def test_scores_are_rounded_only_where_the_processor_multiplies_eight_bits(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, able: bool, rounds: bool
) -> None:
    import openvino
    from openvino import opset13 as op

    monkeypatch.setattr(parts.int8.cpu, "multiplies_int8", lambda: able)
    inputs = [op.parameter([1, 1, 4, 8], np.float32) for _ in range(3)]
    model = openvino.Model([parts.int8.DynamicInt8().attention(*inputs)], inputs, "attention")
    assert any(node.get_type_name() == "FakeQuantize" for node in model.get_ops()) is rounds


def test_attention_of_nothing_but_zeros_gives_numbers(parts: Parts) -> None:
    import openvino
    from openvino import opset13 as op

    inputs = [op.parameter([1, 1, 4, 8], np.float32) for _ in range(3)]
    model = openvino.Model([parts.int8.DynamicInt8().attention(*inputs)], inputs, "attention")
    assert not openvino.Core().compile_model(model, "CPU")([np.zeros((1, 1, 4, 8), np.float32)] * 3)[0].any()


def test_a_model_whose_constants_are_mapped_and_whose_file_is_deleted_still_encodes(
    parts: Parts, weights: Any, mels: list[np.ndarray], tmp_path: Path
) -> None:
    graph = parts.graph.Graph(weights, parts.int8.DynamicInt8()).whole()
    plain = parts.runtime.Encoder(graph, 1, 1, {}).encode(mels[0])
    mapped = parts.runtime.mapped(graph, tmp_path, "encoder")
    for file in tmp_path.iterdir():
        file.unlink()
    assert np.array_equal(parts.runtime.Encoder(mapped, 1, 1, {}).encode(mels[0]), plain)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
def test_a_rounded_weight_misses_by_half_a_step_at_most(parts: Parts, rows: list[list[float]]) -> None:
    import openvino

    weight = np.array(rows, np.float32)
    rounded = openvino.Model([parts.int8.int8_constant(weight)], [], "constant")
    found = openvino.Core().compile_model(rounded, "CPU")([])[0]
    step = np.abs(weight).max(1, keepdims=True) / 127
    assert (np.abs(found - weight) <= step * 0.501 + 1e-30).all()


# -- the choice


@pytest.mark.parametrize(
    ("width", "expected"), [(384, 192), (512, 256), (768, 256), (1024, 256), (1280, 256), (448, 64), (100, 32)]
)
def test_activations_share_scales_in_the_largest_groups_that_fit_into_the_width(
    parts: Parts, width: int, expected: int
) -> None:
    assert parts.int8.group_size(width) == expected


def test_a_dynamic_encoder_runs_with_the_groups_of_its_width(
    parts: Parts, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.choice, "Encoder", lambda model, calls, threads, options: options)
    name = parts.choice.DYNAMIC
    options = parts.choice.run(name, parts.choice.build(name, weights, {}), parts.choice.Machine(1, 1, "int8"))
    width = weights.raw("encoder/conv1/bias").shape[0]
    assert options == {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(parts.int8.group_size(width))}
    assert parts.int8.group_size(width) > 64


@pytest.mark.parametrize(
    ("seconds", "errors", "forced", "best"),
    [
        ((1.0, 0.4, 0.5), (0.01, 0.015, 0.01), False, "openvino_int8"),
        ((1.0, 0.4, 0.45), (0.01, 0.015, 0.01), False, "openvino_int8_dynamic"),
        ((1.0, 0.4, 0.5), (0.01, 0.04, 0.01), False, "openvino_int8_dynamic"),
        ((1.0, 0.4, 0.5), (0.03, 0.04, 0.01), False, "openvino_int8"),
        ((1.0, 0.4, 0.5), (0.01, 0.04, 0.04), False, "ctranslate2"),
        ((1.0, 0.95, 0.92), (0.01, 0.01, 0.01), False, "ctranslate2"),
        ((1.0, 1.5, 1.2), (0.01, 0.01, 0.01), True, "openvino_int8_dynamic"),
        ((1.0, 0.1, 0.1), (0.01, 0.5, 0.5), True, "ctranslate2"),
    ],
)
def test_the_fastest_of_the_exact_ones_is_chosen_and_ctranslate2_where_it_is_hardly_slower(
    parts: Parts, seconds: tuple[float, ...], errors: tuple[float, ...], forced: bool, best: str
) -> None:
    names = ("ctranslate2", "openvino_int8", "openvino_int8_dynamic")
    figures = dict(zip(names, seconds, strict=True)), dict(zip(names, errors, strict=True))
    assert parts.choice.fastest(*figures, forced=forced) == best


@pytest.mark.parametrize(
    ("compute_type", "candidates"),
    [("int8", ("openvino_int8", "openvino_int8_dynamic")), ("int8_float32", ("openvino_int8", "openvino_int8_dynamic"))]
    + [(exact, ("openvino_float",)) for exact in ("float32", "float16", "bfloat16", "int16")],
)
def test_no_encoder_rounds_more_than_the_compute_type_that_was_asked_for(
    parts: Parts, compute_type: str, candidates: tuple[str, ...]
) -> None:
    assert parts.choice.Machine(1, 1, compute_type).candidates == candidates


@pytest.mark.parametrize(
    ("took", "tried"),
    [(1e-6, {"openvino_int8", "openvino_int8_dynamic"}), (30.0, {"openvino_int8_dynamic"})],
)
def test_an_encoder_that_takes_no_time_is_not_replaced_and_a_very_slow_one_without_calibration(
    parts: Parts,
    weights: Any,
    mels: list[np.ndarray],
    observed: Any,
    monkeypatch: pytest.MonkeyPatch,
    took: float,
    tried: set[str],
) -> None:
    _, exact = observed
    monkeypatch.setattr(parts.choice, "uses_bfloat16", lambda: False)
    choice = parts.choice.choose(weights, (exact, took), mels, parts.choice.Machine(1, 2, "int8"))
    assert choice.name == ("ctranslate2" if took < 1 else "openvino_int8_dynamic")
    assert set(choice.seconds) == set(choice.errors) == {"ctranslate2", *tried}


@pytest.mark.parametrize(("slow", "kept"), [("", "_float32"), ("_float32", "")])
def test_where_openvino_would_use_bfloat16_float32_is_tried_too_and_the_faster_one_is_used(
    parts: Parts, weights: Any, mels: list[np.ndarray], observed: Any, monkeypatch: pytest.MonkeyPatch, slow: str, kept: str
) -> None:
    ranges, exact = observed
    monkeypatch.setattr(parts.choice, "uses_bfloat16", lambda: True)
    monkeypatch.setattr(parts.choice, "observe", lambda *_: (ranges, exact))
    monkeypatch.setattr(parts.choice, "run", lambda name, model, machine: SimpleNamespace(encode=name))
    took = {True: 0.5, False: 0.1}
    monkeypatch.setattr(
        parts.choice, "timed", lambda name, tried: (exact, took[name.endswith("_float32") is (slow == "_float32")])
    )
    choice = parts.choice.choose(weights, (exact, 1.0), mels, parts.choice.Machine(1, 2, "int8"))
    tried = {"openvino_int8_dynamic", "openvino_int8_dynamic_float32", f"openvino_int8{kept}"}
    assert set(choice.seconds) == {"ctranslate2", *tried}
    assert choice.name.endswith("_float32") is (kept == "_float32")


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_static_encoder_that_is_chosen_keeps_its_ranges_in_whichever_precision(
    parts: Parts, weights: Any, mels: list[np.ndarray], observed: Any, monkeypatch: pytest.MonkeyPatch, bfloat16: bool
) -> None:
    ranges, exact = observed
    monkeypatch.setattr(parts.choice, "uses_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(parts.choice, "observe", lambda *_: (ranges, exact))
    monkeypatch.setattr(parts.choice, "run", lambda name, model, machine: SimpleNamespace(encode=name))
    took = {"openvino_int8_dynamic": 0.9, "openvino_int8_dynamic_float32": 0.5}
    monkeypatch.setattr(parts.choice, "timed", lambda name, tried: (exact, took.get(name, 0.1)))
    choice = parts.choice.choose(weights, (exact, 1.0), mels, parts.choice.Machine(1, 2, "int8"))
    assert choice.name == ("openvino_int8_float32" if bfloat16 else "openvino_int8")
    assert choice.ranges is ranges


@pytest.mark.parametrize(
    ("static", "error", "chosen"),
    [
        (0.5, 0.01, "openvino_int8_dynamic_float_attention"),
        (0.02, 0.01, "openvino_int8_dynamic_float_attention"),
        (0.5, 0.5, "ctranslate2"),
    ],
)
def test_attention_in_float_is_tried_where_the_other_dynamic_one_is_not_exact_enough(
    parts: Parts,
    weights: Any,
    mels: list[np.ndarray],
    observed: Any,
    monkeypatch: pytest.MonkeyPatch,
    static: float,
    error: float,
    chosen: str,
) -> None:
    ranges, exact = observed
    monkeypatch.setattr(parts.choice, "uses_bfloat16", lambda: False)
    monkeypatch.setattr(parts.choice, "observe", lambda *_: (ranges, exact))
    monkeypatch.setattr(parts.choice, "run", lambda name, model, machine: SimpleNamespace(encode=name))
    missed_by = {"openvino_int8_dynamic_float_attention": error, "openvino_int8": static}
    monkeypatch.setattr(
        parts.choice, "timed", lambda name, tried: ([one * (1 + missed_by.get(name, 0.5)) for one in exact], 0.1)
    )
    choice = parts.choice.choose(weights, (exact, 1.0), mels, parts.choice.Machine(1, 2, "int8"))
    assert choice.name == chosen
    assert len(choice.seconds) == 4


@pytest.mark.parametrize(
    ("compute_type", "bfloat16", "ends"),
    [("int8", True, ("", "_float32")), ("int8", False, ("",)), ("float32", True, ("",)), ("bfloat16", True, ("",))],
)
def test_float32_is_tried_beside_bfloat16_where_the_rest_is_int8(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, compute_type: str, bfloat16: bool, ends: tuple[str, ...]
) -> None:
    monkeypatch.setattr(parts.choice, "uses_bfloat16", lambda: bfloat16)
    assert parts.choice.Machine(1, 1, compute_type).ends == ends


def test_an_encoder_in_float32_is_told_so(parts: Parts, weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.choice, "Encoder", lambda model, calls, threads, options: options)
    name = parts.choice.DYNAMIC + parts.choice.IN_FLOAT32
    options = parts.choice.run(name, parts.choice.build(name, weights, {}), parts.choice.Machine(1, 1, "int8"))
    assert options["INFERENCE_PRECISION_HINT"] == "f32"
    assert "DYNAMIC_QUANTIZATION_GROUP_SIZE" in options


def test_an_encoder_that_gives_no_numbers_is_out_and_can_be_shown(parts: Parts) -> None:
    fine, broken = np.ones((2, 2)), np.array([[1.0, np.nan], [1.0, 1.0]])
    error = parts.choice._error([fine, broken], [fine, fine])
    assert parts.choice.fastest({"ctranslate2": 1.0, "openvino_float": 0.1}, {"ctranslate2": 0.0, "openvino_float": error}) == (
        "ctranslate2"
    )
    assert parts.choice.Choice("ctranslate2", {}, {"openvino_float": error}).shown()["relative_errors"] == {
        "openvino_float": None
    }


# -- what is kept of it


def test_a_choice_that_was_kept_comes_back_and_a_damaged_one_does_not(parts: Parts, observed: Any, tmp_path: Path) -> None:
    ranges, _ = observed
    choice = parts.choice.Choice("openvino_int8", {"ctranslate2": 0.5}, {"ctranslate2": 0.01}, ranges)
    parts.cache.save(tmp_path / "new", "kept", choice)
    again = parts.cache.load(tmp_path / "new", "kept")
    assert (again.name, again.seconds, again.errors) == (choice.name, choice.seconds, choice.errors)
    assert all(np.array_equal(again.ranges[layer].high, seen.high) for layer, seen in ranges.items())
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["kept.npz"]
    data = (tmp_path / "new" / "kept.npz").read_bytes()
    for damaged in (b"", data[:100], data[: len(data) // 2], b"x" * len(data)):
        (tmp_path / "new" / "kept.npz").write_bytes(damaged)
        assert parts.cache.load(tmp_path / "new", "kept") is None
    assert parts.cache.load(tmp_path, "kept") is None


def test_other_weights_threads_compute_types_or_instructions_have_a_choice_of_their_own(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"a" * (2 << 20))
    other.write_bytes(b"a" * (2 << 20) + b"b")
    machine = parts.choice.Machine(1, 2, "int8")
    keys = {parts.cache.key(one, machine), parts.cache.key(other, machine)}
    keys |= {
        parts.cache.key(one, replace(machine, threads=1)),
        parts.cache.key(one, replace(machine, compute_type="int8_float32")),
    }
    assert len(keys) == 4
    assert parts.cache.key(one, machine) in keys
    monkeypatch.setenv("CT2_FORCE_CPU_ISA", "AVX512" if os.environ.get("CT2_FORCE_CPU_ISA") != "AVX512" else "AVX2")
    assert parts.cache.key(one, machine) not in keys


def test_a_folder_that_was_left_goes_with_a_later_load_and_one_in_use_stays(parts: Parts, tmp_path: Path) -> None:
    for name, age_s in (("loading-left", 7200), ("loading-used", 60)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    with parts.cache.scratch(tmp_path, 1000) as folder:
        assert {one.name for one in tmp_path.iterdir()} == {folder.name, "loading-used"}
    assert not folder.exists()


def test_nothing_is_written_for_a_load_where_the_disk_has_no_room(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"), parts.cache.scratch(tmp_path, 1 << 60):
        pass
    assert not list(tmp_path.iterdir())


def test_measuring_that_killed_the_worker_twice_is_not_tried_again_and_an_error_does_not_count(
    parts: Parts, tmp_path: Path
) -> None:
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), parts.cache.trying(tmp_path, "one"):
            raise ZeroDivisionError
    for number in range(2):
        (tmp_path / f"one.tried-{number}").touch()  # what a process leaves that is killed meanwhile
    with pytest.raises(RuntimeError, match="to try again"), parts.cache.trying(tmp_path, "one"):
        pass
    with parts.cache.trying(tmp_path, "another"):
        pass


# -- a model with the encoder that suits it


@pytest.fixture(scope="session")
def fitted(engine: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The setup, and the demo model with another encoder than its own."""
    folder = tmp_path_factory.mktemp("encoders")
    setup = replace(SETUP, encoder="openvino", encoders_dir=str(folder), samples_dir=str(catalogue.DEMO_SAMPLES))
    return setup, engine.models.load(setup)[0]


def recognised(engine: SimpleNamespace, model: Any, recordings: list[np.ndarray]) -> list[tuple[str, str]]:
    """Languages and texts, in one batch."""
    batch, window = engine.batch, engine.vad.Window(0.0, 10.0)
    from app.jobs import TranscribeOptions

    said = [batch.Speech(pcm, TranscribeOptions("demo"), None) for pcm in recordings]
    decoded = batch.recognise(model, [batch.Piece(one, window, lambda: None) for one in said])
    return [(one.language, text.text) for one, text in zip(said, decoded, strict=True)]


def test_with_another_encoder_the_demo_model_says_the_same_in_batches_and_alone(
    engine: SimpleNamespace, pipeline: Any, fitted: tuple[Any, Any]
) -> None:
    _, model = fitted
    recordings = [speech(number) for number in range(8)]
    said = recognised(engine, model, recordings)
    assert model.encoder is not None
    assert said == recognised(engine, pipeline._model, recordings)
    assert said == [recognised(engine, model, [one])[0] for one in recordings]


def test_silence_and_noise_say_the_same_with_another_encoder(
    engine: SimpleNamespace, pipeline: Any, fitted: tuple[Any, Any]
) -> None:
    recordings = [np.zeros(16_000, np.int16), noise(3.0)]
    assert [text for _, text in recognised(engine, fitted[1], recordings)] == [
        text for _, text in recognised(engine, pipeline._model, recordings)
    ]


def test_the_second_load_measures_nothing_and_leaves_no_file_behind(
    engine: SimpleNamespace, parts: Parts, fitted: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, model = fitted
    monkeypatch.delattr(engine.fitting, "choose")
    again, *_ = engine.models.load(setup)
    assert again.encoder is not None
    assert again.choice.name == model.choice.name
    assert [path.suffix for path in Path(setup.encoders_dir).iterdir()] == [".npz"]


def test_where_no_other_encoder_can_be_made_ctranslate2_encodes(
    engine: SimpleNamespace, fitted: tuple[Any, Any], tmp_path: Path
) -> None:
    setup, _ = fitted
    for broken in unusable(setup, tmp_path):
        model, *_ = engine.models.load(broken)
        assert model.encoder is None
        assert recognised(engine, model, [speech(1)])[0][1]


def test_more_callers_than_calls_at_once_all_get_their_own_windows(parts: Parts, weights: Any, mels: list[np.ndarray]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    graph = parts.graph.Graph(weights, parts.graph.Numbers()).whole()
    encoder = parts.runtime.Encoder(graph, 2, 1, {})
    alone = [encoder.encode(mel) for mel in mels]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(encoder.encode, mels * 2))
    assert all(np.array_equal(found, alone[number % len(mels)]) for number, found in enumerate(together))
