"""Names under the media folder."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import pytest

from app.errors import DiskFull, MediaNotFound
from app.media.paths import (
    copy_inside,
    discard_late,
    discard_tree,
    new_name,
    open_inside,
    require_disk,
    resolve_inside,
    safe_title,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "media"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "x.mp3").write_text("music")
    (root / "y.mp3").write_text("tune")
    (root / "link.mp3").symlink_to(root / "y.mp3")
    (root / "out.mp3").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    (root / "inner").symlink_to(root / "a")
    (root / ".hidden").write_text("hidden")
    os.mkfifo(root / "fifo")
    return root


@pytest.mark.parametrize(("name", "text"), [("y.mp3", "tune"), ("a/b/x.mp3", "music")])
def test_file_inside_opens(root: Path, name: str, text: str) -> None:
    with open_inside(root, name) as file:
        assert file.read().decode() == text
    assert resolve_inside(root, name) == root / name


REFUSED = [
    "", ".", "..", "/", "../secret", "a/../../secret", "a/..", "a/./b/x.mp3", "/etc/passwd", "//etc/passwd", "a//b/x.mp3",
    "y.mp3/", "y.mp3/z", "a", "missing.mp3", "y.mp3\0", "y.mp3\n", "a\\b\\x.mp3", "..\\secret", "file:y.mp3", "C:y.mp3",
    "concat:y.mp3|y.mp3", "link.mp3", "out.mp3", "folder/secret", "inner/b/x.mp3", ".hidden", "fifo", "x" * 256, "a/" * 600,
    "\ud800", "y.mp3\u202e", "~/y.mp3", "${HOME}", "%2e%2e/secret",
]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_missing_in_the_same_words(root: Path, name: str) -> None:
    messages = set()
    for action in (open_inside, resolve_inside):
        with pytest.raises(MediaNotFound) as caught:
            action(root, name)
        messages.add(caught.value.message)
    assert messages == {"There is no such file in the media folder."}


def test_missing_root_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MediaNotFound):
        open_inside(tmp_path / "none", "x.mp3")


def test_root_that_is_itself_a_link_is_the_operators_choice(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    with open_inside(tmp_path / "alias", "y.mp3") as file:
        assert file.read() == b"tune"


def test_link_that_is_swapped_in_never_leads_outside(root: Path) -> None:
    stop = threading.Event()

    def swap() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            name = root / f"s{number % 2}"
            if number % 2:
                name.symlink_to(root.parent / "secret")
            else:
                name.write_text("fine")
            os.replace(name, root / "target.mp3")

    thread = threading.Thread(target=swap)
    thread.start()
    opened = 0
    try:
        for _ in range(3000):
            try:
                with open_inside(root, "target.mp3") as file:
                    assert file.read() in (b"fine", b"")
                    opened += 1
            except MediaNotFound:
                pass
    finally:
        stop.set()
        thread.join()
    assert opened


def test_refusals_leak_no_descriptor(root: Path) -> None:
    def count() -> int:
        return len(os.listdir("/dev/fd"))

    before = count()
    for name in REFUSED * 3:
        with pytest.raises(MediaNotFound):
            open_inside(root, name)
    assert count() <= before + 1


async def test_copy_is_private_and_complete(root: Path, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (root / "big").write_bytes(data)
    assert await copy_inside(root, "big", tmp_path / "dst") == len(data)
    assert (tmp_path / "dst").read_bytes() == data
    assert (tmp_path / "dst").stat().st_mode & 0o777 == 0o600


async def test_copy_works_where_the_kernel_cannot_copy(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(18, "EXDEV")

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    assert await copy_inside(root, "y.mp3", tmp_path / "dst") == 4
    assert (tmp_path / "dst").read_text() == "tune"


async def test_copy_never_writes_over_a_file_or_through_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "dst").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        await copy_inside(root, "y.mp3", tmp_path / "dst")
    assert not (tmp_path / "elsewhere").exists()


async def test_copy_of_a_link_is_missing(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaNotFound):
        await copy_inside(root, "out.mp3", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


async def test_copy_with_too_little_disk_is_disk_full(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DiskFull):
        await copy_inside(root, "y.mp3", tmp_path / "dst", reserve_mb=1 << 40)
    assert not (tmp_path / "dst").exists()


async def test_copy_onto_a_full_disk_is_disk_full_and_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "ENOSPC")

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFull):
        await copy_inside(root, "y.mp3", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_disk_check_counts_the_reserve(tmp_path: Path) -> None:
    require_disk(tmp_path, 1, 0)
    with pytest.raises(DiskFull):
        require_disk(tmp_path, 1 << 60, 0)


def test_new_names_are_random_plain_and_accepted(tmp_path: Path) -> None:
    names = {new_name(".MP3") for _ in range(100)}
    assert len(names) == 100
    for name in names:
        assert name.endswith(".mp3")
        (tmp_path / name).touch()
        open_inside(tmp_path, name).close()


@pytest.mark.parametrize("suffix", ["", "mp3", ".", "./x", ".mp3/..", ".m p", "." + "a" * 9, ".\0", ".ä"])
def test_odd_suffixes_are_dropped(suffix: str) -> None:
    assert "." not in new_name(suffix)


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("My Talk (2024)", "My Talk (2024)"),
        ("../../etc/passwd", "etc passwd"),
        ("a\r\nSet-Cookie: x", "a Set-Cookie x"),
        ("<script>", "script"),
        ("\u202egpj.exe", "gpj.exe"),
        ("Überschrift", "Überschrift"),
        ("...", "audio"),
        ("", "audio"),
        (None, "audio"),
        ("x" * 500, "x" * 120),
    ],
)
def test_titles_become_harmless(title: str | None, shown: str) -> None:
    assert safe_title(title) == shown


@pytest.mark.parametrize("keep", ["", "result"])
def test_folder_that_cannot_be_deleted_for_lack_of_descriptors_goes_later(tmp_path: Path, keep: str) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    for name in ("upload", "result"):
        (folder / name).touch()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        discard_tree(folder, keep)
        discard_late()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(list(folder.iterdir())) == 2
    discard_late()
    assert [path.name for path in tmp_path.rglob("*")] == (["job", "result"] if keep else [])
