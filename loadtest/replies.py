"""What an HTTP answer means. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from loadtest.records import Reply

_OVERLOADED = frozenset({503, 504, 507})
_WORTH_RETRYING = frozenset({408, 429, 503, 504, 507})
_DEFAULT_RETRY_S = 1.0
_MOST_RETRY_S = 300.0


def read_reply(status: int, headers: Mapping[str, str], body: bytes) -> Reply:
    """Sort an answer. ``headers`` have lower-case names or are case-insensitive.

    2xx with a transcript is ``ok``, without one ``wrong``. 4xx is ``refused``; so are 503, 504 and 507 with an error code
    and a ``Retry-After``. Every other answer is ``lost``.
    """
    data = _json_object(body)
    request_id = headers.get("x-request-id", "")
    if 200 <= status < 300:
        return _transcript(status, headers, data, request_id)
    error = data.get("error")
    error = error if isinstance(error, dict) else {}
    code = error.get("code")
    named = isinstance(code, str) and bool(code)
    honest = 400 <= status < 500 or (status in _OVERLOADED and named and _has_retry_after(headers))
    return Reply(
        kind="refused" if honest else "lost",
        reason=str(code) if named else f"http_{status}",
        detail=str(error.get("message") or "")[:300],
        status=status,
        retry_after_s=retry_after_s(status, headers) if honest else None,
        request_id=request_id,
    )


def _transcript(status: int, headers: Mapping[str, str], data: dict[str, Any], request_id: str) -> Reply:
    text = data.get("text")
    if status != 200 or not isinstance(text, str):
        return Reply("wrong", "no_transcript", f"status {status} without a text", status, request_id=request_id)
    duration = data.get("duration")
    wait_ms = _number(headers.get("x-queue-wait-ms"))
    return Reply(
        kind="ok",
        status=status,
        text=text,
        audio_s=float(duration) if isinstance(duration, int | float) else None,
        queue_wait_s=None if wait_ms is None else wait_ms / 1000,
        request_id=request_id,
    )


def retry_after_s(status: int, headers: Mapping[str, str]) -> float | None:
    """Seconds to wait before the next try; ``None``: another try makes no sense."""
    if status not in _WORTH_RETRYING or headers.get("x-should-retry") == "false":
        return None
    wait_ms = _number(headers.get("retry-after-ms"))
    wait = wait_ms / 1000 if wait_ms is not None else _number(headers.get("retry-after"))
    return min(_MOST_RETRY_S, _DEFAULT_RETRY_S if wait is None else wait)


def _has_retry_after(headers: Mapping[str, str]) -> bool:
    return "retry-after" in headers or "retry-after-ms" in headers


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
