"""Celery as a messenger: what it takes, and that a Redis which does not answer keeps nobody waiting."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Iterator

import pytest

from app.cluster import queue
from app.cluster.queue import Queue, celery_app

SOCKET_S = 0.3
MESSAGES, SOON_S = 40, 5.0
"""So many take twelve seconds, one after the other, where each takes its deadline."""


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a Redis that takes connections and never says a word."""
    monkeypatch.setattr(queue, "SOCKET_S", SOCKET_S)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        warm = Queue(url, useful_s=60.0)  # the first message loads much of kombu
        warm._send("first", math.inf)
        warm.close()
        yield url


async def all_tried(sender: Queue) -> None:
    """Its thread is through with what it was told; cut off where that would take for ever."""
    through = asyncio.get_running_loop().run_in_executor(sender._thread, lambda: None)
    assert (await asyncio.wait({through}, timeout=20))[0]


def test_only_json_is_taken_from_redis() -> None:
    assert list(celery_app("redis://127.0.0.1:1/0").conf.accept_content) == ["json"]


async def test_closing_waits_for_one_message_at_most_where_redis_is_slow(silent: str) -> None:
    sender = Queue(silent, useful_s=60.0)
    for number in range(MESSAGES):
        await sender.send(str(number))
    began = time.monotonic()
    sender.close()
    assert time.monotonic() - began < SOON_S


async def test_message_to_a_redis_that_says_nothing_is_given_up(silent: str) -> None:
    sender = Queue(silent, useful_s=60.0)
    began = time.monotonic()
    await sender.send("job")
    assert time.monotonic() - began < SOCKET_S / 2, "whoever sends does not wait"
    await all_tried(sender)
    assert SOCKET_S / 2 < time.monotonic() - began < SOON_S
    sender.close()


async def test_old_messages_do_not_hold_up_new_ones_where_redis_is_slow(silent: str, caplog: pytest.LogCaptureFixture) -> None:
    sender = Queue(silent, useful_s=2 * SOCKET_S)
    for number in range(MESSAGES):
        await sender.send(str(number))
    began = time.monotonic()
    await all_tried(sender)
    assert time.monotonic() - began < SOON_S
    assert 1 <= caplog.text.count("Redis took no message") <= 4, "what is fresh was tried"
    sender.close()
