"""What a refused caller is told: the binding resource, the predicted cost, the state of the line. Pure."""

from __future__ import annotations

import math
from typing import Any

from app.admission.promises import MAX_WAIT_S, MIN_WAIT_S
from app.admission.ticket import Ask, Estimate, Limits
from app.errors import DeadlineUnreachable, MemoryLow, NeverFits, NotReady, QueueFull, TooManyActive


def never_fits(amount: int, most: int) -> NeverFits:
    """More bytes than there may ever be."""
    return NeverFits(
        f"This needs about {amount / 1e6:.0f} MB of memory; the server may use {most / 1e6:.0f} MB in all.",
        details={"reason": "memory", "predicted_bytes": amount, "most_bytes": most},
    )


def memory_low(used: float) -> MemoryLow:
    """So much of the limit (a share) is really in use that nothing may begin."""
    return MemoryLow(
        f"Memory is low: {used:.0%} is in use.", retry_after_s=5.0, details={"reason": "memory", "used_share": round(used, 3)}
    )


def full(what: str, ask: Ask, limits: Limits, come_back_s: float, wait_s: float, waiting: int) -> TooManyActive:
    """No room in the line, or there is no line."""
    details = _details("queue", ask) | {"wait_s": round(wait_s, 2), "waiting": waiting, "come_back_s": round(come_back_s, 2)}
    if not limits.queued:
        return TooManyActive(f"Too many active {what}.", retry_after_s=come_back_s, details=details)
    return QueueFull(f"The line of {what} is full.", retry_after_s=come_back_s, details=details)


def stopping() -> NotReady:
    """The server is on its way out."""
    return NotReady("The server is shutting down.", retry_after_s=5)


def too_late(ask: Ask, expected: Estimate) -> DeadlineUnreachable:
    """The answer would come after the caller has stopped waiting for it."""
    error = DeadlineUnreachable(
        f"The answer would take about {expected.end_s:.0f} s, longer than the caller is ready to wait.",
        retry_after_s=_in_whole_seconds(expected.end_s - (ask.within_s or 0.0)),
        details=_details("deadline", ask) | expected.to_dict() | {"within_s": ask.within_s},
    )
    if expected.end_s - expected.start_s > (ask.within_s or 0.0):
        error.retry_after_s = None  # even an idle server would be too slow
    return error


def _in_whole_seconds(wait_s: float) -> float:
    return math.ceil(min(MAX_WAIT_S, max(MIN_WAIT_S, wait_s)))


def _details(reason: str, ask: Ask) -> dict[str, Any]:
    return {"reason": reason, "predicted_s": round(ask.seconds, 2), "predicted_bytes": ask.bytes + ask.worker_bytes}
