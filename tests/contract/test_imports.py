"""The imports inside ``app`` point one way, and heavy or framework packages stay in their rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "app").rglob("*.py")) + [path for path in [ROOT / "main.py"] if path.exists()]

LEAVES = {
    "jobs",
    "work",
    "formats",
    "languages",
    "catalogue",
    "errors",
    "settings",
    "logs",
    "lock",
    "durable",
    "rounds",
    "cgroups",
    "cpu",
    "heap",
}
ROOMS = {
    "errors": set(),
    "settings": {"cgroups"},
    "cgroups": set(),
    "cpu": set(),
    "heap": set(),
    "logs": set(),
    "lock": {"errors"},
    "rounds": set(),
    "durable": {"errors"},
    "jobs": set(),
    "work": {"jobs"},
    "languages": {"errors"},
    "catalogue": {"settings", "errors", "work"},
    "formats": {"languages", "jobs", "errors"},
    "migrations": set(),
    "database": {"errors", "settings", "migrations"},
    "admission": LEAVES,
    "store": LEAVES | {"database"},
    "keys": LEAVES | {"database", "store"},
    "measurements": LEAVES | {"database"},
    "pool": LEAVES,
    "media": LEAVES,
    "engine": LEAVES,
    "desk": LEAVES | {"admission", "measurements", "media", "pool", "store"},
    "intake": LEAVES | {"desk", "admission", "media"},
    "runs": LEAVES | {"desk", "intake", "admission", "store", "pool", "media"},
    "background": LEAVES | {"runs", "desk", "intake", "admission", "store", "media"},
    "retention": LEAVES | {"store", "media", "batches_store"},
    "webhooks": LEAVES | {"store", "media"},
    "batches_store": LEAVES | {"database", "store"},
    "feeder": LEAVES | {"batches_store", "background", "desk", "admission", "store", "keys"},
    "batches": LEAVES | {"batches_store", "feeder", "background", "webhooks", "desk", "admission", "store", "media"},
    "uploads": LEAVES | {"desk", "intake", "admission", "media"},
    "service": LEAVES
    | {
        "runs",
        "background",
        "batches",
        "retention",
        "webhooks",
        "uploads",
        "desk",
        "intake",
        "admission",
        "store",
        "keys",
        "measurements",
        "pool",
        "media",
    },
    "cluster": LEAVES
    | {"build", "service", "runs", "desk", "intake", "admission", "store", "database", "measurements", "pool", "media"},
    "build": LEAVES | {"service", "desk", "measurements", "store", "pool", "cluster"},
    "http": LEAVES
    | {
        "build",
        "service",
        "runs",
        "background",
        "batches",
        "uploads",
        "desk",
        "intake",
        "admission",
        "store",
        "keys",
        "measurements",
        "pool",
        "media",
    },
    "welcome": LEAVES | {"store", "keys", "media"},
    "main": LEAVES | {"http", "service", "welcome"},
}
ONLY_IN = {
    "engine": {"torch", "whisperx", "ctranslate2", "faster_whisper", "transformers", "torchaudio", "pyannote"},
    "http": {"fastapi", "starlette", "uvicorn"},
    "cluster": {"celery", "kombu", "redis", "fsspec"},
}


def room_of(path: Path) -> str:
    if not path.is_relative_to(ROOT / "app"):
        return path.stem
    return path.relative_to(ROOT / "app").parts[0].removesuffix(".py")


def imported(source: str, package: tuple[str, ...]) -> set[str]:
    """Every module that ``source`` imports, as dotted names; ``package`` is what a leading dot stands for."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def wrong_arrows(room: str, names: set[str]) -> set[str]:
    allowed = ROOMS.get(room, set()) | {room}
    inner = {name for name in names if name.startswith("app.") and name.split(".")[1] not in allowed}
    outer = {name for home, tops in ONLY_IN.items() if room != home for name in names if name.split(".")[0] in tops}
    return inner | {name for name in outer if not (room == "main" and name.startswith("uvicorn"))}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[:-1]
    assert wrong_arrows(room_of(path), imported(path.read_text("utf-8"), package)) == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_stays_under_three_hundred_lines(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) < 300


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("pool", "from app.engine import worker"),
        ("pool", "def late():\n    import app.engine.worker"),
        ("pool", "from ..engine import worker"),
        ("pool", "from app import engine"),
        ("formats", "from app.store import Store"),
        ("store", "from app.http.app import create_app"),
        ("service", "import torch.nn"),
        ("service", "from starlette.requests import Request"),
        ("newcomer", "from app.errors import StenopoolError"),
    ],
)
def test_the_walk_sees_a_wrong_arrow(room: str, source: str) -> None:
    assert wrong_arrows(room, imported(source, ("app", room)))


def test_the_walk_lets_a_right_arrow_pass() -> None:
    assert not wrong_arrows("http", imported("from fastapi import FastAPI\nfrom app.service import Service", ("app", "http")))
    assert not wrong_arrows("main", imported("import uvicorn\nfrom app.http.app import create_app", ()))
