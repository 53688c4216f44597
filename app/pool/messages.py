"""The pipe's language: one JSON object per line.

To the worker: ``run {task}``, ``cancel {job_id}``, ``ping {n}``, ``stop``.
From it: ``ready {pid, device, bytes, peak_bytes, device_memory, chosen}``,
``setup_failed {code, message, hint}``, ``pong {n}``,
``progress {job_id, stage, fraction}``, ``done {job_id, seconds, peak_bytes}``, ``failed {job_id, code, message, hint}``,
``idle {bytes}``: it has given back what it does not need.
"""

from __future__ import annotations

import json
from typing import Any

MAX_LINE = 256 * 1024


def encode(kind: str, **values: Any) -> bytes:
    """One line."""
    return json.dumps({"type": kind, **values}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The object of one line.

    Raises:
        ValueError: not a JSON object with a ``type``.
    """
    message = json.loads(line)
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ValueError("not a message")
    return message
