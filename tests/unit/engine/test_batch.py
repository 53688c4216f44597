"""Languages of a batch: of clips all in one step, of what others wait for at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from app.jobs import TranscribeOptions
from tests.unit.engine.conftest import speech

pytestmark = pytest.mark.filterwarnings("ignore")


class Batches:
    """``recognise`` of clips, and which windows the model was asked the languages of."""

    def __init__(self, engine: SimpleNamespace, model: Any, patch: pytest.MonkeyPatch) -> None:
        self._engine, self._model = engine, model
        self.asked: list[list[int]] = []
        self.steps: list[str] = []
        self._languages_of = model.languages_of
        patch.setattr(model, "languages_of", self._spy)

    def _spy(self, heard: Any, windows: list[int]) -> Any:
        self.asked.append(list(windows))
        return self._languages_of(heard, windows)

    def __call__(self, *languages: str | None, waited_for: tuple[int, ...] = ()) -> list[Any]:
        """A batch of clips in given languages, or not (None). Their speeches, and in ``steps`` what happened."""
        options = TranscribeOptions("demo")
        speeches = [self._engine.batch.Speech(speech(n), options, language) for n, language in enumerate(languages)]
        window = self._engine.vad.Window(0.0, 4.0)
        told = [self._telling(number) if number in waited_for else None for number in range(len(languages))]
        pieces = [self._engine.batch.Piece(one, window, say) for one, say in zip(speeches, told, strict=True)]
        self._engine.batch.recognise(self._model, pieces, give_way=lambda: self.steps.append("step"))
        return speeches

    def _telling(self, number: int) -> Any:
        return lambda: self.steps.append(f"told {number}")


@pytest.fixture
def batches(engine: SimpleNamespace, either_model: Any, monkeypatch: pytest.MonkeyPatch) -> Batches:
    return Batches(engine, either_model, monkeypatch)


def found(speeches: list[Any]) -> list[Any]:
    return [(one.language, pytest.approx(one.probability, abs=1e-3)) for one in speeches]


def test_languages_of_clips_are_found_out_in_one_step_and_are_those_of_each_alone(batches: Batches) -> None:
    together = batches(None, None, None)
    assert batches.asked == [[0, 1, 2]]
    first = batches(None)
    assert found(together)[0] == (first[0].language, first[0].probability)
    assert [one.language for one in together] == [one.language for one in batches(None, None, None, waited_for=(0, 1, 2))]
    assert all(0 < one.probability <= 1 for one in together)


def test_languages_that_are_given_stay_and_nobody_asks_for_them(batches: Batches) -> None:
    speeches = batches("de", None, "fr", None, "es")
    assert batches.asked == [[1, 3]]
    alone = batches(None, None, None, None)
    assert [speeches[n].language for n in (0, 2, 4)] == ["de", "fr", "es"]
    assert [speeches[n].probability for n in (0, 2, 4)] == [None, None, None]
    assert found([speeches[1], speeches[3]]) == [(alone[n].language, alone[n].probability) for n in (1, 3)]


def test_no_language_is_looked_for_where_all_are_given(batches: Batches) -> None:
    batches("en", "en")
    assert batches.asked == []


def test_a_language_that_other_windows_wait_for_is_told_before_the_next_window_is_encoded(batches: Batches) -> None:
    batches(None, None, None, waited_for=(1,))
    assert batches.asked == [[0, 1], [2]]
    assert batches.steps == ["step", "step", "told 1", "step", "step"]
