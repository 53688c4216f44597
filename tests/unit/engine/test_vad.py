"""Cutting speech into windows. Silero is replaced by a stub that knows where the speech is, but for the last tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.jobs import VadOptions
from tests.unit.engine.conftest import noise

pytestmark = pytest.mark.filterwarnings("ignore")

RATE = 16_000
BLOCK_S = 4
CHUNK_S = 1.0
OPTIONS = VadOptions(min_silence_s=0.1, speech_pad_s=0.0, chunk_s=CHUNK_S)
Spans = list[tuple[int, int]]


def stub(block: np.ndarray, settings: Any) -> list[dict[str, int]]:
    """Exact: speech is what is not zero; a stretch over the longest duration is cut there, as Silero does."""
    padded = np.concatenate([[0], block != 0, [0]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(padded))
    most = int(settings.max_speech_duration_s * RATE)
    return [
        {"start": at, "end": min(at + most, int(end))}
        for start, end in zip(edges[::2], edges[1::2], strict=True)
        for at in range(int(start), int(end), most)
    ]


@pytest.fixture
def cut(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Callable[[np.ndarray], Spans]:
    """Speech of a recording in samples, found in blocks of four seconds."""
    monkeypatch.setattr(engine.vad, "get_speech_timestamps", stub)
    monkeypatch.setattr(engine.vad, "BLOCK_S", BLOCK_S)

    def found(pcm: np.ndarray) -> Spans:
        progress: list[float] = []
        speech = list(engine.vad._silero(pcm, OPTIONS, CHUNK_S, progress.append, engine.silero.one_by_one))
        assert progress == sorted(progress)
        assert progress[-1:] == ([1.0] if len(pcm) else [])
        return [(round(start * RATE), round(end * RATE)) for start, end in speech]

    return found


def recording(seconds: float, *speech: tuple[float, float]) -> np.ndarray:
    pcm = np.zeros(int(seconds * RATE), np.int16)
    for start, end in speech:
        pcm[int(start * RATE) : int(end * RATE)] = 1000
    return pcm


def spans(*speech: tuple[float, float]) -> Spans:
    return [(int(start * RATE), int(end * RATE)) for start, end in speech]


@pytest.mark.parametrize(
    "speech",
    [
        [(3.5, 4.25)],
        [(3.5, 4.0)],
        [(4.0, 4.5)],
        [(3.2, 3.9), (4.1, 4.5)],
        [(0.0, 0.5), (3.75, 4.5), (7.5, 8.25), (11.0, 12.0)],
        [(11.5, 12.0)],
        [],
    ],
)
def test_speech_at_the_edge_of_a_block_is_found_once_and_whole(
    cut: Callable[[np.ndarray], Spans], speech: list[tuple[float, float]]
) -> None:
    assert cut(recording(12, *speech)) == spans(*speech)


def test_speech_without_a_pause_is_neither_lost_nor_doubled(cut: Callable[[np.ndarray], Spans]) -> None:
    found = cut(recording(13, (0.0, 13.0)))
    assert found[0][0] == 0
    assert found[-1][1] == 13 * RATE
    assert all(before[1] == after[0] for before, after in pairwise(found))
    assert all(end - start <= CHUNK_S * RATE for start, end in found)


def test_random_speech_is_found_exactly_and_short_stretches_are_never_cut(cut: Callable[[np.ndarray], Spans]) -> None:
    chance = random.Random(3)
    for _ in range(30):
        speech, at = [], chance.random()
        while at < 20:
            end = at + chance.uniform(0.05, 1.0)
            speech.append((at, min(end, 20.0)))
            at = end + chance.uniform(0.05, 1.5)
        assert cut(recording(20, *speech)) == spans(*speech)


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 4 * RATE - 1, 4 * RATE, 4 * RATE + 1])
def test_any_length_comes_to_an_end(cut: Callable[[np.ndarray], Spans], length: int) -> None:
    assert cut(np.ones(length, np.int16))[-1:] == ([] if length == 0 else [cut(np.ones(length, np.int16))[-1]])
    assert cut(np.zeros(length, np.int16)) == []


def windows(engine: SimpleNamespace, pcm: np.ndarray, **options: Any) -> list[tuple[float, float]]:
    pyannote = engine.vad.PyannoteVad("cpu")
    found = engine.vad.find_windows(pcm, VadOptions(**options), pyannote, lambda done: None, engine.silero.one_by_one)
    return [(window.start, window.end) for window in found]


@pytest.mark.parametrize("chunk_s", [1.0, 7.3, 30.0, 99.0])
def test_windows_are_in_order_apart_and_never_longer_than_30_s(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, chunk_s: float
) -> None:
    chance = random.Random(5)
    for _ in range(50):
        edges = sorted(chance.sample(range(280 * RATE), 2 * chance.randrange(1, 30)))
        found = [{"start": a, "end": b} for a, b in zip(edges[::2], edges[1::2], strict=True)]
        monkeypatch.setattr(engine.vad, "get_speech_timestamps", lambda *_, found=found: list(found))
        made = windows(engine, np.zeros(290 * RATE, np.int16), chunk_s=chunk_s)
        assert made[0][0] == edges[0] / RATE
        assert all(0 < end - start <= 30.0 + 1e-9 for start, end in made)
        assert all(before[1] <= after[0] for before, after in pairwise(made))
        for speech in found:
            if speech["end"] - speech["start"] <= min(chunk_s, 30) * RATE:
                start, end = speech["start"] / RATE, speech["end"] / RATE
                assert any(a - 1e-6 <= start and end <= b + 1e-6 for a, b in made)


def test_without_detection_windows_cover_everything(engine: SimpleNamespace) -> None:
    assert windows(engine, noise(70.5), method="none") == [(0.0, 30.0), (30.0, 60.0), (60.0, 70.5)]
    assert windows(engine, noise(0.01), method="none") == [(0.0, 0.01)]


@pytest.mark.parametrize("method", ["none", "silero", "pyannote"])
def test_an_empty_recording_has_no_windows(engine: SimpleNamespace, method: str) -> None:
    assert windows(engine, np.zeros(0, np.int16), method=method) == []


@pytest.mark.parametrize("length", [1, 100, 511, 512, RATE, 3 * RATE])
def test_silero_itself_finds_nothing_in_silence_of_any_length(engine: SimpleNamespace, length: int) -> None:
    assert windows(engine, np.zeros(length, np.int16), method="silero") == []


def test_silero_itself_takes_the_extremes_of_every_option(engine: SimpleNamespace) -> None:
    extremes = ((0.01, 0.99, 0.0, 2.0, 1.0), (0.99, 0.01, 10.0, 0.0, 30.0), (0.01, 0.01, 0.0, 0.0, 1.0))
    for onset, offset, silence, pad, chunk in extremes:
        options = {"onset": onset, "offset": offset, "min_silence_s": silence, "speech_pad_s": pad, "chunk_s": chunk}
        made = windows(engine, noise(8), **options)
        assert all(0 <= start < end <= 8.0 for start, end in made)


@pytest.mark.parametrize("seconds", [0.006, 1.0, 6.0])
def test_pyannote_works_offline_with_the_weights_of_the_wheel(
    engine: SimpleNamespace, seconds: float, no_network: list[object]
) -> None:
    assert windows(engine, (noise(seconds) * 0).astype(np.int16), method="pyannote") == []
    made = windows(engine, noise(seconds), method="pyannote", onset=0.01)
    assert all(0 <= start < end <= seconds + 0.1 for start, end in made)
    assert no_network == []


def test_samples_are_float_in_one_range_and_only_of_the_wanted_stretch(engine: SimpleNamespace) -> None:
    pcm = np.array([0, -32768, 32767, 16384] * RATE, np.int16)
    piece = engine.vad.samples(pcm, 1.0, 1.5)
    assert piece.dtype == np.float32
    assert (len(piece), float(piece.min()), float(piece[3])) == (RATE // 2, -1.0, 0.5)
    assert len(engine.vad.samples(pcm, 3.9, 99.0)) == len(pcm) - int(3.9 * RATE)
    assert len(engine.vad.samples(pcm, 99.0, 100.0)) == 0
