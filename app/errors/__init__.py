"""Every error the service can answer with, in one tree.

::

    StenopoolError                       500  internal
    ├── InputError                       422  invalid_request      the caller must change the request
    │   ├── NotHttp                      400  not_http
    │   ├── UnknownModel                 422  unknown_model
    │   ├── NotMedia                     422  not_media
    │   ├── UrlRefused                   422  url_refused
    │   ├── DownloadFailed               422  download_failed
    │   ├── MediaNotFound                404  media_not_found
    │   ├── NotFound                     404  not_found
    │   ├── MethodNotAllowed             405  method_not_allowed
    │   ├── BodyTimeout                  408  body_timeout
    │   ├── HeaderTimeout                408  header_timeout
    │   ├── TooLarge                     413  too_large
    │   ├── TooLong                      413  too_long
    │   ├── NeverFits                    413  never_fits
    │   ├── UnsupportedEncoding          415  unsupported_encoding
    │   ├── WrongContentType             415  wrong_content_type
    │   ├── InvalidUpload                400  invalid_upload
    │   ├── OffsetMismatch               409  offset_mismatch
    │   ├── UnsupportedVersion           412  unsupported_version
    │   └── ChecksumMismatch             460  checksum_mismatch
    ├── AuthError                        401  invalid_api_key
    ├── CapacityError                    503  unavailable          the same request may work later
    │   ├── TooManyActive                429  too_many_active
    │   │   ├── QueueFull                429  queue_full
    │   │   ├── QuotaExceeded            429  quota_exceeded
    │   │   └── DeadlineUnreachable      429  deadline_unreachable
    │   ├── UploadLocked                 423  upload_locked
    │   ├── MemoryLow                    503  memory_low
    │   ├── NotReady                     503  not_ready
    │   ├── ModelUnavailable             503  model_unavailable
    │   ├── AlignerUnavailable           503  aligner_unavailable
    │   ├── QueueTimeout                 504  queue_timeout
    │   └── DiskFull                     507  disk_full
    └── WorkError                        500  engine_failed        the request was fine, the work was not
        ├── WorkerLost                   500  worker_lost
        │   └── OutOfMemory              500  out_of_memory
        ├── DeadlineExceeded             504  deadline_exceeded
        ├── Interrupted                  503  interrupted
        └── Cancelled                    499  cancelled

A message is written for the caller: never a path, a traceback or a tool's output. Whoever raises puts those in the log.
"""

from __future__ import annotations

from app.errors.base import StenopoolError
from app.errors.capacity import (
    AlignerUnavailable,
    CapacityError,
    DeadlineUnreachable,
    DiskFull,
    MemoryLow,
    ModelUnavailable,
    NotReady,
    QueueFull,
    QueueTimeout,
    QuotaExceeded,
    TooManyActive,
    UploadLocked,
)
from app.errors.input import (
    AuthError,
    BodyTimeout,
    ChecksumMismatch,
    DownloadFailed,
    HeaderTimeout,
    InputError,
    InvalidUpload,
    MediaNotFound,
    MethodNotAllowed,
    NeverFits,
    NotFound,
    NotHttp,
    NotMedia,
    OffsetMismatch,
    TooLarge,
    TooLong,
    UnknownModel,
    UnsupportedEncoding,
    UnsupportedVersion,
    UrlRefused,
    WrongContentType,
)
from app.errors.work import Cancelled, DeadlineExceeded, Interrupted, OutOfMemory, WorkerLost, WorkError

__all__ = [
    "ALL",
    "AlignerUnavailable",
    "AuthError",
    "BodyTimeout",
    "Cancelled",
    "CapacityError",
    "ChecksumMismatch",
    "DeadlineExceeded",
    "DeadlineUnreachable",
    "DiskFull",
    "DownloadFailed",
    "HeaderTimeout",
    "InputError",
    "Interrupted",
    "InvalidUpload",
    "MediaNotFound",
    "MemoryLow",
    "MethodNotAllowed",
    "ModelUnavailable",
    "NeverFits",
    "NotFound",
    "NotHttp",
    "NotMedia",
    "NotReady",
    "OffsetMismatch",
    "OutOfMemory",
    "QueueFull",
    "QueueTimeout",
    "QuotaExceeded",
    "StenopoolError",
    "TooLarge",
    "TooLong",
    "TooManyActive",
    "UnknownModel",
    "UnsupportedEncoding",
    "UnsupportedVersion",
    "UploadLocked",
    "UrlRefused",
    "WorkError",
    "WorkerLost",
    "WrongContentType",
    "by_code",
]


def by_code(code: str, message: str, hint: str | None = None) -> StenopoolError:
    """Rebuild an error that crossed a process boundary or was read from the store, from its code."""
    return _BY_CODE.get(code, WorkError)(message, hint=hint)


def _tree(root: type[StenopoolError]) -> list[type[StenopoolError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


ALL: tuple[type[StenopoolError], ...] = tuple(_tree(StenopoolError))
_BY_CODE = {error.code: error for error in ALL}
