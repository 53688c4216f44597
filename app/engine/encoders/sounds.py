"""What encoders are calibrated with: speech, and the other sounds that microphones pick up.

Speech alone does not show how large activations become: on silence, noise or a window full of speech they are several times
larger, and what a range does not cover is cut off.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from faster_whisper.audio import decode_audio
from whisperx.audio import N_SAMPLES

from app.engine.vad import RATE


def sounds(folder: Path) -> list[np.ndarray]:
    """Float32 samples at 16 kHz, 30 s at most: the widest variety first, then the recordings of ``folder``.

    The last two are there to measure errors on: a recording, and a mixture unlike all the others.

    Raises:
        ValueError: there is no recording.
    """
    recordings = [decode_audio(str(path)) for path in sorted(folder.glob("*.flac"))]
    if len(recordings) < 2:
        raise ValueError("there are no recordings to calibrate an encoder with")
    chance = np.random.default_rng(0)
    talk = np.resize(np.concatenate(recordings), N_SAMPLES)
    babble = sum(np.resize(one, N_SAMPLES) for one in recordings[:4]) / 4
    silence, hiss = np.zeros(RATE), chance.normal(0, 0.05, N_SAMPLES)
    music = _chord(10.0, (220.0, 277.2, 329.6, 440.0))
    mixture = np.concatenate([recordings[0][::2], _chord(3.0, (523.3, 880.0)), 20 * recordings[1], hiss[: 2 * RATE]])
    noisy = [one + chance.normal(0, 0.005, len(one)) * (number % 2) for number, one in enumerate(recordings[:-1])]
    found = [talk, hiss, silence, music, babble, *noisy, recordings[-1], np.clip(mixture, -1, 1)]
    return [one[:N_SAMPLES].astype(np.float32) for one in found]


def _chord(seconds: float, tones_hz: tuple[float, ...]) -> np.ndarray:
    """Tones with overtones, one after the other and then together."""
    time = np.arange(int(seconds * RATE)) / RATE
    voices = [np.sum([np.sin(2 * np.pi * tone * n * time) / n for n in (1, 2, 3)], axis=0) for tone in tones_hz]
    steps = np.array_split(np.arange(len(time)), len(tones_hz) + 1)
    parts = [voice[step] for voice, step in zip(voices, steps, strict=False)] + [np.mean(voices, axis=0)[steps[-1]]]
    joined: np.ndarray = 0.3 * np.concatenate(parts)
    return joined
