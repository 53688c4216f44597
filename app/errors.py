"""Every error the service can answer with, in one tree.

::

    StenopoolError                       500  internal
    ├── InputError                       422  invalid_request      the caller must change the request
    │   ├── UnknownModel                 422  unknown_model
    │   ├── NotMedia                     422  not_media
    │   ├── UrlRefused                   422  url_refused
    │   ├── DownloadFailed               422  download_failed
    │   ├── MediaNotFound                404  media_not_found
    │   ├── NotFound                     404  not_found
    │   ├── MethodNotAllowed             405  method_not_allowed
    │   ├── BodyTimeout                  408  body_timeout
    │   ├── TooLarge                     413  too_large
    │   ├── TooLong                      413  too_long
    │   └── UnsupportedEncoding          415  unsupported_encoding
    ├── AuthError                        401  invalid_api_key
    ├── CapacityError                    503  unavailable          the same request may work later
    │   ├── TooManyActive                429  too_many_active
    │   ├── NotReady                     503  not_ready
    │   ├── ModelUnavailable             503  model_unavailable
    │   ├── AlignerUnavailable           503  aligner_unavailable
    │   ├── QueueTimeout                 504  queue_timeout
    │   └── DiskFull                     507  disk_full
    └── WorkError                        500  engine_failed        the request was fine, the work was not
        ├── WorkerLost                   500  worker_lost
        ├── DeadlineExceeded             504  deadline_exceeded
        ├── Interrupted                  503  interrupted
        └── Cancelled                    499  cancelled

A message is written for the caller. It never holds a path, a traceback or a tool's output; whoever raises puts
those in the log.
"""

from __future__ import annotations

from typing import Any, ClassVar


class StenopoolError(Exception):
    """Base of the tree.

    ``message`` says what happened, ``hint`` what to do next, ``param`` which request field is to blame.
    ``retry_after_s`` (seconds) is set where waiting helps.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = "Report the request id to the operator."

    def __init__(
        self,
        message: str = "Something went wrong inside the server.",
        *,
        hint: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        self.param = param
        self.retry_after_s = retry_after_s

    def to_wire(self, request_id: str) -> dict[str, Any]:
        """The one JSON shape of every error (a superset of OpenAI's ``error`` object)."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "hint": self.hint,
                "retryable": self.retryable,
                "request_id": request_id,
            }
        }


class InputError(StenopoolError):
    """The request cannot be served as it stands."""

    code = "invalid_request"
    status = 422
    kind = "invalid_request_error"
    default_hint = "Correct the request and send it again."


class UnknownModel(InputError):
    """The model name is not on the allow-list."""

    code = "unknown_model"


class NotMedia(InputError):
    """The input holds no audio that can be decoded."""

    code = "not_media"
    default_hint = "Send an audio or video file: wav, mp3, m4a, flac, ogg, opus, webm or mp4."


class UrlRefused(InputError):
    """The URL policy forbids this address."""

    code = "url_refused"
    default_hint = "Use a public http or https address, or upload the file itself."


class DownloadFailed(InputError):
    """The remote side did not deliver."""

    code = "download_failed"
    retryable = True
    default_hint = "Check that the address works in a browser, or upload the file itself."


class MediaNotFound(InputError):
    """No such file in the media folder (or it may not be read: the two look alike on purpose)."""

    code = "media_not_found"
    status = 404
    default_hint = "Use a path that /download or /extract-audio returned."


class NotFound(InputError):
    """No such route or object."""

    code = "not_found"
    status = 404
    default_hint = "See /docs for the routes of this server."


class MethodNotAllowed(InputError):
    """The route exists, but not with this method."""

    code = "method_not_allowed"
    status = 405
    default_hint = "See /docs for the methods of this route."


class BodyTimeout(InputError):
    """The body came too slowly."""

    code = "body_timeout"
    status = 408
    retryable = True
    default_hint = "Send the body faster."


class TooLarge(InputError):
    """More bytes than the server accepts."""

    code = "too_large"
    status = 413
    default_hint = "Compress the audio (opus, mp3) or split it."


class TooLong(InputError):
    """More seconds of audio than the server accepts."""

    code = "too_long"
    status = 413
    default_hint = "Split the recording."


class UnsupportedEncoding(InputError):
    """The body has a Content-Encoding."""

    code = "unsupported_encoding"
    status = 415
    default_hint = "Send the body without Content-Encoding."


class AuthError(StenopoolError):
    """No key, or not a valid one."""

    code = "invalid_api_key"
    status = 401
    kind = "authentication_error"
    default_hint = "Send the key as X-API-Key or as Authorization: Bearer."


class CapacityError(StenopoolError):
    """Not now."""

    code = "unavailable"
    status = 503
    kind = "capacity_error"
    retryable = True
    default_hint = "Send the request again later."


class TooManyActive(CapacityError):
    """Every place is taken, and so is the queue."""

    code = "too_many_active"
    status = 429


class NotReady(CapacityError):
    """Still loading, or shutting down."""

    code = "not_ready"


class ModelUnavailable(CapacityError):
    """The model is known, but it is not on disk and could not be fetched."""

    code = "model_unavailable"
    retryable = False


class AlignerUnavailable(CapacityError):
    """The alignment model of this language is not on disk and could not be fetched."""

    code = "aligner_unavailable"
    retryable = False


class QueueTimeout(CapacityError):
    """The request was accepted, and then waited in line for longer than it may."""

    code = "queue_timeout"
    status = 504


class DiskFull(CapacityError):
    """Too little free disk."""

    code = "disk_full"
    status = 507


class WorkError(StenopoolError):
    """The engine failed on this input."""

    code = "engine_failed"


class WorkerLost(WorkError):
    """The input ended its worker process again and again."""

    code = "worker_lost"


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


def by_code(code: str, message: str, hint: str | None = None) -> StenopoolError:
    """Rebuild an error that crossed a process boundary or was read from the store, from its code."""
    return _BY_CODE.get(code, WorkError)(message, hint=hint)


def _tree(root: type[StenopoolError]) -> list[type[StenopoolError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


ALL: tuple[type[StenopoolError], ...] = tuple(_tree(StenopoolError))
_BY_CODE = {error.code: error for error in ALL}
