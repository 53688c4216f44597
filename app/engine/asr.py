"""Speech recognition of windows in batches, on WhisperX's batched model class.

WhisperX's own pipeline object keeps the tokenizer and the options of the current call as attributes (m-bain/whisperX
issue 1171), so it must never serve two threads. Here both belong to the call, and the encoder's output is used for language
detection and for decoding alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_compression_ratio
from whisperx.asr import WhisperModel
from whisperx.audio import HOP_LENGTH, N_FFT, N_SAMPLES, log_mel_spectrogram

from app.engine.attention import Spoken
from app.engine.decoders.runtime import MOST_BEAMS, Decoder, Found, Memory
from app.engine.encoders.choice import Choice
from app.engine.encoders.runtime import Encoder
from app.jobs import TranscribeOptions

NO_SPEECH_THRESHOLD = 0.6
LOGPROB_THRESHOLD = -1.0
_PLAIN = TranscribeOptions("")


@dataclass(frozen=True)
class Decoded:
    """What one window says. ``avg_logprob`` is natural log per token, ``no_speech_prob`` Whisper's own estimate.

    ``words`` is None where no fast word times were asked for.
    """

    text: str
    tokens: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float
    words: tuple[Spoken, ...] | None = None

    @property
    def silent(self) -> bool:
        """Whisper's rule for a window without speech (openai/whisper, ``transcribe.py``)."""
        return self.no_speech_prob > NO_SPEECH_THRESHOLD and self.avg_logprob < LOGPROB_THRESHOLD

    @property
    def compression_ratio(self) -> float:
        """Bytes of text per byte of its zlib form; high means repetition."""
        return float(get_compression_ratio(self.text)) if self.text else 0.0


class Heard:
    """Windows of a batch that have been encoded. ``memory``: what OpenVINO's decoder keeps of them, if it is used."""

    def __init__(self, decoder: Decoder | None, memory: Memory | None) -> None:
        self.encoded: list[np.ndarray] = []
        self.memory = memory
        self._decoder = decoder

    def add(self, output: np.ndarray) -> None:
        """The next window's encoder output, (1500, width)."""
        if self._decoder is not None and self.memory is not None:
            self._decoder.remember(output, self.memory, len(self.encoded))
        self.encoded.append(output)

    @classmethod
    def together(cls, windows: Sequence[tuple[Heard, int]]) -> Heard:
        """Some windows of some batches. Their memory is a copy, but for windows of one batch that follow each other."""
        first = windows[0][0]
        numbers = [number for _, number in windows]
        memory = first.memory
        if memory is not None and all(heard is first for heard, _ in windows):
            memory = memory.only(numbers)
        elif memory is not None:
            memory = Memory.joined([(heard.memory, number) for heard, number in windows if heard.memory is not None])
        made = cls(first._decoder, memory)
        made.encoded = [heard.encoded[number] for heard, number in windows]
        return made


class WindowModel(WhisperModel):  # type: ignore[misc]
    """WhisperX's model with calls that keep no state, safe in several threads at once.

    ``encoder`` and ``decoder`` stand in for CTranslate2's own where they are set; ``choice`` and ``decoder_choice`` say why,
    where they were chosen, and ``arrangement_choice`` the same of the calls at once and their threads.
    """

    encoder: Encoder | None = None
    choice: Choice | None = None
    decoder: Decoder | None = None
    decoder_choice: Choice | None = None
    arrangement_choice: Choice | None = None

    def log_mel(self, audio: np.ndarray) -> np.ndarray:
        """Log-mel features of one window (float32 samples at 16 kHz), padded to 30 s: (mels, 3000)."""
        audio = audio[:N_SAMPLES]
        # up to the first silent frame; all that follow are equal to it
        whole = N_SAMPLES // HOP_LENGTH
        frames = min(-(-(len(audio) + N_FFT) // HOP_LENGTH), whole)
        padding = frames * HOP_LENGTH - len(audio)
        mel: np.ndarray = log_mel_spectrogram(audio, n_mels=self.model.n_mels, padding=padding).numpy()
        return np.pad(mel, ((0, 0), (0, whole - frames)), mode="edge")

    def encoded(self, mels: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Encoder output, (1500, width), of each window of (mels, 3000) features, in order.

        On a CPU one after the other: a batch does not make the encoder faster there, but its attention takes
        heads × 1500 × 1500 floats per window. Elsewhere all at once.
        """
        if self.encoder is not None:
            yield from map(self.encoder.encode, mels)
        elif self.model.device == "cpu":
            for mel in mels:
                yield np.asarray(self.encode(mel[None]))[0]
        else:
            yield from np.asarray(self.encode(np.stack(list(mels))).to_device(ctranslate2.Device.cpu))

    def hear(self, windows: int) -> Heard:
        """A place for the encoder's output of so many windows."""
        return Heard(self.decoder, Memory(self.decoder.sizes, windows) if self.decoder is not None else None)

    def languages_of(self, heard: Heard, windows: Sequence[int]) -> list[tuple[str, float]]:
        """Language code and probability of some windows of a batch, in order."""
        if not self.model.is_multilingual:
            return [("en", 1.0)] * len(windows)
        if self.decoder is not None and heard.memory is not None:
            first, end = windows[0], windows[-1] + 1  # with those between them, if any: that takes less than a copy
            found = self.decoder.languages(heard.memory.only(range(first, end)))
            likeliest = [found[window - first][0] for window in windows]
            chances = [(self.hf_tokenizer.id_to_token(number), chance) for number, chance in likeliest]
        else:
            features = ctranslate2.StorageView.from_array(np.stack([heard.encoded[window] for window in windows]))
            chances = [each[0] for each in self.model.detect_language(features)]
        return [(token[2:-2], round(float(chance), 4)) for token, chance in chances]

    def tokenizer_for(self, language: str, task: str) -> Tokenizer:
        """A tokenizer of this call's own."""
        return Tokenizer(self.hf_tokenizer, self.model.is_multilingual, task=task, language=language)

    def decode(self, heard: Heard, tokenizers: Sequence[Tokenizer], options: Sequence[TranscribeOptions]) -> list[Decoded]:
        """Decode all windows, each in its own language and with its own options. May be called once.

        Windows that search in the same way and whose prompts have the same length go together, whatever their language and
        task: the prompts must have ``<|startoftranscript|>`` at the same place.
        """
        prompts = [self.prompt(*both) for both in zip(tokenizers, options, strict=True)]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for number, (prompt, wanted) in enumerate(zip(prompts, options, strict=True)):
            groups.setdefault(_group(prompt, wanted), []).append(number)
        decoded: dict[int, Decoded] = {}
        for numbers in groups.values():
            found = self._found(heard, numbers, [prompts[number] for number in numbers], options[numbers[0]])
            decoded |= {n: self._decoded(one, tokenizers[n]) for n, one in zip(numbers, found, strict=True)}
        return [decoded[number] for number in range(len(prompts))]

    def group(self, tokenizer: Tokenizer, options: TranscribeOptions) -> tuple[Any, ...]:
        """Equal for windows that :meth:`decode` decodes together."""
        return _group(self.prompt(tokenizer, options), options)

    def _found(self, heard: Heard, numbers: list[int], prompts: list[list[int]], options: TranscribeOptions) -> Sequence[Found]:
        """What some of the windows say, with OpenVINO's decoder where that can do it."""
        if (
            self.decoder is not None
            and heard.memory is not None
            and not options.temperature
            and options.beam_size <= MOST_BEAMS
        ):
            return self.decoder.generate(heard.memory.only(numbers), prompts, options.beam_size, self.max_length)
        results = self.model.generate(
            ctranslate2.StorageView.from_array(np.stack([heard.encoded[number] for number in numbers])),
            prompts,
            max_length=self.max_length,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=[-1],
            **_search(options),
        )
        return [_from_ctranslate2(result) for result in results]

    def prompt(self, tokenizer: Tokenizer, options: TranscribeOptions = _PLAIN) -> list[int]:
        """What stands before a window's text.

        The initial prompt and hotwords together take half of the decoder's positions at most: there must be room for the text.
        """
        previous = tokenizer.encode(" " + options.initial_prompt.strip()) if options.initial_prompt else []
        hotwords = tokenizer.encode(" " + options.hotwords.strip()) if options.hotwords else []
        room = max(0, self.max_length // 2 - 1 - len(hotwords))
        previous = previous[max(0, len(previous) - room) :]
        prompt: list[int] = self.get_prompt(tokenizer, previous, without_timestamps=True, hotwords=options.hotwords)
        return prompt

    def _decoded(self, found: Found, tokenizer: Tokenizer) -> Decoded:
        # Whisper counts the end token too
        avg_logprob = found.logprob / (len(found.tokens) + 1) if found.tokens else 0.0
        tokens = tuple(token for token in found.tokens if token < tokenizer.eot)
        return Decoded(tokenizer.decode(list(tokens)), tokens, avg_logprob, found.no_speech_prob)


def _from_ctranslate2(result: Any) -> Found:
    """Its scores are normalised by length (penalty 1), so they are no number where there is no token."""
    tokens = tuple(result.sequences_ids[0])
    return Found(tokens, float(result.scores[0]) * len(tokens) if tokens else 0.0, float(result.no_speech_prob))


def _group(prompt: list[int], options: TranscribeOptions) -> tuple[Any, ...]:
    return (len(prompt), *_search(options).items())


def _search(options: TranscribeOptions) -> dict[str, Any]:
    if options.temperature > 0:
        return {"beam_size": 1, "sampling_topk": 0, "sampling_temperature": options.temperature}
    return {"beam_size": options.beam_size, "patience": 1, "length_penalty": 1}
