"""Recordings of log-normal lengths, made of the bundled samples; real speech, so that decoding takes what it takes."""

from __future__ import annotations

import math
import random
import subprocess
import wave
from pathlib import Path

import imageio_ffmpeg

from benchmarks.serving import ROOT

RATE = 16_000


def pcm_of(path: Path) -> bytes:
    """A recording as 16 kHz mono s16le."""
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        str(path),
        "-f",
        "s16le",
        "-ar",
        str(RATE),
        "-ac",
        "1",
        "-",
    ]
    return subprocess.run(command, capture_output=True, check=True).stdout


def lognormal_lengths(count: int, median_s: float, sigma: float, low_s: float, high_s: float, seed: int) -> list[float]:
    """Seconds, clipped to [low_s, high_s]."""
    chance = random.Random(seed)
    return [min(high_s, max(low_s, chance.lognormvariate(math.log(median_s), sigma))) for _ in range(count)]


def write_corpus(folder: Path, lengths: list[float], seed: int = 1) -> list[Path]:
    """One WAV per length, each of a different mixture of the English samples, so that no two say the same."""
    chance = random.Random(seed)
    pieces = [pcm_of(path) for path in sorted((ROOT / "demo" / "samples").glob("*.flac")) if "-digits" not in path.name]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, seconds in enumerate(lengths):
        sound = b""
        while len(sound) < seconds * RATE * 2:
            sound += chance.choice(pieces)
        path = folder / f"recording-{number:02d}.wav"
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(sound[: int(seconds * RATE) * 2])
        paths.append(path)
    return paths
