"""The ffmpeg binary and the arguments that make it safe on a hostile file.

Three whitelists, each measured to be needed:

* formats: ``-protocol_whitelist file`` alone does not stop an HLS playlist or an ``ffconcat`` script named ``x.mp3``
  from reading other files of this machine;
* protocols: what a container still references may only be a local file, never the network;
* codecs: without it ffmpeg opens a *video* decoder of the input while it probes, even under ``-vn``.

``tests/security/test_disguise.py`` shows that each attack works without them.
"""

from __future__ import annotations

import logging
import shutil
from functools import lru_cache
from pathlib import Path

import imageio_ffmpeg

from app.media.process import MB, TOOLS_PATH, ChildFailed, Finished, Limits
from app.settings import Settings

log = logging.getLogger(__name__)

FORMATS = (
    "wav", "w64", "mp3", "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "flac", "ogg", "matroska", "webm", "aac", "aiff", "amr",
    "amrnb", "amrwb", "caf", "au", "avi", "mpegts", "mpeg", "flv", "asf", "ac3", "eac3",
)  # fmt: skip
CODECS = (
    "aac", "aac_latm", "ac3", "eac3", "alac", "flac", "vorbis", "libvorbis", "opus", "libopus", "speex", "dca",
    "mp1float", "mp1", "mp2float", "mp2", "mp3float", "mp3", "amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb",
    "wmav1", "wmav2", "wmapro", "wmavoice", "wmalossless", "nellymoser", "g722", "g726", "g726le", "gsm", "gsm_ms",
    "adpcm_ima_wav", "adpcm_ima_qt", "adpcm_ms", "adpcm_swf", "adpcm_yamaha", "pcm_alaw", "pcm_mulaw", "pcm_bluray",
    "pcm_dvd", "pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be",
    "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be",
)  # fmt: skip
MAX_RATE = 768_000
"""Highest sample rate in Hz; the resampler's tables grow with it."""
MIN_RATE = 1_000
"""Lowest sample rate in Hz; below it a small file lasts for weeks."""
MAX_CHANNELS = 64

_MEMORY = 2048 * MB
_LOGGED = 2000


@lru_cache(maxsize=1)
def _bundled() -> str:
    name: str = imageio_ffmpeg.get_ffmpeg_exe()  # a bare name where it is the system's
    return shutil.which(name, path=TOOLS_PATH) or name


def binary(settings: Settings) -> str:
    """Absolute path of ffmpeg: ``STENOPOOL_FFMPEG``, else the one of the imageio-ffmpeg wheel.

    Raises:
        RuntimeError: there is none; an operator's mistake, not a caller's.
    """
    return str(settings.ffmpeg.absolute()) if settings.ffmpeg else _bundled()


def input_options() -> dict[str, str | int]:
    """Options that stand before every ``-i``. Integers and texts, as ffmpeg-python takes them."""
    return {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(FORMATS),
        "codec_whitelist": ",".join(CODECS),
        "threads": 1,
    }


def input_args(path: Path) -> list[str]:
    """The same as a list, with ``-i``; an absolute ``file:`` address cannot be taken for an option or a protocol."""
    options = [part for name, value in input_options().items() for part in (f"-{name}", str(value))]
    return [*options, "-i", file_url(path)]


def file_url(path: Path) -> str:
    """``path`` as ffmpeg's ``file:`` address.

    Raises:
        ValueError: the path is not absolute.
    """
    if not path.is_absolute():
        raise ValueError("ffmpeg takes absolute paths only")
    return f"file:{path}"


def limits(timeout_s: float, file_bytes: int) -> Limits:
    """Limits of one ffmpeg: single-threaded, so CPU seconds follow the deadline (in seconds)."""
    return Limits(cpu_s=int(timeout_s * 2) + 5, file_bytes=file_bytes, memory_bytes=_MEMORY)


def is_full(done: Finished) -> bool:
    """Whether ffmpeg ended because the disk is full."""
    return "No space left on device" in done.stderr or "Disk quota exceeded" in done.stderr


def log_failure(step: str, cause: Finished | ChildFailed) -> None:
    """Put what ffmpeg said into the log, which is the only place for it."""
    code = cause.returncode if isinstance(cause, Finished) else cause.reason
    log.info("ffmpeg failed: step=%s code=%s stderr=%r", step, code, cause.stderr[-_LOGGED:])
