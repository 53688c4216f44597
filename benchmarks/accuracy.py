"""WER, language and word-start error of the demo model, through the whole service.

    python -m benchmarks.accuracy --url http://127.0.0.1:8000 --api-key KEY --count 200 --seed 2026

Speaks fresh utterances (the seed is not one of the training), posts each to ``POST /transcribe`` with word timestamps, and
compares words and times with what was spoken. Half of the utterances come from voices that training never heard.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import jiwer
import numpy as np

from demo.synth import RATE, Utterance, draw


@dataclass
class Score:
    """What was said and heard; word-start errors in seconds, for words that were heard in their place."""

    said: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    languages_right: int = 0
    start_errors: list[float] = field(default_factory=list)

    @property
    def wer(self) -> float:
        """Word error rate over all utterances."""
        return float(jiwer.wer(self.said, self.heard))

    @property
    def median_start_error_s(self) -> float:
        """Median of the absolute errors of word starts, seconds."""
        return statistics.median(self.start_errors)

    def add(self, text: str, language: str, words: list[tuple[str, float, float]], answer: dict[str, Any]) -> None:
        """Compare one answer (verbose_json) with the truth."""
        self.said.append(text)
        self.heard.append(answer["text"].lower().strip())
        self.languages_right += answer["language_code"] == language
        heard = answer.get("words", [])
        if [word["word"].lower() for word in heard] == [word for word, _, _ in words]:
            self.start_errors += [abs(got["start"] - start) for got, (_, start, _) in zip(heard, words, strict=True)]

    def summary(self) -> dict[str, Any]:
        """The figures."""
        errors = sorted(self.start_errors)
        return {
            "utterances": len(self.said),
            "words": sum(len(text.split()) for text in self.said),
            "wer": round(self.wer, 4),
            "languages_right": round(self.languages_right / len(self.said), 4),
            "word_start_error_ms": {
                "median": round(1000 * self.median_start_error_s, 1),
                "p95": round(1000 * errors[int(0.95 * len(errors))], 1),
                "words": len(errors),
            },
        }


def utterances(count: int, seed: int) -> Iterator[Utterance]:
    """Fresh utterances, every second one from a held-out voice."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        yield draw(rng, held_out=number % 2 == 1)


def wav_bytes(utterance: Utterance) -> bytes:
    """16-bit mono WAV."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(utterance.samples, -1, 1) * 32767).astype("<i2").tobytes())
    return target.getvalue()


def ask(client: httpx.Client, audio: bytes, name: str = "a.wav", **options: str) -> dict[str, Any]:
    """Post one recording; the verbose answer."""
    params = {"model_size": "demo", "word_timestamps": "true", "response_format": "verbose_json"} | options
    answer = client.post("/transcribe", params=params, files={"file": (name, audio)})
    answer.raise_for_status()
    data: dict[str, Any] = answer.json()
    return data


def measure(client: httpx.Client, spoken: list[Utterance], at_once: int = 2) -> Score:
    """Post all of them, a few at a time."""
    score = Score()
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(lambda one: ask(client, wav_bytes(one)), spoken))
    for one, answer in zip(spoken, answers, strict=True):
        score.add(one.text, one.language, one.words, answer)
    return score


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()
    with httpx.Client(base_url=args.url, headers={"X-API-Key": args.api_key}, timeout=300, trust_env=False) as client:
        print(json.dumps(measure(client, list(utterances(args.count, args.seed))).summary(), indent=2))


if __name__ == "__main__":
    main()
