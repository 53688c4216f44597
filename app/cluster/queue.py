"""Celery as a messenger: it carries the ids of jobs to the nodes, and nothing depends on any message arriving."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery

log = logging.getLogger("stenopool.cluster")

TASK = "stenopool.run"
QUEUE = "stenopool"
SOCKET_S = 5.0
"""The deadline of everything that is asked of Redis: a connection, and each answer."""


def celery_app(redis_url: str) -> Any:
    """Ids only, acknowledged as soon as they are taken, never kept in reserve by a node that is busy."""
    app = Celery("stenopool", broker=redis_url)
    app.conf.update(
        task_default_queue=QUEUE,
        accept_content=["json"],  # as is Celery's default: whoever can write to Redis must not be able to run code here
        task_ignore_result=True,
        task_acks_late=False,  # the lease in the database says who runs it; a visibility timeout would only run long jobs twice
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,  # nobody stops a node through Redis
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=0.8 * SOCKET_S,  # for one message, so one try where Redis is silent, three where it restarts
        broker_transport_options={
            "socket_timeout": SOCKET_S,
            "socket_connect_timeout": SOCKET_S,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
    )
    return app


class Queue:
    """Sends ids, from one thread, so that a Redis that does not answer keeps nobody waiting.

    An id that could not be sent within ``useful_s`` seconds is dropped: by then nodes look for its job themselves.
    """

    def __init__(self, redis_url: str, useful_s: float) -> None:
        self._app, self._useful_s = celery_app(redis_url), useful_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="queue")

    async def send(self, job_id: str) -> None:
        """Tell the nodes of a job, soon."""
        asyncio.get_running_loop().run_in_executor(self._thread, self._send, job_id, time.monotonic() + self._useful_s)

    def _send(self, job_id: str, until: float) -> None:
        if time.monotonic() > until:  # else a slow Redis would get old news for ever, and the nodes with it
            return
        try:
            self._app.send_task(TASK, [job_id], queue=QUEUE, retry=False)
        except Exception as error:  # of kombu, redis, or the socket
            log.warning("Redis took no message: %s; nodes will find the job themselves", type(error).__name__)

    def close(self) -> None:
        """Close the connections. What is waiting still, because Redis does not answer, nodes find themselves."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._app.close()
