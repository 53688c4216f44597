"""Ends: of a client, of the server by SIGTERM, of the server by SIGKILL."""

from __future__ import annotations

import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from benchmarks.accuracy import utterances, wav_bytes
from demo.synth import join
from tests.integration.conftest import Sample
from tests.integration.server import Server, running, still_there, stop, title

pytestmark = pytest.mark.skipif(
    not (shutil.which("espeak-ng") and shutil.which("flite")), reason="espeak-ng and flite speak the long recording"
)


@pytest.fixture(scope="module")
def long_recording() -> bytes:
    """Some minutes of speech: long enough to be interrupted."""
    return wav_bytes(join(list(utterances(40, seed=5)) * 3, np.random.default_rng(0)))


def is_at_work(server: Server) -> bool:
    return bool(server.client.get("/capacity").json()["cpu"]["running"])


def test_hang_up_frees_the_place_and_sigterm_lets_running_work_finish(
    tmp_path: Path, samples: list[Sample], long_recording: bytes
) -> None:
    settings = {"MAX_CONCURRENT_TRANSCRIPTIONS": "1", "OVERLOAD_POLICY": "reject", "STENOPOOL_SHUTDOWN_GRACE_S": "60"}
    with running(tmp_path, **settings) as server, ThreadPoolExecutor(1) as pool:
        with pytest.raises(httpx.ReadTimeout):
            server.client.post(
                "/transcribe?model_size=demo&word_timestamps=true",
                files={"file": long_recording},
                timeout=httpx.Timeout(60, read=1.5),
            )
        short = samples[0].path.read_bytes()
        began = time.monotonic()
        while (answer := server.client.post("/transcribe?model_size=demo", files={"file": short})).status_code == 429:
            assert answer.json()["error"]["code"] == "too_many_active"
            assert 1 <= int(answer.headers["retry-after"]) <= 120
            assert time.monotonic() - began < 30
            time.sleep(0.05)
        assert answer.status_code == 200
        assert not list((server.data / "jobs").iterdir())

        late = pool.submit(server.client.post, "/transcribe?model_size=demo", files={"file": long_recording})
        while not is_at_work(server) and not late.done():
            time.sleep(0.005)
        stop(server.process, timeout_s=60)
        assert late.result().status_code == 200


def test_sigkill_of_the_server_leaves_no_process_behind(tmp_path: Path, long_recording: bytes) -> None:
    with running(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        running_job = pool.submit(server.client.post, "/transcribe?model_size=demo", files={"file": long_recording})
        while not is_at_work(server):
            assert not running_job.done()
            time.sleep(0.005)
        family = psutil.Process(server.process.pid).children(recursive=True)
        assert any("worker" in title(child) for child in family)
        server.process.send_signal(signal.SIGKILL)
        assert not still_there(family, timeout_s=10.0)
        assert isinstance(running_job.exception(), httpx.TransportError)
