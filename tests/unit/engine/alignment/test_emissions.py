"""Which runtime an aligner gets, and that several threads may use it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino
import pytest

from app import catalogue
from tests.unit.engine.conftest import speech

pytestmark = pytest.mark.filterwarnings("ignore")

Make = Callable[[], Any]


@pytest.fixture
def module(engine: SimpleNamespace) -> Any:
    return engine.alignment.emissions


@pytest.fixture
def make(module: Any) -> Make:
    from transformers import Wav2Vec2ForCTC

    return lambda: module.Emissions(Wav2Vec2ForCTC.from_pretrained(catalogue.DEMO_ALIGNER).eval(), "cpu", runners=2, threads=1)


def audio(number: int = 0) -> np.ndarray:
    return speech(number).astype(np.float32) / 32768


def slow_torch(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    times = iter([1.0] + [0.0] * 9)
    monkeypatch.setattr(module, "_seconds", lambda run, audio: next(times))


def test_int8_is_taken_where_it_is_faster_and_near_enough(make: Make, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_torch(monkeypatch, module)
    emissions = make()
    found = emissions(audio())
    assert emissions.runtime == "openvino-int8"
    assert found.dtype == np.float32
    assert np.exp(found).sum(axis=1) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("bfloat16", "times", "runtime"),
    [
        (True, [1.0, 0.2, 0.3, 2.0, 1.0], "openvino-int8-float32"),
        (True, [1.0, 0.3, 0.2, 1.0, 2.0], "openvino-int8"),
        (True, [1.0, 1.1, 0.2], "openvino-int8-float32"),
        (False, [1.0, 0.3], "openvino-int8"),
    ],
)
def test_what_is_not_int8_is_computed_in_the_precision_that_long_segments_are_faster_in_here_and_where_it_is_kept(
    make: Make, module: Any, monkeypatch: pytest.MonkeyPatch, bfloat16: bool, times: list[float], runtime: str
) -> None:
    took, told, lengths = iter(times), [], []
    compiled = module._OpenVino.__init__

    def spy(self: Any, model: Any, limits: dict[str, str]) -> None:
        told.append(limits.get("INFERENCE_PRECISION_HINT"))
        compiled(self, model, limits)

    monkeypatch.setattr(module, "uses_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(module, "_seconds", lambda run, audio: lengths.append(len(audio)) or next(took))
    monkeypatch.setattr(module._OpenVino, "__init__", spy)
    emissions, converted = make(), []
    emissions._on_converted = lambda name, model: converted.append((name, model))
    found = emissions(audio())
    assert emissions.runtime == runtime
    assert told == ([None, "f32"] if bfloat16 else [None])
    assert lengths == [48_000] * min(3, len(times)) + [320_000] * (len(times) - 3)
    assert next(took, None) is None
    ((name, model),) = converted
    again = module.Emissions.converted(name, model, runners=1, threads=1)
    assert told[-1] == ("f32" if runtime.endswith("float32") else None)
    assert again(audio()) == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize(
    ("failing", "runtime"),
    [(["openvino-int8"], "openvino-int8-float32"), (["openvino-int8", "openvino-int8-float32"], "openvino")],
)
def test_what_fails_for_long_segments_is_not_taken(
    make: Make, module: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failing: list[str], runtime: str
) -> None:
    monkeypatch.setattr(module, "uses_bfloat16", lambda: True)
    seconds, long = iter([1.0]), []

    def took(run: Any, audio: np.ndarray) -> float:
        if len(audio) == module.LONG_SAMPLES:
            long.append(run)
            if len(long) <= len(failing):
                raise RuntimeError("no memory")
        return next(seconds, 0.1 if len(long) < 3 or len(long) % 2 else 0.2)

    monkeypatch.setattr(module, "_seconds", took)
    emissions = make()
    with caplog.at_level(logging.WARNING):
        assert len(emissions(audio()))
    assert emissions.runtime == runtime
    for name in failing:
        assert f"could not be run by {name} for long segments" in caplog.text


def test_what_changes_the_probabilities_too_much_is_not_taken(
    engine: SimpleNamespace, make: Make, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_torch(monkeypatch, module)
    quantize = engine.alignment.quantize
    right = quantize.int8_constant
    monkeypatch.setattr(
        engine.alignment.quantize, "int8_constant", lambda weights, across: right(np.ones_like(weights), across)
    )
    emissions = make()
    emissions(audio())
    assert emissions.runtime == "openvino"


def test_torch_stays_where_nothing_is_faster(make: Make, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_seconds", lambda run, audio: 1.0)
    emissions = make()
    emissions(audio())
    assert emissions.runtime == "torch"


def test_torch_stays_without_a_trial_where_it_is_quick(make: Make, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_seconds", lambda run, audio: module.QUICK_S)
    monkeypatch.setattr(module, "convert", lambda model: pytest.fail("it was converted"))
    emissions = make()
    emissions(audio())
    assert emissions.runtime == "torch"


def test_torch_stays_where_the_model_cannot_be_converted(
    make: Make, module: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow_torch(monkeypatch, module)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("an operation that OpenVINO does not know")

    monkeypatch.setattr(openvino, "convert_model", refuse)
    with caplog.at_level(logging.WARNING):
        emissions = make()
        assert len(emissions(audio()))
    assert emissions.runtime == "torch"
    assert "could not be converted" in caplog.text


def test_threads_at_once_get_what_each_gets_alone_for_every_length(
    make: Make, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_torch(monkeypatch, module)
    emissions, whole = make(), audio()
    cuts = [whole[: 1600 * number] for number in range(1, 25)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(emissions, cuts))
    assert emissions.runtime == "openvino-int8"
    for cut, found in zip(cuts, together, strict=True):
        assert found == pytest.approx(emissions(cut), abs=1e-5)


def test_a_model_of_torchaudio_is_converted_too(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchaudio

    slow_torch(monkeypatch, module)
    model = torchaudio.models.wav2vec2_model(
        "group_norm",
        [(32, 10, 5), (32, 8, 8), (32, 4, 4), (32, 2, 2)],
        False,
        32,
        0.0,
        15,
        4,
        2,
        2,
        0.0,
        64,
        0.0,
        0.0,
        False,
        0.0,
        29,
    )
    emissions = module.Emissions(model.eval(), "cpu", runners=1, threads=1)
    assert emissions(audio()).shape[1] == 29
    assert emissions.runtime == "openvino-int8"
