"""What survives a power cut, and finds no room on a full disk."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.durable import write_durably
from app.errors import DiskFull


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
