"""What fits here, and what a job would cost: ``GET /capacity`` and ``POST /estimate``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from app.desk import report
from app.http import schemas
from app.http.asking import quota_of
from app.http.body import read_fields
from app.service import Service

router = APIRouter(responses={"4XX": schemas.ERROR_SCHEMA, "5XX": schemas.ERROR_SCHEMA}, tags=["admission"])


@router.get("/capacity")
async def capacity(request: Request) -> Response:
    """Memory (source, limit, used, reserved, free), streams per model, the lines, warnings, how good the estimates were."""
    service: Service = request.app.state.service
    return JSONResponse(report.capacity(service.desk, request.state.owner, quota_of(request)))


@router.post("/estimate", openapi_extra=schemas.openapi_body(schemas.EstimateParams, file=False))
async def estimate(request: Request) -> Response:
    """What a transcription of so many minutes would cost, whether it would be admitted now, and when it would end.

    Takes the options of ``/transcribe``, and ``minutes`` or ``seconds`` instead of audio; as query, form or JSON.
    """
    service: Service = request.app.state.service
    params = schemas.parse(schemas.EstimateParams, await read_fields(request))
    options = params.options(service.settings.model_size)
    return JSONResponse(report.estimate(service.desk, request.state.owner, options, params.audio_s, quota_of(request)))
