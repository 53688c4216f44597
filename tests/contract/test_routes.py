"""Every route needs a key unless it is on the public list, and no spelling of a path gets around that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from app.desk import report
from app.http.middleware import PUBLIC
from app.service import Service
from tests.fakes.pool import quiet_service
from tests.fakes.server import KEY, Live, calling, inner, make_settings, serving

REWRITES = (b"x-original-url", b"x-rewrite-url", b"x-forwarded-prefix", b"x-forwarded-uri")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW")
TRICKS = [
    "//health",
    "/health/",
    "/HEALTH",
    "/Health",
    "/health%2f..%2ftranscribe",
    "/health/../transcribe",
    "/health/..%2ftranscribe",
    "/docs/../transcribe",
    "/docs/oauth2-redirect",
    "/docs/",
    "/docs;/../transcribe",
    "/./transcribe",
    "/%2e/transcribe",
    "/transcribe%00/health",
    "/transcribe?/health",
    "/transcribe#/health",
    "/transcribe%3f/health",
    "/transcribe/health",
    "/openapi.json/../models",
    "/openapi.json%20",
    "/health%0a",
    "/health%00",
    "/health;x=1",
    "/health%252f..%252fmodels",
    "/models",
    "/models/",
    "//models",
    "/\\health",
    "/",
    "",
    "*",
    "/nowhere",
    "/redoc",
    "/metrics",
    "http://test/models",
    "//test/models",
]


@pytest.fixture
async def direct(tmp_path: Path) -> AsyncIterator[Live]:
    async with calling(make_settings(tmp_path), quiet_service) as live:
        yield live


async def status_of(app: Any, path: str, method: str = "GET", headers: tuple[tuple[bytes, bytes], ...] = ()) -> int:
    """The status of a request whose path reaches the application exactly as given."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "server": ("test", 80),
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
        "root_path": "",
    }
    await app(scope, receive, send)
    (status,) = statuses
    return status


def paths(app: FastAPI) -> set[str]:
    """Every path that the application knows, those of nested routers and mounts too."""

    def walk(routes: Any, prefix: str) -> set[str]:
        found: set[str] = set()
        for route in routes:
            path = prefix + getattr(route, "path", "")
            found.add(path)
            found |= walk(getattr(route, "routes", None) or [], path)
        return found

    return walk(app.routes, "") | set(app.openapi()["paths"])


async def test_every_route_of_the_application_refuses_every_method_without_a_key(
    direct: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[object] = []
    monkeypatch.setattr(Service, "admitted", lambda service, *what: reached.append(what))
    for name in ("capacity", "estimate"):
        monkeypatch.setattr(report, name, lambda *what: reached.append(what))
    known = paths(inner(direct.app))
    assert {
        "/transcribe",
        "/extract-audio",
        "/download",
        "/models",
        "/capacity",
        "/estimate",
        "/uploads",
        "/uploads/{upload_id}",
        *PUBLIC,
    } <= known
    for path in known - PUBLIC:
        for method in METHODS:
            assert await status_of(direct.app, path, method) == 401, (method, path)
    assert reached == []


async def test_public_paths_change_nothing_and_answer_only_to_get(direct: Live) -> None:
    for path in PUBLIC:
        assert await status_of(direct.app, path) == 200
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert await status_of(direct.app, path, method) == 405


def test_the_public_list_is_what_it_was_when_somebody_last_thought_about_it() -> None:
    assert sorted(PUBLIC) == ["/docs", "/health", "/openapi.json", "/ready"]


@pytest.mark.parametrize("path", [*TRICKS, "/health\x00", "/health\n", "/heаlth", "/health/."])
async def test_no_spelling_of_a_path_gets_in_without_a_key(direct: Live, path: str) -> None:
    for method in ("GET", "POST"):
        for header in ((), tuple((name, b"/health") for name in REWRITES)):
            assert await status_of(direct.app, path, method, header) == 401


async def test_no_host_or_forwarded_header_opens_anything(direct: Live) -> None:
    for header in (
        (b"host", b"127.0.0.1"),
        (b"host", b"x/health?"),
        (b"x-forwarded-for", b"127.0.0.1"),
        (b"x-http-method-override", b"GET"),
    ):
        assert await status_of(direct.app, "/models", headers=(header,)) == 401


async def test_over_a_socket_no_request_line_gets_a_good_answer_without_a_key(tmp_path: Path) -> None:
    async with serving(make_settings(tmp_path), quiet_service) as live:
        for path in TRICKS:
            if not path or "#" in path:
                continue
            reader, _ = await live.raw(f"GET {path} HTTP/1.1\nConnection: close")
            line = await asyncio.wait_for(reader.readline(), 10)
            assert int(line.split()[1]) in (400, 401), (path, line)


async def test_with_a_key_unknown_paths_are_not_found_and_wrong_methods_not_allowed(direct: Live) -> None:
    key = ((b"x-api-key", KEY.encode()),)
    assert await status_of(direct.app, "/nowhere", headers=key) == 404
    assert await status_of(direct.app, "/health/../models", headers=key) == 404
    assert await status_of(direct.app, "/models", "DELETE", key) == 405


async def test_unknown_scope_types_are_not_served(direct: Live) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await direct.app({"type": "websocket", "path": "/health", "headers": []}, None, send)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]
