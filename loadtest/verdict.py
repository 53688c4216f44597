"""Is a transcript the right one? Pure, but for the first answers that it remembers."""

from __future__ import annotations

import dataclasses
import re

from loadtest.records import Recording, Reply

MOST_WER = 0.25
_MOST_DURATION_ERROR_S = 0.5


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"\w+(?:'\w+)*", text.lower())


def word_error_rate(expected: str, heard: str) -> float:
    """Insertions, deletions and substitutions per expected word (Levenshtein distance over words)."""
    truth, other = words(expected), words(heard)
    row = list(range(len(other) + 1))
    for number, word in enumerate(truth, start=1):
        above, row = row, [number]
        for column, candidate in enumerate(other):
            row.append(min(row[column] + 1, above[column + 1] + 1, above[column] + (word != candidate)))
    return row[-1] / max(1, len(truth))


class Judge:
    """Compares answers: with what is said where that is known and the model is the demo, else with the first answer.

    The demo model knows only its own 67 words, so it is what the bundled samples can be held against; what a real model
    makes of them is not known beforehand.
    """

    def __init__(self, model: str | None) -> None:
        self._model = model
        self._first: dict[str, str] = {}

    def judge(self, recording: Recording, reply: Reply) -> Reply:
        """The reply, or the reply as ``wrong`` with the reason."""
        if reply.kind != "ok" or reply.text is None:
            return reply
        reason, detail = self._fault(recording, reply.text, reply.audio_s)
        return dataclasses.replace(reply, kind="wrong", reason=reason, detail=detail) if reason else reply

    def _fault(self, recording: Recording, text: str, audio_s: float | None) -> tuple[str, str]:
        known_s = recording.seconds
        if known_s is not None and audio_s is not None and abs(audio_s - known_s) > _MOST_DURATION_ERROR_S:
            return "other_duration", f"{audio_s:g} s of audio, the file has {known_s:g} s"
        if recording.expected is not None and self._model == "demo":
            rate = word_error_rate(recording.expected, text)
            heard = f"word error rate {rate:.2f}: heard {_short(text)}, said was {_short(recording.expected)}"
            return ("other_words", heard) if rate > MOST_WER else ("", "")
        first = self._first.setdefault(str(recording.path), text)
        return ("", "") if text == first else ("unequal", f"heard {_short(text)}, before it was {_short(first)}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
