"""Reading bodies: every form, split anywhere, malformed in every way, and never large in memory."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from app.errors import Cancelled, DiskFull, InputError
from app.http import body as body_module
from app.http.body import MAX_FIELD_BYTES, MAX_FIELDS, Body, FileSink, read_body

BOUNDARY = b"XyZ123"
FORM = "multipart/form-data; boundary=XyZ123"
HUGE_MB = 1 << 40


def request(chunks: Iterable[bytes], content_type: str | None = FORM, query: bytes = b"", *, hang_up: bool = False) -> Request:
    """A request whose body comes in these pieces; with ``hang_up`` the client goes before the end."""

    def messages() -> Iterator[dict[str, Any]]:
        for chunk in chunks:
            yield {"type": "http.request", "body": chunk, "more_body": True}
        yield {"type": "http.disconnect"} if hang_up else {"type": "http.request", "body": b"", "more_body": False}

    source = messages()

    async def receive() -> dict[str, Any]:
        return next(source)

    headers = [] if content_type is None else [(b"content-type", content_type.encode("latin-1"))]
    return Request({"type": "http", "method": "POST", "headers": headers, "query_string": query}, receive)


def part(name: str, value: bytes, filename: str | None = None, *more: str) -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    lines = [f'Content-Disposition: form-data; name="{name}"{file}', *more]
    return b"--" + BOUNDARY + b"\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + value + b"\r\n"


END = b"--" + BOUNDARY + b"--\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + END


async def read(folder: Path, *chunks: bytes, **how: Any) -> tuple[dict[str, str], bytes | None]:
    """The fields, and what is in the file."""
    found: Body = await read_body(request(chunks, **how), folder, 0)
    return found.fields, found.file.read_bytes() if found.file else None


async def refused(folder: Path, *chunks: bytes, **how: Any) -> InputError:
    with pytest.raises(InputError) as error:
        await read(folder, *chunks, **how)
    return error.value


TRICKY = b"\r\n--XyZ12\r\n--XyZ124--\r\n--XyZ123x\x00\xff\r\r\n\n--" + bytes(range(256)) + b"\r\n--XyZ"
SMALL = form(part("language", "grün".encode()), part("file", TRICKY, "a.wav", "Content-Type: audio/wav"), part("task", b""))
EXPECTED = ({"language": "grün", "task": ""}, TRICKY)


async def test_multipart_split_at_every_byte_gives_the_same_fields_and_file(tmp_path: Path) -> None:
    for cut in range(len(SMALL) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        assert await read(folder, SMALL[:cut], SMALL[cut:]) == EXPECTED, cut


async def test_multipart_byte_by_byte_gives_the_same_fields_and_file(tmp_path: Path) -> None:
    assert await read(tmp_path, *(SMALL[i : i + 1] for i in range(len(SMALL)))) == EXPECTED


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=400), value=st.text(max_size=40), cuts=st.lists(st.integers(0, 700), max_size=6))
def test_any_content_in_any_pieces_arrives_as_it_was_sent(content: bytes, value: str, cuts: list[int]) -> None:
    whole = form(part("prompt", value.encode("utf-8", "replace")), part("file", content.replace(BOUNDARY, b""), "x"))
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    with tempfile.TemporaryDirectory() as folder:
        pieces = [whole[a:b] for a, b in pairwise(edges)]
        fields, file = asyncio.run(read(Path(folder), *pieces))
    assert (fields, file) == ({"prompt": value.encode("utf-8", "replace").decode()}, content.replace(BOUNDARY, b""))


@settings(max_examples=80, deadline=None)
@given(garbage=st.binary(max_size=200), kind=st.sampled_from([FORM, "application/json", "application/x-www-form-urlencoded"]))
def test_garbage_is_read_or_refused_but_never_an_unknown_error(garbage: bytes, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder, suppress(InputError):
        asyncio.run(read(Path(folder), garbage, content_type=kind))


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\x00"), max_size=60).flatmap(
        lambda text: st.sampled_from([text, f"multipart/form-data; boundary={text}", f"multipart/form-data; {text}"])
    )
)
def test_any_content_type_header_is_understood_or_refused(kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder, suppress(InputError):
        asyncio.run(read(Path(folder), b"--x\r\n\r\n--x--", content_type=kind))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b"")))
def test_any_content_disposition_is_understood_or_refused(disposition: bytes) -> None:
    whole = b"--XyZ123\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\nvalue\r\n--XyZ123--\r\n"
    with tempfile.TemporaryDirectory() as folder, suppress(InputError):
        asyncio.run(read(Path(folder), whole))


async def test_two_files_are_refused(tmp_path: Path) -> None:
    error = await refused(tmp_path, form(part("file", b"1", "a"), part("file", b"2", "b")))
    assert "more than one file" in error.message
    assert error.param == "file"


async def test_file_under_another_name_is_refused_naming_the_right_one(tmp_path: Path) -> None:
    error = await refused(tmp_path, form(part("audio", b"1", "a")))
    assert "'file'" in error.message
    assert error.param == "audio"


async def test_as_many_fields_as_allowed_are_taken_and_one_more_is_refused(tmp_path: Path) -> None:
    parts = [part(f"f{i}", b"v") for i in range(MAX_FIELDS)]
    fields, _ = await read(tmp_path, form(*parts))
    assert len(fields) == MAX_FIELDS
    assert "too many" in (await refused(tmp_path, form(*parts, part("more", b"v")))).message


async def test_one_field_repeated_counts_each_time(tmp_path: Path) -> None:
    assert "too many" in (await refused(tmp_path, form(*[part("same", b"v")] * (MAX_FIELDS + 1)))).message


async def test_urlencoded_form_with_too_many_fields_is_refused(tmp_path: Path) -> None:
    kind = "application/x-www-form-urlencoded"
    whole = "&".join(f"f{i}=1" for i in range(MAX_FIELDS + 1)).encode()
    assert "too many" in (await refused(tmp_path, whole, content_type=kind)).message


async def test_field_that_is_too_large_is_refused_in_every_form(tmp_path: Path) -> None:
    value = b"v" * (MAX_FIELD_BYTES + 1)
    error = await refused(tmp_path, form(part("prompt", value)))
    assert error.param == "prompt"
    for kind, whole in (("application/x-www-form-urlencoded", b"p=" + value), ("application/json", b'{"p":"' + value + b'"}')):
        assert "too large" in (await refused(tmp_path, whole, content_type=kind)).message


async def test_header_of_a_part_that_never_ends_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        yield b"--XyZ123\r\nX-Long: "
        while True:
            taken += 1
            yield b"x" * 1000

    with pytest.raises(InputError):
        await read_body(request(endless()), tmp_path, 0)
    assert taken < 100


@pytest.mark.parametrize(
    "whole",
    [
        SMALL[: -len(END)],
        SMALL[:-4],
        part("a", b"b"),
        b"--XyZ123\r\n",
        b"",
        b"no boundary at all",
        b"--other\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n--other--\r\n",
        b"--XyZ123\r\nno header line\r\n\r\nb\r\n--XyZ123--\r\n",
    ],
)
async def test_malformed_or_unfinished_multipart_is_refused(tmp_path: Path, whole: bytes) -> None:
    assert "multipart" in (await refused(tmp_path, whole)).message


@pytest.mark.parametrize("parameter", ["", "; boundary=", f"; boundary={'b' * 300}"])
async def test_multipart_without_a_usable_boundary_is_refused(tmp_path: Path, parameter: str) -> None:
    assert "boundary" in (await refused(tmp_path, SMALL, content_type=f"multipart/form-data{parameter}")).message


async def test_final_boundary_without_line_break_and_text_after_it_are_accepted(tmp_path: Path) -> None:
    assert await read(tmp_path, SMALL[:-2]) == EXPECTED
    (tmp_path / "upload").unlink()
    assert await read(tmp_path, SMALL + b"epilogue") == EXPECTED


async def test_part_without_a_disposition_has_no_name_and_is_no_file(tmp_path: Path) -> None:
    whole = b"--XyZ123\r\nContent-Type: audio/wav\r\n\r\nvalue\r\n--XyZ123--\r\n"
    assert await read(tmp_path, whole) == ({"": "value"}, None)


async def test_file_name_with_a_path_is_never_used(tmp_path: Path) -> None:
    found = await read_body(request([form(part("file", b"x", "../../evil.wav"))]), tmp_path, 0)
    assert found.file == tmp_path / "upload"
    assert [path.name for path in tmp_path.rglob("*")] == ["upload"]


async def test_array_spelling_of_a_name_is_its_plain_name(tmp_path: Path) -> None:
    fields, file = await read(tmp_path, form(part("hotwords[]", b"a"), part("file[]", b"x", "a.wav")))
    assert (fields, file) == ({"hotwords": "a"}, b"x")


async def test_field_named_file_that_holds_no_file_is_refused(tmp_path: Path) -> None:
    assert (await refused(tmp_path, form(part("file", b"text")))).param == "file"


async def test_empty_file_in_a_form_is_an_empty_file(tmp_path: Path) -> None:
    assert await read(tmp_path, form(part("file", b"", "a.wav"))) == ({}, b"")


@pytest.mark.parametrize("kind", [None, "", "audio/wav", "application/octet-stream"])
async def test_any_other_body_is_the_file_itself_and_an_empty_one_is_none(tmp_path: Path, kind: str | None) -> None:
    assert await read(tmp_path, b"RI", b"FF", content_type=kind, query=b"language=de") == ({"language": "de"}, b"RIFF")
    (tmp_path / "upload").unlink()
    assert await read(tmp_path, content_type=kind) == ({}, None)


async def test_urlencoded_form_gives_fields_and_wins_over_the_query(tmp_path: Path) -> None:
    kind = "application/x-www-form-urlencoded; charset=utf-8"
    found = await read(tmp_path, b"url=http%3A%2F%2Fx&em", b"pty=&language=de", content_type=kind, query=b"language=en&task=t")
    assert found == ({"url": "http://x", "empty": "", "language": "de", "task": "t"}, None)


async def test_json_gives_fields_of_every_flat_type(tmp_path: Path) -> None:
    data = {"a": "x", "b": True, "c": 2, "d": 0.5, "e": None}
    found = await read(tmp_path, json.dumps(data).encode(), content_type="application/json", query=b"a=q&e=kept")
    assert found == ({"a": "x", "b": "true", "c": "2", "d": "0.5", "e": "kept"}, None)


@pytest.mark.parametrize(
    "whole",
    [b"", b"{", b"[]", b'"x"', b"1", b'{"a": {}}', b'{"a": []}', b"\xff\xfe", b"[" * 60_000, b'{"a":' * 10_000, b"1" * 5000],
)
async def test_json_that_is_not_a_flat_object_is_refused(tmp_path: Path, whole: bytes) -> None:
    assert "JSON" in (await refused(tmp_path, whole, content_type="application/json")).message


@pytest.mark.parametrize("kind", [FORM, "audio/wav", "application/json", "application/x-www-form-urlencoded"])
async def test_client_that_goes_away_during_any_body_is_a_cancellation(tmp_path: Path, kind: str) -> None:
    with pytest.raises(Cancelled):
        await read(tmp_path, SMALL[:300], content_type=kind, hang_up=True)


@pytest.mark.parametrize("kind", [FORM, "audio/wav"])
async def test_upload_that_would_touch_the_disk_reserve_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DiskFull):
        await read_body(request([SMALL], kind), tmp_path, HUGE_MB)


async def test_write_that_fails_for_lack_of_room_is_disk_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "require_disk", lambda *_: None)
    sink = FileSink(Path("/dev/full"), 0)
    sink._file = open("/dev/full", "wb", buffering=0)  # type: ignore[assignment]  # noqa: SIM115
    await sink.write(b"x" * 3_000_000)
    with pytest.raises(DiskFull):
        await sink.write(b"x" * 3_000_000)  # by now the first ones were not written
    assert sink._file is not None
    await sink.close()
    assert sink._file.closed


async def test_failure_of_the_last_write_is_heard_of_when_the_upload_ends_and_its_file_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body_module, "require_disk", lambda *_: None)
    sink = FileSink(Path("/dev/full"), 0)
    sink._file = open("/dev/full", "wb", buffering=0)  # type: ignore[assignment]  # noqa: SIM115
    await sink.write(b"x" * 2_000_000)
    with pytest.raises(DiskFull):
        await sink.close()
    assert sink._file is not None
    assert sink._file.closed


async def test_upload_is_taken_further_while_what_came_before_is_written_and_no_write_passes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, written = threading.Event(), []
    whole = FileSink._write

    def slow(self: FileSink, file: Any, pieces: list[bytes], size: int) -> None:
        assert go.wait(20)
        written.append(size)
        whole(self, file, pieces, size)

    monkeypatch.setattr(FileSink, "_write", slow)
    sink = FileSink(tmp_path / "upload", 0)
    await asyncio.wait_for(sink.write(b"a" * 3_000_000), 20)
    second = asyncio.create_task(sink.write(b"b" * 2_500_000))
    await asyncio.sleep(0)
    assert (written, second.done()) == ([], False)
    go.set()
    await second
    await sink.close()
    assert written == [3_000_000, 2_500_000]
    assert sink.path.read_bytes() == b"a" * 3_000_000 + b"b" * 2_500_000


async def test_write_that_takes_only_a_part_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module.os, "writev", lambda fd, pieces: os.write(fd, b"".join(pieces)[:70_000]))
    content = [bytes([number]) * 65_536 for number in range(40)]
    found = await read_body(request(content, "audio/wav"), tmp_path, 0)
    assert found.file is not None
    assert found.file.read_bytes() == b"".join(content)


async def test_upload_that_is_cancelled_while_it_is_written_closes_its_file_only_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go, closed = threading.Event(), threading.Event(), []

    def slow(self: FileSink, file: Any, pieces: list[bytes], size: int) -> None:
        began.set()
        assert go.wait(20)
        closed.append(file.closed)

    monkeypatch.setattr(FileSink, "_write", slow)
    task = asyncio.create_task(read_body(request([b"x" * 2_000_000], "audio/wav"), tmp_path, 0))
    await asyncio.to_thread(began.wait, 20)
    task.cancel()
    asyncio.get_running_loop().call_later(0.05, go.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed == [False]


async def test_many_uploads_at_once_hold_less_each_and_a_lone_one_holds_much_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(FileSink, "_write", lambda self, file, pieces, size: written.append(size))
    sinks = [FileSink(tmp_path / str(number), 0) for number in range(200)]
    for _ in range(20):
        for sink in sinks:
            await sink.write(b"x" * 15_000)
        assert 2 * sum(sink._bytes for sink in sinks) <= body_module._PENDING_BYTES  # as much may be on its way to the disk
    assert 2 * len(sinks) * (max(written) - 15_000) <= body_module._PENDING_BYTES
    for sink in sinks[1:]:
        await sink.close()
    written.clear()
    for _ in range(60):
        await sinks[0].write(b"x" * 40_000)
    await sinks[0].close()
    assert max(written) >= body_module._WRITE_BYTES


async def test_upload_of_single_bytes_is_written_before_the_pieces_take_much_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(FileSink, "_write", lambda self, file, pieces, size: written.append(len(pieces)))
    await read_body(request([b"x"] * 1_000, "audio/wav"), tmp_path, 0)
    assert sum(written) == 1_000
    assert max(written) <= body_module._WRITE_PIECES


@pytest.mark.parametrize("kind", [FORM, "audio/wav"])
async def test_large_upload_is_never_in_memory_and_arrives_whole(tmp_path: Path, kind: str) -> None:
    piece, count = bytes(range(256)) * 256, 512

    def pieces() -> Iterator[bytes]:
        yield b'--XyZ123\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' if kind == FORM else b""
        for _ in range(count):
            yield piece
        yield b"\r\n" + END if kind == FORM else b""

    tracemalloc.start()
    try:
        found = await read_body(request(pieces(), kind), tmp_path, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.file is not None
    assert found.file.stat().st_size == len(piece) * count
    assert peak < 6_000_000
