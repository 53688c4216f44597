"""Two batches at once, stopped and started by events: what one has encoded is decoded by the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from app.jobs import TranscribeOptions
from tests.unit.engine.conftest import speech

pytestmark = pytest.mark.filterwarnings("ignore")
LONG_S = 120.0


class Gate:
    """A batch's way: it stops before its ``at``-th step (each window, then the decoder) until ``go`` is set."""

    def __init__(self, at: int) -> None:
        self._left, self.reached, self.go = at, threading.Event(), threading.Event()

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.reached.set()
            assert self.go.wait(LONG_S)


def in_thread(run: Callable[[], list[Any]]) -> Future[list[Any]]:
    """Its result. The thread is nobody's to wait for: a test that fails ends."""
    future: Future[list[Any]] = Future()

    def work() -> None:
        try:
            future.set_result(run())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


class Sides:
    """``recognise`` of batches in threads of their own, and how many windows, in which languages, the decoder was given.

    ``now``: seconds on their clock. It stands still, so whoever encodes has all of its present window before it.
    """

    def __init__(self, engine: SimpleNamespace, model: Any, patch: pytest.MonkeyPatch) -> None:
        self._engine, self._model = engine, model
        self.now = 0.0
        self.sharing, self.decoded = engine.sharing.Sharing(lambda: self.now), []
        self.spoken: list[list[str]] = []
        self._decode, self.breaks = model.decode, lambda options: False
        patch.setattr(model, "decode", self._spy)

    def _spy(self, heard: Any, tokenizers: Any, options: Any) -> Any:
        self.decoded.append(len(options))
        self.spoken.append([tokenizer.language_code for tokenizer in tokenizers])
        found = self._decode(heard, tokenizers, options)
        if self.breaks(options):
            raise RuntimeError("broken")
        return found

    def __call__(self, numbers: list[int], *, size: int = 4, gate: Gate | None = None, **options: Any) -> Future[list[Any]]:
        wanted = TranscribeOptions("demo", **options)
        speeches = [self._engine.batch.Speech(speech(n), wanted, wanted.language) for n in numbers]
        window = self._engine.vad.Window(0.0, 4.0)
        pieces = [self._engine.batch.Piece(one, window, lambda: None) for one in speeches]
        kept = {"give_way": gate} if gate else {}
        return in_thread(
            partial(self._engine.batch.recognise, self._model, pieces, sharing=self.sharing, size=lambda: size, **kept)
        )

    @contextmanager
    def encoding(self, numbers: list[int], at: int, **options: Any) -> Iterator[Future[list[Any]]]:
        """A batch that stands before its ``at``-th step."""
        gate = Gate(at)
        batch = self(numbers, gate=gate, **options)
        assert gate.reached.wait(LONG_S)
        try:
            yield batch
        finally:
            gate.go.set()

    def alone(self, number: int, **options: Any) -> Any:
        return self([number], **options).result(LONG_S)[0]


@pytest.fixture
def sides(engine: SimpleNamespace, either_model: Any, monkeypatch: pytest.MonkeyPatch) -> Sides:
    return Sides(engine, either_model, monkeypatch)


def tokens(decoded: list[Any]) -> list[tuple[int, ...]]:
    return [one.tokens for one in decoded]


def test_windows_of_a_batch_that_still_encodes_are_decoded_with_a_smaller_one_and_say_what_they_say_alone(
    sides: Sides,
) -> None:
    alone = [sides.alone(number).tokens for number in range(5)]
    sides.decoded.clear()
    with sides.encoding([0, 1, 2], at=3) as first:
        second = tokens(sides([3, 4]).result(LONG_S))
        assert not first.done()
    assert tokens(first.result(LONG_S)) + second == alone
    assert sides.decoded == [4, 1]


def test_no_more_windows_are_taken_than_there_is_room_for(sides: Sides) -> None:
    with sides.encoding([0, 1, 2], at=3) as first:
        sides([3, 4], size=3).result(LONG_S)
        sides([3, 4], size=2).result(LONG_S)
        sides([3, 4], size=1).result(LONG_S)
    first.result(LONG_S)
    assert sides.decoded == [3, 2, 2, 2]


def test_a_batch_that_has_been_encoded_keeps_its_windows(engine: SimpleNamespace, sides: Sides) -> None:
    entered, go = threading.Event(), threading.Event()

    def slowly(options: Any) -> bool:
        if len(options) == 2:
            entered.set()
            assert go.wait(LONG_S)
        return False

    sides.breaks = slowly
    first = sides([0, 1])
    assert entered.wait(LONG_S)
    sides([2]).result(LONG_S)
    go.set()
    first.result(LONG_S)
    assert sides.decoded == [2, 1]


def test_the_last_window_stays_with_its_batch_so_both_have_something_to_decode(sides: Sides) -> None:
    with sides.encoding([0, 1], at=3) as first:  # both are encoded, and it is about to decode
        sides([2]).result(LONG_S)
    first.result(LONG_S)
    assert sides.decoded == [2, 1]


def test_where_the_decoder_fails_with_windows_of_both_each_batch_is_decoded_alone(sides: Sides) -> None:
    alone = [sides.alone(number).tokens for number in range(4)]
    sides.decoded.clear()
    sides.breaks = lambda options: len(options) > 2
    with sides.encoding([0, 1], at=2) as first:
        second = sides([2, 3])
        assert tokens(second.result(LONG_S)) == alone[2:]
    assert tokens(first.result(LONG_S)) == alone[:2]
    assert sides.decoded == [3, 2, 1, 1]


def marked(options: Any) -> bool:
    """Whether there are windows of a job with ``aligned`` words, which makes no difference to the decoder."""
    return any(one.word_timestamps == "aligned" for one in options)


def test_a_batch_that_cannot_be_decoded_at_all_takes_no_other_one_with_it(sides: Sides) -> None:
    alone = [sides.alone(number).tokens for number in range(2)]
    sides.decoded.clear()
    sides.breaks = marked
    with sides.encoding([0, 1], at=2) as first, pytest.raises(RuntimeError, match="broken"):
        sides([2], word_timestamps="aligned").result(LONG_S)
    assert tokens(first.result(LONG_S)) == alone
    assert sides.decoded == [2, 1, 1, 1]


def test_a_window_that_failed_elsewhere_is_as_it_was_after_those_that_stayed_have_been_decoded(sides: Sides) -> None:
    alone = [sides.alone(number).tokens for number in range(4)]
    sides.decoded.clear()
    sides.breaks = marked
    with sides.encoding([0, 1, 2, 3], at=4) as first, pytest.raises(RuntimeError, match="broken"):
        sides([4], size=2, word_timestamps="aligned").result(LONG_S)
    assert tokens(first.result(LONG_S)) == alone
    assert sides.decoded == [2, 1, 3, 1]


def test_windows_that_are_searched_otherwise_are_not_taken(sides: Sides) -> None:
    with sides.encoding([0, 1], at=2) as first:
        for other in ({"beam_size": 3}, {"temperature": 0.4}, {"initial_prompt": "seven"}, {"hotwords": "red"}):
            sides([2], **other).result(LONG_S)
    first.result(LONG_S)
    assert sides.decoded == [1, 1, 1, 1, 2]


def test_languages_and_tasks_are_taken_together_and_say_what_they_say_alone(sides: Sides) -> None:
    kinds: list[dict[str, Any]] = [{"language": "de"}, {"language": "en", "task": "translate"}]
    alone = [sides.alone(number, **kinds[number != 0]).tokens for number in range(3)]
    sides.decoded.clear()
    with sides.encoding([1, 2], at=2, **kinds[1]) as first:
        second = sides([0], **kinds[0]).result(LONG_S)
    assert tokens(second) + tokens(first.result(LONG_S)) == alone
    assert sides.spoken[-2:] == [["de", "en"], ["en"]]


def test_a_batch_takes_windows_of_all_that_encode(sides: Sides) -> None:
    alone = [sides.alone(number).tokens for number in range(5)]
    sides.decoded.clear()
    with sides.encoding([0, 1], at=2) as first, sides.encoding([2, 3], at=2) as second:
        third = tokens(sides([4]).result(LONG_S))
    assert tokens(first.result(LONG_S)) + tokens(second.result(LONG_S)) + third == alone
    assert sides.decoded == [3, 1, 1]


def test_nothing_is_taken_of_a_batch_that_is_about_to_be_decoded_itself(sides: Sides) -> None:
    with sides.encoding([0, 1, 2], at=3) as first:
        sides.now = 10.0
        sides([3, 4]).result(LONG_S)
    first.result(LONG_S)
    assert sides.decoded == [2, 3]


@pytest.mark.parametrize(
    ("own", "theirs", "ahead", "most", "count"),
    [
        (2, 3, 2.5, 2, 2),
        (2, 3, 0.0, 2, 0),
        (2, 2, 0.1, 1, 0),
        (1, 4, 0.0, 3, 1),
        (1, 4, 2.5, 3, 3),
        (2, 4, 5.0, 2, 2),
        (3, 3, 2.5, 1, 1),
        (3, 1, 2.5, 0, 0),
        (4, 4, 9.0, -1, 0),
    ],
)
def test_as_many_windows_are_taken_as_let_the_later_batch_end_earliest(
    engine: SimpleNamespace, own: int, theirs: int, ahead: float, most: int, count: int
) -> None:
    assert engine.sharing._worth(own, theirs, ahead, most) == count


@pytest.mark.parametrize(
    ("now", "ahead"), [(14.0, 2.0), (15.0, 1.5), (16.0, 1.0), (90.0, 1.0)]
)  # two windows of two seconds each, of four
def test_what_is_left_of_the_window_at_work_goes_by_the_time_that_those_before_it_took(
    engine: SimpleNamespace, now: float, ahead: float
) -> None:
    assert engine.sharing.Batch(engine.sharing.Sharing(), 4, since=10.0, encoded=2, at=14.0).ahead(now) == ahead


def test_what_a_broken_batch_had_offered_is_not_taken_any_more(sides: Sides) -> None:
    class Broken(Gate):
        def __call__(self) -> None:
            super().__call__()
            if self.reached.is_set():
                raise RuntimeError("no features")

    gate = Broken(2)
    gate.go.set()
    with pytest.raises(RuntimeError, match="no features"):
        sides([0, 1], gate=gate).result(LONG_S)
    assert gate.reached.is_set()
    sides([2]).result(LONG_S)
    assert sides.decoded == [1]


def test_fast_words_of_a_window_that_was_decoded_elsewhere_are_those_that_it_has_alone(sides: Sides) -> None:
    alone = [sides.alone(number, word_timestamps="fast").words for number in range(2)]
    sides.decoded.clear()
    with sides.encoding([0, 1], at=2, word_timestamps="fast") as first:
        (other,) = sides([2]).result(LONG_S)
    assert other.words is None
    for one, words in zip(first.result(LONG_S), alone, strict=True):
        assert [word.word for word in one.words] == [word.word for word in words]
        assert [word.start for word in one.words] == pytest.approx([word.start for word in words], abs=0.021)
    assert sides.decoded == [2, 1]


@pytest.mark.parametrize(
    ("device", "brought", "long", "shares"),
    [
        ("cpu", (3, 2), False, False),
        ("cpu", (9,), True, True),
        ("cpu", (3, 1), False, None),  # a clip of one window does not wait for those of others
        ("cuda:0", (9,), True, None),
        ("express", (3,), False, None),
    ],
)
def test_recordings_of_several_windows_share_with_their_like_on_a_cpu_and_not_in_the_express(
    engine: SimpleNamespace,
    pipeline: Any,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    brought: tuple[int, ...],
    long: bool,
    shares: bool | None,
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(engine.pipeline, "recognise", lambda model, pieces, **kept: given.update(kept) or [])
    monkeypatch.setattr(pipeline, "device", "cpu" if device == "express" else device)
    monkeypatch.setattr(threading.current_thread(), "name", device)
    jobs = [SimpleNamespace(brought=count, long=long, size=3 - n) for n, count in enumerate(brought)]
    pipeline._recognise_batch([SimpleNamespace(window=None, job=job) for job in jobs])
    assert given["sharing"] is (None if shares is None else pipeline._sharing[shares])
    assert given["size"]() == 4 - len(brought)
    with pipeline._runners.lease(lambda: False):  # of a job that may bring more
        assert given["size"]() == 0
