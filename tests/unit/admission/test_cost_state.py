"""What the cost model has learned: sound whatever was observed, bounded, kept across restarts, never broken by garbage."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.admission import prior, table
from app.admission.cost import MAX_KINDS, VERSION, Batches, Cost, CostModel, Footprint, Work

MB = 1_000_000
NOW = 1_800_000_000.0
KIND = "tiny", "int8", "cpu"
TINY = Work(*KIND, audio_s=300.0)
FULL = Batches(2, 8)

works = st.builds(
    Work,
    model=st.sampled_from(["demo", "tiny", "large-v3", "nobody", ""]),
    compute_type=st.sampled_from(["int8", "float32", "auto", "?"]),
    device=st.sampled_from(["cpu", "cuda", "?"]),
    audio_s=st.floats(),
    chunk_s=st.floats(),
    word_timestamps=st.sampled_from(["", "fast", "aligned"]),
    vad=st.sampled_from(["silero", "pyannote", "none", "?"]),
    beam_size=st.integers(),
)
seconds = st.floats()
sizes = st.none() | st.integers()


# -- whatever is observed


def check(cost: Cost, footprint: Footprint) -> None:
    assert cost.bytes >= 1
    assert 0 < cost.seconds < math.inf
    assert 0 <= cost.audio_s < math.inf
    assert 0 < footprint.resident_bytes <= footprint.load_peak_bytes
    assert 0 < footprint.load_s < math.inf


@settings(deadline=None)
@given(st.lists(st.tuples(works, sizes, seconds, st.booleans()), max_size=15), works, st.floats(0, 1e6), st.integers())
def test_prices_are_positive_finite_and_grow_with_the_audio_and_survive_a_dump(
    seen: list[tuple[Work, int | None, float, bool]], work: Work, more_s: float, clock: int
) -> None:
    model = CostModel(lambda: float(max(0, min(clock, 10**10))))
    for one, size, duration, killed in seen:
        kind = one.model, one.compute_type, one.device
        model.observe_job(one, actual_seconds=duration)
        if size is not None:
            model.observe_batches(*kind, actual_bytes=size, used=Batches(1, 1), billed=Batches(2, 8))
        model.observe_worker(one.model, one.compute_type, one.device, resident_bytes=size, load_s=duration)
        if killed:
            model.out_of_memory(*kind)
    for one in [work, *(one for one, *_ in seen)]:
        cost, footprint = model.job(one), model.worker(one.model, one.compute_type, one.device)
        check(cost, footprint)
        assert model.batches(one.model, one.compute_type, one.device, Batches(2, 8)) > 0
        longer = model.job(replace(one, audio_s=cost.audio_s + more_s))
        assert longer.bytes >= cost.bytes
        assert longer.seconds >= cost.seconds
    again = CostModel(lambda: float(max(0, min(clock, 10**10))))
    again.load(json.loads(json.dumps(model.dump(), allow_nan=False)))
    assert again.dump() == model.dump()
    for one in [work, *(one for one, *_ in seen)]:
        assert again.job(one) == model.job(one)
        kind = one.model, one.compute_type, one.device
        assert again.worker(*kind) == model.worker(*kind)
        assert again.batches(*kind, Batches(1, 4)) == model.batches(*kind, Batches(1, 4))


def test_the_kinds_that_are_remembered_are_bounded() -> None:
    model = fresh()
    for number in range(MAX_KINDS + 20):
        model.observe_job(replace(TINY, model=f"m{number}"), actual_seconds=1.0)
        model.observe_batches(f"m{number}", "int8", "cpu", actual_bytes=MB, used=FULL, billed=FULL)
    assert len(model.dump()["bytes"]) == len(model.dump()["seconds"]) == MAX_KINDS


# -- across restarts


def fresh() -> CostModel:
    return CostModel(lambda: NOW)


@pytest.fixture
def taught() -> CostModel:
    model = fresh()
    for _ in range(12):
        model.observe_job(TINY, actual_seconds=30.0)
        model.observe_batches(*KIND, actual_bytes=100 * MB, used=FULL, billed=FULL)
    model.observe_worker("tiny", "int8", "cpu", resident_bytes=400 * MB)
    model.observe_upload("alice", 1_000_000, 10.0)
    return model


def prices(model: CostModel) -> tuple[Any, ...]:
    return model.job(TINY), model.worker(*KIND), model.batches(*KIND, FULL), model.audio_s_of("alice", 10**7)


def test_a_restart_keeps_the_prices_and_is_not_dirty(taught: CostModel) -> None:
    again = fresh()
    again.load(json.loads(json.dumps(taught.dump())))
    assert prices(again) == prices(taught) != prices(fresh())
    assert taught.dirty
    assert not again.dirty


def test_bytes_that_were_learned_hold_for_another_batch_size(taught: CostModel) -> None:
    larger = Batches(2, 16)
    grown = prior.batch_bytes("tiny", larger) / prior.batch_bytes("tiny", FULL)
    assert taught.batches(*KIND, larger) == pytest.approx(grown * taught.batches(*KIND, FULL), rel=0.05)


def test_what_was_learned_beside_another_table_is_dropped_but_for_the_uploads(
    taught: CostModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = taught.dump()
    monkeypatch.setitem(table.MODELS["tiny"], "window_s", 0.8)
    again = fresh()
    again.load(saved)
    assert prices(again)[:3] == prices(fresh())[:3]
    assert again.audio_s_of("alice", 10**7) == pytest.approx(100.0)


def test_another_version_is_ignored(taught: CostModel) -> None:
    again = fresh()
    again.load(taught.dump() | {"version": VERSION + 1})
    assert prices(again) == prices(fresh())


def test_a_broken_entry_does_not_cost_the_others(taught: CostModel) -> None:
    saved, again = taught.dump(), fresh()
    saved["bytes"] = [None, [[], {}], [["a", "b", 5], {}], [["a"] * 3, {}], *saved["bytes"]]
    saved["workers"] = "nothing"
    again.load(saved)
    assert again.batches(*KIND, FULL) == taught.batches(*KIND, FULL)


garbage = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(garbage | st.dictionaries(st.sampled_from(["bytes", "seconds", "workers", "uploads"]), garbage), st.data())
def test_loading_garbage_never_raises_and_leaves_prices_sound(broken: Any, data: st.DataObject) -> None:
    model = CostModel(lambda: 0.0)
    model.load(broken)
    model.observe_job(TINY, actual_seconds=3.0)
    model.observe_batches(*KIND, actual_bytes=MB, used=FULL, billed=FULL)
    model.observe_upload("alice", 1_000_000, 10.0)
    saved = model.dump()
    model.load(saved | (broken if isinstance(broken, dict) else {}))
    place: Any = saved
    while isinstance(place, dict | list) and place:
        spot = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if data.draw(st.booleans()):
            place[spot] = broken
            break
        place = place[spot]
    again = CostModel(lambda: 0.0)
    again.load(saved)
    check(again.job(TINY), again.worker("tiny", "int8", "cpu"))
    assert 0 < again.audio_s_of("alice", 1000) < math.inf
    again.observe_job(TINY, actual_seconds=3.0)
    again.observe_batches(*KIND, actual_bytes=MB, used=FULL, billed=FULL)
    again.observe_upload("alice", 1000, 1.0)
    check(again.job(TINY), again.worker("tiny", "int8", "cpu"))
