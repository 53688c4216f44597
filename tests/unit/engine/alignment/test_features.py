"""wav2vec 2.0 in two parts says what it says in torch, for every kind of its feature encoder and every length."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino
import pytest
import torch
import torchaudio
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from tests.unit.engine.conftest import speech

pytestmark = pytest.mark.filterwarnings("ignore")

BASE = {"conv_dim": (32,) * 7, "conv_bias": False}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 30}


def of_transformers(**changed: Any) -> Any:
    return Wav2Vec2ForCTC(Wav2Vec2Config(**(SMALL | {"num_conv_pos_embeddings": 16} | BASE | changed)))


def of_torchaudio(kind: str, layers: list[tuple[int, int, int]], *, bias: bool = False) -> Any:
    return torchaudio.models.wav2vec2_model(kind, layers, bias, 32, 0.0, 15, 4, 2, 2, 0.0, 64, 0.0, 0.0, False, 0.0, 30)


STANDARD = [(32, 10, 5), *[(32, 3, 2)] * 4, *[(32, 2, 2)] * 2]
KINDS = {
    "base": of_transformers,
    "large": lambda: of_transformers(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
    "other kernels": lambda: of_transformers(conv_dim=(16, 24, 32), conv_kernel=(20, 9, 3), conv_stride=(10, 4, 3)),
    "torchaudio's base": lambda: of_torchaudio("group_norm", STANDARD),
    "torchaudio's large": lambda: of_torchaudio("layer_norm", STANDARD, bias=True),
    "kernels as long as their strides": lambda: of_torchaudio("group_norm", [(32, 10, 5), (32, 8, 8), (32, 4, 4)]),
}


@pytest.fixture
def features(engine: SimpleNamespace) -> Any:
    return engine.alignment.features


def made(kind: str) -> Any:
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "norm" in name:  # which starts as one and zero
                values.add_(torch.randn_like(values) / 4)
    return model


def logits(engine: SimpleNamespace, converted: Any, audio: np.ndarray) -> np.ndarray:
    limits = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    found: np.ndarray = engine.alignment.emissions._OpenVino(converted, limits).run(audio)
    return found


def recording(samples: int) -> np.ndarray:
    """Speech on a direct current, as cheap sound cards give it."""
    return np.resize(speech(0), samples).astype(np.float32) / 32768 + np.float32(0.1)


@pytest.fixture(scope="module")
def converted(engine: SimpleNamespace) -> Callable[[str], tuple[Any, Any]]:
    """A model of each kind, and what is made of it; once, because that takes seconds."""

    @cache
    def both(kind: str) -> tuple[Any, Any]:
        model = made(kind)
        return model, engine.alignment.features.convert(model)

    return both


@pytest.mark.parametrize("kind", KINDS)
def test_both_parts_together_say_what_torch_says(
    engine: SimpleNamespace, features: Any, converted: Callable[[str], tuple[Any, Any]], kind: str
) -> None:
    model, parts = converted(kind)
    geometry = parts.geometry
    a_piece, hop = geometry.piece, geometry.hop
    for samples in (geometry.window, a_piece - 1, a_piece, a_piece + hop - 1, a_piece + hop, 3 * a_piece + 77):
        audio = recording(samples)
        expected = engine.alignment.emissions._in_torch(features.Logits(model), "cpu", audio)
        found = logits(engine, parts, audio)
        assert found.shape == expected.shape
        assert found == pytest.approx(expected, abs=2e-3 * float(np.abs(expected).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_geometry_is_that_of_the_layers(features: Any, converted: Callable[[str], tuple[Any, Any]], kind: str) -> None:
    model, parts = converted(kind)
    geometry = parts.geometry
    whole = features.Logits(model)
    with torch.inference_mode():
        frames = [whole(torch.zeros(1, geometry.window + more)).shape[1] for more in (0, geometry.hop - 1, geometry.hop)]
    assert frames == [1, 1, 2]


def test_a_model_says_in_torch_what_it_said_before_it_was_converted(features: Any) -> None:
    model = made("base")
    audio = torch.from_numpy(recording(8000)[None])
    with torch.inference_mode():
        before = model(audio).logits
        features.convert(model)
        assert torch.equal(model(audio).logits, before)


def test_a_model_whose_conversion_fails_says_in_torch_what_it_said_before(
    features: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("base")
    audio = torch.from_numpy(recording(8000)[None])
    convert, calls = openvino.convert_model, []

    def fail(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise RuntimeError("an operation that OpenVINO does not know")
        return convert(*given, **named)

    monkeypatch.setattr(openvino, "convert_model", fail)
    with torch.inference_mode():
        before = model(audio).logits
        with pytest.raises(RuntimeError, match="an operation"):
            features.convert(model)
        assert torch.equal(model(audio).logits, before)


def padded(model: Any) -> None:
    model.wav2vec2.feature_extractor.conv_layers[1].conv.padding = (1,)


def padded_first(model: Any) -> None:
    model.wav2vec2.feature_extractor.conv_layers[0].conv.padding = (1,)


def grouped(model: Any) -> None:
    model.wav2vec2.feature_extractor.conv_layers[0].layer_norm = torch.nn.GroupNorm(4, 32)


def normalised_later(model: Any) -> None:
    model.wav2vec2.feature_extractor.conv_layers[1].layer_norm = torch.nn.GroupNorm(32, 32)


def with_gaps(model: Any) -> None:
    model.wav2vec2.feature_extractor.conv_layers[5].conv.stride = (3,)


@pytest.mark.parametrize("change", [padded, padded_first, grouped, normalised_later, with_gaps])
def test_layers_of_an_unknown_kind_are_refused(features: Any, change: Any) -> None:
    model = made("base")
    change(model)
    with pytest.raises(ValueError, match="not known"):
        features.convert(model)


def test_a_model_of_an_unknown_kind_is_refused(features: Any) -> None:
    with pytest.raises(TypeError, match="not known: Linear"):
        features.convert(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(("kind", "products"), [("base", 4 * 2 + 2), ("large", 4 * 2 + 2), ("other kernels", 2 + 1)])
def test_all_convolutions_but_the_first_become_int8_products(
    converted: Callable[[str], tuple[Any, Any]], kind: str, products: int
) -> None:
    made_int8 = converted(kind)[1].quantized().encoder
    types = [node.get_element_type() for node in made_int8.get_ops() if node.get_type_name() == "Constant"]
    assert types.count(openvino.Type.i8) == products


def test_silence_can_be_computed(engine: SimpleNamespace, converted: Callable[[str], tuple[Any, Any]]) -> None:
    assert np.isfinite(logits(engine, converted("base")[1], np.zeros(20_000, np.float32))).all()
