"""The limit: Silero and the bare calls of the fastest encoder and of the fastest decoder, on the windows of the service.

No service can be faster with these parts. The mels are made beforehand and not counted, the language is known, text is put
together afterwards. Several arrangements of threads are tried, and the best one is kept. Started by :mod:`benchmarks.sides`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from app.work import WorkerSetup
from benchmarks.ratios import cores
from benchmarks.sides import answer, options_for

BATCHES = (4, 8, 16)
TRIAL_WINDOWS = 32
Encode = Callable[[np.ndarray], np.ndarray]


def serve(pipe: Connection) -> None:
    """Entry of the process, which has the engine's imports already."""
    setup = WorkerSetup.from_dict(pipe.recv())
    answer(pipe, lambda: Limit(setup))


def fastest_encoder(model: Any) -> Encode:
    """The bare call of the encoder that is the fastest here, by the engine's own measurement when it loaded the model.

    Takes one mel, (1, mels, 3000); gives (1, 1500, width). ``encoder`` stands in for CTranslate2's own, where there is one.
    """
    chosen = getattr(model, "encoder", None)
    if chosen is not None:
        return lambda mel: chosen.encode(mel[0])[None]
    return lambda mel: np.asarray(model.encode(mel))


@dataclass(frozen=True)
class Arrangement:
    """``runners`` engine calls at once on ``threads`` threads each, ``batch`` windows per call of the decoder."""

    runners: int
    threads: int
    batch: int


@dataclass(frozen=True)
class Spoken:
    """A file, ready: float32 samples for Silero, and the mels of its windows."""

    audio: np.ndarray
    mels: list[np.ndarray]
    mel_s: float


class Limit:
    """One model in the best arrangement of threads that was tried."""

    def __init__(self, setup: WorkerSetup) -> None:
        from app.engine.models import load

        self._load, self._setup = load, setup
        self._spoken: dict[str, Spoken] = {}
        self._model: Any = None
        self._chosen = Arrangement(cores(), 1, BATCHES[1])
        self._arrange(self._chosen)

    def choose(self, files: list[str]) -> dict[str, Any]:
        """Try arrangements on the first windows of ``files`` and keep the fastest; seconds of each."""
        mels = [mel for file in files for mel in self._ready(file).mels][:TRIAL_WINDOWS]
        tried: dict[Arrangement, float] = {}
        for runners in sorted({1, max(1, cores() // 2), cores()}):
            self._arrange(Arrangement(runners, max(1, cores() // runners), BATCHES[0]))
            self._decode(mels[:runners])  # what is made at first use
            for batch in BATCHES:
                self._chosen = replace(self._chosen, batch=batch)
                began = time.perf_counter()
                self._decode(mels)
                tried[self._chosen] = time.perf_counter() - began
        self._arrange(min(tried, key=lambda one: tried[one]))
        self._decode(mels[: self._chosen.runners])
        return {**self.chosen(), "tried": [{**vars(one), "s": took} for one, took in tried.items()]}

    def chosen(self) -> dict[str, Any]:
        """The arrangement that is used, the encoder and the decoder."""
        choices = {"encoder": self._model.choice, "decoder": self._model.decoder_choice}
        names = {part: getattr(choice, "name", "ctranslate2") for part, choice in choices.items()}
        return {"chosen": {**vars(self._chosen), **names}}

    def run(self, files: list[str], languages: bool = False) -> dict[str, Any]:
        """All files at once: seconds, of them seconds of Silero; window texts of each.

        Not counted: ``mel_s``, and ``language_s``, what it takes to find out the language of each (0 unless asked for).
        """
        from app.engine.vad import silero_options, speech_in

        spoken = [self._ready(file) for file in files]
        options = options_for(self._setup.model, "none", "en").vad
        settings = silero_options(options, options.chunk_s)
        count = self._chosen.runners
        began = time.perf_counter()
        with ThreadPoolExecutor(count) as runners, ThreadPoolExecutor(count) as helpers:
            list(runners.map(lambda one: speech_in(one.audio, settings, partial(helpers.map, lambda part: part())), spoken))
        vad_s = time.perf_counter() - began
        results = self._decode([mel for one in spoken for mel in one.mels])
        seconds = time.perf_counter() - began
        texts = iter([self._text(result) for result in results])
        each = [[next(texts) for _ in one.mels] for one in spoken]
        told = {"vad_s": vad_s, "mel_s": sum(one.mel_s for one in spoken), "texts": each}
        return {"s": seconds, "language_s": self._languages(spoken) if languages else 0.0, **told}

    def _languages(self, spoken: list[Spoken]) -> float:
        """Seconds for the first window of each, with as many calls at once as otherwise; the encoder is not counted."""
        encoded = [self._encode(one.mels[0])[0] for one in spoken if one.mels]
        began = time.perf_counter()
        with ThreadPoolExecutor(self._chosen.runners) as runners:
            list(runners.map(self._language, encoded))
        return time.perf_counter() - began

    def _language(self, encoded: np.ndarray) -> None:
        heard = self._model.hear(1)
        heard.add(encoded)
        self._model.languages_of(heard, [0])

    def _arrange(self, wanted: Arrangement) -> None:
        if self._model is None or (wanted.runners, wanted.threads) != (self._chosen.runners, self._chosen.threads):
            self._model = None  # one copy of the weights at a time
            self._model, *_ = self._load(replace(self._setup, runners=wanted.runners, threads=wanted.threads, cores=0))
        self._chosen = wanted
        self._encode = fastest_encoder(self._model)

    def _ready(self, file: str) -> Spoken:
        from app.engine.silero import one_by_one
        from app.engine.vad import PyannoteVad, find_windows, samples

        if file not in self._spoken:
            pcm = np.fromfile(file, "<i2")
            options = options_for(self._setup.model, "none", "en").vad
            windows = find_windows(pcm, options, PyannoteVad("cpu"), lambda done: None, one_by_one)
            began = time.perf_counter()
            mels = [self._model.log_mel(samples(pcm, window.start, window.end))[None] for window in windows]
            took = time.perf_counter() - began
            self._spoken[file] = Spoken(pcm.astype(np.float32) / 32768, mels, took)
        return self._spoken[file]

    def _decode(self, mels: list[np.ndarray]) -> list[Any]:
        """Bare calls, batch by batch, ``runners`` batches at once; none has more than its part where there are few."""
        size = max(1, min(self._chosen.batch, -(-len(mels) // self._chosen.runners)))
        batches = [mels[start : start + size] for start in range(0, len(mels), size)]
        with ThreadPoolExecutor(self._chosen.runners) as runners:
            return [result for results in runners.map(self._batch, batches) for result in results]

    def _batch(self, mels: list[np.ndarray]) -> list[Any]:
        prompt = self._model.get_prompt(self._tokenizer, [], without_timestamps=True)
        if self._model.decoder is not None:
            return self._own_batch(self._model.decoder, mels, prompt)
        import ctranslate2

        encoded = np.concatenate([self._encode(mel) for mel in mels])
        results: list[Any] = self._model.model.generate(
            ctranslate2.StorageView.from_array(encoded),
            [prompt] * len(mels),
            beam_size=5,
            patience=1,
            length_penalty=1,
            max_length=self._model.max_length,
            suppress_blank=True,
            suppress_tokens=[-1],
        )
        return [result.sequences_ids[0] for result in results]

    def _own_batch(self, decoder: Any, mels: list[np.ndarray], prompt: list[int]) -> list[Any]:
        from app.engine.decoders.runtime import Memory

        memory = Memory(decoder.sizes, len(mels))
        for number, mel in enumerate(mels):
            decoder.remember(self._encode(mel)[0], memory, number)
        found = decoder.generate(memory, [prompt] * len(mels), 5, self._model.max_length)
        return [one.tokens for one in found]

    @property
    def _tokenizer(self) -> Any:
        return self._model.tokenizer_for("en", "transcribe")

    def _text(self, tokens: Any) -> str:
        tokenizer = self._tokenizer
        text: str = tokenizer.decode([token for token in tokens if token < tokenizer.eot])
        return text
