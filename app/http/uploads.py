"""Resumable uploads by tus 1.0.0 (https://tus.io/protocols/resumable-upload): ``/uploads`` and ``/uploads/{upload_id}``.

Written here and not taken from a package, because what there is reads the body before it knows whose upload it is, or holds
it in memory, or keeps nothing of a request that was cut off.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from email.utils import formatdate
from pathlib import PurePosixPath
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.errors import Cancelled, InvalidUpload, MethodNotAllowed, TooLarge, UnsupportedVersion, WrongContentType
from app.http import schemas
from app.http.asking import upload_bytes
from app.http.middleware import TUS_VERSION
from app.media.download import SUFFIXES
from app.uploads.part import ALGORITHMS, Checksum
from app.uploads.turn import Read
from app.uploads.uploads import Upload, Uploads

router = APIRouter(responses={"4XX": schemas.ERROR_SCHEMA, "5XX": schemas.ERROR_SCHEMA}, tags=["uploads"])

EXTENSIONS = "creation,creation-with-upload,expiration,checksum,termination"
CONTENT_TYPE = "application/offset+octet-stream"
MAX_METADATA = 4096
_NUMBER = re.compile(r"[0-9]{1,18}")
_KEY = re.compile(r"[!-+\--~]+")


def _headers(*names: str) -> dict[str, Any]:
    """OpenAPI of request headers."""
    return {"parameters": [{"name": name, "in": "header", "schema": {"type": "string"}} for name in names]}


@router.options("/uploads", status_code=204)
@router.options("/uploads/{upload_id}", include_in_schema=False)
async def capabilities(request: Request) -> Response:
    """What of tus there is. ``creation-defer-length`` and ``concatenation`` are not."""
    headers = {
        "Tus-Version": TUS_VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(_uploads(request).max_bytes),
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
    }
    return Response(status_code=204, headers=headers)


@router.post(
    "/uploads", status_code=201, openapi_extra=_headers("Tus-Resumable", "Upload-Length", "Upload-Metadata", "Upload-Checksum")
)
async def create(request: Request) -> Response:
    """Begin an upload of ``Upload-Length`` bytes; the body may hold the first of them. ``Location`` is where the rest goes."""
    uploads = _spoken(request)
    if "upload-defer-length" in request.headers:
        raise InvalidUpload("The length must be known at the beginning; send Upload-Length.", param="Upload-Defer-Length")
    length = _number(request, "Upload-Length")
    metadata = request.headers.get("upload-metadata", "")
    suffix = _suffix(_metadata(metadata))
    size = upload_bytes(request)
    if size != 0:
        _of_bytes(request)
    if size is not None and size > length:
        raise _too_many()
    checksum = _checksum(request)
    upload = await uploads.create(request.state.owner, length, metadata, suffix)
    if size != 0:
        try:
            await uploads.append(upload, 0, _reader(request), checksum)
        except BaseException:  # the answer will not say where it is
            await uploads.remove(upload)
            raise
    return _answer(uploads, upload, 201, {"Location": f"/uploads/{upload.id}"})


@router.head("/uploads/{upload_id}", openapi_extra=_headers("Tus-Resumable"))
async def progress(request: Request, upload_id: str) -> Response:
    """How far an upload is; ``Stenopool-Audio-File`` is its path in the media folder, once it is whole."""
    uploads = _spoken(request)
    upload = uploads.get(upload_id, request.state.owner)
    await uploads.settle(upload)
    more = {"Upload-Length": str(upload.info.length), "Cache-Control": "no-store"}
    if upload.info.metadata:
        more["Upload-Metadata"] = upload.info.metadata
    return _answer(uploads, upload, 200, more)


@router.patch(
    "/uploads/{upload_id}", status_code=204, openapi_extra=_headers("Tus-Resumable", "Upload-Offset", "Upload-Checksum")
)
async def append(request: Request, upload_id: str) -> Response:
    """The bytes from ``Upload-Offset`` on. What arrives is kept, even if the connection is lost before the end."""
    uploads = _spoken(request)
    upload = uploads.get(upload_id, request.state.owner)
    _of_bytes(request)
    offset, checksum = _number(request, "Upload-Offset"), _checksum(request)
    if offset == upload.offset and (upload_bytes(request) or 0) > upload.info.length - offset:
        raise _too_many()
    await uploads.append(upload, offset, _reader(request), checksum)
    return _answer(uploads, upload, 204)


@router.delete("/uploads/{upload_id}", status_code=204, openapi_extra=_headers("Tus-Resumable"))
async def delete(request: Request, upload_id: str) -> Response:
    """End an upload and delete its bytes; of a finished one, the file in the media folder."""
    uploads = _spoken(request)
    await uploads.remove(uploads.get(upload_id, request.state.owner))
    return Response(status_code=204)


@router.post("/uploads/{upload_id}", include_in_schema=False)
async def overridden(request: Request, upload_id: str) -> Response:
    """For clients that cannot send ``PATCH`` or ``DELETE``: ``X-HTTP-Method-Override`` says what is meant."""
    meant = {"PATCH": append, "DELETE": delete}.get(request.headers.get("x-http-method-override", ""))
    if meant is None:
        raise MethodNotAllowed("An upload takes HEAD, PATCH and DELETE.")
    return await meant(request, upload_id)


def _uploads(request: Request) -> Uploads:
    uploads: Uploads = request.app.state.service.uploads
    return uploads


def _spoken(request: Request) -> Uploads:
    """The uploads, if the client speaks our version."""
    if request.headers.get("tus-resumable") != TUS_VERSION:
        request.state.headers["tus-version"] = TUS_VERSION
        raise UnsupportedVersion(f"This server speaks tus {TUS_VERSION}.", param="Tus-Resumable")
    return _uploads(request)


def _answer(uploads: Uploads, upload: Upload, status: int, more: dict[str, str] | None = None) -> Response:
    headers = {"Upload-Offset": str(upload.offset)} | (more or {})
    if upload.finished:
        headers["Stenopool-Audio-File"] = str(upload.info.audio_file)
    else:
        headers["Upload-Expires"] = formatdate(time.time() + uploads.expires_in_s(upload), usegmt=True)
    return Response(status_code=status, headers=headers)


def _reader(request: Request) -> Read:
    ended = False

    async def read() -> bytes | None:
        nonlocal ended
        if ended:
            return None
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("The client went away during the upload.")
        ended = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    return read


def _of_bytes(request: Request) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != CONTENT_TYPE:
        raise WrongContentType(f"The bytes of an upload are {CONTENT_TYPE}.", param="Content-Type")


def _number(request: Request, name: str) -> int:
    said = request.headers.get(name, "")
    if not _NUMBER.fullmatch(said):
        raise InvalidUpload(f"{name} must be a number of bytes.", param=name)
    return int(said)


def _checksum(request: Request) -> Checksum | None:
    said = request.headers.get("upload-checksum")
    if said is None:
        return None
    algorithm, _, digest = said.partition(" ")
    if algorithm not in ALGORITHMS:
        raise InvalidUpload(f"The checksums are {' and '.join(ALGORITHMS)}.", param="Upload-Checksum")
    return Checksum(algorithm, _decoded(digest, "Upload-Checksum"))


def _metadata(said: str) -> dict[str, bytes]:
    """The pairs of ``Upload-Metadata``. They come back in headers, so nothing but what the protocol allows may be in them."""
    if len(said) > MAX_METADATA:
        raise InvalidUpload(f"The metadata may have {MAX_METADATA} characters.", param="Upload-Metadata")
    found: dict[str, bytes] = {}
    for pair in said.split(",") if said else []:
        key, _, value = pair.strip().partition(" ")
        if not _KEY.fullmatch(key) or key in found:
            raise InvalidUpload("The metadata is malformed: key and base64 value, comma, the next.", param="Upload-Metadata")
        found[key] = _decoded(value, "Upload-Metadata")
    return found


def _decoded(value: str, param: str) -> bytes:
    try:
        return base64.b64decode(value.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidUpload("A value is not base64.", param=param) from None


def _suffix(metadata: dict[str, bytes]) -> str:
    """The suffix of the file's own name, if it is one of media; nothing else of the name is used."""
    suffix = PurePosixPath(metadata.get("filename", b"").decode("utf-8", "replace")).suffix.lower()
    return suffix if suffix in SUFFIXES else ""


def _too_many() -> TooLarge:
    return TooLarge("More bytes than Upload-Length says.", param="Content-Length", hint="Begin an upload of the right length.")
