"""Uploads without HTTP: cut off anywhere, resumed, restarted, expired, refused."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.durable import write_durably
from app.errors import (
    Cancelled,
    ChecksumMismatch,
    DiskFull,
    NotFound,
    NotReady,
    OffsetMismatch,
    QuotaExceeded,
    StenopoolError,
    TooLarge,
    UploadLocked,
)
from app.intake import OWNED
from app.media.paths import free_bytes
from app.uploads import uploads as uploads_module
from app.uploads.part import Checksum
from app.uploads.turn import Read
from app.uploads.uploads import RETURN_S, SILENT_S, Upload, Uploads
from tests.fakes.pool import quiet_service
from tests.fakes.server import make_settings

TTL_S = 86_400.0
WALL = 1_800_000_000.0
BYTES = bytes(range(256)) * 40
HUGE_MB = 1 << 40


def pieces(*data: bytes, then: BaseException | None = None) -> Read:
    """What a request brings, and how it ends."""
    left = list(data)

    async def read() -> bytes | None:
        if left:
            return left.pop(0)
        if then is not None:
            raise then
        return None

    return read


class Line:
    """A request whose bytes come when the test says so; ``asked`` is set when the next ones are awaited."""

    def __init__(self) -> None:
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.asked = asyncio.Event()

    def send(self, data: bytes | None) -> None:
        self._inbox.put_nowait(data)

    async def read(self) -> bytes | None:
        if self._inbox.empty():
            self.asked.set()
        return await self._inbox.get()


class Bench:
    """Uploads on a clock of the test's own; :meth:`boot` is a start of the server on what lies on the disk."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = make_settings(folder, upload_ttl_s=TTL_S, key_uploads=3, **settings)
        self.seconds, self.wall = 1000.0, WALL
        self.service = quiet_service(self.settings)
        self.settings.uploads_dir.mkdir()
        self.settings.media_dir.mkdir()

    async def boot(self) -> Uploads:
        self.uploads = Uploads(self.settings, self.service.desk, self.service._intake, lambda: self.seconds, lambda: self.wall)
        await self.uploads.recover()
        return self.uploads

    def media(self) -> list[Path]:
        """What lies in the media folder."""
        return [path for path in self.settings.media_dir.rglob("*") if path.is_file()]

    def content(self, upload: Upload) -> bytes:
        """The file of a finished upload, by the path that its client was told."""
        assert upload.finished
        assert upload.info.audio_file is not None
        return (self.settings.media_dir / upload.info.audio_file).read_bytes()

    def data(self, upload: Upload) -> bytes:
        """What an unfinished one has on disk."""
        return (self.settings.uploads_dir / upload.id / "data").read_bytes()

    def stamp(self, age_s: float) -> None:
        """Make everything on disk that old."""
        for path in self.settings.uploads_dir.glob("*/*"):
            os.utime(path, (WALL - age_s, WALL - age_s))


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    await made.boot()
    return made


@contextlib.asynccontextmanager
async def writing(uploads: Uploads, upload: Upload, first: bytes) -> AsyncIterator[tuple[Line, asyncio.Task[None]]]:
    """A request that has brought ``first`` and then says no more."""
    line = Line()
    line.send(first)
    task = asyncio.create_task(uploads.append(upload, upload.offset, line.read))
    await line.asked.wait()
    try:
        yield line, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def refused(kind: type[StenopoolError], work: Any) -> StenopoolError:
    with pytest.raises(kind) as error:
        await work
    return error.value


# -- the way through


async def test_bytes_of_several_requests_become_one_file_of_the_owner_with_the_suffix_that_was_given(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES), suffix=".mp3")
    for start in range(0, len(BYTES), 3000):
        assert not upload.finished
        await bench.uploads.append(upload, start, pieces(BYTES[start : start + 1], BYTES[start + 1 : start + 3000]))
    assert bench.content(upload) == BYTES
    assert upload.info.audio_file is not None
    assert upload.info.audio_file.startswith(f"{OWNED}/alice/")
    assert upload.info.audio_file.endswith(".mp3")
    assert [path.name for path in (bench.settings.uploads_dir / upload.id).iterdir()] == ["info.json"]


async def test_upload_of_no_bytes_is_finished_at_once(bench: Bench) -> None:
    assert bench.content(await bench.uploads.create("alice", 0)) == b""


async def test_bytes_that_came_before_a_request_was_cut_off_are_kept_wherever_it_was_cut(bench: Bench) -> None:
    for cut in (0, 1, 4096, len(BYTES) - 1, len(BYTES)):
        upload = await bench.uploads.create("alice", len(BYTES))
        await refused(Cancelled, bench.uploads.append(upload, 0, pieces(BYTES[:cut], then=Cancelled("gone"))))
        assert (upload.offset, bench.data(upload)) == (cut, BYTES[:cut])
        await bench.uploads.append(upload, cut, pieces(BYTES[cut:]))
        assert bench.content(upload) == BYTES


async def test_cancelled_request_keeps_what_came_and_leaves_no_descriptor(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    before = len(os.listdir("/proc/self/fd"))
    async with writing(bench.uploads, upload, BYTES[:700]):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
    assert upload.turn is None
    assert bench.data(upload) == BYTES[:700]


async def test_wrong_offset_changes_nothing_and_says_the_right_one(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    await bench.uploads.append(upload, 0, pieces(BYTES[:100]))
    for offset in (0, 99, 101, len(BYTES)):
        error = await refused(OffsetMismatch, bench.uploads.append(upload, offset, pieces(b"x")))
        assert error.details == {"upload_offset": 100}
    assert bench.data(upload) == BYTES[:100]


@pytest.mark.parametrize("came", [[BYTES + b"x"], [BYTES, b"x"], [BYTES[:5], BYTES]])
async def test_of_a_request_with_more_bytes_than_were_announced_nothing_is_kept(bench: Bench, came: list[bytes]) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    await refused(TooLarge, bench.uploads.append(upload, 0, pieces(*came)))
    assert (upload.offset, bench.data(upload), upload.finished) == (0, b"", False)


async def test_finished_upload_takes_no_more_bytes(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", 2)
    await bench.uploads.append(upload, 0, pieces(b"ab"))
    await bench.uploads.append(upload, 2, pieces())
    await refused(TooLarge, bench.uploads.append(upload, 2, pieces(b"c")))
    assert bench.content(upload) == b"ab"


# -- checksums


def checksum(data: bytes, algorithm: str = "sha1") -> Checksum:
    return Checksum(algorithm, hashlib.new(algorithm, data).digest())


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
async def test_only_bytes_that_match_their_checksum_are_kept(bench: Bench, algorithm: str) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    await bench.uploads.append(upload, 0, pieces(BYTES[:9]))
    right = checksum(BYTES[9:], algorithm)
    await refused(ChecksumMismatch, bench.uploads.append(upload, 9, pieces(BYTES[9:-1] + b"x"), right))
    assert bench.data(upload) == BYTES[:9]
    await bench.uploads.append(upload, 9, pieces(BYTES[9:50], BYTES[50:]), right)
    assert bench.content(upload) == BYTES


async def test_bytes_whose_checksum_could_not_be_compared_are_not_kept(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    await bench.uploads.append(upload, 0, pieces(BYTES[:9]))
    cut_off = pieces(BYTES[9:99], then=Cancelled("gone"))
    await refused(Cancelled, bench.uploads.append(upload, 9, cut_off, checksum(BYTES[9:])))
    assert (upload.offset, bench.data(upload)) == (9, BYTES[:9])


async def test_server_that_is_killed_before_it_could_compare_a_checksum_forgets_those_bytes(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    await bench.uploads.append(upload, 0, pieces(BYTES[:9]))
    line = Line()
    line.send(BYTES[9:500])
    task = asyncio.create_task(bench.uploads.append(upload, 9, line.read, checksum(BYTES[9:])))
    await line.asked.wait()
    assert bench.data(upload) == BYTES[:500]
    again = (await bench.boot()).get(upload.id, "alice")  # the task still stands: nothing was cleaned up
    assert (again.offset, bench.data(again)) == (9, BYTES[:9])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# -- one at a time


async def test_second_request_is_locked_out_while_the_first_one_writes_and_does_it_no_harm(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    async with writing(bench.uploads, upload, BYTES[:10]) as (line, task):
        for offset in (0, 10):
            await refused(UploadLocked, bench.uploads.append(upload, offset, pieces(b"x")))
        line.send(BYTES[10:])
        line.send(None)
        await task
    assert bench.content(upload) == BYTES


async def test_request_that_has_been_silent_makes_way_for_the_one_that_comes_back(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    async with writing(bench.uploads, upload, BYTES[:10]) as (_, task):
        bench.seconds += SILENT_S
        await bench.uploads.append(upload, 10, pieces(BYTES[10:]))
        await refused(UploadLocked, task)
    assert bench.content(upload) == BYTES


async def test_of_two_that_come_for_a_silent_ones_place_one_gets_it(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    async with writing(bench.uploads, upload, BYTES[:10]):
        bench.seconds += SILENT_S
        both = [bench.uploads.append(upload, 10, pieces(BYTES[10:])) for _ in range(2)]
        results = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["NoneType", "UploadLocked"]
    assert bench.content(upload) == BYTES


async def test_server_that_stops_sends_writers_away_and_keeps_what_they_sent(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    async with writing(bench.uploads, upload, BYTES[:10]) as (_, task):
        bench.uploads.drain()
        await refused(NotReady, task)
    assert bench.data(upload) == BYTES[:10]
    await refused(NotReady, bench.uploads.append(upload, 10, pieces(b"x")))
    await refused(NotReady, bench.uploads.create("alice", 1))
    assert bench.uploads.get(upload.id, "alice").offset == 10


# -- restarts


async def test_server_that_was_killed_goes_on_where_the_bytes_end(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES), "filename eA==", ".wav")
    async with writing(bench.uploads, upload, BYTES[:5000]):
        again = (await bench.boot()).get(upload.id, "alice")
    assert (again.offset, again.info) == (5000, upload.info)
    await bench.uploads.append(again, 5000, pieces(BYTES[5000:]))
    assert bench.content(again) == BYTES


async def test_finished_upload_is_still_known_after_a_restart(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    await bench.uploads.append(upload, 0, pieces(BYTES))
    again = (await bench.boot()).get(upload.id, "alice")
    assert (again.offset, again.info) == (len(BYTES), upload.info)
    assert bench.content(again) == BYTES


@pytest.mark.parametrize("named", [False, True], ids=["before the name was written down", "before the move"])
async def test_move_that_was_cut_off_is_made_at_the_next_start(bench: Bench, named: bool) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    await bench.uploads.append(upload, 0, pieces(BYTES))
    folder = bench.settings.uploads_dir / upload.id
    (moved,) = bench.media()
    moved.rename(folder / "data")
    if not named:
        info = json.loads((folder / "info.json").read_bytes())
        write_durably(folder / "info.json", json.dumps(info | {"audio_file": None}).encode())
    again = (await bench.boot()).get(upload.id, "alice")
    assert bench.content(again) == BYTES
    assert (again.info == upload.info) is named
    assert len(bench.media()) == 1


async def test_where_a_file_goes_is_written_down_before_it_goes_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*what: object) -> None:
        raise OSError("the power is cut")

    upload = await bench.uploads.create("alice", len(BYTES))
    with monkeypatch.context() as cut:
        cut.setattr(uploads_module, "move", dies)
        with pytest.raises(OSError):
            await bench.uploads.append(upload, 0, pieces(BYTES))
    again = (await bench.boot()).get(upload.id, "alice")
    assert again.info == upload.info
    assert again.info.audio_file is not None
    assert bench.content(again) == BYTES


async def test_what_was_cut_off_while_it_was_made_is_deleted_and_the_rest_is_kept(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", 5)
    root = bench.settings.uploads_dir
    for name, info in {"bare": None, "torn": b'{"own', "odd": b"[]", "new": b'{"owner": "a", "length": 3, "what": 1}'}.items():
        (root / name).mkdir()
        if info is not None:
            (root / name / "data").touch()
            (root / name / "info.json").write_bytes(info)
    (await bench.boot()).get(upload.id, "alice")
    assert os.listdir(root) == [upload.id]


# -- disk


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    if not Path("/dev/shm").is_dir() or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


async def test_media_folder_may_lie_on_another_file_system(tmp_path: Path, elsewhere: Path) -> None:
    bench = Bench(tmp_path, media_path=elsewhere / "media")
    uploads = await bench.boot()
    upload = await uploads.create("alice", len(BYTES))
    await uploads.append(upload, 0, pieces(BYTES))
    assert bench.content(upload) == BYTES
    assert not (bench.settings.uploads_dir / upload.id / "data").exists()


async def test_upload_that_does_not_fit_beside_what_others_have_still_to_send_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_upload_mb=1 << 40)
    uploads = await bench.boot()
    much = int(0.6 * free_bytes(tmp_path))
    first = await uploads.create("alice", much)
    await refused(DiskFull, uploads.create("bob", much))
    await uploads.create("bob", much // 10)
    await uploads.remove(first)
    await uploads.create("bob", much)


async def test_disk_that_others_were_promised_is_not_given_away(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_upload_mb=1 << 40)
    uploads = await bench.boot()
    much = int(0.6 * free_bytes(tmp_path))
    bench.service.desk.disk.budget = much
    assert bench.service.desk.disk.take("a job", much)
    await refused(DiskFull, uploads.create("alice", much))


async def test_disk_that_fills_up_meanwhile_keeps_what_fitted_and_the_rest_may_follow_later(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    await bench.uploads.append(upload, 0, pieces(BYTES[:100]))
    enough = bench.uploads._settings
    bench.uploads._settings = enough.model_copy(update={"disk_reserve_mb": HUGE_MB})
    await refused(DiskFull, bench.uploads.append(upload, 100, pieces(BYTES[100:])))
    assert bench.data(upload) == BYTES[:100]
    bench.uploads._settings = enough
    await bench.uploads.append(upload, 100, pieces(BYTES[100:]))
    assert bench.content(upload) == BYTES


async def test_upload_whose_last_step_failed_is_finished_when_its_client_asks_how_far_it_is(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    blocked = bench.settings.media_dir / OWNED
    blocked.write_bytes(b"a file where a folder should be")
    with pytest.raises(OSError):
        await bench.uploads.append(upload, 0, pieces(BYTES))
    assert (upload.whole, upload.finished, bench.data(upload)) == (True, False, BYTES)
    blocked.unlink()
    await bench.uploads.settle(upload)
    assert bench.content(upload) == BYTES


# -- who may


async def test_another_owners_upload_is_not_there(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", 5)
    theirs = await refused(NotFound, asyncio.to_thread(bench.uploads.get, upload.id, "bob"))
    never = await refused(NotFound, asyncio.to_thread(bench.uploads.get, "0" * 32, "bob"))
    assert theirs.to_wire("x") == never.to_wire("x")


async def test_number_of_unfinished_uploads_is_bounded_per_owner_and_finished_ones_do_not_count(bench: Bench) -> None:
    uploads = bench.uploads
    begun = await asyncio.gather(*(uploads.create("alice", 2) for _ in range(5)), return_exceptions=True)
    assert [isinstance(one, QuotaExceeded) for one in begun] == [False] * 3 + [True] * 2
    await uploads.create("bob", 2)
    first, second, _, *_ = begun
    assert isinstance(first, Upload)
    assert isinstance(second, Upload)
    await uploads.append(first, 0, pieces(b"ab"))
    await uploads.create("alice", 2)
    await refused(QuotaExceeded, uploads.create("alice", 2))
    await uploads.remove(second)
    await uploads.create("alice", 2)


async def test_upload_longer_than_the_cap_is_refused(tmp_path: Path) -> None:
    uploads = await Bench(tmp_path, max_upload_mb=1).boot()
    await refused(TooLarge, uploads.create("alice", 1_000_001))
    await uploads.create("alice", 1_000_000)


async def test_upload_that_could_not_be_made_leaves_nothing(bench: Bench) -> None:
    bench.settings.uploads_dir.rmdir()
    bench.settings.uploads_dir.write_bytes(b"a file where a folder should be")
    for _ in range(5):
        with pytest.raises(OSError):
            await bench.uploads.create("alice", 5)
    assert bench.uploads._all == {}


# -- ends


async def test_deleted_upload_is_gone_with_its_bytes_and_a_finished_one_with_its_file(bench: Bench) -> None:
    unfinished, finished = [await bench.uploads.create("alice", 2) for _ in range(2)]
    await bench.uploads.append(unfinished, 0, pieces(b"a"))
    await bench.uploads.append(finished, 0, pieces(b"ab"))
    for upload in (unfinished, finished):
        await bench.uploads.remove(upload)
        await refused(NotFound, bench.uploads.append(upload, upload.offset, pieces(b"b")))
        await refused(NotFound, bench.uploads.remove(upload))
    assert (os.listdir(bench.settings.uploads_dir), bench.media()) == ([], [])


async def test_upload_may_be_deleted_while_another_request_writes_to_it(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    async with writing(bench.uploads, upload, BYTES[:10]) as (_, task):
        await bench.uploads.remove(upload)
        await refused(NotFound, task)
    assert os.listdir(bench.settings.uploads_dir) == []


async def is_there(uploads: Uploads, upload: Upload) -> bool:
    await uploads.look()
    with contextlib.suppress(NotFound):
        uploads.get(upload.id, "alice")
        return True
    return False


async def test_upload_expires_when_no_byte_has_come_for_the_time_that_is_set(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    bench.seconds += TTL_S - 1
    await bench.uploads.append(upload, 0, pieces(BYTES[:10]))
    bench.seconds += TTL_S - 1
    assert bench.uploads.expires_in_s(upload) == 1
    assert await is_there(bench.uploads, upload)
    bench.seconds += 1
    await refused(NotFound, asyncio.to_thread(bench.uploads.get, upload.id, "alice"))  # before it is swept, too
    assert not await is_there(bench.uploads, upload)
    assert os.listdir(bench.settings.uploads_dir) == []


async def test_upload_that_is_being_written_does_not_expire(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    async with writing(bench.uploads, upload, BYTES[:10]) as (line, task):
        bench.seconds += 3 * TTL_S
        assert await is_there(bench.uploads, upload)
        line.send(BYTES[10:])
        line.send(None)
        await task
    assert bench.content(upload) == BYTES


async def test_of_a_finished_upload_only_the_record_expires(bench: Bench) -> None:
    upload = await bench.uploads.create("alice", len(BYTES))
    await bench.uploads.append(upload, 0, pieces(BYTES))
    bench.seconds += TTL_S
    assert not await is_there(bench.uploads, upload)
    assert os.listdir(bench.settings.uploads_dir) == []
    assert bench.content(upload) == BYTES


@pytest.mark.parametrize("days", [-400, -1, 1, 400])
async def test_wall_clock_that_jumps_makes_nothing_older(bench: Bench, days: int) -> None:
    upload = await bench.uploads.create("alice", 5)
    bench.wall += days * 86_400
    assert await is_there(bench.uploads, upload)
    assert bench.uploads.expires_in_s(upload) == TTL_S


@pytest.mark.parametrize(
    ("age_s", "left_s"),
    [(0, TTL_S), (TTL_S / 2, TTL_S / 2), (TTL_S - 60, RETURN_S), (400 * TTL_S, RETURN_S), (-400 * TTL_S, TTL_S)],
    ids=["young", "half", "old", "server was down, or the clock is wrong", "of the future"],
)
async def test_age_is_that_of_the_last_byte_after_a_restart_but_everybody_has_an_hour(
    bench: Bench, age_s: float, left_s: float
) -> None:
    upload = await bench.uploads.create("alice", 5)
    bench.stamp(age_s)
    uploads = await bench.boot()
    again = uploads.get(upload.id, "alice")
    assert uploads.expires_in_s(again) == pytest.approx(left_s)
    bench.seconds += left_s
    assert not await is_there(uploads, again)
