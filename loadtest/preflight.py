"""Questions before the load: does the server answer, does it take the key, does it know the model?"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx

from loadtest.client import Target
from loadtest.records import Record, Unusable

_TIMEOUT_S = 30.0
_TRY_LATER = frozenset({408, 429, 503, 504, 507})


def shown(url: str) -> str:
    """``url`` without a user name and a password in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


async def check(target: Target) -> str | None:
    """The model that the requests will be served with, if the server tells.

    Raises:
        Unusable: with what to do about it.
    """
    try:
        async with target.client(_TIMEOUT_S) as client:
            await client.get("/health")
            answer = await client.get("/models")
    except httpx.RequestError as error:
        raise Unusable(
            f"No server answers at {shown(target.url)} ({str(error) or type(error).__name__}). "
            "Start one with scripts/serve, or name its address with --url or STENOPOOL_URL."
        ) from None
    if answer.status_code in (401, 403):
        if target.key:
            raise Unusable(f"The server at {shown(target.url)} does not take this API key.")
        raise Unusable("The server wants an API key: give --api-key, or set STENOPOOL_KEY.")
    return _model(target, answer)


def _model(target: Target, answer: httpx.Response) -> str | None:
    try:
        data: Any = answer.json() if answer.status_code == 200 else None
    except ValueError:
        data = None
    if not isinstance(data, dict):
        return target.model
    listed = data.get("models")
    names = [one.get("name") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    if target.model and names and target.model not in names:
        raise Unusable(f"The server has no model {target.model!r}. It has: {', '.join(str(name) for name in names)}.")
    default = data.get("default")
    return target.model or (default if isinstance(default, str) else None)


def judge_warm_up(record: Record) -> None:
    """A request that this server will never serve as it stands makes the test pointless.

    Raises:
        Unusable: with what the server said.
    """
    status = record.status or 0
    hopeless = 400 <= status < 500 and status not in _TRY_LATER
    if hopeless or record.reason in ("model_unavailable", "aligner_unavailable"):
        said = f": {record.detail}" if record.detail else ""
        raise Unusable(f"The server refuses {record.file} ({record.reason}, status {status}){said}")
