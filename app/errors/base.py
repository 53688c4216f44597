"""The base of all errors."""

from __future__ import annotations

from typing import Any, ClassVar


class StenopoolError(Exception):
    """Base of the tree.

    ``message`` says what happened, ``hint`` what to do next, ``param`` which request field is to blame.
    ``retry_after_s`` (seconds) is set where waiting helps. ``details`` are numbers behind the message, for programs.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False
    default_retry_after_s: ClassVar[float | None] = None
    default_hint: ClassVar[str] = "Report the request id to the operator."

    def __init__(
        self,
        message: str = "Something went wrong inside the server.",
        *,
        hint: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        self.param = param
        self.retry_after_s = self.default_retry_after_s if retry_after_s is None else retry_after_s
        self.details = details

    def to_wire(self, request_id: str) -> dict[str, Any]:
        """The one JSON shape of every error (a superset of OpenAI's ``error`` object)."""
        error = {
            "code": self.code,
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "hint": self.hint,
            "retryable": self.retryable,
            "request_id": request_id,
        }
        return {"error": error | ({"details": self.details} if self.details else {})}
