"""What survives a power cut, and where the disk, the descriptors or the threads are used up."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.durable import room, shortage, write_durably
from app.errors import CapacityError, DiskFull


@pytest.fixture
def no_room() -> Iterator[None]:
    """No file may become larger than ten bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_result_is_there_as_a_whole_and_alone(tmp_path: Path) -> None:
    write_durably(tmp_path / "result.json", b"x" * 100)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"result.json": b"x" * 100}


def test_result_that_finds_no_room_is_disk_full_and_nothing_of_it_stays(tmp_path: Path, no_room: None) -> None:
    with pytest.raises(DiskFull):
        write_durably(tmp_path / "result.json", b"x" * 100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), "disk_full"),
        (OSError(errno.EMFILE, "no descriptor"), "unavailable"),
        (OSError(errno.ENFILE, "no descriptor anywhere"), "unavailable"),
        (BlockingIOError(errno.EAGAIN, "no process"), "unavailable"),
        (RuntimeError("can't start new thread"), "unavailable"),
        (FileNotFoundError(errno.ENOENT, "gone"), None),
        (RuntimeError("something else"), None),
        (ValueError("something else"), None),
    ],
)
def test_what_comes_back_by_itself_is_told_from_what_does_not(error: Exception, code: str | None) -> None:
    short = shortage(error)
    assert (short.code if short else None) == code
    with pytest.raises(type(short) if short else type(error)), room():
        raise error


def test_descriptors_that_are_really_used_up_are_a_capacity_error(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(CapacityError), room():
            (tmp_path / "file").touch()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
