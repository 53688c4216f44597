"""A disk that is full at the upload, the decode, the result or the commit: a small tmpfs, filled at exactly that moment.

The reserve (STENOPOOL_DISK_RESERVE_MB) is 0 here, so that it is not the check beforehand that refuses, but the disk itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import imageio_ffmpeg
import pytest

from tests.fakes.engine import fill
from tests.fakes.server import wav
from tests.faults.jobs import Rest, eventually, status, submit, succeeded
from tests.faults.process import Process, started
from tests.integration.server import still_there
from tests.unit.http.test_middleware import shape

SIZE_MB = 48


@dataclass
class Disk:
    """A small file system, and the file that fills it."""

    folder: Path

    @property
    def ballast(self) -> Path:
        return self.folder / "ballast"

    @property
    def full(self) -> bool:
        return shutil.disk_usage(self.folder).free < 4096

    def empty(self) -> None:
        """There is room again. The file stays, so that nobody fills the disk twice."""
        os.truncate(self.ballast, 0)

    def forget(self) -> None:
        """As before."""
        self.ballast.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    folder = tmp_path_factory.mktemp("disk")
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=700", "stenopool-test", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass
class Moments:
    """Arms what fills the disk: as ffmpeg begins to decode, or just before a commit."""

    folder: Path

    @property
    def decode(self) -> Path:
        return self.folder / "fill-at-decode"

    @property
    def commit(self) -> Path:
        return self.folder / "fill-at-commit"

    def settings(self, disk: Disk) -> dict[str, str]:
        """For the server. ffmpeg is one that first fills the disk."""
        stub = self.folder / "ffmpeg"
        stub.write_text(
            f'#!/bin/sh\ncase "$*" in *audio.pcm*) if [ -e {self.decode} ]; then rm {self.decode}\n'
            f"dd if=/dev/zero of={disk.ballast} bs=4096 2>/dev/null; fi;; esac\n"
            f'exec {imageio_ffmpeg.get_ffmpeg_exe()} "$@"\n'
        )
        stub.chmod(stat.S_IRWXU)
        return {
            "STENOPOOL_DATA_DIR": str(disk.folder / self.folder.name),
            "STENOPOOL_DISK_RESERVE_MB": "0",
            "STENOPOOL_STREAMS": "2",
            "STENOPOOL_FFMPEG": str(stub),
            "FAILPOINT": "api:commit:before:1",
            "FAILPOINT_ARMED": str(self.commit),
            "FAILPOINT_FILL": str(disk.ballast),
        }


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Moments:
    return Moments(tmp_path_factory.mktemp("moments"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, disk: Disk, moments: Moments) -> Iterator[Process]:
    with started(tmp_path_factory.mktemp("server"), **moments.settings(disk)) as running:
        yield running


@pytest.fixture
def rest(server: Process, disk: Disk) -> Iterator[Rest]:
    """Once there is room again a healthy job must succeed, and nothing may be left of the others."""
    before = Rest.of(server)
    yield before
    disk.forget()
    before.reached_again()


def refused(answer: httpx.Response) -> None:
    assert (answer.status_code, shape(answer)["code"]) == (507, "disk_full")
    assert int(answer.headers["retry-after"]) >= 1


def transcribe(server: Process, command: str = "echo") -> httpx.Response:
    return server.client.post("/transcribe", params={"initial_prompt": command}, content=wav(0.05, 7, streamed=True))


def waits_for_room(server: Process, disk: Disk, job_id: str) -> None:
    """The disk is full, the job has not ended, others are refused, and with room again it succeeds."""
    eventually(lambda: disk.full, lambda: "the disk is not full")
    refused(transcribe(server))
    refused(server.client.post("/transcribe?wait=false", content=wav(0.05, 7, streamed=True)))
    assert status(server, job_id)["status"] in ("queued", "running")
    disk.empty()
    _, charged = succeeded(server, job_id)
    assert charged == 1


@pytest.mark.parametrize("wait", ["true", "false"])
def test_disk_that_fills_during_an_upload_is_507_and_nothing_of_it_stays(
    server: Process, rest: Rest, disk: Disk, wait: str
) -> None:
    recording = wav(240.0, streamed=True)  # half of it is more than is held before it is written

    def slowly() -> Iterator[bytes]:
        yield recording[: len(recording) // 2]
        eventually(lambda: any(path.stat().st_size for path in server.data.glob("jobs/*/upload")), lambda: "no upload")
        fill(disk.ballast)
        yield recording[len(recording) // 2 :]

    headers = {"Content-Length": str(len(recording))}
    refused(server.client.post(f"/transcribe?wait={wait}", content=slowly(), headers=headers))
    assert server.client.get("/jobs", params={"status": "queued"}).json()["jobs"] == []


def test_disk_that_fills_as_a_waiting_callers_audio_is_decoded_is_507(
    server: Process, rest: Rest, disk: Disk, moments: Moments
) -> None:
    moments.decode.touch()
    refused(transcribe(server))


def test_acknowledged_job_whose_audio_cannot_be_decoded_for_lack_of_disk_succeeds_when_there_is_room(
    server: Process, rest: Rest, disk: Disk, moments: Moments
) -> None:
    moments.decode.touch()
    waits_for_room(server, disk, submit(server))


def test_disk_that_fills_before_a_waiting_callers_result_is_written_is_507(server: Process, rest: Rest, disk: Disk) -> None:
    refused(transcribe(server, f"fill-once:{disk.ballast}"))


def test_acknowledged_job_whose_result_finds_no_room_succeeds_when_there_is_room(
    server: Process, rest: Rest, disk: Disk
) -> None:
    waits_for_room(server, disk, submit(server, f"fill-once:{disk.ballast}"))


def test_disk_that_fills_before_the_commit_is_507_and_no_job_was_taken_over(
    server: Process, rest: Rest, disk: Disk, moments: Moments
) -> None:
    before = server.client.get("/jobs").json()
    moments.commit.touch()
    refused(server.client.post("/transcribe?wait=false", content=wav(0.05, 7, streamed=True)))
    assert disk.ballast.exists()
    disk.empty()
    assert server.client.get("/jobs").json() == before


def test_server_that_is_stopped_while_the_disk_is_full_ends_in_order_and_the_next_one_goes_on(
    tmp_path: Path, disk: Disk
) -> None:
    moments = Moments(tmp_path)
    with started(tmp_path, **moments.settings(disk), STENOPOOL_LOG_LEVEL="info") as server:
        job_id = submit(server, f"fill-once:{disk.ballast}")
        eventually(lambda: disk.full, lambda: "the disk is not full")
        family = server.family()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(15)
        assert "Application shutdown complete." in (tmp_path / "server.log").read_text()
        assert not still_there(family, timeout_s=10.0)
    disk.empty()
    with started(tmp_path, **moments.settings(disk)) as server:
        assert succeeded(server, job_id)[0] >= 2
        disk.forget()
        Rest.of(server).reached_again()
