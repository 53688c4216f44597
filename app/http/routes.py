"""The native routes. Each is thin: take a place, read the body, check the options, call the service, render."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from app import catalogue
from app.admission.controller import Gate, Place
from app.errors import Cancelled, InputError
from app.formats import render
from app.http import schemas
from app.http.body import Body, read_body
from app.service import Service

T = TypeVar("T")

router = APIRouter(responses={"4XX": schemas.ERROR_SCHEMA, "5XX": schemas.ERROR_SCHEMA})


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _owner(request: Request) -> str:
    owner: str = request.state.owner
    return owner


@asynccontextmanager
async def _intake(request: Request, gate: Gate) -> AsyncIterator[tuple[Path, Body, Place]]:
    """A place at the gate, a folder, and only then the body."""
    service = _service(request)
    with service.admit(gate) as place:
        async with service.folder() as folder:
            yield folder, await read_body(request, folder, service.settings.disk_reserve_mb), place


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled as soon as the client hangs up. The body must have been read."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("The client went away.")
        return await task
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@router.post("/transcribe", openapi_extra=schemas.openapi_body(schemas.TranscribeParams, file=True), tags=["media"])
async def transcribe(request: Request) -> Response:
    """Transcribe a file, a path in the media folder, or what an address leads to; the answer is the transcript.

    Options go into the query or into the form. A body that is no form is taken as the file itself.
    """
    service = _service(request)
    default = service.settings.model_size
    schemas.parse(schemas.TranscribeParams, dict(request.query_params)).options(default)  # before the upload, not after it
    async with _intake(request, service.gate) as (folder, body, place):
        params = schemas.parse(schemas.TranscribeParams, body.fields)
        source = schemas.source_of(params, body.file)
        work = service.transcribe(_owner(request), folder, source, params.options(default), place)
        transcript = await _unless_gone(request, work)
    rendered = await asyncio.to_thread(render, transcript, params.response_format, words=params.word_timestamps)
    return Response(rendered.body, media_type=rendered.media_type)


@router.post("/extract-audio", openapi_extra=schemas.openapi_body(schemas.ExtractParams, file=True), tags=["media"])
async def extract_audio(request: Request) -> Response:
    """Take the sound out of a file or video and write it into the media folder; ``audio_file`` is its path there."""
    service = _service(request)
    schemas.parse(schemas.ExtractParams, dict(request.query_params)).options()
    async with _intake(request, service.extractions) as (folder, body, _):
        params = schemas.parse(schemas.ExtractParams, body.fields)
        source = schemas.source_of(params, body.file)
        path, made = await _unless_gone(request, service.extract_audio(_owner(request), folder, source, params.options()))
    return JSONResponse(
        {
            "audio_file": path,
            "format": made.format,
            "duration": round(made.duration_s, 3),
            "size_bytes": made.size_bytes,
            "sample_rate": made.sample_rate,
            "channels": made.channels,
        }
    )


@router.post("/download", openapi_extra=schemas.openapi_body(schemas.DownloadParams, file=False), tags=["media"])
async def download(request: Request) -> Response:
    """Fetch a video or audio file into the media folder; ``audio_file`` is its path there."""
    service = _service(request)
    async with _intake(request, service.downloads) as (folder, body, _):
        params = schemas.parse(schemas.DownloadParams, body.fields)
        if body.file:
            raise InputError("This route takes a url, not a file.", param="file")
        path, found = await _unless_gone(request, service.download(_owner(request), folder, params.url))
    return JSONResponse(
        {
            "audio_file": path,
            "title": found.title,
            "source": found.source_url,
            "extractor": found.extractor,
            "size_bytes": found.size_bytes,
            "duration": found.duration_s,
        }
    )


@router.get("/models", tags=["server"])
async def models(request: Request) -> Response:
    """The models that may be named: whether they are on disk and loaded, RAM for one instance, languages."""
    service = _service(request)
    loaded = {name for name, lane in service.pool.stats().items() if lane["workers"]}
    listed = await asyncio.to_thread(_listed, service, loaded)
    return JSONResponse({"default": service.settings.model_size, "models": listed})


def _listed(service: Service, loaded: set[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": spec.name,
            "on_disk": catalogue.local_path(spec.name, service.settings) is not None,
            "loaded": spec.name in loaded,
            "ram_bytes": spec.ram_bytes,
            "languages": list(spec.languages),
        }
        for spec in catalogue.MODELS.values()
    ]


@router.head("/health", include_in_schema=False)
@router.get("/health", tags=["server"])
async def health() -> Response:
    """Alive. Needs no key; answers while the pool is saturated."""
    return JSONResponse({"status": "ok"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready", tags=["server"])
async def ready(request: Request) -> Response:
    """Whether work can be taken now, and if not why: 200 or 503. Needs no key."""
    reasons = _service(request).not_ready_because()
    return JSONResponse({"ready": not reasons, "reasons": reasons}, status_code=503 if reasons else 200)
