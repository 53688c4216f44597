"""Celery as a messenger: what it takes, and that a Redis which does not answer keeps nobody waiting."""

from __future__ import annotations

import time

import pytest

from app.cluster.queue import Queue, celery_app


def test_only_json_is_taken_from_redis() -> None:
    assert list(celery_app("redis://127.0.0.1:1/0").conf.accept_content) == ["json"]


async def test_closing_waits_for_one_message_at_most_where_redis_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Queue, "_send", lambda *_: time.sleep(0.2))  # a silent Redis takes eight seconds for each
    sender = Queue("redis://127.0.0.1:1/0")
    for number in range(40):
        await sender.send(str(number))
    began = time.monotonic()
    sender.close()
    assert time.monotonic() - began < 4
