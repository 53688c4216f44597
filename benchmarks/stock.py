"""Stock WhisperX in a process of its own: what :mod:`benchmarks.vs_whisperx` compares with. Started by :mod:`benchmarks.sides`.

``whisperx.load_model`` with its defaults (pyannote finds the speech; float32 on a CPU) on all cores, then ``transcribe`` in
batches of 8, then ``align``: what its README does. Everything stays loaded. Differences from the defaults: the sentence
splitter is NLTK's without the parameters that ``align`` fetches from the network, and windows are as long as the service's
where a model does not do 30 s well.
"""

from __future__ import annotations

import logging
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import whisperx
import whisperx.alignment
from nltk.tokenize.punkt import PunktSentenceTokenizer

from benchmarks.ratios import cores
from benchmarks.sides import answer

BATCH = 8

logging.getLogger("whisperx").setLevel(logging.ERROR)
whisperx.alignment.nltk_load = lambda *_: PunktSentenceTokenizer()


class Stock:
    """One pipeline and one aligner, both on the CPU; never used by two threads."""

    def __init__(self, model: str, chunk_s: float, aligner: str | None) -> None:
        self._asr = whisperx.load_model(model, "cpu", threads=cores(), local_files_only=True)
        self._chunk_s = int(chunk_s)
        self._aligner = whisperx.load_align_model("en", "cpu", model_name=aligner) if aligner else None

    def run(self, files: list[str], language: str | None, words: bool) -> dict[str, Any]:
        """One file after the other: seconds of ``transcribe`` and of ``align`` in all, window texts and words of each file."""
        spent = {"asr_s": 0.0, "align_s": 0.0}
        texts, counts = [], []
        for file in files:
            began = time.perf_counter()
            audio = np.fromfile(file, "<i2").astype(np.float32) / 32768
            found = self._asr.transcribe(audio, batch_size=BATCH, language=language, chunk_size=self._chunk_s)
            spent["asr_s"] += time.perf_counter() - began
            texts.append([segment["text"] for segment in found["segments"]])
            if words:
                assert self._aligner is not None
                began = time.perf_counter()
                aligned = whisperx.align(found["segments"], *self._aligner, audio, "cpu")
                spent["align_s"] += time.perf_counter() - began
                counts.append(len(aligned["word_segments"]))
        return {**spent, "texts": texts, "words": counts}


def main() -> None:
    """Answer over the pipe whose descriptor is the first argument, until it is closed."""
    pipe = Connection(int(sys.argv[1]))
    setup = pipe.recv()
    answer(pipe, lambda: Stock(**setup))


if __name__ == "__main__":
    main()
