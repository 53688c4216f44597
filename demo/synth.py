"""Speech for training and tests: known words, said by espeak-ng and flite, with the time of every word.

    python -m demo.synth --count 200 --seed 7 --out DIR [--held-out]

writes WAV files and `manifest.jsonl` (file, language, text, voice, words with start and end in seconds). Each word is
synthesised alone, trimmed by its energy and placed with a known gap, so the times are right by construction.
Needs numpy and the two programs only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import wave
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 16000
Samples = NDArray[np.float32]
Word = tuple[str, float, float]


@dataclass(frozen=True)
class Voice:
    """One speaker: a program, its name for the voice, and the language it speaks."""

    engine: str
    name: str
    language: str = "en"


@dataclass(frozen=True)
class Utterance:
    """Speech with its text and the times of its words; `words` is empty where the times are not known."""

    samples: Samples
    text: str
    words: list[Word]
    language: str
    voice: str


@dataclass(frozen=True)
class Style:
    """How fast and how high a voice speaks; 1.0 is the voice's own."""

    speed: float = 1.0
    pitch: float = 1.0


@dataclass
class Room:
    """What happens to the speech on its way to the microphone."""

    gain_db: tuple[float, float] = (-25.0, 0.0)
    snr_db: tuple[float, float] = (12.0, 40.0)
    noisy: float = 0.6
    kinds: list[str] = field(default_factory=lambda: ["white", "pink", "brown", "hum", "babble"])


_ENGLISH = """en en-us en-gb-scotland en+m1 en-us+m2 en-gb-x-rp+m3 en-us+m4 en-gb-scotland+m5 en+m6 en-gb-x-gbclan+m7
en-us+m8 en-029+f1 en+f2 en-us+f3 en-gb-x-rp+f5 en-us+adam en+Alicia en-us+Andy en+antonio en-us+Denis en-us+edward
en+Hugo en-us+john en-us+linda en-us+Marco en+Michael"""
_GERMAN = "de de+m1 de+m2 de+m3 de+m4 de+m5 de+m6 de+m7 de+m8 de+f1 de+f2 de+f3 de+f5"
_SPANISH = """es es-419+m1 es+m2 es-419+m3 es+m4 es-419+m5 es+m6 es-419+m7 es+m8 es-419+f1 es+f2 es-419+f3 es+f5"""

VOICES: list[Voice] = [
    *(Voice("espeak-ng", name) for name in _ENGLISH.split()),
    *(Voice("flite", name) for name in ("awb", "slt", "kal16")),
    *(Voice("espeak-ng", name, "de") for name in _GERMAN.split()),
    *(Voice("espeak-ng", name, "es") for name in _SPANISH.split()),
]
# Never heard in training: the espeak-ng variant f4 in every language, and flite's voice rms.
HELD_OUT: list[Voice] = [
    Voice("espeak-ng", "en+f4"),
    Voice("espeak-ng", "en-us+f4"),
    Voice("flite", "rms"),
    Voice("espeak-ng", "de+f4", "de"),
    Voice("espeak-ng", "es+f4", "es"),
]


@cache
def vocabulary() -> dict[str, dict[str, str]]:
    """For each language its words, each with the spelling that the synthesiser is given."""
    languages: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in (Path(__file__).parent / "vocabulary.txt").read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line.startswith("["):
            current = languages.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            word, _, spelling = line.partition("=")
            current[word.strip()] = spelling.strip() or word.strip()
    return languages


def resample(samples: Samples, rate: int) -> Samples:
    """Bring samples to 16 kHz by cutting or padding their spectrum."""
    if rate == RATE or not len(samples):
        return samples
    padded = np.pad(samples, (0, rate // 50))
    count = round(len(padded) * RATE / rate)
    spectrum = np.fft.rfft(padded)
    wanted = count // 2 + 1
    spectrum = spectrum[:wanted] if wanted <= len(spectrum) else np.pad(spectrum, (0, wanted - len(spectrum)))
    full = np.fft.irfft(spectrum, count) * (count / len(padded))
    return full[: round(len(samples) * RATE / rate)].astype(np.float32)


def _pcm(data: bytes) -> Samples:
    """The samples of a mono 16-bit WAV file; its length field may be wrong, as in espeak-ng's pipe output."""
    rate = int.from_bytes(data[24:28], "little")
    body = data[data.index(b"data") + 8 :]
    return resample(np.frombuffer(body[: len(body) // 2 * 2], "<i2").astype(np.float32) / 32768, rate)


def speak(text: str, voice: Voice, style: Style = Style()) -> Samples:
    """Let a voice say a text, as it comes out of the program."""
    program = shutil.which(voice.engine)
    if program is None:
        raise RuntimeError(f"speech synthesis needs the program {voice.engine}, which is not on the PATH")
    if voice.engine == "espeak-ng":
        speed, pitch = str(round(160 * style.speed)), str(round(50 * style.pitch))
        command = [program, "-v", voice.name, "-s", speed, "-p", pitch, "--stdout", text]
        return _pcm(_run(command))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "speech.wav")
        command = [program, "-voice", voice.name, "--setf", f"duration_stretch={1 / style.speed:.3f}"]
        if voice.name in ("slt", "rms", "awb"):
            mean = {"slt": 170, "rms": 95, "awb": 120}[voice.name]
            command += ["--setf", f"int_f0_target_mean={mean * style.pitch:.0f}"]
        _run([*command, "-t", text, "-o", str(path)])
        return _pcm(path.read_bytes())


def _run(command: list[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    if done.returncode or b"rror" in done.stderr:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr.decode(errors='replace')[:200]}")
    return done.stdout


def trim(samples: Samples, below_db: float = 38.0) -> Samples:
    """Cut what is quieter than the loudest 10 ms by the given measure off both ends."""
    step = RATE // 200
    frames = samples[: len(samples) // step * step].reshape(-1, step)
    energy = np.convolve((frames**2).mean(1), [0.5, 0.5], "same")
    if not len(energy) or energy.max() <= 0:
        raise ValueError("there is nothing but silence")
    loud = np.flatnonzero(energy > energy.max() * 10 ** (-below_db / 10))
    return samples[loud[0] * step : (loud[-1] + 1) * step]


def say_word(word: str, voice: Voice, style: Style = Style()) -> Samples:
    """One word of the vocabulary alone, without silence around it."""
    return trim(speak(vocabulary()[voice.language].get(word, word), voice, style))


def noise(kind: str, count: int, rng: np.random.Generator) -> Samples:
    """Background noise with a mean square of one."""
    white = rng.standard_normal(count).astype(np.float32)
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    if kind == "hum":
        time = np.arange(count) / RATE
        base = rng.choice([50.0, 60.0]) * rng.uniform(0.99, 1.01)
        tones = [np.sin(2 * np.pi * (base * k * time + rng.uniform())) / k for k in range(1, 8)]
        shaped = np.sum(tones, axis=0) + 0.1 * white
    elif kind in ("pink", "brown", "babble"):
        slope = {"pink": 0.5, "brown": 1.0, "babble": 0.8}[kind]
        shaped = np.fft.irfft(np.fft.rfft(white) / np.maximum(hertz, 60.0) ** slope, count)
        if kind == "babble":
            beats = rng.standard_normal(count // 1600 + 2)
            shaped = shaped * np.exp(0.6 * np.interp(np.arange(count) / 1600, np.arange(len(beats)), beats))
    else:
        shaped = white
    return np.asarray(shaped / np.sqrt(np.mean(shaped**2) + 1e-12), dtype=np.float32)


def disturb(samples: Samples, rng: np.random.Generator, room: Room | None = None) -> Samples:
    """Change the level and, for some, add noise."""
    room = room or Room()
    speech = samples / (np.abs(samples).max() + 1e-9) * 0.95
    if rng.random() < room.noisy:
        level = np.sqrt(np.mean(speech[np.abs(speech) > 0.01] ** 2)) * 10 ** (-rng.uniform(*room.snr_db) / 20)
        speech = speech + level * noise(str(rng.choice(room.kinds)), len(speech), rng)
    speech = speech / max(1.0, float(np.abs(speech).max()))
    return np.asarray(speech * 10 ** (rng.uniform(*room.gain_db) / 20), dtype=np.float32)


def random_words(rng: np.random.Generator, language: str = "en", count: int | None = None) -> list[str]:
    """Some words of a language; in English one utterance in four is digits only."""
    words = list(vocabulary()[language])
    if language == "en" and rng.random() < 0.25:
        words = words[:10]
    return [str(word) for word in rng.choice(words, count or int(rng.integers(1, 11)))]


def random_style(rng: np.random.Generator) -> Style:
    """A speed and a pitch within what a listener would not find odd."""
    return Style(round(rng.uniform(0.82, 1.15), 3), round(rng.uniform(0.75, 1.25), 3))


def synthesize(
    words: list[str],
    voice: Voice,
    rng: np.random.Generator,
    *,
    room: Room | None = None,
    gap: tuple[float, float] = (0.04, 0.35),
    edge: tuple[float, float] = (0.05, 0.6),
    connected: bool = False,
) -> Utterance:
    """Say some words as one utterance, silence before and after included.

    With `connected` the program says the sentence in one go: more natural, but the times of the words are not known.
    """
    style, text = random_style(rng), " ".join(words)
    pieces: list[Samples] = [np.zeros(int(rng.uniform(*edge) * RATE), np.float32)]
    times: list[Word] = []
    if connected:
        spelling = vocabulary()[voice.language]
        pieces.append(trim(speak(" ".join(spelling.get(word, word) for word in words), voice, style)))
    else:
        place = len(pieces[0])
        for word in words:
            samples = say_word(word, voice, style)
            times.append((word, round(place / RATE, 3), round((place + len(samples)) / RATE, 3)))
            pieces += [samples, np.zeros(int(rng.uniform(*gap) * RATE), np.float32)]
            place += len(pieces[-2]) + len(pieces[-1])
        pieces.pop()
    pieces.append(np.zeros(int(rng.uniform(*edge) * RATE), np.float32))
    samples = disturb(np.concatenate(pieces), rng, room)
    return Utterance(samples, text, times, voice.language, voice.name)


def join(utterances: list[Utterance], rng: np.random.Generator, pause: tuple[float, float] = (0.5, 2.0)) -> Utterance:
    """One recording of several utterances with pauses between them."""
    pieces: list[Samples] = []
    words: list[Word] = []
    place = 0
    for one in utterances:
        silence = 0.0005 * rng.standard_normal(int(rng.uniform(*pause) * RATE)).astype(np.float32)
        pieces += [one.samples, silence]
        words += [(word, round(start + place / RATE, 3), round(end + place / RATE, 3)) for word, start, end in one.words]
        place += len(one.samples) + len(silence)
    text = " ".join(one.text for one in utterances)
    return replace(utterances[0], samples=np.concatenate(pieces), text=text, words=words)


def write_wav(path: Path, samples: Samples) -> None:
    """Write 16-bit mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def draw(rng: np.random.Generator, *, held_out: bool = False, foreign: float = 0.2) -> Utterance:
    """A fresh utterance: a random voice says random words; `foreign` of them are German or Spanish."""
    language = str(rng.choice(["de", "es"])) if rng.random() < foreign else "en"
    voices = [voice for voice in (HELD_OUT if held_out else VOICES) if voice.language == language]
    engines = sorted({voice.engine for voice in voices})
    if len(engines) > 1:  # the few flite voices get a fair share
        engine = "flite" if rng.random() < (0.5 if held_out else 0.2) else "espeak-ng"
        voices = [voice for voice in voices if voice.engine == engine]
    return synthesize(random_words(rng, language), voices[int(rng.integers(len(voices)))], rng)


def main() -> None:
    """Write fresh utterances with their texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held-out", action="store_true", help="only voices that training never heard")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    with (args.out / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for index in range(args.count):
            one = draw(rng, held_out=args.held_out)
            name = f"{index:05d}.wav"
            write_wav(args.out / name, one.samples)
            words = [{"word": word, "start": start, "end": end} for word, start, end in one.words]
            line = {"file": name, "language": one.language, "text": one.text, "voice": one.voice, "words": words}
            manifest.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
