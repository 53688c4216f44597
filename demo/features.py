"""The bank that training draws from: every word by every voice in several styles, whole sentences, and noise.

    python -m demo.features --out BANK

Kept are the samples (16 bit, for the aligner) and the mel power in decibel-like log10 (half floats, for Whisper).
Training puts words, gaps, noise and level together anew for every batch: power adds up, so a window is composed of
mel frames directly, and only then takes the logarithm and the normalisation of `whisperx.audio.log_mel_spectrogram`.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from whisperx.audio import HOP_LENGTH, N_FFT, mel_filters

from demo.synth import (
    RATE,
    VOICES,
    Room,
    Samples,
    Voice,
    noise,
    random_style,
    random_words,
    say_word,
    speak,
    trim,
    vocabulary,
)

EDGE = 2  # frames kept on each side of a clip for what the analysis window smears over its ends
Mel = NDArray[np.float16]


def all_words() -> list[tuple[str, str]]:
    """Every (language, word); the place in this list is the word's class for the encoder's helper loss."""
    return [(language, word) for language, words in vocabulary().items() for word in words]


def log_power(samples: Samples) -> Mel:
    """log10 of the mel power, before Whisper's normalisation, with EDGE frames around the clip."""
    side = EDGE * HOP_LENGTH
    padded = torch.from_numpy(np.pad(samples, (side, side + -len(samples) % HOP_LENGTH)))
    stft = torch.stft(padded, N_FFT, HOP_LENGTH, window=torch.hann_window(N_FFT), return_complex=True)
    power = mel_filters(padded.device, 80) @ (stft[:, :-1].abs() ** 2)
    return power.clamp(min=1e-10).log10().T.numpy().astype(np.float16)


def _words(job: tuple[Voice, int]) -> list[tuple[int, Samples, Mel]]:
    """Every word of a voice's language in one style; class, samples and mel of each."""
    torch.set_num_threads(1)
    voice, seed = job
    style = random_style(np.random.default_rng(seed))
    if voice.engine == "flite":  # a few speakers must stand for many
        style = replace(style, pitch=1.4 * style.pitch - 0.3 if seed % 2 else style.pitch - 0.3)
    clips = []
    for index, (language, word) in enumerate(all_words()):
        if language == voice.language:
            samples = say_word(word, voice, style)
            clips.append((index, samples, log_power(samples)))
    return clips


def _sentences(job: tuple[Voice, int]) -> list[tuple[list[int], Samples, Mel]]:
    """Sentences said in one go; the classes of their words, samples and mel of each."""
    torch.set_num_threads(1)
    voice, seed = job
    rng = np.random.default_rng(seed)
    spelling, classes = vocabulary()[voice.language], {pair: i for i, pair in enumerate(all_words())}
    out = []
    for _ in range(8):
        words = random_words(rng, voice.language)
        samples = trim(speak(" ".join(spelling[word] for word in words), voice, random_style(rng)))
        out.append(([classes[voice.language, word] for word in words], samples, log_power(samples)))
    return out


def build(out: Path, styles: int, rounds: int, workers: int) -> None:
    """Synthesise everything and write the bank."""
    out.mkdir(parents=True, exist_ok=True)
    more = {"flite": 4 * styles, "espeak-ng": styles}
    word_jobs = [(v, 1000 * i + k) for i, v in enumerate(VOICES) for k in range(more[v.engine])]
    more = {"flite": 5 * rounds, "espeak-ng": rounds}
    sentence_jobs = [(v, 10**6 + 1000 * i + k) for i, v in enumerate(VOICES) for k in range(more[v.engine])]
    with ProcessPoolExecutor(workers) as pool:
        speakers: list[int] = []
        texts: list[list[int]] = []
        samples: list[Samples] = []
        mels: list[Mel] = []
        for job, clips in enumerate(pool.map(_words, word_jobs, chunksize=2)):
            for index, audio, mel in clips:
                speakers.append(job)
                texts.append([index])
                samples.append(audio)
                mels.append(mel)
        for sentences in pool.map(_sentences, sentence_jobs, chunksize=2):
            for classes, audio, mel in sentences:
                speakers.append(-1)
                texts.append(classes)
                samples.append(audio)
                mels.append(mel)
    rng = np.random.default_rng(5)
    kinds = Room().kinds
    noises = [log_power(noise(kinds[i % len(kinds)], 20 * RATE, rng) * 0.1) for i in range(40)]
    longest = max(len(text) for text in texts)
    np.savez(
        out / "index.npz",
        speaker=np.array(speakers, np.int32),
        text=np.array([text + [-1] * (longest - len(text)) for text in texts], np.int16),
        language=np.array([all_words()[text[0]][0] for text in texts]),
        sample_end=np.cumsum([len(audio) for audio in samples]),
        mel_end=np.cumsum([len(mel) for mel in mels]),
    )
    np.save(out / "samples.npy", (np.concatenate(samples) * 32767).astype(np.int16))
    np.save(out / "mels.npy", np.concatenate(mels))
    np.save(out / "noises.npy", np.stack(noises))


@dataclass
class Bank:
    """The bank, read back."""

    speaker: NDArray[np.int32]
    text: NDArray[np.int16]
    language: NDArray[np.str_]
    sample_end: NDArray[np.int64]
    mel_end: NDArray[np.int64]
    samples: NDArray[np.int16]
    mels: Mel
    noises: Mel

    @classmethod
    def load(cls, folder: Path) -> Bank:
        """Read what `build` wrote."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("samples", "mels", "noises")}
        return cls(**dict(np.load(folder / "index.npz")), **arrays)

    def audio(self, clip: int) -> Samples:
        """The samples of a clip."""
        start = self.sample_end[clip - 1] if clip else 0
        return self.samples[start : self.sample_end[clip]].astype(np.float32) / 32768

    def power(self, clip: int) -> NDArray[np.float32]:
        """The mel power of a clip, frames first, EDGE frames around it included."""
        start = self.mel_end[clip - 1] if clip else 0
        return np.asarray(10.0 ** self.mels[start : self.mel_end[clip]].astype(np.float32))


def main() -> None:
    """Write the bank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--styles", type=int, default=4, help="speeds and pitches per voice")
    parser.add_argument("--rounds", type=int, default=4, help="times eight whole sentences per voice")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    build(args.out, args.styles, args.rounds, args.workers)


if __name__ == "__main__":
    main()
