"""Speech recognition of windows in batches, on WhisperX's batched model class.

WhisperX's own pipeline object keeps the tokenizer and the options of the current call as attributes (m-bain/whisperX
issue 1171), so it must never serve two threads. Here both belong to the call, and the encoder's output is used for language
detection and for decoding alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ctranslate2
import numpy as np
import torch
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_compression_ratio
from whisperx.asr import WhisperModel
from whisperx.audio import N_SAMPLES, log_mel_spectrogram

from app.jobs import TranscribeOptions

NO_SPEECH_THRESHOLD = 0.6
LOGPROB_THRESHOLD = -1.0


@dataclass(frozen=True)
class Decoded:
    """What one window says. ``avg_logprob`` is natural log per token, ``no_speech_prob`` Whisper's own estimate."""

    text: str
    tokens: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float

    @property
    def silent(self) -> bool:
        """Whisper's rule for a window without speech (openai/whisper, ``transcribe.py``)."""
        return self.no_speech_prob > NO_SPEECH_THRESHOLD and self.avg_logprob < LOGPROB_THRESHOLD

    @property
    def compression_ratio(self) -> float:
        """Bytes of text per byte of its zlib form; high means repetition."""
        return float(get_compression_ratio(self.text)) if self.text else 0.0


class WindowModel(WhisperModel):  # type: ignore[misc]
    """WhisperX's model with calls that keep no state, safe in several threads at once."""

    def log_mels(self, windows: Sequence[np.ndarray]) -> np.ndarray:
        """Log-mel features of windows (float32 samples at 16 kHz), padded to 30 s: (batch, mels, 3000)."""
        mels = [
            log_mel_spectrogram(audio[:N_SAMPLES], n_mels=self.model.n_mels, padding=max(0, N_SAMPLES - len(audio)))
            for audio in windows
        ]
        return torch.stack(mels).numpy()

    def encode_each(self, mels: np.ndarray) -> ctranslate2.StorageView:
        """Encoder output of (batch, mels, 3000) features, (batch, 1500, width), on a CPU one window after the other.

        A batch does not make the encoder faster there, but its attention takes heads × 1500 × 1500 floats per window.
        """
        if self.model.device != "cpu" or len(mels) == 1:
            return self.encode(mels)
        outputs = [np.asarray(self.encode(mels[number : number + 1])) for number in range(len(mels))]
        return ctranslate2.StorageView.from_array(np.concatenate(outputs))

    def language_of(self, encoded: ctranslate2.StorageView) -> tuple[str, float]:
        """Language code and probability of the first window of an encoder output."""
        if not self.model.is_multilingual:
            return "en", 1.0
        token, probability = self.model.detect_language(encoded)[0][0]
        return token[2:-2], round(float(probability), 4)

    def tokenizer_for(self, language: str, task: str) -> Tokenizer:
        """A tokenizer of this call's own."""
        return Tokenizer(self.hf_tokenizer, self.model.is_multilingual, task=task, language=language)

    def decode(
        self, encoded: ctranslate2.StorageView, count: int, tokenizer: Tokenizer, options: TranscribeOptions
    ) -> list[Decoded]:
        """Decode ``count`` encoded windows with one prompt, beam search or (temperature > 0) sampling."""
        prompt = self._prompt(tokenizer, options)
        results = self.model.generate(
            encoded,
            [prompt] * count,
            max_length=self.max_length,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=[-1],
            **_search(options),
        )
        return [self._decoded(result, tokenizer) for result in results]

    def _prompt(self, tokenizer: Tokenizer, options: TranscribeOptions) -> list[int]:
        """Prompt and hotwords together take half of the decoder's positions at most, so that there is room for the text."""
        previous = tokenizer.encode(" " + options.initial_prompt.strip()) if options.initial_prompt else []
        hotwords = tokenizer.encode(" " + options.hotwords.strip()) if options.hotwords else []
        room = max(0, self.max_length // 2 - 1 - len(hotwords))
        previous = previous[max(0, len(previous) - room) :]
        prompt: list[int] = self.get_prompt(tokenizer, previous, without_timestamps=True, hotwords=options.hotwords)
        return prompt

    def _decoded(self, result: Any, tokenizer: Tokenizer) -> Decoded:
        ids = result.sequences_ids[0]
        # scores are normalised by length (penalty 1), so NaN where there is no token; Whisper counts the end token too
        avg_logprob = result.scores[0] * len(ids) / (len(ids) + 1) if ids else 0.0
        tokens = tuple(token for token in ids if token < tokenizer.eot)
        return Decoded(tokenizer.decode(list(tokens)), tokens, float(avg_logprob), float(result.no_speech_prob))


def _search(options: TranscribeOptions) -> dict[str, Any]:
    if options.temperature > 0:
        return {"beam_size": 1, "sampling_topk": 0, "sampling_temperature": options.temperature}
    return {"beam_size": options.beam_size, "patience": 1, "length_penalty": 1}
