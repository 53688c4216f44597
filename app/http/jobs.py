"""Jobs that go on without their caller: ``GET`` and ``DELETE /transcribe/{job_id}``, its status and events, ``GET /jobs``."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from app.errors import by_code
from app.formats import Transcript, render
from app.http import schemas
from app.jobs import Job, Status
from app.service import Service, read_result

router = APIRouter(responses={"4XX": schemas.ERROR_SCHEMA, "5XX": schemas.ERROR_SCHEMA}, tags=["jobs"])

POLL_S = 1.0
POLL_ITEM_S = 30.0
"""For an item of a batch that is not in line yet: nobody knows how long that takes."""


def accepted(service: Service, job: Job) -> Response:
    """202: where the job is to be found, and how far it is."""
    shown = service.background.view(job)
    unknown_s = POLL_S if job.batch_id is None else POLL_ITEM_S
    poll_s = min(60, max(1, math.ceil(float(shown.get("ends_in_s", unknown_s)))))
    headers = {"Location": f"/transcribe/{job.id}", "Retry-After": str(poll_s)}
    return JSONResponse(shown, status_code=202, headers=headers)


async def answer(service: Service, job: Job, response_format: str | None = None) -> Response:
    """The result of a job in any format; its error where it failed; 202 while it has not ended."""
    if not job.status.final:
        return accepted(service, job)
    if job.status is not Status.SUCCEEDED:
        raise by_code(job.error_code or "cancelled", job.error_message or "The job was cancelled.")
    transcript = await read_result(await service.runs.result(job))
    return await rendered(transcript, response_format or job.response_format, words=bool(job.options.word_timestamps))


async def rendered(transcript: Transcript, response_format: str, *, words: bool) -> Response:
    """A transcript in the form that was asked for."""
    made = await asyncio.to_thread(render, transcript, response_format, words=words)
    return Response(made.body, media_type=made.media_type)


async def _job(request: Request, job_id: str) -> tuple[Service, Job]:
    service: Service = request.app.state.service
    return service, await service.background.get(job_id, request.state.owner)


@router.get("/transcribe/{job_id}")
async def result(request: Request, job_id: str) -> Response:
    """The transcript of an async job, as often as it is wanted and in any ``response_format``; 202 while it is not ready."""
    params = schemas.parse(schemas.ResultParams, dict(request.query_params))
    service, job = await _job(request, job_id)
    return await answer(service, job, params.response_format)


@router.get("/transcribe/{job_id}/status")
async def status(request: Request, job_id: str) -> Response:
    """How far a job is: status, stage, percent, position in line, expected start and end, attempts."""
    service, job = await _job(request, job_id)
    return JSONResponse(service.background.view(job))


@router.get("/transcribe/{job_id}/events")
async def events(request: Request, job_id: str) -> Response:
    """The status whenever it changes, as server-sent events, until the job has ended. Resumes behind ``Last-Event-ID``."""
    service, job = await _job(request, job_id)
    seen = request.headers.get("last-event-id")
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_frames(service, job, seen), media_type="text/event-stream", headers=headers)


async def _frames(service: Service, job: Job, seen: str | None) -> AsyncIterator[str]:
    async for event in service.background.events(job, seen):
        if event is None:
            yield ": still here\n\n"
        else:
            yield f"id: {event[0]}\nevent: status\ndata: {json.dumps(event[1])}\n\n"


@router.delete("/transcribe/{job_id}")
async def cancel(request: Request, job_id: str) -> Response:
    """Cancel a job that waits or runs, and free what it holds; or delete one that has ended, with its result."""
    service, job = await _job(request, job_id)
    deleted = job.status.final
    await service.background.cancel(job)
    if deleted:
        return Response(status_code=204)
    return JSONResponse(service.background.view(await service.background.get(job_id, request.state.owner)))


@router.get("/jobs")
async def jobs(request: Request) -> Response:
    """The key's own async jobs, newest first, a page at a time; ``after`` is the last job of the page before."""
    params = schemas.parse(schemas.JobsParams, dict(request.query_params))
    service: Service = request.app.state.service
    wanted = Status(params.status) if params.status else None
    found = await service.background.list(request.state.owner, wanted, params.limit, params.after)
    following = found[-1].id if len(found) == params.limit else None
    return JSONResponse({"jobs": [service.background.view(job) for job in found], "next": following})
