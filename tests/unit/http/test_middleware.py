"""Ids, keys, byte and time limits, and the one error shape: called directly, without a socket."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from app import errors
from app.errors import StenopoolError
from app.http.middleware import ErrorResponse, error_headers
from app.jobs import TranscribeOptions
from app.logs import JsonFormatter
from app.service import Service
from tests.fakes.server import KEY, OTHER_KEY, Live

SHAPE = {"code", "message", "type", "param", "hint", "retryable", "request_id"}


def shape(response: Any) -> dict[str, Any]:
    """The error of an answer, checked to be in the one shape."""
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) - {"details"} == SHAPE
    details = error.get("details", {"reason": ""})
    assert details
    assert all(value is None or isinstance(value, (str, int, float)) for value in details.values())
    assert error["request_id"] == response.headers["x-request-id"]
    for leak in ("Traceback", 'File "', "/tmp", "/work", ".py", "Error(", "sqlite"):
        assert leak not in response.text
    return error


# -- keys


async def test_both_header_forms_open_and_are_told_apart_from_none(direct: Live) -> None:
    bare = {"X-API-Key": ""}
    for headers in ({"X-API-Key": KEY}, {"X-API-Key": f"  {KEY} "}, bare | {"X-API-Key": OTHER_KEY}):
        assert (await direct.client.get("/models", headers=headers)).status_code == 200
    del direct.client.headers["x-api-key"]
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert (await direct.client.get("/models", headers={"Authorization": f"{scheme} {KEY}"})).status_code == 200
    error = shape(await direct.client.get("/models"))
    assert "missing" in error["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": " "},
        {"X-API-Key": KEY[:-1]},
        {"X-API-Key": KEY + "x"},
        {"X-API-Key": KEY.upper()},
        {"X-API-Key": f"{KEY},{OTHER_KEY}"},
        {"X-API-Key": "k" * 50_000},
        {"X-API-Key": "ключ".encode()},
        {"X-API-Key": b"\xff\xfe\x00"},
        {"X-API-Key": "steno_0123456789ab_" + "A" * 43},
        {"X-API-Key": "steno_' OR 1=1 --_" + "A" * 43},
        {"X-API-Key": "wrong", "Authorization": f"Bearer {KEY}"},
        {"Authorization": KEY},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {KEY}"},
        {"Cookie": f"X-API-Key={KEY}"},
    ],
    ids=repr,
)
async def test_a_request_without_a_right_key_is_refused(direct: Live, headers: dict[str, Any]) -> None:
    del direct.client.headers["x-api-key"]
    response = await direct.client.get("/models", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert shape(response)["code"] == "invalid_api_key"
    assert KEY not in response.text


async def test_a_key_in_the_query_opens_nothing(direct: Live) -> None:
    del direct.client.headers["x-api-key"]
    assert (await direct.client.get("/models", params={"api_key": KEY, "X-API-Key": KEY})).status_code == 401


async def test_a_key_of_the_database_opens_until_it_is_revoked(direct: Live) -> None:
    from app.keys import KeyRing

    ring = KeyRing(direct.service.store.sync)
    plain, key = ring.create("test")
    assert (await direct.client.get("/models", headers={"X-API-Key": plain})).status_code == 200
    other = plain[:-1] + ("A" if plain[-1] != "A" else "B")
    assert (await direct.client.get("/models", headers={"X-API-Key": other})).status_code == 401
    ring.revoke(key.id)
    fresh, _ = ring.create("second")
    assert (await direct.client.get("/models", headers={"X-API-Key": fresh})).status_code == 200


async def test_a_socket_handshake_is_refused_before_it_reaches_the_application(direct: Live) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    for path in ("/health", "/transcribe", "/docs"):
        scope = {"type": "websocket", "path": path, "headers": [(b"x-api-key", KEY.encode())]}
        await direct.app(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}] * 3


async def test_an_unauthenticated_endless_body_is_answered_before_its_first_byte_and_read_for_less_than_64_kb(
    direct: Live,
) -> None:
    taken = 0
    taken_at_answer = None
    done = False

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 4096
        return {"type": "http.request", "body": b"x" * 4096, "more_body": True}

    async def send(message: Any) -> None:
        nonlocal taken_at_answer, done
        if message["type"] == "http.response.start":
            assert message["status"] == 401
            taken_at_answer = taken
        done = message["type"] == "http.response.body" and not message.get("more_body", False)

    headers = [(b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": "/transcribe", "query_string": b"", "headers": headers}
    await direct.app(scope, receive, send)
    assert taken_at_answer == 0
    assert taken < 64_000
    assert done


# -- ids and logs


@pytest.mark.parametrize("given", ["abc", "a.b-c_D9", "x" * 64])
async def test_a_safe_request_id_is_kept(direct: Live, given: str) -> None:
    assert (await direct.client.get("/health", headers={"X-Request-ID": given})).headers["x-request-id"] == given


UNSAFE_IDS = ["", "x" * 65, "a b", "a\tb", 'x","level":"error', "ä".encode(), b"a\x9b2J", "<script>", "a\n"]


@pytest.mark.parametrize("given", UNSAFE_IDS)
async def test_an_unsafe_request_id_is_replaced(direct: Live, given: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stenopool")
    response = await direct.client.get("/health", headers={"X-Request-ID": given})
    assert len(response.headers["x-request-id"]) == 16
    assert response.headers["x-request-id"] != given


async def test_a_forged_path_stays_inside_one_log_line(direct: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stenopool")
    forged = '/x%0A{"level":"error"}%0D%C2%85%E2%80%A8%C2%9B2J%1b[31m'
    assert (await direct.client.get(forged)).status_code == 404
    record = next(record for record in caplog.records if record.message == "request")
    line = JsonFormatter().format(record)
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    assert json.loads(line)["path"].startswith("/x\n")


async def test_neither_the_key_nor_the_query_is_logged(direct: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "stenopool")
    await direct.client.get("/models?initial_prompt=private")
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name.startswith("stenopool")]
    assert lines
    assert not any(KEY in line or "private" in line for line in lines)


# -- bodies that are refused by their headers


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "identity, gzip"])
async def test_a_content_encoding_is_refused(direct: Live, encoding: str) -> None:
    response = await direct.client.post("/transcribe", content=b"x", headers={"Content-Encoding": encoding})
    assert response.status_code == 415
    assert shape(response)["code"] == "unsupported_encoding"


async def test_the_encoding_identity_is_no_encoding(direct: Live) -> None:
    response = await direct.client.post("/transcribe", content=b"", headers={"Content-Encoding": "Identity"})
    assert response.status_code == 422


async def test_a_declared_length_over_the_cap_is_refused_before_anything_is_read(direct: Live) -> None:
    cap = direct.settings.max_upload_mb * 1_000_000
    calls = 0

    async def receive() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return {"type": "http.disconnect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append((message, calls))

    headers = [(b"x-api-key", KEY.encode()), (b"content-length", str(cap + 1).encode())]
    scope = {"type": "http", "method": "POST", "path": "/transcribe", "query_string": b"", "headers": headers}
    await direct.app(scope, receive, send)
    start, read_before = sent[0]
    assert (start["status"], read_before) == (413, 0)


# -- one shape


async def test_what_starlette_refuses_comes_in_the_one_shape(direct: Live) -> None:
    client = direct.client
    for response, status, code in (
        (await client.get("/nope"), 404, "not_found"),
        (await client.get("/transcribe"), 405, "method_not_allowed"),
        (await client.request("BREW", "/models"), 405, "method_not_allowed"),
        (await client.post("/transcribe"), 422, "invalid_request"),
        (await client.post("/transcribe?model=x"), 422, "unknown_model"),
        (await client.post("/transcribe?audio_file=x.wav"), 404, "media_not_found"),
    ):
        assert response.status_code == status
        assert shape(response)["code"] == code


@pytest.mark.parametrize("error", errors.ALL, ids=lambda error: error.__name__)
async def test_every_error_of_the_tree_comes_in_the_one_shape(
    direct: Live, monkeypatch: pytest.MonkeyPatch, error: type[StenopoolError]
) -> None:
    def fail(service: Service, *_: object) -> None:
        raise error("The reason.", retry_after_s=3)

    monkeypatch.setattr(Service, "admitted", fail)
    response = await direct.client.post("/transcribe", content=b"x")
    assert response.status_code == error.status
    found = shape(response)
    assert (found["code"], found["message"], found["retryable"]) == (error.code, "The reason.", error.retryable)
    assert response.headers["retry-after"] == "3"
    assert response.headers.get("x-should-retry") == (None if error.retryable else "false")


async def test_an_unknown_exception_is_500_in_the_one_shape_and_leaks_nothing(
    direct: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(service: Service) -> None:
        raise ZeroDivisionError("secret of /etc/passwd")

    monkeypatch.setattr(Service, "not_ready_because", fail)
    response = await direct.client.get("/ready")
    assert response.status_code == 500
    assert shape(response)["code"] == "internal"
    for leak in ("secret", "passwd", "ZeroDivision"):
        assert leak not in response.text
    (record,) = [record for record in caplog.records if record.message == "unhandled error"]
    assert "secret" in JsonFormatter().format(record)


async def test_a_failing_key_store_is_503_in_the_one_shape(direct: Live) -> None:
    for watching in direct.service._watching:  # they look into the store now and then
        watching.cancel()
    await asyncio.gather(*direct.service._watching, return_exceptions=True)
    await direct.service.store.run(direct.service.store.sync.close)
    (direct.settings.data_dir / "stenopool.db").rename(direct.settings.data_dir / "gone")
    (direct.settings.data_dir / "stenopool.db").mkdir()
    try:
        response = await direct.client.get("/models", headers={"X-API-Key": "steno_0123456789ab_" + "A" * 43})
    finally:
        (direct.settings.data_dir / "stenopool.db").rmdir()
    assert response.status_code == 503
    assert shape(response)["code"] == "unavailable"


@pytest.mark.parametrize(
    ("given", "seconds", "milliseconds"),
    [(-5.0, "1", "1000"), (0.0, "1", "1000"), (1.5, "2", "1500"), (119.9, "120", "119900"), (1e9, "120", "120000")],
)
def test_retry_after_stays_within_its_bounds(given: float, seconds: str, milliseconds: str) -> None:
    headers = error_headers(errors.TooManyActive("Busy.", retry_after_s=given))
    assert (headers["retry-after"], headers["retry-after-ms"]) == (seconds, milliseconds)


@pytest.mark.parametrize("error", errors.ALL, ids=lambda error: error.__name__)
def test_no_retry_after_where_waiting_does_not_help_and_always_one_where_capacity_is_short(error: type[StenopoolError]) -> None:
    headers = error_headers(error("The reason."))
    short = issubclass(error, errors.CapacityError) and error.retryable
    assert ("retry-after" in headers) == short
    if short:
        assert 1 <= int(headers["retry-after"]) <= 120
    assert headers.get("x-should-retry") == (None if error.retryable else "false")


async def test_an_error_after_the_answer_has_begun_does_not_begin_a_second_one(
    direct: Live, caplog: pytest.LogCaptureFixture
) -> None:
    from app.http.middleware import RequestMiddleware

    async def half(scope: Any, receive: Any, send: Callable[..., Any]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("too late")

    starts: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            starts.append(message["status"])

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await RequestMiddleware(half)(scope, None, send)  # type: ignore[arg-type]
    assert starts == [200]


def test_an_answer_is_built_from_headers_that_can_be_sent() -> None:
    response = ErrorResponse(errors.TooManyActive("Busy.", retry_after_s=2))
    assert response.status_code == 429
    assert response.headers["retry-after"] == "2"


# -- what may be known without a key


async def test_health_docs_and_readiness_need_no_key(direct: Live) -> None:
    del direct.client.headers["x-api-key"]
    for path in ("/health", "/ready", "/docs", "/openapi.json"):
        response = await direct.client.get(path)
        assert response.status_code == 200
        assert response.headers["x-content-type-options"] == "nosniff"


async def test_readiness_says_why_not(direct: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    service, desk = direct.service, direct.service.desk
    low = replace(desk.reading, used=int(0.85 * desk.reading.limit))
    monkeypatch.setattr(desk._probe, "read", lambda: low)
    monkeypatch.setattr(service.pool, "ready", False)
    ask = desk.prices.transcription("owner", TranscribeOptions("demo"), 1.0)
    tickets = [desk.jobs.join(ask) for _ in range(desk.jobs.limits.running + desk.jobs.limits.queued)]
    desk.look(low)
    assert shape(await direct.client.post("/transcribe", content=b"x"))["code"] == "memory_low"
    service.drain()
    response = await direct.client.get("/ready")
    assert response.status_code == 503
    reasons = ["shutting down", "no worker is ready yet", "the queue is full", "memory is low"]
    assert response.json() == {"ready": False, "reasons": reasons}
    assert (await direct.client.post("/transcribe", content=b"x")).json()["error"]["code"] == "not_ready"
    for ticket in tickets:
        desk.release(desk.jobs, ticket)
    await direct.settled()


async def test_models_are_listed_with_what_is_on_disk(direct: Live) -> None:
    answer = (await direct.client.get("/models")).json()
    listed = {model["name"]: model for model in answer["models"]}
    assert answer["default"] == "demo"
    chosen = {"encoder", "decoder", "arrangement"}
    assert set(listed["tiny"]) == {"name", "on_disk", "loaded", "devices", "ram_bytes", "languages"} | chosen
    assert not listed["tiny"]["on_disk"]
