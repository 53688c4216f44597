"""Where sentences begin and end, without NLTK's downloaded Punkt data."""

from __future__ import annotations

from collections.abc import Iterator

from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

_ABBREVIATIONS = (
    "mr mrs ms dr prof sr jr st vs etc e.g i.e fig no vol inc ltd co u.s u.k a.m p.m approx dept est "
    "bzw ca evtl ggf usw z.b d.h nr str sra dña pág p.ej m mme"
)


class Splitter(PunktSentenceTokenizer):  # type: ignore[misc]
    """Punkt with a short list of abbreviations, in place of learned parameters.

    Splits only where white space stands: WhisperX counts the first character of a sentence that touches another twice.
    """

    def __init__(self) -> None:
        parameters = PunktParameters()
        parameters.abbrev_types = set(_ABBREVIATIONS.split())
        super().__init__(parameters)

    def span_tokenize(self, text: str, realign_boundaries: bool = True) -> Iterator[tuple[int, int]]:
        """First character of each sentence, and the one after its last."""
        spans: list[tuple[int, int]] = []
        for start, end in super().span_tokenize(text, realign_boundaries):
            begin = spans.pop()[0] if spans and spans[-1][1] == start else start
            spans.append((begin, end))
        return iter(spans)


SPLITTER = Splitter()
"""Keeps no state between calls."""
