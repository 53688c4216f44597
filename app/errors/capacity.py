"""Not now: the same request may work later."""

from __future__ import annotations

from typing import ClassVar

from app.errors.base import StenopoolError


class CapacityError(StenopoolError):
    """Not now."""

    code = "unavailable"
    status = 503
    kind = "capacity_error"
    retryable = True
    default_retry_after_s: ClassVar[float | None] = 5.0
    default_hint = "Send the request again later."


class TooManyActive(CapacityError):
    """Every place is taken, and so is the queue."""

    code = "too_many_active"
    status = 429


class QueueFull(TooManyActive):
    """The line is as long as it may be, in seconds of work or in number."""

    code = "queue_full"


class QuotaExceeded(TooManyActive):
    """The key has used up what it may have."""

    code = "quota_exceeded"


class DeadlineUnreachable(TooManyActive):
    """The answer would come later than the caller is ready to wait."""

    code = "deadline_unreachable"
    default_hint = "Wait longer (Prefer: wait=SECONDS), or come back when the line is shorter."


class UploadLocked(CapacityError):
    """Another request is writing to the same upload."""

    code = "upload_locked"
    status = 423
    default_retry_after_s = 1.0
    default_hint = "Wait for the other request to end, then send HEAD and go on from its Upload-Offset."


class MemoryLow(CapacityError):
    """Too little memory is free to begin anything."""

    code = "memory_low"


class NotReady(CapacityError):
    """Still loading, or shutting down."""

    code = "not_ready"


class ModelUnavailable(CapacityError):
    """The model is known, but it is not on disk and could not be fetched."""

    code = "model_unavailable"
    retryable = False
    default_retry_after_s = None


class AlignerUnavailable(CapacityError):
    """The alignment model of this language is not on disk and could not be fetched."""

    code = "aligner_unavailable"
    retryable = False
    default_retry_after_s = None


class QueueTimeout(CapacityError):
    """The request was accepted, and then waited in line for longer than it may."""

    code = "queue_timeout"
    status = 504
    default_retry_after_s = 30.0


class DiskFull(CapacityError):
    """Too little free disk."""

    code = "disk_full"
    status = 507
    default_retry_after_s = 60.0
