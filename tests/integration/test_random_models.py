"""The random-weight models that benchmarks use are real ones to the engine: they load, answer and always answer the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import pytest

from tests.integration.server import ROOT

TOKENS = 8

SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path

from benchmarks.random_models import write
import app.engine.preload
from app.engine.pipeline import create
from app.jobs import TranscribeOptions, VadOptions
from app.catalogue import worker_setup
from app.settings import Settings
from app.work import Task

folder, tokens = Path(sys.argv[1]), int(sys.argv[2])
write("tiny", folder, "int8", tokens)
setup = worker_setup(Settings(data_dir=folder / "data", models_dir=folder, offline=True, streams=1, threads=1), "tiny")
options = TranscribeOptions("tiny", vad=VadOptions(method="none", chunk_s=10.0))
task = Task("job", 1, str(folder / "speech.pcm"), "", options)
results = []
for batch in (1, 4):
    engine = create(replace(setup, batch_size=batch))
    results += [engine.transcribe(task, lambda *_: None, lambda: False) for _ in range(2)]
for result in results:
    del result["spent"]  # the seconds differ
print(json.dumps(results))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 33 s of speech in it, as the server decodes it."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error"]
    source = ROOT / "demo" / "samples" / "long-conversation.flac"
    form = ["-f", "s16le", "-ac", "1", "-ar", "16000", str(tmp_path / "speech.pcm")]
    subprocess.run([*command, "-i", source, *form], check=True)
    return tmp_path


def test_a_random_tiny_says_what_it_was_told_in_any_batch(folder: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), str(TOKENS)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    alone, *others = json.loads(done.stdout.splitlines()[-1])
    assert others == [alone] * 3
    assert (alone["language"], len(alone["segments"])) == ("en", 4)
    assert {len(segment["tokens"]) for segment in alone["segments"]} == {TOKENS}
    assert {segment["text"] for segment in alone["segments"]} == {" The quick brown fox jumps over the lazy"}
    assert {file.name for file in (folder / "tiny").iterdir()} == {
        "model.bin",
        "config.json",
        "tokenizer.json",
        "vocabulary.json",
        "preprocessor_config.json",
    }
