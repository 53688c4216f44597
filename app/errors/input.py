"""The caller must change the request, or show a key."""

from __future__ import annotations

from app.errors.base import StenopoolError


class InputError(StenopoolError):
    """The request cannot be served as it stands."""

    code = "invalid_request"
    status = 422
    kind = "invalid_request_error"
    default_hint = "Correct the request and send it again."


class NotHttp(InputError):
    """What came over the connection is no HTTP request."""

    code = "not_http"
    status = 400


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
    default_hint = "Use a path that /download, /extract-audio or /uploads returned."


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


class HeaderTimeout(InputError):
    """The headers came too slowly."""

    code = "header_timeout"
    status = 408
    retryable = True
    default_hint = "Send the whole request at once."


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


class NeverFits(InputError):
    """This job needs more memory than the server may ever use."""

    code = "never_fits"
    status = 413
    default_hint = "Use a smaller model, or a machine with more memory; GET /capacity shows what fits."


class UnsupportedEncoding(InputError):
    """The body has a Content-Encoding."""

    code = "unsupported_encoding"
    status = 415
    default_hint = "Send the body without Content-Encoding."


class WrongContentType(InputError):
    """The bytes of an upload came as something else."""

    code = "wrong_content_type"
    status = 415
    default_hint = "Send the bytes with Content-Type: application/offset+octet-stream."


class InvalidUpload(InputError):
    """A header of the upload protocol is missing, malformed or not supported."""

    code = "invalid_upload"
    status = 400
    default_hint = "Follow tus 1.0.0; OPTIONS /uploads says which of its extensions there are."


class OffsetMismatch(InputError):
    """The bytes do not belong where the upload ends."""

    code = "offset_mismatch"
    status = 409
    default_hint = "Send HEAD for the upload and go on from its Upload-Offset."


class UnsupportedVersion(InputError):
    """The client speaks another version of the upload protocol, or does not say which."""

    code = "unsupported_version"
    status = 412
    default_hint = "Send the header Tus-Resumable: 1.0.0."


class ChecksumMismatch(InputError):
    """The bytes are not those that the checksum was made of; none of them was kept."""

    code = "checksum_mismatch"
    status = 460
    retryable = True
    default_hint = "Send the same bytes again."


class AuthError(StenopoolError):
    """No key, or not a valid one."""

    code = "invalid_api_key"
    status = 401
    kind = "authentication_error"
    default_hint = "Send the key as X-API-Key or as Authorization: Bearer."
