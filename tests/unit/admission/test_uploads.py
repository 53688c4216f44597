"""How long an upload is, guessed from its bytes: by what its owner sent, else by what everybody sent."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.admission.cost import CostModel
from app.admission.uploads import MAX_OWNERS


@pytest.fixture
def model() -> CostModel:
    return CostModel(lambda: 0.0)


def test_without_history_an_upload_is_taken_for_common_audio(model: CostModel) -> None:
    assert model.audio_s_of("alice", 1_600_000) == 100.0
    assert model.audio_s_of("alice", None) == 60.0


def test_an_owner_is_judged_by_what_they_sent_and_a_stranger_by_everybody(model: CostModel) -> None:
    for _ in range(10):
        model.observe_upload("alice", 32_000 * 600, 600.0)
    assert model.audio_s_of("alice", 32_000 * 50) == pytest.approx(50.0)
    assert model.audio_s_of("bob", 32_000 * 50) == pytest.approx(50.0)
    for _ in range(10):
        model.observe_upload("bob", 4_000 * 10, 10.0)
    assert model.audio_s_of("bob", 4_000 * 50) == pytest.approx(50.0)
    assert model.audio_s_of("alice", 32_000 * 50) == pytest.approx(50.0)
    assert model.audio_s_of("bob", None) == pytest.approx(10.0)
    assert model.audio_s_of("alice", None) == pytest.approx(600.0)


def test_the_owners_that_are_remembered_are_bounded(model: CostModel) -> None:
    for number in range(MAX_OWNERS + 50):
        model.observe_upload(f"key-{number}", 16_000, 1.0)
        model.observe_upload("regular", 1_000_000, 1.0)
    assert len(model.dump()["uploads"]["owners"]) == MAX_OWNERS
    assert model.audio_s_of("regular", 1_000_000) == pytest.approx(1.0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(), st.integers(), st.floats())), st.text(), st.none() | st.integers())
def test_a_guessed_length_is_positive_and_finite(seen: list[tuple[str, int, float]], owner: str, size: int | None) -> None:
    model = CostModel(lambda: 0.0)
    for one, upload_bytes, audio_s in seen:
        model.observe_upload(one, upload_bytes, audio_s)
    for name in [owner, *(one for one, _, _ in seen)]:
        assert 0 < model.audio_s_of(name, size) < math.inf
