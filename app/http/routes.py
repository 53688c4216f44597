"""The native routes. Each is thin: take a place, read the body, check the options, call the service, render."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from app import catalogue
from app.admission.controller import Controller
from app.admission.ticket import Ask, Ticket
from app.errors import Cancelled, DeadlineExceeded, InputError
from app.http import schemas
from app.http.asking import media_ask, patience, repeatable, responds_async, transcription_ask, upload_bytes
from app.http.body import Body, read_body
from app.http.jobs import answer, rendered
from app.jobs import Job
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
async def _intake(request: Request, controller: Controller, ask: Ask) -> AsyncIterator[tuple[Path, Body, Ticket]]:
    """A ticket at the desk, a folder, and only then the body."""
    service = _service(request)
    headers = request.state.headers
    try:
        with service.admitted(controller, ask, upload_bytes(request)) as ticket:
            headers.update(controller.quotas.headers(ask.key, ask.quota))
            async with service.folder(ticket) as folder:
                yield folder, await read_body(request, folder, service.settings.disk_reserve_mb), ticket
            if ask.within_s is not None:
                headers["preference-applied"] = f"wait={ask.within_s:g}"
            headers["x-queue-wait-ms"] = str(int(ticket.waited_s * 1000))
    finally:
        headers.update(controller.quotas.headers(ask.key, ask.quota))


async def _in_time(request: Request, work: Coroutine[Any, Any, T], ticket: Ticket) -> T:
    """The result of ``work``, if it is ready in the time that the caller is going to wait."""
    within_s = ticket.ask.within_s
    left_s = None if within_s is None else max(0.0, within_s - (time.monotonic() - ticket.entered_at))
    return await _unless_gone(request, work, left_s)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T], left_s: float | None) -> T:
    """The result of ``work``, which is cancelled as soon as the client hangs up, or after ``left_s`` seconds.

    The body must have been read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED, timeout=left_s)
        if not task.done() and not gone.done():
            raise DeadlineExceeded("The answer was not ready in the time that the caller was going to wait.")
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

    Options go into the query or into the form. A body that is no form is taken as the file itself. With ``wait=false`` or
    ``Prefer: respond-async`` the answer is 202 as soon as the job is safe on disk; ``GET /transcribe/{job_id}`` has the rest.
    """
    service = _service(request)
    default = service.settings.model_size
    early = schemas.parse(schemas.TranscribeParams, dict(request.query_params))  # before the upload
    asked = early.options(default)
    again = repeatable(request)
    if again is not None and (first := await service.first(_owner(request), again)) is not None:
        return await _taken_over(request, first, waits=early.wait and not responds_async(request))
    async with _intake(request, service.desk.jobs, transcription_ask(request, asked)) as (folder, body, ticket):
        params = schemas.parse(schemas.TranscribeParams, body.fields)
        source, options = schemas.source_of(params, body.file), params.options(default)
        if again is not None or responds_async(request) or not params.wait:
            form, url = params.response_format, params.webhook_url
            job = await service.accept(_owner(request), folder, source, options, ticket, form, again, url)
            return await _taken_over(request, job, waits=params.wait and not responds_async(request))
        if params.webhook_url:
            raise InputError("A webhook is for async jobs: send wait=false too.", param="webhook_url")
        transcript = await _in_time(request, service.transcribe(_owner(request), folder, source, options, ticket), ticket)
    return await rendered(transcript, params.response_format, words=bool(params.word_timestamps))


async def _taken_over(request: Request, job: Job, *, waits: bool) -> Response:
    """The answer to a job that goes on by itself: 202, or its result if that is ready before the caller's patience ends.

    The body must have been read, or never be.
    """
    service = _service(request)
    left_s = patience(request)
    if waits or left_s is not None:
        with contextlib.suppress(DeadlineExceeded):
            await _unless_gone(request, service.background.wait(job.id), left_s)
    if not waits:
        request.state.headers["preference-applied"] = "respond-async"
    return await answer(service, await service.background.get(job.id, _owner(request)))


@router.post("/extract-audio", openapi_extra=schemas.openapi_body(schemas.ExtractParams, file=True), tags=["media"])
async def extract_audio(request: Request) -> Response:
    """Take the sound out of a file or video and write it into the media folder; ``audio_file`` is its path there."""
    service = _service(request)
    schemas.parse(schemas.ExtractParams, dict(request.query_params)).options()
    controller = service.desk.media
    async with _intake(request, controller, media_ask(request, controller)) as (folder, body, ticket):
        params = schemas.parse(schemas.ExtractParams, body.fields)
        source = schemas.source_of(params, body.file)
        work = service.extract_audio(_owner(request), folder, source, params.options(), ticket)
        path, made = await _in_time(request, work, ticket)
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
    controller = service.desk.downloads
    async with _intake(request, controller, media_ask(request, controller)) as (folder, body, ticket):
        params = schemas.parse(schemas.DownloadParams, body.fields)
        if body.file:
            raise InputError("This route takes a url, not a file.", param="file")
        path, found = await _in_time(request, service.download(_owner(request), folder, params.url, ticket), ticket)
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
    """The models that may be named: on disk, loaded, on which devices, with encoder, decoder and threads, RAM, languages."""
    service = _service(request)
    listed = await asyncio.to_thread(_listed, service, service.pool.stats())
    return JSONResponse({"default": service.settings.model_size, "models": listed})


def _chosen(lane: dict[str, Any]) -> dict[str, Any]:
    """What a worker of the model has chosen by measurement; if there are several, one that has measured something."""
    chosen = [one.get("chosen") or {} for one in lane.get("workers", [])]
    best = next((one for one in chosen if one.get("encoder")), next((one for one in chosen if one), {}))
    return {part: best.get(part) for part in ("encoder", "decoder", "arrangement")}


def _listed(service: Service, lanes: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": spec.name,
            "on_disk": catalogue.local_path(spec.name, service.settings) is not None,
            "loaded": bool(lanes.get(spec.name, {}).get("workers")),
            "devices": lanes.get(spec.name, {}).get("devices", {}),
            **_chosen(lanes.get(spec.name, {})),
            "ram_bytes": spec.ram_bytes,
            "languages": list(spec.languages),
        }
        for spec in catalogue.MODELS.values()
    ]


@router.head("/health", include_in_schema=False)
@router.get("/health", tags=["server"])
async def health(request: Request) -> Response:
    """Alive, and how the devices are where a list of them is set. Needs no key; answers while the pool is saturated."""
    service = _service(request)
    listed = service.pool.devices() if service.settings.devices else {}
    devices = {"devices": {name: device["state"] for name, device in listed.items()}} if listed else {}
    return JSONResponse({"status": "ok"} | devices)


@router.head("/ready", include_in_schema=False)
@router.get("/ready", tags=["server"])
async def ready(request: Request) -> Response:
    """Whether work can be taken now, and if not why: 200 or 503. Needs no key."""
    reasons = _service(request).not_ready_because()
    return JSONResponse({"ready": not reasons, "reasons": reasons}, status_code=503 if reasons else 200)
