"""Aligners on disk: what the first worker made of one is all that the next ones need."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app import catalogue
from tests.unit.engine.conftest import SETUP, speech

pytestmark = pytest.mark.filterwarnings("ignore")

Make = Callable[[], Any]
SEGMENT = {"start": 0.0, "end": 2.0, "text": "alpha bravo"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "encoders"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(shutil.copytree(catalogue.DEMO_ALIGNER, tmp_path / "aligner"))


@pytest.fixture
def make(engine: SimpleNamespace, folder: Path, source: Path) -> Make:
    """Another worker's aligner."""
    setup = replace(SETUP, encoders_dir=str(folder), aligner_path=str(source))
    return lambda: engine.alignment.Aligner(setup, "cpu")


@pytest.fixture(scope="module")
def conversions() -> list[Any]:
    """The demo's aligner, converted once: that takes seconds, and all sources here are copies of it."""
    return []


@pytest.fixture
def loads(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, conversions: list[Any]) -> list[str]:
    """What was loaded with torch, which is slow here."""
    loaded: list[str] = []
    whisperx, emissions = engine.alignment.aligner.whisperx.alignment, engine.alignment.emissions
    right, convert = whisperx.load_align_model, emissions.convert

    def once(model: Any) -> Any:
        conversions[:] = conversions or [convert(model)]
        return conversions[0]

    monkeypatch.setattr(emissions, "convert", once)

    def load(*arguments: Any, **named: Any) -> Any:
        loaded.append(named["model_name"])
        return right(*arguments, **named)

    monkeypatch.setattr(whisperx, "load_align_model", load)
    monkeypatch.setattr(emissions, "_seconds", lambda run, audio: 0.0 if "OpenVino" in repr(run) else 1.0)
    return loaded


def aligned(aligner: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = aligner.align(speech(0)[:32_000], SEGMENT, "en")
    return found


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("aligner-*"))


def test_a_second_worker_loads_no_torch_model_and_says_the_same(make: Make, loads: list[str], folder: Path) -> None:
    first = aligned(make())
    assert first[0]["words"]
    assert len(loads) == len(kept(folder)) == 1
    second = make()
    assert aligned(second) == first
    assert len(loads) == 1
    assert next(iter(second._models.values())).emissions.runtime.startswith("openvino-int8")
    assert not list(folder.glob("loading-*"))


def test_where_torch_is_the_best_nothing_is_kept(
    engine: SimpleNamespace, make: Make, loads: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.alignment.emissions, "_seconds", lambda run, audio: 1.0)
    first = aligned(make())
    assert not kept(folder)
    assert aligned(make()) == first
    assert len(loads) == 2


def test_workers_with_other_numbers_of_runners_share_one(
    engine: SimpleNamespace, loads: list[str], folder: Path, source: Path
) -> None:
    for runners in (1, 2, 1):
        setup = replace(SETUP, encoders_dir=str(folder), aligner_path=str(source), runners=runners)
        aligned(engine.alignment.Aligner(setup, "cpu"))
    assert (len(loads), len(kept(folder))) == (1, 1)


@pytest.mark.parametrize("change", ["longer", "touched", "the same size and time"])
def test_an_aligner_that_was_replaced_is_converted_anew_and_the_old_one_deleted(
    make: Make, loads: list[str], folder: Path, source: Path, change: str
) -> None:
    aligned(make())
    before = kept(folder)
    file = source / "config.json"
    seen, content = file.stat(), file.read_bytes()
    if change == "longer":
        file.write_bytes(content + b" ")
    elif change == "touched":
        os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns + 1))
    else:
        file.write_bytes(content)
        os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    aligned(make())
    assert len(loads) == 2
    assert len(kept(folder)) == 1
    assert kept(folder) != before


def test_what_was_swapped_between_load_and_conversion_is_not_kept(
    make: Make, folder: Path, source: Path, loads: list[str]
) -> None:
    aligner = make()
    aligner._model("en")
    (source / "config.json").write_text((source / "config.json").read_text() + " ")
    aligned(aligner)
    assert not kept(folder)


def test_what_was_fetched_while_it_was_loaded_is_kept(
    engine: SimpleNamespace, make: Make, folder: Path, source: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whisperx = engine.alignment.aligner.whisperx.alignment
    right, away = whisperx.load_align_model, source.rename(source.with_name("on-the-hub"))

    def fetch(*arguments: Any, **named: Any) -> Any:
        if away.exists():
            away.rename(source)
        return right(*arguments, **named)

    monkeypatch.setattr(whisperx, "load_align_model", fetch)
    first = aligned(make())
    assert len(kept(folder)) == 1
    assert aligned(make()) == first
    assert len(loads) == 1


@pytest.mark.parametrize("damage", ["aligner.json", "encoder.xml", "transformer.bin"])
@pytest.mark.parametrize("content", [None, b"", b"{}", "one byte"])
def test_what_is_damaged_on_disk_is_made_again(
    make: Make, loads: list[str], folder: Path, damage: str, content: bytes | str | None
) -> None:
    first = aligned(make())
    (place,) = kept(folder)
    file = place / damage
    written = file.read_bytes()
    file.unlink()
    if content == "one byte":
        middle = len(written) // 2
        file.write_bytes(written[:middle] + bytes([written[middle] ^ 1]) + written[middle + 1 :])
    elif isinstance(content, bytes):
        file.write_bytes(content)
    assert aligned(make()) == first
    assert len(loads) == 2
    assert aligned(make()) == first
    assert len(loads) == 2


def test_what_cannot_be_compiled_any_more_is_made_again(
    engine: SimpleNamespace, make: Make, loads: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = aligned(make())
    tries: list[object] = []

    def refuse(*given: object) -> None:
        tries.append(given)
        raise RuntimeError("an instruction that this processor does not know")

    with monkeypatch.context() as patch:
        patch.setattr(engine.alignment.emissions._OpenVino, "run", refuse)
        aligned(make())  # on torch
    assert (len(loads), bool(tries)) == (2, True)
    assert aligned(make()) == first


def test_an_error_while_it_is_kept_costs_the_job_nothing(
    engine: SimpleNamespace, make: Make, loads: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = aligned(make())
    shutil.rmtree(folder)
    monkeypatch.setattr(engine.alignment.kept.openvino, "save_model", lambda *_, **__: [][0])
    aligner = make()
    assert aligned(aligner) == aligned(aligner) == expected
    assert not kept(folder)
    assert not list(folder.glob("loading-*"))


def test_without_room_on_the_disk_nothing_is_kept_and_the_words_are_right(
    engine: SimpleNamespace, make: Make, loads: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = aligned(engine.alignment.Aligner(SETUP, "cpu"))
    monkeypatch.setattr(engine.encoders.cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert aligned(make()) == expected
    assert not kept(folder)


def test_two_workers_that_convert_at_the_same_time_keep_one(
    engine: SimpleNamespace, make: Make, loads: list[str], folder: Path
) -> None:
    both = [make(), make()]
    for one in both:
        one._model("en")
    words = [aligned(one) for one in both]
    assert words[0] == words[1]
    assert len(kept(folder)) == 1
    assert not list(folder.glob("loading-*"))


def test_on_a_gpu_nothing_is_kept_or_looked_for(
    engine: SimpleNamespace, make: Make, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whisperx = engine.alignment.aligner.whisperx.alignment
    right = whisperx.load_align_model
    monkeypatch.setattr(whisperx, "load_align_model", lambda language, device, **named: right(language, "cpu", **named))
    monkeypatch.setattr(engine.alignment.aligner, "Shelf", lambda *_: pytest.fail("it was"))
    aligner = make()
    aligner._device = "cuda:0"
    assert aligner._model("en").labels.columns
    assert len(loads) == 1


def test_every_kind_of_source_is_looked_for_where_whisperx_puts_it(engine: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "align-en").mkdir()
    setup = replace(SETUP, aligner_path=None, offline=False, hub_dir=str(tmp_path / "hub"))
    hub = engine.alignment.Aligner(setup, "cpu")
    _, _, local = engine.alignment.Aligner(replace(setup, models_dir=str(tmp_path)), "cpu")._source("en")
    (_, _, english), (_, _, japanese) = hub._source("en"), hub._source("ja")
    assert local == tmp_path / "align-en"
    assert english.parent == tmp_path / "hub"
    assert english.suffix in (".pt", ".pth")
    assert japanese.parent.parent == tmp_path / "hub"
    assert japanese.parent.name.startswith("models--")
