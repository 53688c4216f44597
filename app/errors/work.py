"""The request was fine, the work was not."""

from __future__ import annotations

from app.errors.base import StenopoolError


class WorkError(StenopoolError):
    """The engine failed on this input."""

    code = "engine_failed"


class WorkerLost(WorkError):
    """The input ended its worker process again and again."""

    code = "worker_lost"


class OutOfMemory(WorkerLost):
    """The input's worker ran out of memory again and again."""

    code = "out_of_memory"
    default_hint = "Split the recording, or use a smaller model."


class DeadlineExceeded(WorkError):
    """The work took longer than it may."""

    code = "deadline_exceeded"
    status = 504


class Interrupted(WorkError):
    """The server was restarted before the work had ended."""

    code = "interrupted"
    status = 503
    retryable = True
    default_hint = "Send the request again."


class Cancelled(WorkError):
    """The caller went away."""

    code = "cancelled"
    status = 499
