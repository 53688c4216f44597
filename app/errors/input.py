"""The caller must change the request, or show a key."""

from __future__ import annotations

from app.errors.base import StenopoolError


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


class AuthError(StenopoolError):
    """No key, or not a valid one."""

    code = "invalid_api_key"
    status = 401
    kind = "authentication_error"
    default_hint = "Send the key as X-API-Key or as Authorization: Bearer."
