"""Sorting answers: right, wrong, refused or lost."""

from __future__ import annotations

import json

import pytest

from loadtest.replies import read_reply, retry_after_s


def error(code: str | None) -> bytes:
    return json.dumps({"error": {"code": code, "message": "No."}}).encode()


def test_a_transcript_is_ok_with_its_text_duration_queue_wait_and_request_id() -> None:
    headers = {"x-queue-wait-ms": "1500", "x-request-id": "r9"}
    reply = read_reply(200, headers, b'{"text": "hello", "duration": 4}')
    assert (reply.kind, reply.text, reply.audio_s, reply.queue_wait_s, reply.request_id) == ("ok", "hello", 4.0, 1.5, "r9")


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>"), (200, b'{"text": 3}'), (200, b"[]"), (202, b'{"text": ""}'), (204, b"")]
)
def test_a_success_without_a_transcript_is_wrong(status: int, body: bytes) -> None:
    reply = read_reply(status, {}, body)
    assert (reply.kind, reply.reason) == ("wrong", "no_transcript")


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind", "reason"),
    [
        (429, error("too_many_active"), {"retry-after": "3"}, "refused", "too_many_active"),
        (429, b"slow down", {}, "refused", "http_429"),
        (413, error("too_large"), {}, "refused", "too_large"),
        (404, b"", {}, "refused", "http_404"),
        (503, error("not_ready"), {"retry-after": "3"}, "refused", "not_ready"),
        (504, error("queue_timeout"), {"retry-after-ms": "300"}, "refused", "queue_timeout"),
        (507, error("disk_full"), {"retry-after": "3"}, "refused", "disk_full"),
        (503, error("not_ready"), {}, "lost", "not_ready"),
        (503, b"Bad gateway", {"retry-after": "3"}, "lost", "http_503"),
        (503, error(""), {"retry-after": "3"}, "lost", "http_503"),
        (500, error("internal"), {"retry-after": "3"}, "lost", "internal"),
        (502, b"", {}, "lost", "http_502"),
        (302, b"", {}, "lost", "http_302"),
    ],
)
def test_an_error_is_refused_if_it_is_an_honest_refusal_and_else_lost(
    status: int, body: bytes, headers: dict[str, str], kind: str, reason: str
) -> None:
    reply = read_reply(status, headers, body)
    assert (reply.kind, reply.reason) == (kind, reason)


def test_the_message_of_an_error_is_kept() -> None:
    assert read_reply(429, {}, error("too_many_active")).detail == "No."


@pytest.mark.parametrize("body", [b"\xff\xfe", b"[" * 100_000, b'{"error": "no"}', b'{"error": {"code": 7}}'])
def test_a_body_of_rubbish_is_named_by_its_status(body: bytes) -> None:
    assert read_reply(429, {}, body).reason == "http_429"


@pytest.mark.parametrize(
    ("status", "headers", "wait_s"),
    [
        (429, {"retry-after": "3"}, 3.0),
        (429, {"retry-after": "3", "retry-after-ms": "2500"}, 2.5),
        (429, {}, 1.0),
        (429, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 1.0),
        (429, {"retry-after": "-5"}, 1.0),
        (429, {"retry-after": "nan"}, 1.0),
        (429, {"retry-after": "1e9"}, 300.0),
        (503, {"retry-after": "3", "x-should-retry": "false"}, None),
        (422, {"retry-after": "3"}, None),
        (413, {}, None),
    ],
)
def test_retry_after_is_obeyed_within_reason_and_only_where_another_try_makes_sense(
    status: int, headers: dict[str, str], wait_s: float | None
) -> None:
    assert retry_after_s(status, headers) == wait_s
