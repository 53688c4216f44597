"""Loading models and choosing devices: every refusal says what is missing and what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.errors import ModelUnavailable
from tests.unit.engine.conftest import SETUP

pytestmark = pytest.mark.filterwarnings("ignore")

TINY = replace(SETUP, model="tiny", model_path=None, repo="Systran/faster-whisper-tiny")


def test_model_that_is_not_on_disk_offline_is_refused_at_once_naming_it_and_the_remedy(
    engine: SimpleNamespace, no_network: list[object]
) -> None:
    with pytest.raises(ModelUnavailable) as error:
        engine.models.load(TINY)
    assert "'tiny'" in error.value.message
    assert "STENOPOOL_OFFLINE" in error.value.message
    for remedy in ("STENOPOOL_MODELS_DIR/tiny", "model.bin", "model_size=demo"):
        assert remedy in error.value.hint
    assert no_network == []


def test_hub_that_cannot_be_reached_is_a_clear_error_without_its_text(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("https://hub/secret /var/cache")

    monkeypatch.setattr(engine.models, "download_model", unreachable)
    with pytest.raises(ModelUnavailable) as error:
        engine.models.load(replace(TINY, offline=False, hub_dir=str(tmp_path / "hub")))
    assert "could not be fetched" in error.value.message
    assert "secret" not in error.value.message + error.value.hint
    assert "/var/cache" not in error.value.message + error.value.hint


def test_fetched_model_goes_into_the_cache_of_the_server(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[object] = []

    def fetch(repo: str, cache_dir: str) -> str:
        seen.extend([repo, cache_dir])
        return str(tmp_path / "model")

    monkeypatch.setattr(engine.models, "download_model", fetch)
    found = engine.models.fetch(replace(TINY, offline=False, hub_dir=str(tmp_path / "hub")))
    assert found == str(tmp_path / "model")
    assert seen == [TINY.repo, str(tmp_path / "hub")]


@pytest.mark.parametrize("damage", ["empty", "garbage", "gone"])
def test_damaged_model_is_a_clear_error_without_its_path(engine: SimpleNamespace, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    if damage != "gone":
        folder.mkdir()
    if damage == "garbage":
        for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.json"):
            (folder / name).write_bytes(b"{}")
    with pytest.raises(ModelUnavailable) as error:
        engine.models.load(replace(SETUP, model_path=str(folder)))
    assert "could not be loaded" in error.value.message
    assert str(tmp_path) not in error.value.message + error.value.hint


def test_compute_type_that_does_not_exist_is_a_clear_error(engine: SimpleNamespace) -> None:
    with pytest.raises(ModelUnavailable, match="could not be loaded"):
        engine.models.load(replace(SETUP, compute_type="int3"))


def machine(engine: SimpleNamespace, patch: pytest.MonkeyPatch, *, cuda: bool, mps: bool) -> None:
    patch.setattr(engine.devices.ctranslate2, "get_cuda_device_count", lambda: int(cuda))
    patch.setattr(engine.devices.torch.cuda, "is_available", lambda: cuda)
    patch.setattr(engine.devices.torch.cuda, "device_count", lambda: int(cuda))
    patch.setattr(engine.devices.torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "asr", "align"),
    [(False, False, "cpu", "cpu"), (True, False, "cuda", "cuda"), (False, True, "cpu", "mps"), (True, True, "cuda", "cuda")],
)
def test_auto_takes_the_fastest_device_that_is_there_and_recognition_never_mps(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, asr: str, align: str
) -> None:
    machine(engine, monkeypatch, cuda=cuda, mps=mps)
    assert (engine.devices.asr_device("auto"), engine.devices.align_device("auto")) == (asr, align)
    assert (engine.devices.asr_device("cpu"), engine.devices.align_device("cpu")) == ("cpu", "cpu")


def test_device_that_is_not_there_is_refused_not_replaced(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(engine, monkeypatch, cuda=False, mps=False)
    for choose, wanted in (
        (engine.devices.asr_device, "cuda"),
        (engine.devices.align_device, "cuda"),
        (engine.devices.align_device, "mps"),
        (engine.devices.asr_device, "mps"),
    ):
        with pytest.raises(ModelUnavailable) as error:
            choose(wanted)
        assert repr(wanted) in error.value.message
        assert "STENOPOOL_DEVICE" in error.value.hint


def test_compute_type_is_int8_on_a_cpu_and_float16_on_cuda_unless_it_is_set(engine: SimpleNamespace) -> None:
    choose = engine.devices.compute_type
    assert (choose("auto", "cpu"), choose("auto", "cuda"), choose("float32", "cpu")) == ("int8", "float16", "float32")
