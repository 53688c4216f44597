"""Train the CTC aligner.

    python -m demo.train_aligner --bank BANK --out FOLDER --minutes 12

WhisperX's alignment lets a character take one frame and gives all other frames to the blank, and takes a word's start
from the frame of its first character. So the target of every frame is known: the first character where the word
begins, the last where it ends, the others evenly between, "|" in the gap, and blanks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset
from transformers import Wav2Vec2ForCTC

from demo.features import Bank, all_words
from demo.model import ALIGNER_TOKENS, TRAINED_LANGUAGES, aligner_config
from demo.synth import Room, Samples, noise
from demo.train_asr import rate

FRAME = 320
EARLY = 160  # WhisperX spreads the outputs over the whole segment, which makes all but the first a little late
IGNORE = -100


def frame_of(sample: float) -> int:
    """The output that stands for a sample."""
    return max(0, round((sample - EARLY) / FRAME))


def frame_count(samples: int) -> int:
    """How many outputs the convolutions give."""
    for kernel, stride in zip(aligner_config().conv_kernel, aligner_config().conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


class Speech(IterableDataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """Endless batches of utterances put together from the bank's words: samples, frame targets, characters."""

    def __init__(self, bank: Bank, seed: int, size: int = 12) -> None:
        self.bank, self.seed, self.size = bank, seed, size
        self.speakers: dict[str, dict[int, list[int]]] = {code: {} for code in TRAINED_LANGUAGES}
        for clip, speaker in enumerate(bank.speaker):
            if speaker >= 0:
                self.speakers[str(bank.language[clip])].setdefault(int(speaker), []).append(clip)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        self.rng = np.random.default_rng(self.seed)
        kinds = Room().kinds
        self.noises = [noise(kinds[i % len(kinds)], 160000, self.rng) for i in range(20)]
        while True:
            made = [self.utterance() for _ in range(self.size)]
            count = max(len(samples) for samples, _, _ in made) + int(self.rng.uniform(0, 4000))
            sound = np.zeros((self.size, count), np.float32)
            frames = np.zeros((self.size, frame_count(count)), np.int64)
            longest = max(len(chars) for _, _, chars in made)
            targets = np.zeros((self.size, longest), np.int64)
            for row, (samples, marks, chars) in enumerate(made):
                sound[row, : len(samples)] = samples
                for at, char in marks:
                    frames[row, min(at, frames.shape[1] - 1)] = char
                targets[row, : len(chars)] = chars
            yield torch.from_numpy(sound), torch.from_numpy(frames), torch.from_numpy(targets)

    def utterance(self) -> tuple[Samples, list[tuple[int, int]], list[int]]:
        """Samples, (frame, character) marks and the characters in order."""
        rng = self.rng
        language = str(rng.choice(["de", "es"])) if rng.random() < 0.15 else "en"
        speakers = self.speakers[language]
        clips = speakers[int(rng.choice(list(speakers)))]
        pieces: list[Samples] = [np.zeros(int(rng.uniform(0, 8000)), np.float32)]
        marks: list[tuple[int, int]] = []
        chars: list[int] = []
        place, widest = len(pieces[0]), rng.choice([0.1, 0.2, 0.4, 0.8])
        for clip in rng.choice(clips, int(rng.integers(1, 9))):
            samples = self.bank.audio(int(clip)) * np.float32(10 ** rng.uniform(-0.15, 0.15))
            word = [ALIGNER_TOKENS.index(char) for char in all_words()[self.bank.text[clip, 0]][1]]
            first, last = frame_of(place), max(frame_of(place + len(samples)) - 1, frame_of(place))
            if chars:
                marks.append((max(first - 1, marks[-1][0] + 1) if first - marks[-1][0] < 3 else marks[-1][0] + 2, 4))
                chars.append(4)
            marks += [(round(at), char) for at, char in zip(np.linspace(first, last, len(word)), word, strict=True)]
            chars += word
            gap = np.zeros(int(rng.uniform(0.03, widest) * 16000), np.float32)
            pieces += [samples, gap]
            place += len(samples) + len(gap)
        pieces.append(np.zeros(int(rng.uniform(0, 8000)), np.float32))
        return self.disturb(np.concatenate(pieces)), marks, chars

    def disturb(self, samples: Samples) -> Samples:
        """Level, colour and noise."""
        rng = self.rng
        speech: NDArray[np.float32] = samples / (np.abs(samples).max() + 1e-6)
        if rng.random() < 0.4:
            tilt = rng.uniform(-0.6, 0.6)
            speech[1:] += np.float32(tilt) * speech[:-1].copy()
        if rng.random() < 0.65:
            level = np.sqrt(np.mean(speech[np.abs(speech) > 0.01] ** 2)) * 10 ** (-rng.uniform(10, 45) / 20)
            start = int(rng.integers(160000))
            sound = self.noises[rng.integers(len(self.noises))].take(range(start, start + len(speech)), mode="wrap")
            speech = speech + np.float32(level) * sound
        return np.asarray(speech * 10 ** (rng.uniform(-30, 0) / 20), dtype=np.float32)


def main() -> None:
    """Train for a number of minutes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model = Wav2Vec2ForCTC(aligner_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    weights = torch.full((len(ALIGNER_TOKENS),), 1.0)
    weights[0] = 0.5
    started, seconds = time.time(), args.minutes * 60
    loader = DataLoader(Speech(Bank.load(args.bank), args.seed), batch_size=None, num_workers=1, prefetch_factor=4)
    framed, joint, saved = 0.0, 0.0, started
    for steps, (sound, frames, targets) in enumerate(loader, 1):
        progress = (time.time() - started) / seconds
        for group in optimizer.param_groups:
            group["lr"] = rate(progress, steps, args.lr)
        log = model(sound).logits.log_softmax(-1)
        frame = F.nll_loss(log.flatten(0, 1), frames.flatten(), weights, ignore_index=IGNORE)
        sizes = (targets > 0).sum(1)
        full = torch.full((len(log),), log.shape[1])
        ctc = F.ctc_loss(log.transpose(0, 1), targets, full, sizes, zero_infinity=True)
        optimizer.zero_grad(set_to_none=True)
        (frame + 0.1 * ctc).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        framed, joint = framed + frame.item(), joint + ctc.item()
        if steps % 50 == 0:
            spent = time.time() - started
            print(f"{spent:6.0f} s  step {steps}  frame {framed / 50:.3f}  ctc {joint / 50:.3f}", flush=True)
            framed, joint = 0.0, 0.0
        if progress >= 1 or time.time() - saved > 120:
            torch.save({"model": model.state_dict(), "steps": steps}, args.out / "part.pt")
            (args.out / "part.pt").replace(args.out / "last.pt")
            saved = time.time()
        if progress >= 1:
            break


if __name__ == "__main__":
    main()
