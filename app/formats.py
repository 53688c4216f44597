"""The result of a transcription as data, and as json, verbose_json, text, srt, vtt and tsv. No I/O.

All times are seconds from the start of the recording.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from app.errors import InputError
from app.languages import WITHOUT_SPACES, language_name

LINE_CHARACTERS = 42
CUE_LINES = 2
CUE_SECONDS = 7.0


@dataclass(frozen=True)
class Word:
    """One spoken word. ``start`` and ``end`` are None where alignment found no place; ``score`` is 0 to 1."""

    word: str
    start: float | None = None
    end: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Segment:
    """One stretch of speech. ``words`` is None where no word times were asked for."""

    id: int
    start: float
    end: float
    text: str
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0
    words: tuple[Word, ...] | None = None


@dataclass(frozen=True)
class Transcript:
    """What the engine found. ``language`` is the code of what is spoken; ``language_probability`` is None where it was given.

    ``duration`` is the length of the recording in seconds, silence included.
    """

    task: str
    language: str
    language_probability: float | None
    duration: float
    model: str
    segments: tuple[Segment, ...] = ()

    @property
    def separator(self) -> str:
        """What stands between two words of the text: nothing in Chinese, a space in English."""
        return "" if self.task != "translate" and self.language in WITHOUT_SPACES else " "

    @property
    def text(self) -> str:
        """The whole text; empty where nobody speaks."""
        return self.separator.join(filter(None, (segment.text.strip() for segment in self.segments)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Transcript:
        """The inverse of :meth:`to_dict`, also after JSON; unknown names are ignored, so that old results open."""
        segments = tuple(_segment(segment) for segment in data.get("segments", ()))
        return cls(**(_known(cls, data) | {"segments": segments}))


def _segment(data: dict[str, Any]) -> Segment:
    words = None if data.get("words") is None else tuple(Word(**_known(Word, word)) for word in data["words"])
    return Segment(**(_known(Segment, data) | {"tokens": tuple(data.get("tokens", ())), "words": words}))


def _known(cls: type[Any], data: dict[str, Any]) -> dict[str, Any]:
    return {name: data[name] for name in cls.__dataclass_fields__ if name in data}


@dataclass(frozen=True)
class Rendered:
    """The body of an answer, UTF-8, and its Content-Type."""

    body: bytes
    media_type: str


def render(transcript: Transcript, response_format: str, *, words: bool) -> Rendered:
    """``transcript`` as the caller asked for it.

    ``words`` adds the word times to verbose_json, and lets srt and vtt split long cues at words.

    Raises:
        InputError: ``response_format`` is none of :data:`FORMATS`.
    """
    if response_format not in _RENDERERS:
        allowed = ", ".join(FORMATS)
        raise InputError("This response format is not known.", hint=f"Use one of: {allowed}.", param="response_format")
    writer, media_type = _RENDERERS[response_format]
    # Lone surrogates, which a decoder may leave behind, have no UTF-8 form.
    return Rendered(writer(transcript, words).encode("utf-8", "replace"), media_type)


def timed_words(segment: Segment) -> list[Word]:
    """The words of ``segment``, each with a start and an end.

    Alignment leaves words that it cannot place (digits, for instance) without times; these share the gap between
    their neighbours evenly, and keep the score None.
    """
    done: list[Word] = []
    waiting: list[Word] = []
    begin, finish = _span(segment.start, segment.end)
    for word in segment.words or ():
        if word.start is None or word.end is None or not math.isfinite(word.start + word.end):
            waiting.append(word)
            continue
        start, end = _span(word.start, word.end)
        done += _spread(waiting, done[-1].end if done else min(begin, start), start)
        done.append(Word(word.word, start, end, word.score))
        waiting = []
    return done + _spread(waiting, done[-1].end if done else begin, finish)


def _spread(words: list[Word], start: float | None, end: float) -> list[Word]:
    start = start or 0.0
    step = max(0.0, end - start) / max(1, len(words))
    return [Word(word.word, start + i * step, start + (i + 1) * step) for i, word in enumerate(words)]


def _span(start: float, end: float) -> tuple[float, float]:
    start = max(0.0, start) if math.isfinite(start) else 0.0
    return start, max(start, end) if math.isfinite(end) else start


# -- JSON


def _json(transcript: Transcript, words: bool) -> str:
    names = ("text", "language", "language_probability", "duration")
    return _dumps({name: getattr(transcript, name) for name in names})


def _verbose_json(transcript: Transcript, words: bool) -> str:
    # OpenAI names the language of the text here, which is English after a translation; the code is what is spoken.
    language = "en" if transcript.task == "translate" else transcript.language
    segments = [_segment_json(segment, words) for segment in transcript.segments]
    body = {
        "task": transcript.task,
        "language": language_name(language),
        "language_code": transcript.language,
        "language_probability": transcript.language_probability,
        "duration": transcript.duration,
        "text": transcript.text,
        "segments": segments,
    }
    if words:
        body["words"] = [word for segment in segments for word in segment["words"]]
    return _dumps(body | {"usage": {"type": "duration", "seconds": transcript.duration}})


def _segment_json(segment: Segment, words: bool) -> dict[str, Any]:
    values = {name: value for name, value in vars(segment).items() if name not in {"id", "words"}}
    if words:
        values["words"] = [vars(word) | {"word": word.word.strip()} for word in timed_words(segment)]
    # seek counts feature frames of 10 ms.
    return {"id": segment.id, "seek": int(_span(segment.start, segment.end)[0] * 100)} | values


def _dumps(value: dict[str, Any]) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:  # NaN has no JSON form; alignment scores may hold it.
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- text and tables


def _text(transcript: Transcript, words: bool) -> str:
    return f"{transcript.text}\n"


def _tsv(transcript: Transcript, words: bool) -> str:
    rows = (f"{round(start * 1000)}\t{round(end * 1000)}\t{line}\n" for start, end, (line,) in _cues(transcript, False))
    return "start\tend\ttext\n" + "".join(rows)


# -- subtitles

Cue = tuple[float, float, list[str]]


def _srt(transcript: Transcript, words: bool) -> str:
    cues = _stamped(_cues(transcript, words), ",")
    # Srt has no escapes: an arrow in the text becomes a real one.
    return "".join(f"{i}\n{times}\n{text.replace('-->', '→')}\n\n" for i, (times, text) in enumerate(cues, start=1))


def _vtt(transcript: Transcript, words: bool) -> str:
    cues = _stamped(_cues(transcript, words), ".")
    return "WEBVTT\n\n" + "".join(f"{times}\n{escape(text, quote=False)}\n\n" for times, text in cues)


def _stamped(cues: Iterable[Cue], point: str) -> Iterator[tuple[str, str]]:
    for start, end, lines in cues:
        first = round(start * 1000)
        last = max(round(end * 1000), first + 1)  # A cue must end after it starts.
        yield f"{_stamp(first, point)} --> {_stamp(last, point)}", "\n".join(lines)


def _stamp(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{rest:03d}"


def _cues(transcript: Transcript, words: bool) -> list[Cue]:
    """Start, end and the lines of every cue that has text, by time."""
    cues: list[Cue] = []
    for segment in transcript.segments:
        spoken = timed_words(segment) if words else []
        spoken = [Word(text, word.start, word.end) for word in spoken if (text := _plain(word.word))]
        if spoken:
            cues += _split(spoken, transcript.separator)
        elif text := _plain(segment.text):
            cues.append((*_span(segment.start, segment.end), [text]))
    return sorted(cues, key=lambda cue: cue[0])


def _split(words: list[Word], separator: str) -> Iterator[Cue]:
    """Cues that end before the word that would make them too long to read: in lines, or in seconds."""
    cue = _single(words[0])
    for word in words[1:]:
        longer = _longer(cue, word, separator)
        if longer is None:
            yield cue
        cue = longer or _single(word)
    yield cue


def _single(word: Word) -> Cue:
    return word.start or 0.0, word.end or 0.0, [word.word]


def _longer(cue: Cue, word: Word, separator: str) -> Cue | None:
    start, end, (*above, last) = cue
    end = max(end, word.end or 0.0)
    line = f"{last}{separator}{word.word}"
    lines = [*above, line] if len(line) <= LINE_CHARACTERS else [*above, last, word.word]
    return (start, end, lines) if len(lines) <= CUE_LINES and end - start <= CUE_SECONDS else None


def _plain(text: str) -> str:
    """``text`` on one line: runs of white space become one space, control characters go."""
    return " ".join(text.translate(_CONTROLS).split())


_CONTROLS = dict.fromkeys(code for code in (*range(0x20), *range(0x7F, 0xA0)) if not chr(code).isspace())

_RENDERERS: dict[str, tuple[Callable[[Transcript, bool], str], str]] = {
    "json": (_json, "application/json"),
    "verbose_json": (_verbose_json, "application/json"),
    "text": (_text, "text/plain; charset=utf-8"),
    "srt": (_srt, "application/x-subrip; charset=utf-8"),
    "vtt": (_vtt, "text/vtt; charset=utf-8"),
    "tsv": (_tsv, "text/tab-separated-values; charset=utf-8"),
}

FORMATS: tuple[str, ...] = tuple(_RENDERERS)
"""The names that ``response_format`` may have."""
