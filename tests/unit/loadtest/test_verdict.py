"""Right or wrong answers."""

from __future__ import annotations

import pytest

from loadtest.records import Reply
from loadtest.verdict import Judge, word_error_rate
from tests.unit.loadtest.build import recording

SAMPLE = recording("a.flac", seconds=4.0, expected="delta kilo seven three")


def said(text: str, audio_s: float | None = None) -> Reply:
    return Reply("ok", status=200, text=text, audio_s=audio_s)


@pytest.mark.parametrize(
    ("expected", "heard", "rate"),
    [
        ("a b c d", "a b c d", 0.0),
        ("a b c d", "A, b; C d.", 0.0),
        ("a b c d", "a b x d", 0.25),
        ("a b c d", "a c d", 0.25),
        ("a b c d", "a b c d e", 0.25),
        ("a b c d", "", 1.0),
        ("a b", "x y z", 1.5),
        ("", "", 0.0),
        ("fünf", "FÜNF", 0.0),
        ("a b c", "c a b", 2 / 3),
    ],
)
def test_word_error_rate_counts_edits_per_expected_word(expected: str, heard: str, rate: float) -> None:
    assert word_error_rate(expected, heard) == pytest.approx(rate)


def test_the_demo_model_may_be_wrong_in_a_quarter_of_the_words() -> None:
    assert Judge("demo").judge(SAMPLE, said("delta kilo seven tree")).kind == "ok"


def test_the_demo_model_with_the_words_of_another_file_is_wrong() -> None:
    reply = Judge("demo").judge(SAMPLE, said("monday red north help"))
    assert (reply.kind, reply.reason) == ("wrong", "other_words")
    assert "monday" in reply.detail


def test_another_model_is_not_held_against_what_is_said_but_against_its_first_answer() -> None:
    judge = Judge("tiny")
    assert [judge.judge(SAMPLE, said(text)).kind for text in ("Delta 73", "Delta 73", "Delta 74")] == ["ok", "ok", "wrong"]


def test_answers_for_different_own_files_are_not_compared_with_each_other() -> None:
    judge = Judge("demo")
    assert judge.judge(recording("a.wav"), said("one")).kind == "ok"
    assert judge.judge(recording("b.wav"), said("two")).kind == "ok"
    assert judge.judge(recording("a.wav"), said("two")).reason == "unequal"


def test_a_transcript_of_a_recording_of_another_length_is_wrong() -> None:
    assert Judge("tiny").judge(SAMPLE, said("x", audio_s=33.2)).reason == "other_duration"
    assert Judge("tiny").judge(SAMPLE, said("x", audio_s=4.03)).kind == "ok"


def test_silence_is_an_answer_like_any_other() -> None:
    assert Judge("tiny").judge(SAMPLE, said("")).kind == "ok"


def test_refused_and_lost_requests_are_left_as_they_are() -> None:
    refused = Reply("refused", "too_many_active")
    assert Judge("demo").judge(SAMPLE, refused) is refused
