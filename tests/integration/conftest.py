"""One real server with the demo model for all integration tests, and the samples that ship with the project."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.server import ROOT, Server, running

SAMPLES = ROOT / "demo" / "samples"


@dataclass(frozen=True)
class Sample:
    """A bundled recording and what is said in it."""

    path: Path
    language: str
    text: str
    words: tuple[tuple[str, float, float], ...]


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    return [
        Sample(SAMPLES / s["file"], s["language"], s["text"], tuple((w["word"], w["start"], w["end"]) for w in s["words"]))
        for s in json.loads((SAMPLES / "manifest.json").read_text())
    ]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server")) as started:
        yield started
