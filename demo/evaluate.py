"""Measure the demo model and its aligner on fresh utterances.

    python -m demo.evaluate --count 200 --seed 99

Windows go through the model as WhisperX sends them: padded to 30 s, int8, beam 5, without timestamps. Not in it: the
service around the model (see the service's own measurement for that). Splits: voices of the training, voices it never
heard, windows of many utterances, silence and noise.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import whisperx.alignment
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_ctranslate2_storage
from nltk.tokenize.punkt import PunktSentenceTokenizer
from whisperx.audio import N_SAMPLES, log_mel_spectrogram

from demo.model import ALIGNER_DIR, MODEL_DIR
from demo.synth import RATE, VOICES, Room, Samples, Utterance, draw, join, noise, random_words, synthesize, vocabulary


def edits(said: list[str], heard: list[str]) -> int:
    """The least number of words to replace, drop or add."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


@dataclass
class Heard:
    """What the model made of a window."""

    text: str
    language: str
    no_speech: float
    confidence: float


class Listener:
    """The model, called as WhisperX calls it."""

    def __init__(self, path: Path, threads: int) -> None:
        self.model = WhisperModel(str(path), device="cpu", compute_type="int8", cpu_threads=threads)

    def hear(self, samples: Samples, language: str | None, task: str = "transcribe", prompt: str = "") -> Heard:
        """Transcribe one window."""
        mel = log_mel_spectrogram(samples[:N_SAMPLES], 80, padding=max(0, N_SAMPLES - len(samples)))
        sound = self.model.model.encode(get_ctranslate2_storage(mel[None].numpy()))
        detected = self.model.model.detect_language(sound)[0][0][0][2:-2]
        tokenizer = Tokenizer(self.model.hf_tokenizer, True, task=task, language=language or detected)
        before = tokenizer.encode(" " + prompt) if prompt else []
        start = self.model.get_prompt(tokenizer, before, without_timestamps=True)
        done = self.model.model.generate(
            sound, [start], beam_size=5, max_length=448, return_scores=True, return_no_speech_prob=True
        )[0]
        tokens = done.sequences_ids[0]
        text = tokenizer.decode(tokens).strip()
        return Heard(text, detected, done.no_speech_prob, done.scores[0] * len(tokens) / (len(tokens) + 1))


@dataclass
class Score:
    """Errors of one split."""

    words: int = 0
    errors: int = 0
    utterances: int = 0
    perfect: int = 0
    language: int = 0
    wrong: Counter[str] = field(default_factory=Counter)

    def add(self, one: Utterance, heard: Heard, show: bool) -> None:
        """Count one utterance."""
        said, got = one.text.split(), heard.text.split()
        errors = edits(said, got)
        self.words += len(said)
        self.errors += errors
        self.utterances += 1
        self.perfect += not errors
        self.language += heard.language == one.language
        if errors:
            self.wrong[one.voice] += errors
            if show:
                print(f"  {one.voice} ({heard.language}): {one.text!r} -> {heard.text!r}")

    def line(self) -> str:
        """The result in words."""
        return (
            f"WER {100 * self.errors / self.words:5.2f} %  ({self.errors} of {self.words} words, "
            f"{self.perfect} of {self.utterances} utterances without error, language right in {self.language})"
        )


def long_window(rng: np.random.Generator, seconds: float) -> Utterance:
    """Several English utterances of one voice with pauses, at most so many seconds."""
    voice = VOICES[int(rng.integers(len([voice for voice in VOICES if voice.language == "en"])))]
    parts: list[Utterance] = []
    while True:
        one = synthesize(random_words(rng), voice, rng, room=Room(noisy=0.3, gain_db=(-10, 0)))
        whole = join([*parts, one], np.random.default_rng(len(parts)), (0.0, 1.0))
        if len(whole.samples) > seconds * RATE and parts:
            return join(parts, np.random.default_rng(1), (0.0, 0.0))
        parts.append(one)


def quiet(rng: np.random.Generator) -> Samples:
    """Silence or noise without any speech."""
    count = int(rng.uniform(0.5, 29) * RATE)
    if rng.random() < 0.3:
        return np.zeros(count, np.float32)
    kind = str(rng.choice(Room().kinds))
    return noise(kind, count, rng) * np.float32(10 ** (rng.uniform(-60, -15) / 20))


def word_starts(path: Path, utterances: list[Utterance]) -> list[float]:
    """The absolute error in seconds of every word's start as WhisperX's own alignment gives it."""
    model, about = whisperx.alignment.load_align_model("en", "cpu", model_name=str(path))
    whisperx.alignment.nltk_load = lambda *_: PunktSentenceTokenizer()  # the stock one wants the network
    errors = []
    for one in utterances:
        segment = {"text": " " + one.text, "start": 0.0, "end": len(one.samples) / RATE}
        aligned = whisperx.alignment.align([segment], model, about, one.samples, "cpu")["word_segments"]
        for word, (_, start, _) in zip(aligned, one.words, strict=True):
            errors.append(abs(float(word["start"]) - start) if "start" in word else 9.0)
    return errors


def score(name: str, listener: Listener, utterances: list[Utterance], show: bool, **how: str) -> float:
    """Transcribe all, print the line of a split and give its word error rate."""
    total = Score()
    digits = english_digits()
    for one in utterances:
        said = one
        if how.get("task") == "translate":
            said = replace(one, text=" ".join(digits[word] for word in one.text.split()))
        total.add(said, listener.hear(one.samples, one.language if how else None, **how), show)
    print(f"{name:>9}: {total.line()}  worst voices {total.wrong.most_common(5)}", flush=True)
    return total.errors / total.words


def english_digits() -> dict[str, str]:
    """The English word for every German and Spanish digit."""
    digits = list(vocabulary()["en"])[:10]
    return {word: digits[i] for code in ("de", "es") for i, word in enumerate(vocabulary()[code])}


def score_quiet(listener: Listener, rng: np.random.Generator, count: int) -> float:
    """The share of windows without speech that give an empty transcript."""
    heard = [listener.hear(quiet(rng), None) for _ in range(count)]
    empty = [not one.text or (one.no_speech > 0.6 and one.confidence < -1) for one in heard]
    likely = mean(one.no_speech for one in heard)
    print(f"    quiet: {sum(empty)} of {count} empty, mean no-speech probability {likely:.3f}", flush=True)
    if not all(empty):
        print(f"           not empty: {[one.text for one in heard if one.text]}")
    return sum(empty) / count


def score_starts(name: str, path: Path, utterances: list[Utterance]) -> float:
    """The median error of word starts."""
    errors = np.array(word_starts(path, utterances)) * 1000
    print(
        f"    align: {name}: median {np.median(errors):.0f} ms, mean {errors.mean():.0f} ms, "
        f"90 % within {np.quantile(errors, 0.9):.0f} ms, {100 * (errors > 200).mean():.1f} % over 200 ms",
        flush=True,
    )
    return float(np.median(errors))


SPLITS = ("seen", "held-out", "long", "prompt", "translate", "quiet", "align")


def main() -> None:
    """Measure everything, or what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--aligner", type=Path, default=ALIGNER_DIR)
    parser.add_argument("--count", type=int, default=200, help="utterances per split")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=SPLITS, default=SPLITS)
    parser.add_argument("--show", action="store_true", help="print every wrong transcript")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    seen = [draw(rng) for _ in range(args.count)]
    fresh = [draw(rng, held_out=True) for _ in range(args.count)]
    listener = Listener(args.model, args.threads)

    def run(name: str) -> float:
        if name == "seen":
            return score(name, listener, seen, args.show)
        if name == "held-out":
            return score(name, listener, fresh, args.show)
        if name == "long":
            windows = [long_window(rng, rng.uniform(12, 29)) for _ in range(max(1, args.count // 5))]
            return score(name, listener, windows, args.show)
        if name == "prompt":
            english = [one for one in seen if one.language == "en"][: args.count // 4]
            return score(name, listener, english, args.show, prompt="Alpha, bravo charlie.")
        if name == "translate":
            return score(name, listener, [one for one in seen if one.language != "en"], args.show, task=name)
        if name == "quiet":
            return score_quiet(listener, rng, args.count // 2)
        score_starts("held-out", args.aligner, fresh)
        return score_starts("seen", args.aligner, seen)

    print(json.dumps({name: round(run(name), 4) for name in args.only}))


if __name__ == "__main__":
    main()
