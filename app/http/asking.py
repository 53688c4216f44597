"""What a request's headers and query say of its cost, before its body is read."""

from __future__ import annotations

import hashlib
import re

from starlette.requests import Request

from app.admission.controller import Controller
from app.admission.quotas import Quota
from app.admission.ticket import Ask
from app.errors import InputError
from app.jobs import TranscribeOptions
from app.service import Repeatable, Service

MAX_KEY = 255
_ASYNC = re.compile(r"(?:^|[,;\s])respond-async\s*(?:$|[,;])", re.IGNORECASE)
_FALSE = {"false", "0", "no", "off", "f", "n"}
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})\b", re.IGNORECASE)


def transcription_ask(request: Request, options: TranscribeOptions) -> Ask:
    """What ``POST /transcribe`` wants of the desk, as far as is known; the length of the audio is guessed."""
    prices = _service(request).desk.prices
    owner = request.state.owner
    size = upload_bytes(request)
    return prices.transcription(
        owner,
        options,
        prices.costs.audio_s_of(owner, size or None),
        within_s=within_s(request),
        fingerprint=fingerprint(request),
        quota=quota_of(request),
    )


def quota_of(request: Request) -> Quota:
    """What the request's key may have: its own limits, else the server's."""
    return _service(request).desk.prices.quota.with_own(request.state.limits)


def media_ask(request: Request, controller: Controller) -> Ask:
    """What ``POST /extract-audio`` and ``POST /download`` want."""
    prices = _service(request).desk.prices
    return prices.media(request.state.owner, controller.what, within_s=within_s(request), fingerprint=fingerprint(request))


def upload_bytes(request: Request) -> int | None:
    """Length of the body; None where it is not said."""
    said = request.headers.get("content-length", "" if "transfer-encoding" in request.headers else "0")
    return int(said) if said.isdigit() else None


def responds_async(request: Request) -> bool:
    """Whether the caller wants to hear at once that the job was taken over (``Prefer: respond-async``, RFC 7240)."""
    return _ASYNC.search(_prefer(request)) is not None


def patience(request: Request) -> float | None:
    """Seconds that the caller is ready to wait for an answer (``Prefer: wait=N``, RFC 7240); None: nothing was said."""
    found = _WAIT.search(_prefer(request))
    return float(found[1]) if found else None


def within_s(request: Request) -> float | None:
    """Seconds after which the result is of no use; None: it is never too late, as for those who come back for it."""
    return None if responds_async(request) or request.query_params.get("wait") in _FALSE else patience(request)


def repeatable(request: Request) -> Repeatable | None:
    """The request's ``Idempotency-Key``, and what it asks for; None where it has none.

    Raises:
        InputError: the key is empty or too long.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY:
        raise InputError(f"The key must have 1 to {MAX_KEY} characters.", param="Idempotency-Key")
    said = (request.url.path, request.url.query, request.headers.get("content-length", ""))
    return Repeatable(key, hashlib.sha256("\0".join(said).encode("utf-8", "surrogatepass")).hexdigest())


def _prefer(request: Request) -> str:
    return ", ".join(request.headers.getlist("prefer"))


def fingerprint(request: Request) -> str:
    """The same when the same client sends the same request again."""
    parts = (
        request.client.host if request.client else "",
        request.url.path,
        request.url.query,
        request.headers.get("content-length", ""),
        request.headers.get("idempotency-key", ""),
    )
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
