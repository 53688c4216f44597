"""Make the bundled samples: fresh sentences as FLAC with their texts and word times in `samples/manifest.json`.

    python -m demo.make_samples --out demo/samples

Needs ffmpeg besides the synthesisers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from demo.synth import Room, Utterance, Voice, join, synthesize, write_wav

CLEAR = Room(gain_db=(-8.0, -3.0), snr_db=(25.0, 35.0), noisy=0.5)
SLT = Voice("flite", "slt")
SINGLE = [
    ("commands", "open yellow close black start left", Voice("espeak-ng", "en-us+f3")),
    ("callsign", "delta kilo seven three stop", SLT),
    ("monday", "monday red north help", Voice("espeak-ng", "en+m1")),
    ("digits", "four two zero nine one five", Voice("espeak-ng", "en+f4")),
    ("charlie", "charlie echo oscar green", Voice("flite", "awb")),
    ("german-digits", "drei sieben null acht fünf", Voice("espeak-ng", "de+m2", "de")),
    ("spanish-digits", "uno cuatro siete nueve dos", Voice("espeak-ng", "es+f2", "es")),
]
LONG = [
    "bravo november two",
    "start right up",
    "repeat nine yellow",
    "white hotel blue",
    "friday play papa",
    "south six one eight",
    "cancel west down",
    "zulu thursday zero",
    "victor tango stop",
]


def flac(one: Utterance, path: Path) -> None:
    """Write an utterance as FLAC."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder, "speech.wav")
        write_wav(wav, one.samples)
        command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-y", "-i", str(wav), "-map_metadata", "-1", str(path)]
        subprocess.run(command, check=True)


def main() -> None:
    """Write all samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=2024)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    made = [(name, synthesize(text.split(), voice, rng, room=CLEAR)) for name, text, voice in SINGLE]
    parts = [
        synthesize(text.split(), SLT if i % 2 else Voice("espeak-ng", "en-us+m1"), rng, room=CLEAR)
        for i, text in enumerate(LONG)
    ]
    made.append(("long-conversation", join(parts, rng, (0.6, 1.8))))
    manifest = []
    for name, one in made:
        flac(one, args.out / f"{name}.flac")
        words = [{"word": word, "start": start, "end": end} for word, start, end in one.words]
        about = {"file": f"{name}.flac", "language": one.language, "text": one.text}
        manifest.append({**about, "seconds": round(len(one.samples) / 16000, 2), "voice": one.voice, "words": words})
    text = json.dumps(manifest, ensure_ascii=False, indent=1)
    (args.out / "manifest.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
