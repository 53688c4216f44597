"""GPUs, faked at the boundary only: what CTranslate2 and torch say of devices, and what the model's constructor gets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from app.errors import ModelUnavailable
from app.settings import PROJECT_ROOT as ROOT
from app.work import DeviceLost, DeviceMemory, WorkerSetup
from tests.unit.engine.conftest import SETUP

pytestmark = pytest.mark.filterwarnings("ignore")

GB = 1_000_000_000
ON_GPU = replace(SETUP, device="cuda:1", align_device="same", batch_size=16, runners=2)


@dataclass
class Made:
    """What stands in for a pipeline."""

    setup: WorkerSetup
    device_memory: DeviceMemory | None = None


@pytest.fixture
def gpus(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with two GPUs of 24 GB; ``free`` is what is asked of one after the other, ``current`` torch's own."""
    machine = SimpleNamespace(free=[20 * GB, 17 * GB], current=None)
    cuda = engine.devices.torch.cuda
    monkeypatch.setattr(engine.devices.ctranslate2, "get_cuda_device_count", lambda: 2)
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cuda, "set_device", lambda index: setattr(machine, "current", index))
    monkeypatch.setattr(cuda, "mem_get_info", lambda index: (machine.free.pop(0), 24 * GB))
    return machine


def test_a_listed_gpu_reaches_ctranslate2_as_an_index_and_torch_as_a_name(
    engine: SimpleNamespace, gpus: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: dict[str, Any] = {}
    monkeypatch.setattr(engine.models, "WindowModel", lambda path, **how: got.update(how) or path)
    _, device, _ = engine.models.load(replace(ON_GPU, cores=4))  # nothing is measured there
    assert (got["device"], got["device_index"], got["compute_type"]) == ("cuda", 1, "float16")
    assert device == "cuda:1"
    assert str(engine.devices.torch.device(engine.devices.align_device("same", device))) == "cuda:1"
    engine.models.load(replace(SETUP, device="cpu"))
    assert (got["device"], got["device_index"], got["compute_type"]) == ("cpu", 0, "int8")


@pytest.mark.parametrize(
    ("wanted", "own", "found"),
    [
        ("same", "cuda:1", "cuda:1"),
        ("cuda", "cuda:1", "cuda:1"),
        ("cpu", "cuda:1", "cpu"),
        ("same", "cpu", "cpu"),  # the GPUs are others'
        ("cuda", "cpu", "cuda"),
        ("auto", "cpu", "cuda"),  # no list: as ever
        ("auto", "cuda", "cuda"),
    ],
)
def test_alignment_stays_on_the_workers_own_device(
    engine: SimpleNamespace, gpus: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, wanted: str, own: str, found: str
) -> None:
    monkeypatch.setattr(engine.devices.torch.backends.mps, "is_available", lambda: False)
    assert engine.devices.align_device(wanted, own) == found


def test_gpu_beyond_the_last_one_is_refused_and_named(engine: SimpleNamespace, gpus: SimpleNamespace) -> None:
    for choose in (engine.devices.asr_device, lambda device: engine.devices.align_device("same", device)):
        with pytest.raises(ModelUnavailable, match="'cuda") as error:
            choose("cuda:2")
        assert "STENOPOOL_DEVICES" in error.value.hint


def test_worker_says_what_was_free_and_what_it_takes_whichever_is_more(engine: SimpleNamespace, gpus: SimpleNamespace) -> None:
    made = engine.gpu.on_its_device(Made, ON_GPU)
    assert made.device_memory == DeviceMemory(24 * GB, 20 * GB, 3 * GB)
    assert (gpus.current, made.setup) == (1, ON_GPU)
    gpus.free = [20 * GB, 17 * GB]
    made = engine.gpu.on_its_device(Made, replace(ON_GPU, gpu_fixed_bytes=5 * GB))
    assert made.device_memory.taken == 5 * GB


def test_batches_shrink_to_what_is_free_on_the_device_now(engine: SimpleNamespace, gpus: SimpleNamespace) -> None:
    gpus.free = [10 * GB, 6 * GB]
    made = engine.gpu.on_its_device(Made, replace(ON_GPU, gpu_fixed_bytes=4 * GB, gpu_window_bytes=GB // 2))
    assert (made.setup.batch_size, made.setup.runners) == (4, 2)
    assert made.device_memory.taken == 8 * GB


def test_model_that_does_not_fit_is_refused_before_a_byte_of_it_is_loaded(
    engine: SimpleNamespace, gpus: SimpleNamespace
) -> None:
    gpus.free = [3 * GB]
    with pytest.raises(ModelUnavailable, match=r"takes 4.5 GB of cuda:1, where 3.0 GB are free") as error:
        engine.gpu.on_its_device(pytest.fail, replace(ON_GPU, gpu_fixed_bytes=4 * GB, gpu_window_bytes=GB // 2))
    assert "int8_float16" in error.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("CUDA failed with error out of memory", "ran out of memory"),
        ("CUDA failed with error unspecified launch failure", "failed while it loaded"),
        ("Library libcublas.so.12 is not found or cannot be loaded", "failed while it loaded"),
    ],
)
def test_device_that_fails_during_set_up_is_a_clear_error_without_its_text(
    engine: SimpleNamespace, gpus: SimpleNamespace, text: str, said: str
) -> None:
    def fails(setup: WorkerSetup) -> Made:
        raise RuntimeError(text)

    with pytest.raises(ModelUnavailable, match=said) as error:
        engine.gpu.on_its_device(fails, ON_GPU)
    assert "'cuda:1'" in error.value.message
    assert text not in error.value.message + error.value.hint


def test_worker_on_a_cpu_asks_no_gpu(engine: SimpleNamespace, gpus: SimpleNamespace) -> None:
    made = engine.gpu.on_its_device(Made, SETUP)
    assert (made.device_memory, gpus.current, len(gpus.free)) == (None, None, 2)


# -- failures at work


def of_at_most(windows: int, text: str) -> Any:
    """A batch that fails above so many windows; each answers with its own name."""

    def run(batch: Sequence[str]) -> list[str]:
        if len(batch) > windows:
            raise RuntimeError(text)
        return [f"said {one}" for one in batch]

    return run


@pytest.mark.parametrize("text", ["CUDA failed with error out of memory", "CUDA out of memory. Tried to allocate 2.00 GiB"])
def test_batch_that_the_device_has_no_memory_for_is_done_in_parts_in_its_order(engine: SimpleNamespace, text: str) -> None:
    batch = list("abcdefg")
    assert engine.gpu.halving(of_at_most(2, text), batch) == [f"said {one}" for one in batch]
    with pytest.raises(RuntimeError, match="memory"):
        engine.gpu.halving(of_at_most(0, text), batch)


def test_batch_that_fails_for_another_reason_is_not_tried_in_parts(engine: SimpleNamespace) -> None:
    with pytest.raises(RuntimeError, match="bad token"):
        engine.gpu.halving(of_at_most(2, "bad token"), list("abc"))


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("CUDA failed with error unspecified launch failure", True),
        ("cuBLAS failed with status CUBLAS_STATUS_EXECUTION_FAILED", True),
        ("CUDA error: device-side assert triggered", True),
        ("CUDA failed with error out of memory", False),
        ("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED", False),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", False),
        ("bad token", False),
    ],
)
def test_error_of_a_device_that_works_no_more_is_told_from_one_of_the_input(
    engine: SimpleNamespace, pipeline: Any, task: Any, monkeypatch: pytest.MonkeyPatch, text: str, lost: bool
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(engine.pipeline, "recognise", fails)
    with pytest.raises(DeviceLost if lost else RuntimeError, match=text.split(".")[0]):
        pipeline.transcribe(task(bytes(32_000), language="en"), lambda *_: None, lambda: False)


def test_cublas_is_found_by_name_in_a_process_that_has_not_imported_torch() -> None:
    opened = "import ctypes; ctypes.CDLL('libcublas.so.12')"
    if find_spec("nvidia") is None or find_spec("nvidia.cublas") is None:
        pytest.skip("no CUDA build of torch here")
    if python(opened).returncode == 0:
        pytest.skip("the linker knows cuBLAS here")
    room = str(ROOT / "app" / "engine" / "cublas.py")  # the package around it imports torch
    found = python(
        f"import runpy; runpy.run_path({room!r})['preload'](); {opened}; import sys; assert 'torch' not in sys.modules"
    )
    assert found.returncode == 0, found.stderr


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
