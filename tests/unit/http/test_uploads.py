"""The upload routes: what tus 1.0.0 asks of them, and what they refuse."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.pool import quiet_service
from tests.fakes.server import KEY, OTHER_KEY, Live, calling, make_settings, wav
from tests.unit.http.test_middleware import shape
from tests.unit.http.test_sockets import head_of

Start = Callable[..., Awaitable[Live]]

TUS = {"Tus-Resumable": "1.0.0"}
OCTETS = {"Content-Type": "application/offset+octet-stream"}
THEIRS = {"X-API-Key": OTHER_KEY}
BYTES = bytes(range(256)) * 300


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def create(live: Live, length: int = len(BYTES), *, content: bytes | None = None, **headers: str) -> httpx.Response:
    said = {"Upload-Length": str(length)} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await live.client.post("/uploads", headers=TUS | said, content=content)


async def begun(live: Live, length: int = len(BYTES), **headers: str) -> str:
    """The path of a new upload."""
    answer = await create(live, length, **headers)
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


async def patch(live: Live, path: str, offset: int, content: Any, **headers: str) -> httpx.Response:
    said = {"Upload-Offset": str(offset)} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await live.client.patch(path, headers=TUS | OCTETS | said, content=content)


async def head(live: Live, path: str, **headers: str) -> httpx.Response:
    return await live.client.head(path, headers=TUS | headers)


async def offset_of(live: Live, path: str) -> int:
    return int((await head(live, path)).headers["upload-offset"])


async def held_open(live: Live, path: str, length: int, first: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A PATCH on a socket of its own that announces ``length`` bytes and has sent ``first``, which have arrived."""
    lines = [f"PATCH {path} HTTP/1.1", f"X-API-Key: {KEY}", f"Content-Length: {length}", "Upload-Offset: 0"]
    lines += [f"{name}: {value}" for name, value in (TUS | OCTETS).items()]
    opened = await live.raw("\n".join(lines), first)

    async def arrived() -> None:
        while await offset_of(live, path) < len(first):
            await asyncio.sleep(0.005)

    await asyncio.wait_for(arrived(), 10)
    return opened


# -- the protocol


async def test_options_say_what_there_is_without_asking_for_a_version(direct: Live) -> None:
    answer = await direct.client.options("/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-extension"] == "creation,creation-with-upload,expiration,checksum,termination"
    assert answer.headers["tus-checksum-algorithm"] == "sha1,sha256"
    assert int(answer.headers["tus-max-size"]) == direct.settings.max_upload_mb * 1_000_000


async def test_upload_in_two_pieces_ends_in_the_media_folder_under_the_name_that_the_answers_say(direct: Live) -> None:
    metadata = f"filename {b64(b'Vortrag (1).MP3')},private"
    path = await begun(direct, Upload_Metadata=metadata)
    first = await patch(direct, path, 0, BYTES[:1000])
    assert (first.status_code, first.headers["upload-offset"]) == (204, "1000")
    assert "stenopool-audio-file" not in first.headers
    expires = parsedate_to_datetime(first.headers["upload-expires"]).timestamp()
    assert expires == pytest.approx(time.time() + direct.settings.upload_ttl_s, abs=5)
    between = await head(direct, path)
    assert between.status_code == 200
    assert between.headers["cache-control"] == "no-store"
    assert between.headers["upload-metadata"] == metadata
    assert (between.headers["upload-offset"], between.headers["upload-length"]) == ("1000", str(len(BYTES)))
    last = await patch(direct, path, 1000, BYTES[1000:])
    after = await head(direct, path)
    for answer in (last, after):
        assert answer.headers["upload-offset"] == str(len(BYTES))
        assert "upload-expires" not in answer.headers
        assert answer.headers["stenopool-audio-file"] == last.headers["stenopool-audio-file"]
    assert (direct.settings.media_dir / last.headers["stenopool-audio-file"]).read_bytes() == BYTES
    assert last.headers["stenopool-audio-file"].endswith(".mp3")
    for answer in (first, between, last, after):
        assert answer.headers["tus-resumable"] == "1.0.0"


async def test_finished_upload_is_taken_as_audio_file_by_its_key_only(start: Start) -> None:
    live = await start(fake=True)
    recording = wav(0.5)
    path = await begun(live, len(recording))
    audio_file = (await patch(live, path, 0, recording)).headers["stenopool-audio-file"]
    call = {"audio_file": audio_file}
    assert (await live.client.post("/transcribe", params=call)).status_code == 200
    made = await live.client.post("/extract-audio", params=call | {"format": "flac"})
    assert made.json()["duration"] == 0.5
    assert (await live.client.post("/transcribe", params=call, headers=THEIRS)).status_code == 404


async def test_creation_may_bring_the_first_bytes_or_all(direct: Live) -> None:
    some = await create(direct, content=BYTES[:100], **OCTETS)
    assert (some.status_code, some.headers["upload-offset"]) == (201, "100")
    assert (await patch(direct, some.headers["location"], 100, BYTES[100:])).status_code == 204
    whole = await create(direct, content=BYTES, **OCTETS)
    assert (whole.status_code, whole.headers["upload-offset"]) == (201, str(len(BYTES)))
    assert (direct.settings.media_dir / whole.headers["stenopool-audio-file"]).read_bytes() == BYTES


async def test_creation_whose_first_bytes_are_refused_leaves_no_upload(direct: Live) -> None:
    answer = await create(direct, content=BYTES, Upload_Checksum=f"sha1 {b64(b'x' * 20)}", **OCTETS)
    assert shape(answer)["code"] == "checksum_mismatch"
    assert list(direct.settings.uploads_dir.iterdir()) == []


async def test_bytes_are_compared_with_their_checksum(direct: Live) -> None:
    path = await begun(direct)
    wrong, right = (f"sha1 {b64(hashlib.sha1(data).digest())}" for data in (b"x", BYTES))
    answer = await patch(direct, path, 0, BYTES, Upload_Checksum=wrong)
    assert (answer.status_code, shape(answer)["code"]) == (460, "checksum_mismatch")
    assert await offset_of(direct, path) == 0
    assert (await patch(direct, path, 0, BYTES, Upload_Checksum=right)).status_code == 204


async def test_deleted_upload_is_gone(direct: Live) -> None:
    path = await begun(direct)
    answer = await direct.client.delete(path, headers=TUS)
    assert (answer.status_code, answer.headers["tus-resumable"]) == (204, "1.0.0")
    for again in (await head(direct, path), await patch(direct, path, 0, b"x"), await direct.client.delete(path, headers=TUS)):
        assert again.status_code == 404


async def test_clients_without_patch_and_delete_may_say_what_they_mean(direct: Live) -> None:
    path = await begun(direct, 3)
    said = TUS | OCTETS | {"Upload-Offset": "0"}
    answer = await direct.client.post(path, headers=said | {"X-HTTP-Method-Override": "PATCH"}, content=b"abc")
    assert (answer.status_code, answer.headers["upload-offset"]) == (204, "3")
    assert (await direct.client.post(path, headers=TUS)).status_code == 405
    assert (await direct.client.post(path, headers=TUS | {"X-HTTP-Method-Override": "DELETE"})).status_code == 204
    assert (await head(direct, path)).status_code == 404


async def test_chunked_body_is_taken(quiet: Live) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(BYTES), 10_000):
            yield BYTES[start : start + 10_000]

    path = await begun(quiet)
    answer = await patch(quiet, path, 0, chunks())
    assert answer.headers["upload-offset"] == str(len(BYTES))
    too_long = await patch(quiet, await begun(quiet, 9), 0, chunks())
    assert (too_long.status_code, shape(too_long)["code"]) == (413, "too_large")


# -- refusals


async def test_other_versions_are_refused_with_the_one_that_is_spoken(direct: Live) -> None:
    path = await begun(direct)
    for version in (None, "", "0.2.2", "1.0.1"):
        headers = {} if version is None else {"Tus-Resumable": version}
        for method, where in (("POST", "/uploads"), ("HEAD", path), ("PATCH", path), ("DELETE", path)):
            answer = await direct.client.request(method, where, headers=headers)
            assert answer.status_code == 412
            assert answer.headers["tus-version"] == answer.headers["tus-resumable"] == "1.0.0"
            assert method == "HEAD" or shape(answer)["code"] == "unsupported_version"


async def test_refusals_before_any_route_say_the_version_too(start: Start) -> None:
    live = await start(direct=True, max_upload_mb=1)
    stranger = await live.client.post("/uploads", headers={"X-API-Key": "nobody's", **TUS})
    large = await live.client.post("/uploads", headers={**TUS, "Content-Length": "1000001"}, content=b"")
    nowhere = await live.client.get("/uploads/a/b", headers=TUS)
    assert [one.status_code for one in (stranger, large, nowhere)] == [401, 413, 404]
    assert {one.headers.get("tus-resumable") for one in (stranger, large, nowhere)} == {"1.0.0"}
    assert "tus-resumable" not in (await live.client.get("/nowhere")).headers


async def test_another_keys_upload_looks_as_if_it_were_not_there(direct: Live) -> None:
    path = await begun(direct)
    for method in ("HEAD", "PATCH", "DELETE"):
        said = TUS | OCTETS | THEIRS | {"Upload-Offset": "0"}
        answer = await direct.client.request(method, path, headers=said)
        never = await direct.client.request(method, "/uploads/" + "0" * 32, headers=said)
        assert answer.status_code == never.status_code == 404
        assert "upload-offset" not in answer.headers
        if method != "HEAD":
            assert shape(answer) | {"request_id": ""} == shape(never) | {"request_id": ""}
    assert (await head(direct, path)).status_code == 200


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({}, "Upload-Length"),
    ({"Upload-Length": "-1"}, "Upload-Length"),
    ({"Upload-Length": "1e3"}, "Upload-Length"),
    ({"Upload-Length": "²".encode("latin-1")}, "Upload-Length"),
    ({"Upload-Length": "9" * 19}, "Upload-Length"),
    ({"Upload-Defer-Length": "1"}, "Upload-Defer-Length"),
    ({"Upload-Defer-Length": "1", "Upload-Length": "5"}, "Upload-Defer-Length"),
    ({"Upload-Length": "5", "Upload-Metadata": "filename !!!"}, "Upload-Metadata"),
    ({"Upload-Length": "5", "Upload-Metadata": "a eA==,a eA=="}, "Upload-Metadata"),
    ({"Upload-Length": "5", "Upload-Metadata": ","}, "Upload-Metadata"),
    ({"Upload-Length": "5", "Upload-Metadata": "naïve eA==".encode()}, "Upload-Metadata"),
    ({"Upload-Length": "5", "Upload-Metadata": "a " + "eA==" * 2000}, "Upload-Metadata"),
    ({"Upload-Length": "5", "Upload-Checksum": "md5 eA=="}, "Upload-Checksum"),
    ({"Upload-Length": "5", "Upload-Checksum": "sha1 ?"}, "Upload-Checksum"),
]


async def test_malformed_creation_is_refused_and_the_header_named(direct: Live) -> None:
    for headers, param in MALFORMED:
        answer = await direct.client.post("/uploads", headers=TUS | headers)
        error = shape(answer)
        assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_upload", param), headers
    assert list(direct.settings.uploads_dir.iterdir()) == []


SUFFIXES = {
    b"talk.wav": ".wav",
    b"a.b.OPUS": ".opus",
    b"../../etc/passwd.mp3": ".mp3",
    b"\xff\xfe.flac": ".flac",
    b"talk.py": "",
    b"talk.mp3/..": "",
    b"talk.m\x00p3": "",
    b"mp3": "",
    b"": "",
}


async def test_of_a_file_name_only_the_suffix_of_a_known_kind_of_media_is_used(direct: Live) -> None:
    for name, suffix in SUFFIXES.items():
        answer = await create(direct, 0, Upload_Metadata=f"filename {b64(name)}")
        path = Path(answer.headers["stenopool-audio-file"])
        assert (path.parts[0], len(path.parts), path.suffix, len(path.stem)) == ("by-key", 3, suffix, 32), name


async def test_patch_is_checked_before_a_byte_is_taken(direct: Live) -> None:
    path = await begun(direct, 5)
    bad = [
        (await direct.client.patch(path, headers=TUS | {"Upload-Offset": "0"}, content=b"x"), 415, "wrong_content_type"),
        (await patch(direct, path, 0, b"x", Content_Type="audio/wav"), 415, "wrong_content_type"),
        (await direct.client.patch(path, headers=TUS | OCTETS, content=b"x"), 400, "invalid_upload"),
        (await patch(direct, path, 0, b"x", Upload_Offset="+0"), 400, "invalid_upload"),
        (await patch(direct, path, 1, b"x"), 409, "offset_mismatch"),
        (await patch(direct, path, 0, b"123456"), 413, "too_large"),
        (await patch(direct, path, 0, b"x", Content_Encoding="gzip"), 415, "unsupported_encoding"),
    ]
    for answer, status, code in bad:
        assert (answer.status_code, shape(answer)["code"]) == (status, code)
    assert await offset_of(direct, path) == 0


async def test_creation_with_a_body_of_another_kind_is_refused(direct: Live) -> None:
    answer = await create(direct, content=b"x", Content_Type="audio/wav")
    assert (answer.status_code, shape(answer)["code"]) == (415, "wrong_content_type")
    answer = await create(direct, 2, content=b"abc", **OCTETS)
    assert (answer.status_code, shape(answer)["code"]) == (413, "too_large")


async def test_too_long_too_many_and_no_disk_are_refused_each_in_its_way(start: Start) -> None:
    live = await start(direct=True, key_uploads=2, max_upload_mb=1)
    answer = await create(live, 1_000_001)
    assert (answer.status_code, shape(answer)["code"]) == (413, "too_large")
    for _ in range(2):
        await begun(live)
    answer = await create(live)
    assert (answer.status_code, shape(answer)["code"]) == (429, "quota_exceeded")
    assert int(answer.headers["retry-after"]) >= 1


async def test_server_without_free_disk_takes_no_upload(start: Start) -> None:
    live = await start(direct=True, disk_reserve_mb=1 << 40)
    answer = await create(live)
    assert (answer.status_code, shape(answer)["code"]) == (507, "disk_full")


# -- over a socket


async def test_what_came_before_the_client_hung_up_is_kept_and_the_rest_follows(quiet: Live) -> None:
    path = await begun(quiet)
    _, writer = await held_open(quiet, path, len(BYTES), BYTES[:5000])
    writer.transport.abort()
    answer = await patch(quiet, path, 5000, BYTES[5000:])
    while answer.status_code == 423:  # the server has not seen yet that the client is gone
        await asyncio.sleep(0.01)
        answer = await patch(quiet, path, 5000, BYTES[5000:])
    assert answer.status_code == 204
    assert (quiet.settings.media_dir / answer.headers["stenopool-audio-file"]).read_bytes() == BYTES


async def test_of_two_requests_at_once_the_first_one_goes_on_and_the_second_is_locked_out(quiet: Live) -> None:
    path = await begun(quiet)
    reader, writer = await held_open(quiet, path, len(BYTES), BYTES[:5000])
    second = await patch(quiet, path, 5000, b"y" * 10)
    assert (second.status_code, shape(second)["code"], shape(second)["retryable"]) == (423, "upload_locked", True)
    assert second.headers["retry-after"] == "1"
    writer.write(BYTES[5000:])
    assert await head_of(reader) == 204
    audio_file = (await head(quiet, path)).headers["stenopool-audio-file"]
    assert (quiet.settings.media_dir / audio_file).read_bytes() == BYTES


async def test_more_bytes_than_may_come_are_refused_by_their_announcement(quiet: Live) -> None:
    path = await begun(quiet, 5)
    said = "\n".join(f"{name}: {value}" for name, value in (TUS | OCTETS | {"X-API-Key": KEY}).items())
    for line in (f"PATCH {path} HTTP/1.1\nUpload-Offset: 0", "POST /uploads HTTP/1.1\nUpload-Length: 5"):
        reader, _ = await quiet.raw(f"{line}\nContent-Length: 6\n{said}")
        assert await head_of(reader) == 413
    assert len(list(quiet.settings.uploads_dir.iterdir())) == 1


async def test_question_how_far_it_is_finishes_an_upload_whose_last_step_had_failed(quiet: Live) -> None:
    path = await begun(quiet)
    blocked = quiet.settings.media_dir / "by-key"
    blocked.write_bytes(b"a file where a folder should be")
    assert (await patch(quiet, path, 0, BYTES)).status_code == 500
    blocked.unlink()
    answer = await head(quiet, path)
    assert (quiet.settings.media_dir / answer.headers["stenopool-audio-file"]).read_bytes() == BYTES


async def test_slow_client_is_sent_away_and_what_it_sent_is_kept(start: Start) -> None:
    live = await start(body_idle_timeout_s=0.2)
    path = await begun(live)
    reader, _ = await held_open(live, path, len(BYTES), BYTES[:5000])
    assert await head_of(reader) == 408
    assert await offset_of(live, path) == 5000


async def test_upload_goes_on_after_a_restart_of_the_application(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    async with calling(settings, quiet_service) as live:
        path = await begun(live)
        await patch(live, path, 0, BYTES[:5000])
    async with calling(settings, quiet_service) as live:
        assert await offset_of(live, path) == 5000
        answer = await patch(live, path, 5000, BYTES[5000:])
        assert (settings.media_dir / answer.headers["stenopool-audio-file"]).read_bytes() == BYTES
