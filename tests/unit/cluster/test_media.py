"""The media that machines share: whole files or none, and errors in our words."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import fsspec
import pytest

from app.cluster import media as media_module
from app.cluster.media import AT_ONCE, AsyncMedia, Media, input_key, result_key
from app.errors import CapacityError, StenopoolError


@pytest.fixture(params=["file", "memory"])
def media(request: pytest.FixtureRequest, tmp_path: Path) -> Media:
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return Media("memory://bucket/folder")
    return Media(f"file://{tmp_path}/shared")


def test_file_comes_back_as_it_went_and_goes_when_deleted(media: Media, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"audio")
    media.put(tmp_path / "upload", input_key("a"))
    media.put(tmp_path / "upload", result_key("a", 2))
    media.get(input_key("a"), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"audio"
    media.delete(input_key("a"))
    with pytest.raises(FileNotFoundError):
        media.get(input_key("a"), tmp_path / "again")
    media.get(result_key("a", 2), tmp_path / "result")
    media.delete("jobs/a")
    with pytest.raises(FileNotFoundError):
        media.get(result_key("a", 2), tmp_path / "again")
    media.delete("jobs/a")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["copy", "result", "upload"]


def test_second_put_replaces_the_first_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    media = Media(f"file://{tmp_path}/shared")
    for content in (b"first", b"second"):
        (tmp_path / "upload").write_bytes(content)
        media.put(tmp_path / "upload", "jobs/a/input")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "shared/jobs/a").iterdir()] == [("input", b"second")]


def test_folder_that_cannot_be_written_is_a_capacity_error_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("a file where a folder should be")
    (tmp_path / "upload").write_bytes(b"audio")
    with pytest.raises(CapacityError) as raised:
        Media(f"file://{tmp_path}/shared").put(tmp_path / "upload", "jobs/a/input")
    assert str(tmp_path) not in raised.value.message


def test_url_that_no_package_understands_is_refused_without_quoting_it() -> None:
    with pytest.raises(StenopoolError) as raised:
        Media("nonsense://user:secret@host")
    assert "secret" not in f"{raised.value.message} {raised.value.hint}"


class Held(Media):
    """Does nothing before ``go`` is set, as a network file system whose server is silent."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"file://{folder}/shared")
        self.go, self.begun, self.done = threading.Event(), threading.Event(), threading.Semaphore(0)

    def put(self, source: Path, key: str) -> None:
        self.begun.set()
        self.go.wait(30)
        super().put(source, key)

    def delete(self, key: str) -> None:
        super().delete(key)
        self.done.release()


async def test_store_that_hangs_is_a_capacity_error_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "COPY_S", 0.1)
    held = Held(tmp_path)
    media, before = AsyncMedia(held), threading.active_count()
    puts = [media.put(tmp_path / "upload", f"jobs/{number}/input") for number in range(2 * AT_ONCE)]
    assert {type(one) for one in await asyncio.gather(*puts, return_exceptions=True)} == {CapacityError}
    assert threading.active_count() <= before + AT_ONCE
    held.go.set()


async def test_caller_who_is_cancelled_leaves_nothing_in_a_store_that_is_late(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"audio")
    held = Held(tmp_path)
    putting = asyncio.ensure_future(AsyncMedia(held).put(tmp_path / "upload", "jobs/a/input"))
    await asyncio.to_thread(held.begun.wait, 10)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    held.go.set()
    for _ in range(2):
        assert await asyncio.to_thread(held.done.acquire, timeout=10)
    assert not (tmp_path / "shared/jobs/a/input").exists()
