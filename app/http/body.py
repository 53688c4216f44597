"""Request bodies, streamed: fields into a dict, the one file into the job's folder. Nothing large is ever in memory."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from app.durable import room, write_all
from app.errors import Cancelled, InputError, TooLarge
from app.media.paths import require_disk
from app.uploads.turn import to_its_end

MAX_FIELDS = 64
MAX_FIELD_BYTES = 64 * 1024
_WRITE_BYTES = 2 << 20
_LEAST_WRITE_BYTES = 1 << 15
_WRITE_PIECES = 256
"""Pieces of an upload that are written together at most; a client may send single bytes."""
_PENDING_BYTES = 16 << 20
"""Bytes, half of them on their way to the disk, that uploads together write out at; each may hold twice a received piece more,
and of more than 256 each a little."""
_FORM, _MULTIPART, _JSON = "application/x-www-form-urlencoded", "multipart/form-data", "application/json"


@dataclass
class Body:
    """What a request carried: its fields (the query's too; the body's win) and the uploaded file, if any."""

    fields: dict[str, str]
    file: Path | None = None


async def read_body(request: Request, folder: Path, reserve_mb: int) -> Body:
    """Read a multipart, urlencoded, JSON or raw (the body is the file) request into ``folder``.

    Raises:
        InputError: malformed, or more than one file, or too many or too large fields.
        DiskFull: the disk would be left with less than ``reserve_mb`` MB.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    content_type = kind.decode("latin-1").lower()
    sink = FileSink(folder / "upload", reserve_mb)
    fields = dict(request.query_params)
    try:
        if content_type == _MULTIPART:
            fields |= await _multipart(request, options.get(b"boundary"), sink)
        elif content_type == _FORM:
            text = (await _small(request)).decode("utf-8", "replace")
            fields |= dict(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS))
        elif content_type == _JSON:
            fields |= _json_fields(await _small(request))
        else:
            async for chunk in _stream(request):
                await sink.write(chunk)
    except ValueError as error:  # from parse_qsl: too many fields
        raise InputError("The form has too many fields.") from error
    finally:
        await sink.close()
    return Body(fields, sink.path if sink.opened else None)


async def read_fields(request: Request) -> dict[str, str]:
    """The fields of a request that carries no file: its query, and a JSON or urlencoded body.

    Raises:
        InputError: malformed, or another kind of body.
    """
    fields = dict(request.query_params)
    kind, options = parse_options_header(request.headers.get("content-type"))
    content_type = kind.decode("latin-1").lower()
    if content_type == _MULTIPART:
        return fields | await _multipart(request, options.get(b"boundary"), NoFile(Path(), 0))
    body = await _small(request)
    if content_type == _FORM:
        return fields | dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
    return fields | _json_fields(body) if body else fields


async def read_json(request: Request, most_bytes: int) -> tuple[bytes, Any]:
    """A JSON body of at most so many bytes: as it came, and what it says.

    Raises:
        TooLarge: it is longer. InputError: it is no JSON.
    """
    body = bytearray()
    async for chunk in _stream(request):
        body += chunk
        if len(body) > most_bytes:
            raise TooLarge(f"This body may have {most_bytes} bytes.", hint="Send less at once.")
    try:
        return bytes(body), await asyncio.to_thread(json.loads, bytes(body))
    except (ValueError, RecursionError):
        raise InputError("The body is not JSON.") from None


async def _stream(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        raise Cancelled("The client went away during the upload.") from None


async def _small(request: Request) -> bytes:
    body = b""
    async for chunk in _stream(request):
        body += chunk
        if len(body) > MAX_FIELD_BYTES:
            raise InputError("The form is too large; send the audio as a file.")
    return body


def _json_fields(body: bytes) -> dict[str, str]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise InputError("The body is not JSON.") from None
    if not isinstance(data, dict) or any(isinstance(value, (dict, list)) for value in data.values()):
        raise InputError("The body must be a flat JSON object of options.")
    given = {name: value for name, value in data.items() if value is not None}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}


class FileSink:
    """Collects bytes of an upload and writes them together, in a thread (a hop takes half a millisecond), while more come."""

    _open: ClassVar[set[FileSink]] = set()

    def __init__(self, path: Path, reserve_mb: int) -> None:
        self.path = path
        self._reserve_mb = reserve_mb
        self._pending: list[bytes] = []
        self._bytes = 0
        self._file: FileIO | None = None
        self._writing: asyncio.Task[None] | None = None

    @property
    def opened(self) -> bool:
        """Whether anything was uploaded (an empty file counts only in a form)."""
        return self._file is not None

    def open(self) -> None:
        """Make the file."""
        if self._file is not None:
            raise InputError("The form holds more than one file.", param="file")
        with room():
            self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115  (closed by close())
        self._open.add(self)

    def feed(self, data: bytes) -> None:
        """Keep bytes for the next :meth:`flush_if_large`."""
        if data:
            self._pending.append(data)
            self._bytes += len(data)

    async def write(self, data: bytes) -> None:
        """Take bytes of a raw upload."""
        if data and self._file is None:
            self.open()
        self.feed(data)
        await self.flush_if_large()

    async def flush_if_large(self) -> None:
        """Write out once enough has come together."""
        share = _PENDING_BYTES // 2 // max(1, len(self._open))  # as much is being written meanwhile
        enough = min(_WRITE_BYTES, max(_LEAST_WRITE_BYTES, share))
        if self._bytes >= enough or len(self._pending) >= _WRITE_PIECES:
            await self._flush()

    async def _flush(self) -> None:
        if self._file is not None and self._pending:
            pieces, size = self._pending, self._bytes
            self._pending, self._bytes = [], 0
            await self._written()
            self._writing = asyncio.create_task(asyncio.to_thread(self._write, self._file, pieces, size))

    async def _written(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await to_its_end(writing)  # or it would write to a closed file

    def _write(self, file: FileIO, pieces: list[bytes], size: int) -> None:
        require_disk(self.path.parent, size, self._reserve_mb)
        with room():
            written = os.writev(file.fileno(), pieces)
            if written < size:
                write_all(file.fileno(), b"".join(pieces)[written:])

    async def close(self) -> None:
        """Write the rest and close."""
        try:
            await self._flush()
            await self._written()
        finally:
            self._open.discard(self)
            if self._file is not None:
                self._file.close()


class NoFile(FileSink):
    """For routes that take no file."""

    def open(self) -> None:
        """Refuse it."""
        raise InputError("This route takes no file.", param="file")


@dataclass
class _Part:
    name: str = ""
    is_file: bool = False
    value: bytearray = field(default_factory=bytearray)


class _Form:
    """Callbacks of python-multipart's push parser; ``fields`` fills as the body comes in."""

    def __init__(self, sink: FileSink) -> None:
        self.fields: dict[str, str] = {}
        self.ended = False
        self._values = 0
        self._sink = sink
        self._part = _Part()
        self._header_name, self._header_value = bytearray(), bytearray()
        self._disposition = b""

    def on_part_begin(self) -> None:
        self._part, self._disposition = _Part(), b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part.name = options.get(b"name", b"").decode("utf-8", "replace").removesuffix("[]")
        self._part.is_file = b"filename" in options
        if self._part.is_file:
            if self._part.name != "file":
                raise InputError("The file belongs into the form field 'file'.", param=self._part.name[:64] or None)
            self._sink.open()
            return
        self._values += 1  # repeated names too, or a form could repeat one without end
        if self._values > MAX_FIELDS:
            raise InputError("The form has too many fields.")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self._sink.feed(data[start:end])
            return
        self._part.value += data[start:end]
        if len(self._part.value) > MAX_FIELD_BYTES:
            raise InputError(f"The field {self._part.name[:64]!r} is too large.", param=self._part.name[:64])

    def on_part_end(self) -> None:
        if not self._part.is_file and self._part.name == "file":
            raise InputError("The form field 'file' holds no file.", param="file")
        if not self._part.is_file:
            self.fields[self._part.name] = self._part.value.decode("utf-8", "replace")

    def on_end(self) -> None:
        self.ended = True


async def _multipart(request: Request, boundary: bytes | None, sink: FileSink) -> dict[str, str]:
    if not boundary or len(boundary) > 256:
        raise InputError("The multipart body has no usable boundary.")
    form = _Form(sink)
    names = [name for name in dir(form) if name.startswith("on_")]
    parser = MultipartParser(boundary, {name: getattr(form, name) for name in names})  # type: ignore[arg-type]
    try:
        async for chunk in _stream(request):
            parser.write(chunk)
            await sink.flush_if_large()
        parser.finalize()
    except FormParserError:
        raise InputError("The multipart body is malformed.") from None
    if not form.ended:
        raise InputError("The multipart body ends too early.")
    return form.fields
