"""Engine calls at once and threads of each: what is tried, what is chosen, and that it is what the model then gets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app import catalogue
from app.work import WorkerSetup
from tests.unit.engine.conftest import SETUP, unusable

pytestmark = pytest.mark.filterwarnings("ignore")

Timed = Callable[..., dict[int, int]]


@pytest.fixture
def setup(tmp_path: Path) -> WorkerSetup:
    """On four cores, with CTranslate2's parts, which need no choice of their own."""
    samples = str(catalogue.DEMO_SAMPLES)
    return replace(SETUP, runners=2, threads=1, cores=4, encoders_dir=str(tmp_path), samples_dir=samples)


@pytest.fixture
def timed(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Timed:
    """Seconds per window by calls at once, instead of those measured; what is returned counts how often each was asked for."""

    def give(**seconds: float) -> dict[int, int]:
        asked: dict[int, int] = {}

        def per_window(model: Any, calls: int, mels: list[np.ndarray]) -> float:
            asked[calls] = asked.get(calls, 0) + 1
            return seconds[f"calls_{calls}"]

        monkeypatch.setattr(engine.arrangement, "per_window", per_window)
        return asked

    return give


@pytest.mark.parametrize(
    ("runners", "threads", "cores", "tried"),
    [
        (2, 1, 0, "2x1"),
        (1, 1, 1, "1x1"),
        (2, 1, 2, "2x1 1x2"),
        (3, 1, 3, "3x1 1x3"),
        (4, 1, 4, "4x1 2x2 1x4"),
        (4, 1, 5, "4x1 2x2 1x5"),
        (4, 1, 6, "4x1 3x2 2x3 1x6"),
        (4, 1, 7, "4x1 3x2 2x3 1x7"),
        (4, 4, 16, "4x4 2x8 1x16"),
        (1, 1, 2, "1x1 1x2"),
    ],
)
def test_no_arrangement_that_is_tried_has_more_threads_than_cores_or_more_calls_than_set(
    engine: SimpleNamespace, runners: int, threads: int, cores: int, tried: str
) -> None:
    setups = engine.arrangement.possible(replace(SETUP, runners=runners, threads=threads, cores=cores))
    assert " ".join(engine.arrangement.name(one) for one in setups) == tried
    assert all(one.runners * one.threads <= max(cores, runners * threads) and one.runners <= runners for one in setups)


@pytest.mark.parametrize(
    ("seconds", "chosen"), [((1.0, 0.8, 0.7), "1x4"), ((1.0, 0.95, 0.86), "4x1"), ((1.0, 1.2, 2.0), "4x1"), ((1.0,), "4x1")]
)
def test_the_setting_stays_unless_another_is_clearly_faster(
    engine: SimpleNamespace, seconds: tuple[float, ...], chosen: str
) -> None:
    assert engine.arrangement.fastest(dict(zip(("4x1", "2x2", "1x4"), seconds, strict=False))) == chosen


def test_what_was_measured_faster_is_what_the_model_gets_in_this_life_and_the_next(
    engine: SimpleNamespace, setup: WorkerSetup, timed: Timed
) -> None:
    asked = timed(calls_2=0.5, calls_1=0.3)
    for _ in range(2):
        model, _, best = engine.models.load(setup)
        assert (best.runners, best.threads) == (1, 4)
        assert model.arrangement_choice.seconds == {"2x1": 0.5, "2x2": 0.5, "1x4": 0.3}
    assert asked == {2: 2, 1: 1}


def test_the_pipeline_runs_and_shows_what_was_chosen(engine: SimpleNamespace, setup: WorkerSetup, timed: Timed) -> None:
    timed(calls_2=0.5, calls_1=0.3)
    pipeline = engine.pipeline.create(setup)
    arrangement = {"runners": 1, "threads": 4, "seconds_per_window": {"2x1": 0.5, "2x2": 0.5, "1x4": 0.3}}
    assert pipeline.chosen["arrangement"] == arrangement
    assert pipeline._runners._count == 1


def test_a_model_whose_windows_take_long_stays_as_it_is_unmeasured(
    engine: SimpleNamespace, setup: WorkerSetup, timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.arrangement, "SLOWEST_S", 0.0)
    asked = timed()
    model, _, best = engine.models.load(replace(setup, encoder="openvino"))
    assert best == replace(setup, encoder="openvino")
    assert model.arrangement_choice.seconds == asked == {}


def test_arrangements_that_came_with_different_parts_are_not_compared_and_nothing_is_kept(
    engine: SimpleNamespace, setup: WorkerSetup, timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(calls_2=0.5, calls_1=0.1)
    used = iter(["kept", "openvino", "ctranslate2"])
    monkeypatch.setattr(engine.arrangement, "parts", lambda *choices: next(used))
    model, _, best = engine.models.load(setup)
    assert best == setup
    assert model.arrangement_choice is None
    assert list(Path(setup.encoders_dir).iterdir()) == []


def test_seconds_are_told_as_those_of_as_many_runners_as_the_server_counts_with(
    engine: SimpleNamespace, setup: WorkerSetup, timed: Timed
) -> None:
    timed(calls_2=0.5, calls_1=0.3)
    pipeline = engine.pipeline.create(setup)
    lease = SimpleNamespace(spent=engine.lease.Spent(seconds=1.5))
    assert pipeline._spent(lease) == {"seconds": 3.0, "calls": 1, "windows": 1}


def test_where_nothing_can_be_measured_the_setting_stays(engine: SimpleNamespace, setup: WorkerSetup, tmp_path: Path) -> None:
    for broken in unusable(setup, tmp_path):
        model, _, best = engine.models.load(broken)
        assert best == broken
        assert model.arrangement_choice is None


def test_the_measurement_makes_so_many_calls_at_once_and_leaves_the_model_as_it_was(
    engine: SimpleNamespace, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, most = pipeline._model, pipeline._model.max_length
    together, seen = threading.Barrier(2, timeout=30), []

    def recognised(one: Any, mels: list[np.ndarray]) -> None:
        together.wait()  # both calls are there, or this fails
        seen.append((one.max_length, len(mels)))

    with monkeypatch.context() as patch:
        patch.setattr(engine.arrangement, "_recognised", recognised)
        assert engine.arrangement.per_window(model, 2, [np.zeros((80, 3000), np.float32)] * 2) > 0
    assert set(seen) == {(engine.arrangement.LENGTH, 2)}
    assert model.max_length == most


def test_the_real_measurement_of_the_demo_model_gives_seconds_for_every_arrangement(
    engine: SimpleNamespace, setup: WorkerSetup
) -> None:
    model, _, best = engine.models.load(replace(setup, cores=2))
    assert model.arrangement_choice.seconds.keys() == {"2x1", "1x2"}
    assert all(0 < seconds < 60 for seconds in model.arrangement_choice.seconds.values())
    assert engine.arrangement.name(best) == model.arrangement_choice.name
