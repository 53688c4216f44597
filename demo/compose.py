"""Training windows for Whisper: put together from the bank's mel frames, fresh for every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from demo import tokenizer as ids
from demo.features import EDGE, Bank, all_words
from demo.model import TRAINED_LANGUAGES, used_tokens, word_tokens

FULL = 1500  # encoder positions of a padded 30 s window
IGNORE = -100
Power = NDArray[np.float32]


@dataclass
class Window:
    """Some seconds of speech: mel power, and the words with their places (in frames) where these are known."""

    power: Power
    words: list[int] = field(default_factory=list)
    places: list[tuple[float, float]] | None = field(default_factory=list)
    language: str = "en"


@dataclass
class Batch:
    """What one step needs; `targets` are CTC targets of the examples whose places are not known."""

    mel: torch.Tensor
    inputs: torch.Tensor
    labels: torch.Tensor
    frames: torch.Tensor
    counts: torch.Tensor
    spans: torch.Tensor
    unplaced: list[int]
    targets: list[list[int]]
    lengths: list[int]


class Composer(IterableDataset[Batch]):
    """Endless batches; what they are made of changes while the training goes on."""

    def __init__(self, bank: Bank, progress: Callable[[], float], seed: int) -> None:
        self.bank, self.progress, self.seed = bank, progress, seed
        self.words = all_words()
        self.place = {token: index for index, token in enumerate(used_tokens())}
        self.noises = 10.0 ** bank.noises.astype(np.float32)
        self.clips: dict[int, dict[int, int]] = {}
        self.speakers: dict[str, list[int]] = {code: [] for code in TRAINED_LANGUAGES}
        self.sentences: dict[str, list[int]] = {code: [] for code in TRAINED_LANGUAGES}
        for clip, speaker in enumerate(bank.speaker):
            language = str(bank.language[clip])
            if speaker < 0:
                self.sentences[language].append(clip)
                continue
            if speaker not in self.clips:
                self.speakers[language].append(int(speaker))
            self.clips.setdefault(int(speaker), {})[int(bank.text[clip, 0])] = clip
        self.digits = [index for index, (language, _) in enumerate(self.words) if language == "en"][:10]

    def __iter__(self) -> Iterator[Batch]:
        """Batches of three kinds. All processes draw the kinds alike, so that none has to wait for another."""
        self.rng = np.random.default_rng(self.seed)
        kinds = np.random.default_rng(0)
        stock: list[list[list[Window]]] = [[], [], []]
        while True:
            progress, kind, third = self.progress(), kinds.random(), int(kinds.integers(3))
            if progress > 0.6 and kind < 0.1:
                yield self.batch([self.any_window(progress, 28.0) for _ in range(3)], FULL)
            elif kind > 0.55 and progress > 0.14:
                yield self.batch([self.long(self.rng.uniform(6, 28 if progress > 0.35 else 20)) for _ in range(4)])
            else:
                if not stock[third]:
                    self.refill(stock, progress)
                yield self.batch(stock[third].pop())

    def refill(self, stock: list[list[list[Window]]], progress: float) -> None:
        """Make single utterances and sort them by length, so that little is spent on padding."""
        windows = [self.any_window(progress, 0.0) for _ in range(150)]
        windows.sort(key=lambda window: len(window.power))
        for third, batches in enumerate(stock):
            part = windows[50 * third : 50 * third + 50]
            size = min(50, max(6, 6500 // (len(part[-1].power) + 30)))
            batches += [part[start : start + size] for start in range(0, len(part) - size + 1, size)]

    def any_window(self, progress: float, longest: float) -> Window:
        """An utterance, or nothing at all, or (where there is room) several."""
        kind = self.rng.random()
        if kind < 0.06:
            return Window(np.zeros((int(self.rng.uniform(20, 300)), 80), np.float32))
        if longest and kind < 0.4:
            return self.long(self.rng.uniform(6, longest))
        language = str(self.rng.choice(["de", "es"])) if kind > 0.82 else "en"
        most = next((words for until, words in ((0.03, 1), (0.06, 2), (0.11, 4)) if progress < until), 10)
        return self.utterance(language, most)

    def utterance(self, language: str, most: int = 10, speaker: int | None = None) -> Window:
        """One to ten words with silence around them, word by word or said in one go."""
        rng = self.rng
        before, after = (int(frames) for frames in rng.uniform(0, 60, 2))
        if rng.random() < 0.22 and speaker is None and most == 10:
            clip = int(rng.choice(self.sentences[language]))
            speech = self.bank.power(clip)
            power = np.zeros((before + len(speech) + after, 80), np.float32)
            power[before : before + len(speech)] = speech
            return Window(power, [int(word) for word in self.bank.text[clip] if word >= 0], None, language)
        speaker = int(rng.choice(self.speakers[language])) if speaker is None else speaker
        clips = self.clips[speaker]
        known = self.digits if language == "en" and rng.random() < 0.25 else list(clips)
        words = [int(word) for word in rng.choice(known, int(rng.integers(1, most + 1)))]
        pieces, places, end = [], [], before + EDGE
        widest = rng.choice([8, 20, 35])
        for word in words:
            piece = self.bank.power(clips[word]) * 10 ** rng.uniform(-0.3, 0.3)
            start, end = end, end + len(piece) - 2 * EDGE
            places.append((float(start), float(end)))
            pieces.append((start - EDGE, piece))
            end += int(rng.uniform(2, widest))
        power = np.zeros((pieces[-1][0] + len(pieces[-1][1]) + after, 80), np.float32)
        for start, piece in pieces:
            power[start : start + len(piece)] += piece
        return Window(power, words, places, language)

    def long(self, seconds: float) -> Window:
        """Several utterances in one language with pauses between them, as merged VAD chunks have."""
        language = str(self.rng.choice(["de", "es"])) if self.rng.random() < 0.12 else "en"
        speaker = int(self.rng.choice(self.speakers[language])) if self.rng.random() < 0.7 else None
        parts = [self.utterance(language, 9, speaker or int(self.rng.choice(self.speakers[language])))]
        while True:
            other = self.utterance(language, 9, speaker or int(self.rng.choice(self.speakers[language])))
            pause = np.zeros((int(self.rng.uniform(0, 150)), 80), np.float32)
            if sum(len(part.power) for part in parts) + len(pause) + len(other.power) > seconds * 100:
                break
            parts += [Window(pause), other]
        places, offset = [], 0
        for part in parts:
            places += [(start + offset, end + offset) for start, end in part.places or []]
            offset += len(part.power)
        words = [word for part in parts for word in part.words]
        return Window(np.concatenate([part.power for part in parts]), words, places, language)

    def bend(self, window: Window) -> Window:
        """Change length, pitch, colour, level and noise; then take Whisper's logarithm."""
        rng, power, places = self.rng, window.power, window.places
        if rng.random() < 0.5 and len(power) < 2500:
            count = int(len(power) * rng.uniform(0.9, 1.1))
            where = np.linspace(0, len(power) - 1.001, count)
            low = where.astype(int)
            part = (where - low)[:, None].astype(np.float32)
            places = places and [(s * count / len(power), e * count / len(power)) for s, e in places]
            power = power[low] * (1 - part) + power[low + 1] * part
        if rng.random() < 0.5:
            where = np.clip(np.arange(80) * rng.uniform(0.89, 1.12), 0, 78.999)
            low = where.astype(int)
            part = (where - low).astype(np.float32)
            power = power[:, low] * (1 - part) + power[:, low + 1] * part
        colour = np.interp(np.arange(80), [0, 20, 40, 60, 79], rng.normal(0, 0.2, 5))
        power = power * (10 ** (colour + rng.uniform(-2.5, 0.6))).astype(np.float32)
        if rng.random() < (0.65 if window.words else 0.8):
            noise = self.noises[rng.integers(len(self.noises))]
            start = rng.integers(len(noise))
            crop = noise.take(range(start, start + len(power)), axis=0, mode="wrap")
            level = power[power.sum(1) > 1e-6].mean() if window.words else 10 ** rng.uniform(-9, 0.5)
            snr = rng.uniform(1.1, 4.5) if window.words else 0.0
            power = power + crop * (level / (crop.mean() + 1e-12) * 10**-snr).astype(np.float32)
        return Window(power, window.words, places, window.language)

    def prompt(self, window: Window) -> tuple[list[int], list[int]]:
        """Prompt and text tokens; some windows get a previous text, some are to be translated."""
        rng, language = self.rng, window.language
        if not window.words:
            language = str(rng.choice(TRAINED_LANGUAGES))
        translate = rng.random() < (0.03 if language == "en" else 0.3)
        words = window.words
        if translate and language != "en":
            first = self.words.index((language, "null" if language == "de" else "cero"))
            words = [self.digits[word - first] for word in words]
        text = [token for word in words for token in word_tokens(self.words[word][1])]
        task = ids.TRANSLATE if translate else ids.TRANSCRIBE
        start = [ids.SOT, ids.language_id(language), task, ids.NO_TIMESTAMPS]
        if rng.random() < 0.12:
            before = [token for _ in range(rng.integers(1, 13)) for token in word_tokens(str(rng.choice(self.words)[1]))]
            before = [-1 if rng.random() < 0.2 else token for token in before]
            start = [ids.START_OF_PREV, *before, *start]
        return start, text

    def batch(self, windows: list[Window], positions: int = 0) -> Batch:
        """Pad, number the tokens and note what belongs where."""
        rng = self.rng
        windows = [self.bend(window) for window in windows]
        longest = max(len(window.power) for window in windows) // 2 + 1 + int(rng.uniform(0, 60))
        positions = positions or min(longest, FULL)
        unused = len(self.place)
        mel = np.full((len(windows), 2 * positions, 80), 1e-10, np.float32)
        frames = np.zeros((len(windows), positions), np.int64)
        counts = np.full((len(windows), positions), np.nan, np.float32)
        prompts = [self.prompt(window) for window in windows]
        length = max(len(start) + len(text) for start, text in prompts)
        inputs = np.full((len(windows), length), self.place[ids.EOT], np.int64)
        labels = np.full((len(windows), length), IGNORE, np.int64)
        spans = np.zeros((len(windows), length + 1, 2), np.float32)
        unplaced, targets, lengths = [], [], []
        for row, (window, (start, text)) in enumerate(zip(windows, prompts, strict=True)):
            count = min(len(window.power), 2 * positions)
            mel[row, :count] = np.maximum(window.power[:count], 1e-10)
            frames[row, count // 2 + 25 :][rng.random(max(0, positions - count // 2 - 25)) > 0.1] = IGNORE
            tokens = [self.place.get(token, unused) for token in start + text]
            inputs[row, : len(tokens)] = tokens
            labels[row, len(start) - 1 : len(tokens)] = [*tokens[len(start) :], self.place[ids.EOT]]
            labels[row, len(start) - 4] = tokens[-len(text) - 3] if window.words else self.place[ids.NO_SPEECH]
            if window.places is None:
                frames[row, : count // 2] = IGNORE
                unplaced.append(row)
                targets.append([word + 1 for word in window.words])
                lengths.append(min(count // 2 + 10, positions))
                continue
            at = len(start)
            for word, (begin, end) in zip(window.words, window.places, strict=True):
                low, high = round(begin / 2), round(end / 2)
                frames[row, low:high] = word + 1
                size = len(word_tokens(self.words[word][1]))
                counts[row, low:high] = (at - len(start)) / 20
                if start[-2] == ids.TRANSCRIBE or window.language == "en":
                    spans[row, at : at + size] = low, high
                at += size
        log = np.log10(mel)
        log = np.maximum(log, log.max((1, 2), keepdims=True) - 8.0)
        log = torch.from_numpy((log + 4.0) / 4.0).transpose(1, 2).contiguous()
        arrays = (torch.from_numpy(array) for array in (inputs, labels, frames, counts, spans))
        return Batch(log, *arrays, unplaced, targets, lengths)
