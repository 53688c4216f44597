"""Tells callers that their async jobs have ended: signed, tried again, and not forgotten over a restart.

Headers and signature are those of Standard Webhooks (https://www.standardwebhooks.com): ``webhook-id`` is the job's or the
batch's, the same at every try, so that a receiver knows what it has seen; ``webhook-signature`` is HMAC-SHA256
of id, time and body.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from app.errors import InputError, StenopoolError
from app.jobs import Job
from app.media.net import post
from app.media.urls import Policy, check_url, resolve
from app.rounds import rounds
from app.settings import Settings
from app.store import AsyncStore

log = logging.getLogger("stenopool.webhooks")

PAUSES_S = (5.0, 60.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0)
"""Between one try and the next; after the last one nobody tries any more."""
LOOK_S = 5.0
AT_ONCE = 8
PREFIX = "whsec_"


@dataclass(frozen=True)
class Letter:
    """What is to be sent now, after so many ``tries``. ``tried(id, again)`` notes that it was; None: there is no next try."""

    id: str
    url: str
    tries: int
    type: str
    data: dict[str, Any]
    tried: Callable[[str, timedelta | None], None]


class Webhooks:
    """``view(job)`` is what its owner may see of a job. ``others(limit)`` are due besides. ``policy`` is for tests."""

    def __init__(
        self, settings: Settings, store: AsyncStore, view: Callable[[Job], dict[str, Any]], policy: Policy | None = None
    ) -> None:
        self._store, self._view = store, view
        self.policy = replace(policy or Policy.of(settings), timeout_s=settings.webhook_timeout_s)
        secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""
        self._secret = base64.b64decode(secret.removeprefix(PREFIX)) if secret else b""
        self._news = asyncio.Event()
        self.others: list[Callable[[int], Awaitable[list[Letter]]]] = []

    async def check(self, url: str) -> None:
        """Refuse an address at once that nothing would be sent to.

        Raises:
            InputError: no secret is set. UrlRefused: the address is not allowed.
        """
        if not self._secret:
            raise InputError("Webhooks are not set up on this server.", param="webhook_url", hint="Ask for the status instead.")
        await resolve(check_url(url, self.policy), self.policy)

    def wake(self) -> None:
        """A job has ended."""
        self._news.set()

    async def watch(self) -> None:
        """Deliver what is due, for ever. The store may not answer now; what is due stays due."""
        await rounds(self.look, self._news, LOOK_S, log, "webhooks could not be delivered")

    async def look(self) -> int:
        """One round; how many were due."""
        letters = [self._letter(job) for job in await self._store.run(self._store.sync.webhooks_due, AT_ONCE)]
        for due in self.others:
            letters += await due(AT_ONCE)
        await asyncio.gather(*map(self._deliver, letters))
        return len(letters)

    def _letter(self, job: Job) -> Letter:
        kind, tried = f"transcription.{job.status.value}", self._store.sync.webhook_tried
        return Letter(job.id, job.webhook_url or "", job.webhook_tries, kind, self._view(job), tried)

    async def _deliver(self, letter: Letter) -> None:
        body = json.dumps({"type": letter.type, "data": letter.data}).encode()
        try:
            status = await post(letter.url, body, self.headers(letter.id, int(time.time()), body), self.policy)
        except StenopoolError as error:
            log.info("webhook not delivered: %s", error.message, extra={"job_id": letter.id})
            status = 0
        delivered = 200 <= status < 300
        again = None if delivered or letter.tries >= len(PAUSES_S) else timedelta(seconds=PAUSES_S[letter.tries])
        if not delivered and again is None:
            log.warning("webhook given up", extra={"job_id": letter.id})
        await self._store.run(letter.tried, letter.id, again)

    def headers(self, message_id: str, seconds: int, body: bytes) -> dict[str, str]:
        """The three headers of Standard Webhooks; ``seconds`` of Unix time."""
        signed = f"{message_id}.{seconds}.".encode() + body
        signature = base64.b64encode(hmac.new(self._secret, signed, hashlib.sha256).digest()).decode()
        return {"webhook-id": message_id, "webhook-timestamp": str(seconds), "webhook-signature": f"v1,{signature}"}
