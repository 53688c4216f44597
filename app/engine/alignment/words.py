"""From times of characters to words and sentences, as WhisperX puts them together. Pure.

A sentence is ``{"text", "start", "end", "words"}``, a word ``{"word", "start", "end", "score"}``; times are seconds. A word
that nothing is known of has neither times nor score, one whose times were taken from a neighbour has no score.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Timed:
    """When a character is heard, in seconds, and how probably."""

    start: float
    end: float
    score: float


def labels_of(text: str, known: Container[str], *, spaced: bool) -> dict[int, str]:
    """The characters of ``text`` that can be heard: their places, and what the aligner calls them.

    ``|`` is a space. Spaces at the edges are not heard, nor those between words if the aligner has no label for them. What
    else it has no label for (digits, signs, another script) is kept: it may be anything.
    """
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    found = {}
    for place in range(first, last):
        label = text[place].lower()
        label = label.replace(" ", "|") if spaced else label
        if label in known or label not in (" ", "|"):
            found[place] = label
    return found


def sentences(text: str, spans: Iterable[tuple[int, int]], times: Mapping[int, Timed], *, spaced: bool) -> list[dict[str, Any]]:
    """The sentences of ``text`` by time, each with its words. Those with the very same times are one.

    ``spans``: first character of each sentence and the one after its last. ``times``: by the character's place in the text.
    ``spaced``: whether a word ends at a space; else every character is one.
    """
    number = _word_numbers(text, spaced)
    found = []
    for begin, stop in spans:
        places = range(begin, min(stop + 1, len(text)))  # with the character that follows, a space as a rule
        words = [_word(text, list(group), times) for _, group in groupby(places, key=number.__getitem__)]
        heard = [place for place in places if place in times]
        found.append(
            {
                "text": text[begin:stop],
                "start": min((times[place].start for place in heard), default=math.nan),
                "end": max((times[place].end for place in heard if text[place] != " "), default=math.nan),
                "words": _interpolated([word for word in words if word["word"]]),
            }
        )
    return _merged(found, " " if spaced else "")


def _word_numbers(text: str, spaced: bool) -> list[int]:
    """Which word each character belongs to; a space belongs to the word behind it."""
    if not spaced:
        return list(range(len(text)))
    numbers, number = [], 0
    for place in range(len(text)):
        numbers.append(number)
        number += text[place + 1 : place + 2] == " "
    return numbers


def _word(text: str, places: Sequence[int], times: Mapping[int, Timed]) -> dict[str, Any]:
    word: dict[str, Any] = {"word": "".join(text[place] for place in places).strip()}
    heard = [times[place] for place in places if place in times and text[place] != " "]
    if heard:
        word["start"] = min(one.start for one in heard)
        word["end"] = max(one.end for one in heard)
        word["score"] = round(sum(one.score for one in heard) / len(heard), 3)
    return word


def _interpolated(words: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Words without times take those of the nearest word that has some."""
    for edge in ("start", "end"):
        values = _nearest([word.get(edge, math.nan) for word in words])
        for word, value in zip(words, values, strict=True):
            if not math.isnan(value):
                word[edge] = value
    return words


def _nearest(values: Sequence[float]) -> list[float]:
    """Each NaN replaced by the nearest number, by the one before it where two are equally near."""
    known = [place for place, value in enumerate(values) if not math.isnan(value)]
    if not known:
        return list(values)
    return [values[min(known, key=lambda other: (abs(other - place), other))] for place in range(len(values))]


def _merged(found: list[dict[str, Any]], separator: str) -> list[dict[str, Any]]:
    starts, ends = (_nearest([one[edge] for one in found]) for edge in ("start", "end"))
    groups: dict[tuple[float, float], list[dict[str, Any]]] = {}
    for key, one in zip(zip(starts, ends, strict=True), found, strict=True):
        groups.setdefault(key, []).append(one)
    return [
        {
            "text": separator.join(one["text"] for one in groups[start, end]),
            "start": start,
            "end": end,
            "words": [word for one in groups[start, end] for word in one["words"]],
        }
        for start, end in sorted(groups)
    ]
