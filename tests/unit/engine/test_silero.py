"""Silero's network says what faster-whisper's own call says, whoever computes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.unit.engine.conftest import noise, speech

pytestmark = pytest.mark.filterwarnings("ignore")

FRAME = 512
Heard = Callable[[np.ndarray], np.ndarray]


@pytest.fixture
def stock() -> Any:
    """A model of faster-whisper that nobody has touched."""
    from faster_whisper import utils, vad

    return vad.SileroVADModel(os.path.join(utils.get_assets_path(), "silero_vad_v6.onnx"))


@pytest.fixture
def recording() -> np.ndarray:
    """Speech and noise, of a length that is no number of whole slices."""
    pcm = np.concatenate([speech(0), noise(6.0), speech(3), np.zeros(16_000, np.int16), speech(5), speech(7)])
    return pcm[: len(pcm) // FRAME * FRAME]


def test_full_slices_by_openvino_are_within_a_ten_thousandth_of_what_faster_whisper_says(
    engine: SimpleNamespace, stock: Any, recording: np.ndarray
) -> None:
    engine.silero.install()
    model = engine.silero.get_vad_model()
    assert isinstance(model.session, engine.silero.Slices)
    assert len(recording) // FRAME > 2 * engine.silero.SLICE
    expected = stock(engine.silero.floats(recording))
    assert np.ptp(expected) > 0.9
    for given in (recording, engine.silero.floats(recording)):
        np.testing.assert_allclose(model(given), expected, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 127, 128, 129, 257])
def test_slices_by_onnx_runtime_are_what_faster_whisper_says(
    engine: SimpleNamespace, stock: Any, recording: np.ndarray, frames: int
) -> None:
    given = recording[: frames * FRAME]
    expected = stock(engine.silero.floats(given))
    stock.session = engine.silero.Slices(stock.session)
    np.testing.assert_array_equal(stock(given), expected)


def test_the_state_after_slices_is_that_of_one_call(engine: SimpleNamespace, stock: Any, recording: np.ndarray) -> None:
    frames = engine.silero.floats(recording[: 300 * FRAME]).reshape(-1, FRAME)
    given = {"input": np.pad(frames, ((0, 0), (64, 0))), "h": np.zeros((1, 1, 128), np.float32)}
    given["c"] = given["h"].copy()
    engine.silero.install()
    sliced = engine.silero.get_vad_model().session.run(None, given)
    for found, expected in zip(sliced, stock.session.run(None, given), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_more_threads_than_openvino_serves_at_once_get_what_each_gets_alone(
    engine: SimpleNamespace, recording: np.ndarray
) -> None:
    engine.silero.install()
    model = engine.silero.get_vad_model()
    cuts = [recording[number * FRAME :] for number in range(2 * engine.silero.CALLS)]
    alone = [model(cut) for cut in cuts]
    with ThreadPoolExecutor(len(cuts)) as threads:
        for found, expected in zip(threads.map(model, cuts), alone, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_block_that_runners_share_has_the_speech_that_one_finds_alone(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.jobs import VadOptions

    pcm = np.resize(np.concatenate([speech(0), np.zeros(12_000, np.int16), speech(5)]), 90 * 16_000)
    with ThreadPoolExecutor(3) as threads:
        asked: list[int] = []

        def calls(functions: Any) -> Any:
            asked.append(len(functions))
            return threads.map(lambda function: function(), functions)

        def windows() -> Any:
            asked.clear()
            return engine.vad.find_windows(pcm, VadOptions(), engine.vad.PyannoteVad("cpu"), lambda done: None, calls)

        shared = windows()
        assert asked == ([3, 1] if engine.silero.install()._network else [])
        monkeypatch.setattr(engine.vad, "SHARED_S", 300)
        assert windows() == shared
        assert asked == [1]
    assert len(shared) > 2


def test_after_a_shared_block_that_was_cancelled_a_thread_computes_by_itself_again(engine: SimpleNamespace) -> None:
    network = engine.silero.install()
    frames = np.zeros((2 * engine.silero.SLICE, 576), np.float32)
    state = np.zeros((1, 1, 128), np.float32)

    def stopped(functions: Any) -> Any:
        raise InterruptedError

    if network._network:
        with pytest.raises(InterruptedError), network.shared(stopped):
            network.run(None, {"input": frames, "h": state, "c": state})
    assert len(network.run(None, {"input": frames, "h": state, "c": state})[0]) == len(frames)


def fails(path: str) -> None:
    raise RuntimeError("an instruction that this processor does not know")


def never(path: str) -> None:
    pytest.fail("it was tried")


@pytest.mark.parametrize(("machine", "made"), [("x86_64", fails), ("arm64", never), ("aarch64", never)])
def test_without_openvino_onnx_runtime_says_the_same(
    engine: SimpleNamespace,
    stock: Any,
    recording: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    made: Callable[[str], None],
) -> None:
    expected = stock(engine.silero.floats(recording))
    monkeypatch.setattr(engine.silero.platform, "machine", lambda: machine)
    monkeypatch.setattr(engine.silero, "get_vad_model", lambda: stock)
    monkeypatch.setattr(engine.silero, "OpenVino", made)
    engine.silero.install.__wrapped__()
    np.testing.assert_array_equal(stock(recording), expected)
