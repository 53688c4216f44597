"""Silero's network says what faster-whisper's own call says, whoever computes it."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.unit.engine.conftest import noise, speech

pytestmark = pytest.mark.filterwarnings("ignore")

FRAME = 512
SLICE = 128
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
        assert asked == ([3, 1] if engine.silero.install()._network else [1])
        monkeypatch.setattr(engine.vad, "SHARED_S", 300)
        assert windows() == shared
        assert asked == [1]
    assert len(shared) > 2


class Network:
    """In OpenVINO's place, on any machine: a frame's probability is its first sample, and the state counts the frames."""

    def features(self, frames: np.ndarray) -> np.ndarray:
        return frames.reshape(-1, SLICE, 576)

    def probabilities(self, features: np.ndarray, h: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
        return [features[..., 0].ravel(), h + features.size // 576, c]


class Session:
    """In ONNX Runtime's place; it must be given no more than is left."""

    def run(self, names: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert len(given["input"]) < SLICE
        return [given["input"][:, 0], given["h"] + len(given["input"]), given["c"]]


def asked_of(slices: Any, frames: int) -> list[np.ndarray]:
    given = np.repeat(np.arange(frames, dtype=np.float32)[:, None], 576, 1)
    answer: list[np.ndarray] = slices.run(None, {"input": given, "h": np.zeros(1), "c": np.zeros(1)})
    return answer


@pytest.mark.parametrize("frames", [1, 127, 128, 129, 1024, 1025, 3000, 9376])
def test_frames_that_several_share_come_back_in_order_with_the_state_after_all_of_them(
    engine: SimpleNamespace, frames: int
) -> None:
    slices = engine.silero.Slices(Session(), Network())
    with ThreadPoolExecutor(3) as threads, slices.shared(lambda parts: threads.map(lambda part: part(), parts)) as shared:
        found, h, _ = asked_of(slices, frames)
    assert shared
    assert found.tolist() == list(range(frames))
    assert h == frames


def test_only_one_recording_at_a_time_is_shared(engine: SimpleNamespace) -> None:
    slices = engine.silero.Slices(Session(), Network())

    def never_asked(parts: Any) -> Any:
        pytest.fail("it was shared")

    with slices.shared(lambda parts: [part() for part in parts]) as first, ThreadPoolExecutor(1) as threads:

        def second() -> tuple[bool, int]:
            with slices.shared(never_asked) as shared:
                return shared, len(asked_of(slices, 300)[0])

        assert (first, threads.submit(second).result(10)) == (True, (False, 300))
    with slices.shared(lambda parts: [part() for part in parts]) as again:
        assert again


def test_a_shared_recording_that_is_cancelled_leaves_the_runners_and_the_network_to_others(engine: SimpleNamespace) -> None:
    from app.engine.lease import Stopped
    from app.engine.runners import Runners

    runners: Any = Runners(lambda units: [None for _ in units], 2, 4)
    slices = engine.silero.Slices(Session(), Network())
    cancelled, gate = threading.Event(), threading.Event()
    features, computed = slices._network.features, []

    def slow(frames: np.ndarray) -> np.ndarray:
        computed.append(len(frames))
        cancelled.set()
        assert gate.wait(10)
        return np.asarray(features(frames))

    slices._network.features = slow
    with pytest.raises(Stopped), runners.lease(cancelled.is_set) as lease, slices.shared(lease.calls):
        asked_of(slices, 9376)
    gate.set()
    slices._network.features = features
    with runners.lease(lambda: False) as lease, slices.shared(lease.calls) as shared:
        assert shared
        assert len(asked_of(slices, 9376)[0]) == 9376
    assert len(computed) <= 2


def test_on_x86_openvino_does_run_it(engine: SimpleNamespace) -> None:
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    assert (engine.silero.install()._network is not None) == on_x86


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
