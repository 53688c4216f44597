"""Many recordings at once: ``POST /batches``, ``GET /batches``, ``GET`` and ``DELETE /batches/{batch_id}``."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from app.batches import Order, Wanted, of_item
from app.errors import InputError, StenopoolError, TooLarge
from app.http import schemas
from app.http.asking import quota_of, repeatable
from app.http.body import read_json
from app.jobs import Status
from app.media.urls import Policy, check_text
from app.service import Service
from app.settings import Settings

router = APIRouter(responses={"4XX": schemas.ERROR_SCHEMA, "5XX": schemas.ERROR_SCHEMA}, tags=["batches"])

ITEM_BYTES = 4096
"""What an item may take of the body, on average; addresses have 2048 characters at most."""
OTHER_BYTES = 65_536
POLL_S = 15


def _openapi() -> dict[str, Any]:
    schema = schemas.BatchParams.model_json_schema()
    item = {"type": "object", "properties": schemas.BatchItemParams.model_json_schema()["properties"]}
    schema["properties"]["items"] |= {"items": item}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post("/batches", openapi_extra=_openapi(), status_code=202)
async def hand_in(request: Request) -> Response:
    """Transcribe many addresses and media paths: 202 as soon as all of them are safe on disk. One bad item refuses the whole.

    Every item becomes an async job of its own, with ``GET /transcribe/{job_id}`` and all the rest; they run a few at a time.
    """
    service: Service = request.app.state.service
    owner, again = request.state.owner, repeatable(request)
    if again is None:
        await service.batches.check_room(owner)
    most_bytes = OTHER_BYTES + ITEM_BYTES * service.settings.max_batch_items
    body, data = await read_json(request, most_bytes)
    items, webhook_url = await asyncio.to_thread(order_of, data, service.settings)
    key = again.key if again is not None else None
    said = hashlib.sha256(again.request_hash.encode() + body).hexdigest() if again is not None else None
    batch = await service.batches.accept(owner, Order(items, webhook_url, key, said), quota_of(request))
    headers = {"Location": f"/batches/{batch.id}", "Retry-After": str(POLL_S)}
    return JSONResponse(service.batches.view(batch), status_code=202, headers=headers)


@router.get("/batches/{batch_id}")
async def status(request: Request, batch_id: str) -> Response:
    """How far a batch is: its state, percent, items per status, what failed and why, and its items, a page at a time."""
    params = schemas.parse(schemas.BatchViewParams, dict(request.query_params))
    service: Service = request.app.state.service
    batch = await service.batches.get(batch_id, request.state.owner)
    wanted = Status(params.status) if params.status else None
    items = await service.batches.items(batch, params.limit, params.after, wanted) if params.limit else []
    following = items[-1]["index"] if items and len(items) == params.limit else None
    shown = service.batches.view(batch) | {"failures": await service.batches.failures(batch)}
    headers = {"Retry-After": str(POLL_S)} if batch.unfinished else {}
    return JSONResponse(shown | {"items": items, "next": following}, headers=headers)


@router.get("/batches")
async def batches(request: Request) -> Response:
    """The key's own batches, newest first, a page at a time; ``after`` is the last batch of the page before."""
    params = schemas.parse(schemas.BatchesParams, dict(request.query_params))
    service: Service = request.app.state.service
    found = await service.batches.page(request.state.owner, params.limit, params.after)
    following = found[-1].id if len(found) == params.limit else None
    return JSONResponse({"batches": [service.batches.view(batch) for batch in found], "next": following})


@router.delete("/batches/{batch_id}")
async def cancel(request: Request, batch_id: str) -> Response:
    """Cancel what has not ended; results stay. With ``forget=true`` all of it is deleted."""
    params = schemas.parse(schemas.BatchDeleteParams, dict(request.query_params))
    service: Service = request.app.state.service
    batch = await service.batches.get(batch_id, request.state.owner)
    if params.forget:
        await service.batches.forget(batch)
        return Response(status_code=204)
    await service.batches.cancel(batch)
    return JSONResponse(service.batches.view(await service.batches.get(batch_id, request.state.owner)))


def order_of(data: Any, settings: Settings) -> tuple[list[Wanted], str | None]:
    """The items and the webhook that a body asks for.

    Raises:
        TooLarge: more items than a batch may have.
        StenopoolError: the first thing that is wrong; ``param`` names the item.
    """
    if not isinstance(data, dict):
        raise InputError("The body must be a JSON object with items.", param="items")
    given = data.get("items")
    if isinstance(given, list) and len(given) > settings.max_batch_items:
        most = settings.max_batch_items
        raise TooLarge(f"A batch may have {most} items.", param="items", hint="Split it into several batches.")
    params = schemas.parse(schemas.BatchParams, data)
    params.options(settings.model_size)
    common = _plain({name: value for name, value in data.items() if name not in ("items", "webhook_url")})
    policy = Policy.of(settings)
    return [_item(number, one, common, settings, policy) for number, one in enumerate(params.items)], params.webhook_url


def _item(number: int, one: Any, common: dict[str, Any], settings: Settings, policy: Policy) -> Wanted:
    try:
        if not isinstance(one, dict):
            raise InputError("An item is an object with url or audio_file.")
        merged = common | _plain(one)
        params = schemas.parse(schemas.BatchItemParams, {name: value for name, value in merged.items() if value is not None})
        if params.name is not None and params.id is not None:
            raise InputError("Give it a name or an id, not both.", param="id")
        if params.url:
            check_text(params.url, policy)
        options = params.options(settings.model_size)
        return Wanted(_source(params), options, params.response_format, params.id if params.name is None else params.name)
    except StenopoolError as error:
        raise of_item(number, error) from None


def _source(params: schemas.BatchItemParams) -> dict[str, str]:
    given = {name: value for name, value in (("url", params.url), ("audio_file", params.audio_file)) if value}
    if len(given) != 1:
        raise InputError("Give it one of: url, audio_file.", param="audio_file" if given else "url")
    return given


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """``model`` and ``model_size`` are the same, so that an item's one replaces the other of all."""
    if "model" in options and "model_size" not in options:
        return {name: value for name, value in options.items() if name != "model"} | {"model_size": options["model"]}
    return options
