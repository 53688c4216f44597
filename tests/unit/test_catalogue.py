"""Which models may be named, and where each is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.catalogue import DEMO_MODEL, MODELS, hub_cache, local_path, worker_setup
from app.settings import Settings


def place(folder: Path, *, complete: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.bin").touch()
    if complete:
        (folder / "config.json").touch()
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", models_dir=tmp_path / "models")


def test_a_model_that_is_nowhere_is_none(settings: Settings) -> None:
    assert [name for name in MODELS if name != "demo" and local_path(name, settings)] == []


@pytest.mark.parametrize("folder", ["models/tiny", "models/faster-whisper-tiny"])
def test_a_model_is_found_in_the_models_folder(tmp_path: Path, settings: Settings, folder: str) -> None:
    assert local_path("tiny", settings) is None
    placed = place(tmp_path / folder)
    assert local_path("tiny", settings) == placed
    assert local_path("tiny.en", settings) is None


def test_a_model_is_found_in_the_hub_cache(settings: Settings) -> None:
    snapshot = hub_cache(settings) / "models--Systran--faster-whisper-base.en" / "snapshots" / "0a1b"
    place(snapshot)
    assert local_path("base.en", settings) == snapshot
    assert local_path("base", settings) is None


def test_the_models_folder_comes_before_the_cache(tmp_path: Path, settings: Settings) -> None:
    place(hub_cache(settings) / "models--Systran--faster-whisper-tiny" / "snapshots" / "0a1b")
    mine = place(tmp_path / "models" / "tiny")
    assert local_path("tiny", settings) == mine


def test_half_a_model_is_none(tmp_path: Path, settings: Settings) -> None:
    place(tmp_path / "models" / "tiny", complete=False)
    assert local_path("tiny", settings) is None


def test_turbo_has_two_names_and_one_repository(settings: Settings) -> None:
    assert MODELS["turbo"].repo == MODELS["large-v3-turbo"].repo
    place(hub_cache(settings) / "models--mobiuslabsgmbh--faster-whisper-large-v3-turbo" / "snapshots" / "0a1b")
    assert local_path("turbo", settings) == local_path("large-v3-turbo", settings)


def test_the_demo_is_only_looked_for_where_it_ships(tmp_path: Path) -> None:
    found = local_path("demo", Settings(data_dir=tmp_path, models_dir=None))
    assert found in {None, DEMO_MODEL}


def test_every_model_is_described() -> None:
    assert len(MODELS) == 14
    for name, spec in MODELS.items():
        assert spec.name == name
        assert spec.ram_bytes > 0
        assert (spec.repo is None) == (name == "demo")
        assert spec.english_only == name.endswith(".en")
        assert "en" in spec.languages or spec.languages == ("multilingual",)


@pytest.mark.parametrize(("given", "measured"), [({}, True), ({"runners": 1}, False), ({"threads": 1}, False)])
def test_calls_and_threads_are_measured_unless_one_of_them_is_set(given: dict[str, int], measured: bool) -> None:
    settings = Settings(workers_per_model=1, **given)
    assert worker_setup(settings, "demo").cores == (settings.cores if measured else 0)
