"""The application: rooms wired together, errors in one shape, middleware in order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from app.build import build_service
from app.durable import shortage
from app.errors import InputError, MethodNotAllowed, NotFound, StenopoolError
from app.http import batches, capacity, jobs, routes, uploads
from app.http.middleware import AuthMiddleware, BodyMiddleware, ErrorResponse, RequestMiddleware
from app.keys import Key, KeyRing
from app.service import Service
from app.settings import Settings

_DESCRIPTION = "A WhisperX transcription API that admits as much work as fits. Authorize with X-API-Key."


def create_app(
    settings: Settings,
    build: Callable[[Settings], Service] = build_service,
    started: Callable[[Service], None] = lambda service: None,
) -> ASGIApp:
    """The ASGI application. ``build`` is called when the server starts, inside its event loop, and ``started`` once it has."""
    ring: list[KeyRing] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = build(settings)
        app.state.service = service
        ring[:] = [KeyRing(service.store.sync, settings.configured_keys)]
        try:
            await service.start()
            started(service)
            yield
        finally:
            await service.stop()

    async def verify(plain: str) -> Key | None:
        keys = ring[0]
        return keys.known(plain) or await app.state.service.store.run(keys.verify, plain)

    app = FastAPI(
        title="Stenopool", version="0.1.0", description=_DESCRIPTION, lifespan=lifespan, redoc_url=None, redirect_slashes=False
    )
    app.include_router(routes.router)
    app.include_router(capacity.router)
    app.include_router(jobs.router)
    app.include_router(batches.router)
    app.include_router(uploads.router)
    app.add_exception_handler(StenopoolError, _answer)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_http)
    app.add_exception_handler(Exception, _answer_unknown)  # else Starlette answers with plain text before we see it
    inner: ASGIApp = BodyMiddleware(app, settings)
    return RequestMiddleware(AuthMiddleware(inner, verify))


async def _answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, StenopoolError)
    return ErrorResponse(error)


async def _answer_http(request: Request, error: Exception) -> Response:
    """What Starlette itself raises, in our shape."""
    status = error.status_code if isinstance(error, HTTPException) else 422
    ours: StenopoolError = InputError("The request is malformed.")
    if status == 404:
        ours = NotFound("There is no such route.")
    elif status == 405:
        ours = MethodNotAllowed(f"This route does not answer to {request.method}.")
    return ErrorResponse(ours)


async def _answer_unknown(request: Request, error: Exception) -> Response:
    """What nobody caught; it is raised again afterwards, and logged by :class:`RequestMiddleware`."""
    return ErrorResponse(shortage(error) or StenopoolError())
