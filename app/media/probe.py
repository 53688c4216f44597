"""What a file is, from ffmpeg's own report on stderr (the wheel brings no ffprobe).

Everything here was written by whoever made the file: it serves to refuse early and to inform, and no limit rests on it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from app.errors import NotMedia
from app.media import ffmpeg_cli
from app.media.process import MB, ChildFailed, run
from app.settings import Settings

_TIMEOUT_S = 60.0

# Metadata can hold any text, line breaks included, but ffmpeg starts every such line with spaces and a colon.
_INPUT = re.compile(r"^Input #0, (?P<format>\S+), from ", re.MULTILINE)
_DURATION = re.compile(r"^  Duration: (?P<h>\d+):(?P<m>\d\d):(?P<s>\d\d(?:\.\d+)?)", re.MULTILINE)
_STREAM = re.compile(r"^ {2,4}Stream #0:\d+[^:\n]*: (?P<kind>Audio|Video): (?P<rest>[^\n]*)", re.MULTILINE)
_RATE = re.compile(r"\b(\d+) Hz\b")
_ESTIMATED = "Estimating duration from bitrate"
_LAYOUTS = {
    "mono": 1, "stereo": 2, "downmix": 2, "2.1": 3, "3.0": 3, "3.0(back)": 3, "4.0": 4, "quad": 4, "quad(side)": 4, "3.1": 4,
    "5.0": 5, "5.0(side)": 5, "4.1": 5, "5.1": 6, "5.1(side)": 6, "6.0": 6, "6.0(front)": 6, "hexagonal": 6, "3.1.2": 6,
    "6.1": 7, "6.1(back)": 7, "6.1(front)": 7, "7.0": 7, "7.0(front)": 7, "7.1": 8, "7.1(wide)": 8, "7.1(wide-side)": 8,
    "octagonal": 8, "cube": 8, "5.1.2": 8, "5.1.2(back)": 8, "5.1.4": 10, "7.1.2": 10, "7.1.4": 12, "7.2.3": 12, "9.1.4": 14,
    "9.1.6": 16, "hexadecagonal": 16, "22.2": 24,
}  # fmt: skip
_CHANNELS = re.compile(r"\b(\d+) channels\b")


@dataclass(frozen=True)
class MediaInfo:
    """A file's own claims. ``duration_s`` in seconds, ``sample_rate`` in Hz; None where ffmpeg does not know.

    ``estimated`` says that the duration was guessed from the bit rate (an mp3 without a Xing header): it can be wrong
    by a factor of ten. ``has_video`` leaves out cover pictures.
    """

    container: str
    codec: str
    duration_s: float | None
    sample_rate: int | None
    channels: int | None
    has_video: bool
    estimated: bool = False


def parse_stderr(text: str) -> MediaInfo:
    """Read the report of ``ffmpeg -i``; understands ffmpeg 4 to 9.

    Raises:
        NotMedia: there is no input, or no audio stream in it.
    """
    opened = _INPUT.search(text)
    if not opened:
        raise NotMedia("The file is not audio or video in a format that this server reads.")
    streams = list(_STREAM.finditer(text, opened.end()))
    audio = next((s["rest"] for s in streams if s["kind"] == "Audio"), None)
    if audio is None:
        raise NotMedia("The file has no audio stream.")
    rate = _RATE.search(audio)
    return MediaInfo(
        container=opened["format"].rstrip(","),
        codec=re.split(r"[ ,(]", audio, maxsplit=1)[0],
        duration_s=_duration(_DURATION.search(text, opened.end())),
        sample_rate=int(rate[1]) if rate else None,
        channels=_channels(audio, rate.end() if rate else 0),
        has_video=any(s["kind"] == "Video" and "(attached pic)" not in s["rest"] for s in streams),
        estimated=_ESTIMATED in text,
    )


def _duration(found: re.Match[str] | None) -> float | None:
    return int(found["h"]) * 3600 + int(found["m"]) * 60 + float(found["s"]) if found else None


def _channels(audio: str, start: int) -> int | None:
    """From the part after "44100 Hz, ": a layout's name, or "10 channels"."""
    counted = _CHANNELS.search(audio, start)
    if counted:
        return int(counted[1])
    names = [part.strip() for part in audio[start:].split(",")]
    return next((_LAYOUTS[name] for name in names if name in _LAYOUTS), None)


async def probe(path: Path, settings: Settings) -> MediaInfo:
    """What ``path`` (absolute, server-made) claims to be. Takes about 60 ms.

    Raises:
        NotMedia: not a whitelisted container, no audio stream, or no answer in a minute.
    """
    timeout_s = min(_TIMEOUT_S, settings.decode_timeout_s)
    argv = [ffmpeg_cli.binary(settings), "-nostdin", "-hide_banner", *ffmpeg_cli.input_args(path)]
    try:
        # No output is named, so the return code is always an error and says nothing; and nothing may be written.
        done = await run(argv, cwd=path.parent, timeout_s=timeout_s, limits=ffmpeg_cli.limits(timeout_s, MB))
    except ChildFailed as error:
        ffmpeg_cli.log_failure("probe", error)
        raise NotMedia("The file could not be read as audio or video.") from error
    try:
        return parse_stderr(done.stderr)
    except NotMedia:
        ffmpeg_cli.log_failure("probe", done)
        raise


def check_shape(info: MediaInfo) -> None:
    """Refuse sample rates and channel counts that no recording has.

    Raises:
        NotMedia: outside 1 to 768 kHz, or more than 64 channels.
    """
    rate, channels = info.sample_rate, info.channels
    if rate is not None and not ffmpeg_cli.MIN_RATE <= rate <= ffmpeg_cli.MAX_RATE:
        raise NotMedia("The file claims a sample rate that no recording has.")
    if channels is not None and not 0 < channels <= ffmpeg_cli.MAX_CHANNELS:
        raise NotMedia("The file claims more channels than any recording has.")


def downmix(info: MediaInfo) -> str | None:
    """Filter that averages more channels than ffmpeg has layouts for (multi-track recorders); None where not needed."""
    count = info.channels or 0
    if count <= 8:
        return None
    return "pan=mono|c0=" + "+".join(f"{1 / count:.6f}*c{number}" for number in range(count))
