"""Transcripts in every response format, and the table of languages."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InputError
from app.formats import CUE_LINES, CUE_SECONDS, FORMATS, LINE_CHARACTERS, Segment, Transcript, Word, render, timed_words
from app.languages import LANGUAGES, language_name, parse_language


def transcript(*segments: Segment, language: str = "en", task: str = "transcribe") -> Transcript:
    return Transcript(task, language, 0.98, 12.5, "demo", segments)


def said(text: str, start: float = 0.0, end: float = 1.0, words: tuple[Word, ...] | None = None) -> Segment:
    return Segment(0, start, end, text, words=words)


def body(found: Transcript, response_format: str, *, words: bool = False) -> str:
    return render(found, response_format, words=words).body.decode("utf-8")


def spoken(text: str, seconds: float = 0.5, start: float = 0.0) -> Segment:
    """A segment whose words follow each other without a pause."""
    parts = text.split()
    words = tuple(Word(part, start + i * seconds, start + (i + 1) * seconds, 0.9) for i, part in enumerate(parts))
    return said(text, start, start + len(parts) * seconds, words)


TIMED = transcript(
    Segment(
        0, 0.5, 1.5, " Red green", (1, 2), 0.0, -0.25, 1.1, 0.01, (Word("Red", 0.5, 0.9, 0.8), Word("green", 1.0, 1.5, 0.9))
    ),
    Segment(1, 2.0, 2.6, " blue.", (3,), 0.0, -0.5, 0.9, 0.02, (Word("blue.", 2.0, 2.6, 0.7),)),
)


def test_the_text_is_joined_and_stripped() -> None:
    assert TIMED.text == "Red green blue."
    assert transcript(said("one "), said("  "), said("two")).text == "one two"
    assert transcript(said("你好"), said("世界"), language="zh").text == "你好世界"
    assert transcript(said("hello"), said("world"), language="zh", task="translate").text == "hello world"


def test_a_transcript_survives_json() -> None:
    assert Transcript.from_dict(json.loads(json.dumps(TIMED.to_dict()))) == TIMED
    assert Transcript.from_dict(transcript(said("x")).to_dict()) == transcript(said("x"))


def test_a_result_of_another_version_opens() -> None:
    data = TIMED.to_dict() | {"of_tomorrow": 1}
    data["segments"][0]["of_tomorrow"] = 2
    data["segments"][0]["words"][0]["of_tomorrow"] = 3
    assert Transcript.from_dict(data) == TIMED


def test_an_unknown_format_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(InputError) as caught:
        render(TIMED, "docx", words=False)
    assert caught.value.param == "response_format"
    assert all(name in caught.value.hint for name in FORMATS)


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("json", "application/json"),
        ("verbose_json", "application/json"),
        ("text", "text/plain"),
        ("srt", "application/x-subrip"),
        ("vtt", "text/vtt"),
        ("tsv", "text/tab-separated-values"),
    ],
)
def test_every_format_has_its_media_type_and_takes_an_empty_transcript(name: str, media_type: str) -> None:
    assert name in FORMATS
    assert render(TIMED, name, words=True).media_type.split(";")[0] == media_type
    assert isinstance(render(transcript(), name, words=True).body, bytes)


def test_json_is_short_and_starts_with_the_text() -> None:
    answer = json.loads(body(TIMED, "json"))
    assert answer == {"text": "Red green blue.", "language": "en", "language_probability": 0.98, "duration": 12.5}
    assert next(iter(answer)) == "text"


def test_verbose_json_has_the_fields_of_openai() -> None:
    answer = json.loads(body(TIMED, "verbose_json"))
    assert (answer["task"], answer["language"], answer["duration"]) == ("transcribe", "english", 12.5)
    assert answer["usage"] == {"type": "duration", "seconds": 12.5}
    assert answer["segments"][0] == {
        "id": 0,
        "seek": 50,
        "start": 0.5,
        "end": 1.5,
        "text": " Red green",
        "tokens": [1, 2],
        "temperature": 0.0,
        "avg_logprob": -0.25,
        "compression_ratio": 1.1,
        "no_speech_prob": 0.01,
    }
    assert "words" not in answer


def test_verbose_json_has_words_where_they_were_asked_for() -> None:
    answer = json.loads(body(TIMED, "verbose_json", words=True))
    assert answer["words"][0] == {"word": "Red", "start": 0.5, "end": 0.9, "score": 0.8}
    assert [word["word"] for word in answer["words"]] == ["Red", "green", "blue."]
    assert [len(segment["words"]) for segment in answer["segments"]] == [2, 1]
    assert json.loads(body(transcript(said("x")), "verbose_json", words=True))["words"] == []


def test_the_text_of_a_translation_is_english() -> None:
    answer = json.loads(body(transcript(said("hello"), language="de", task="translate"), "verbose_json"))
    assert (answer["task"], answer["language"], answer["language_code"]) == ("translate", "english", "de")


def test_a_number_that_json_cannot_hold_becomes_null() -> None:
    answer = json.loads(body(transcript(said("x", words=(Word("x", 0.0, 1.0, math.nan),))), "verbose_json", words=True))
    assert answer["words"][0]["score"] is None


def test_half_a_character_does_not_break_the_answer() -> None:
    for name in FORMATS:
        assert "?" in body(transcript(said("a\ud800b")), name)


def test_plain_text_is_one_line() -> None:
    assert body(TIMED, "text") == "Red green blue.\n"
    assert body(transcript(), "text") == "\n"


def test_tsv_counts_milliseconds_and_keeps_to_its_columns() -> None:
    found = transcript(said(" a\tb\nc ", 1.2345, 59.9996))
    assert body(found, "tsv") == "start\tend\ttext\n1234\t60000\ta b c\n"


@pytest.mark.parametrize(
    ("seconds", "stamp"),
    [
        (0.0, "00:00:00.000"),
        (-0.4, "00:00:00.000"),
        (59.9996, "00:01:00.000"),
        (3599.9999, "01:00:00.000"),
        (3725.25, "01:02:05.250"),
        (360000.001, "100:00:00.001"),
    ],
)
def test_timestamps_carry_over(seconds: float, stamp: str) -> None:
    found = transcript(said("x", seconds, seconds + 1))
    assert f"\n{stamp} --> " in body(found, "vtt")
    assert f"\n{stamp.replace('.', ',')} --> " in body(found, "srt")


def test_subtitles_have_a_cue_per_segment() -> None:
    assert body(TIMED, "srt") == ("1\n00:00:00,500 --> 00:00:01,500\nRed green\n\n2\n00:00:02,000 --> 00:00:02,600\nblue.\n\n")
    assert body(TIMED, "vtt") == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.500\nRed green\n\n00:00:02.000 --> 00:00:02.600\nblue.\n\n"
    )
    assert body(transcript(said("  ")), "srt") == ""
    assert body(transcript(), "vtt") == "WEBVTT\n\n"


def test_text_cannot_leave_its_cue() -> None:
    hostile = transcript(said("a\n\n9\n00:00:00.000 --> 00:00:09.000\n<script>&\x00b", 0, 1))
    assert body(hostile, "srt").count("-->") == 1
    assert body(hostile, "srt").count("\n\n") == 1
    assert body(hostile, "vtt").endswith("\na 9 00:00:00.000 --&gt; 00:00:09.000 &lt;script&gt;&amp;b\n\n")


def test_long_speech_is_split_at_words() -> None:
    text = " ".join(f"word{i:02d}" for i in range(40))
    srt = body(transcript(spoken(text, 0.25)), "srt", words=True)
    cues = parse(srt, ",")
    assert len(cues) > 2
    assert " ".join(" ".join(lines) for _, _, lines in cues) == text
    assert all(len(lines) <= CUE_LINES and all(len(line) <= LINE_CHARACTERS for line in lines) for _, _, lines in cues)
    assert cues[0][0] == 0
    assert cues[-1][1] == 10_000
    assert all(before[1] == after[0] for before, after in pairwise(cues))


def test_slow_speech_is_split_by_time() -> None:
    cues = parse(body(transcript(spoken("a b c d e f g h", 2.0)), "vtt", words=True), ".")
    assert len(cues) == 3
    assert all(end - start <= CUE_SECONDS * 1000 for start, end, _ in cues)


def test_without_word_times_a_segment_stays_whole() -> None:
    assert len(parse(body(transcript(spoken("word " * 40, 0.25)), "srt"), ",")) == 1
    assert len(parse(body(transcript(said("word " * 40)), "srt", words=True), ",")) == 1


def test_languages_without_spaces_split_too() -> None:
    cues = parse(body(transcript(spoken("字 " * 100, 0.05), language="zh"), "srt", words=True), ",")
    assert ["".join(lines) for _, _, lines in cues] == ["字" * 84, "字" * 16]


def test_words_without_times_share_the_gap_between_their_neighbours() -> None:
    words = (Word("a"), Word("b", 1.0, 2.0, 0.5), Word("c"), Word("d", None, 9.0), Word("e", 4.0, 5.0, 0.5), Word("f"))
    times = [(word.start, word.end) for word in timed_words(said("a b c d e f", 0.0, 6.0, words))]
    assert times == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 5.0), (5.0, 6.0)]
    assert [word.score for word in timed_words(said("", 0, 6, words))] == [None, 0.5, None, None, 0.5, None]
    assert timed_words(said("x", 1.0, 3.0, (Word("x"), Word("y")))) == [Word("x", 1.0, 2.0), Word("y", 2.0, 3.0)]
    assert timed_words(said("x")) == []


# -- any text, any times

STAMP = re.compile(r"(\d{2,}):(\d\d):(\d\d)([.,])(\d{3}) --> (\d{2,}):(\d\d):(\d\d)([.,])(\d{3})")


def parse(subtitles: str, point: str) -> list[tuple[int, int, list[str]]]:
    """The cues of an srt or vtt file: start and end in milliseconds, and the lines. Fails on anything odd."""
    blocks = subtitles.split("\n\n")
    assert blocks.pop() == ""
    if point == ".":
        assert blocks.pop(0) == "WEBVTT"
    cues = []
    for number, block in enumerate(blocks, start=1):
        lines = block.split("\n")
        if point == ",":
            assert lines.pop(0) == str(number)
        match = STAMP.fullmatch(lines.pop(0))
        assert match
        assert match[4] == match[9] == point
        hours, minutes, seconds, _, rest = match.groups()[:5]
        start = ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(rest)
        hours, minutes, seconds, _, rest = match.groups()[5:]
        end = ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(rest)
        assert lines
        assert all(line and "-->" not in line and line.splitlines() == [line] for line in lines)
        cues.append((start, end, lines))
    return cues


times = st.floats(min_value=-10, max_value=1e6) | st.sampled_from([math.nan, math.inf, 59.9996])
texts = st.text(max_size=40) | st.sampled_from(
    ["-->", "--->", "a\n\nb", "\r", "\u2028x\x85y", "<i>&amp;", "\x00", "1", "WEBVTT"]
)
any_words = st.builds(Word, texts, st.none() | times, st.none() | times, st.none() | times)
any_segments = st.builds(
    Segment,
    st.integers(0, 9),
    times,
    times,
    texts,
    words=st.none() | st.lists(any_words, max_size=12).map(tuple),
)


@given(st.lists(any_segments, max_size=6), st.booleans(), st.sampled_from(["en", "zh"]))
def test_any_transcript_gives_subtitles_that_parse(segments: list[Segment], words: bool, language: str) -> None:
    found = transcript(*segments, language=language)
    srt, vtt = (parse(body(found, name, words=words), point) for name, point in (("srt", ","), ("vtt", ".")))
    assert [cue[:2] for cue in srt] == [cue[:2] for cue in vtt]
    assert all(start < end for start, end, _ in srt)
    assert [start for start, _, _ in srt] == sorted(start for start, _, _ in srt)
    if not words:
        visible = [re.sub(r"[\x00-\x1f\x7f-\x9f]", "", segment.text) for segment in segments]
        assert len(srt) == sum(bool(text.strip()) for text in visible)


@given(st.lists(any_segments, max_size=6))
def test_any_transcript_gives_json_that_parses(segments: list[Segment]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    answer = json.loads(render(transcript(*segments), "verbose_json", words=True).body, parse_constant=refuse)
    assert len(answer["segments"]) == len(segments)
    assert all(isinstance(word[name], float) for word in answer["words"] for name in ("start", "end"))


# -- languages


def test_there_are_a_hundred_languages() -> None:
    assert len(LANGUAGES) == 100
    assert len(set(LANGUAGES.values())) == 100
    assert (LANGUAGES["en"], LANGUAGES["yue"], LANGUAGES["ht"]) == ("english", "cantonese", "haitian creole")
    assert language_name("de") == "german"
    assert language_name("xx") == "xx"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("de", "de"),
        ("DE", "de"),
        ("German", "de"),
        (" haitian  creole ", "ht"),
        ("en-US", "en"),
        ("pt_BR", "pt"),
        ("Flemish", "nl"),
        ("haw", "haw"),
    ],
)
def test_a_language_is_known_by_code_and_by_name(value: str, code: str) -> None:
    assert parse_language(value) == code


@pytest.mark.parametrize("value", ["", "xx", "klingon", "english please", "en\x00", "-", "de" * 9999])
def test_an_unknown_language_is_refused_with_some_that_are_known(value: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_language(value)
    assert caught.value.param == "language"
    assert "en, zh, de" in caught.value.hint
    assert len(caught.value.message + caught.value.hint) < 400
