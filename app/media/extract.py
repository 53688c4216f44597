"""The audio of a file as a file of its own: wav, mp3, m4a, flac or opus."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import ffmpeg

from app.errors import InputError, NotMedia, TooLarge
from app.media import ffmpeg_cli
from app.media.decode import check_length, run_capped, too_long
from app.media.paths import require_disk
from app.media.probe import MediaInfo, check_shape, downmix, probe
from app.media.process import MB
from app.settings import Settings

Format = Literal["wav", "mp3", "m4a", "flac", "opus"]
FORMATS: tuple[str, ...] = get_args(Format)

_RATE_HZ = (8_000, 192_000)
_MAX_CHANNELS = 8


@dataclass(frozen=True)
class _Target:
    """How ffmpeg makes one format. ``rates`` in Hz (empty: any); ``bytes_per_sample`` bounds the file's size."""

    muxer: str
    codec: str
    rates: tuple[int, ...]
    max_channels: int
    bytes_per_sample: int
    extra: dict[str, Any]


_TARGETS: dict[str, _Target] = {
    # rf64: a header that can hold more than 4 GiB, where it is needed.
    "wav": _Target("wav", "pcm_s16le", (), _MAX_CHANNELS, 2, {"rf64": "auto"}),
    "flac": _Target("flac", "flac", (), _MAX_CHANNELS, 4, {}),
    "mp3": _Target(
        "mp3", "libmp3lame", (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000), 2, 2, {"q:a": 2}
    ),
    "m4a": _Target(
        "ipod",
        "aac",
        (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000),
        6,
        2,
        {"movflags": "+faststart"},
    ),
    "opus": _Target("ogg", "libopus", (8_000, 12_000, 16_000, 24_000, 48_000), 2, 2, {"b:a": "64k"}),
}


@dataclass(frozen=True)
class ExtractOptions:
    """What to make. ``sample_rate`` in Hz and ``channels``: None keeps the source's, or the nearest that the format has.

    ``start_s`` and ``end_s`` (seconds) cut, sample-exact.

    Raises:
        InputError: a value is out of range, or the format cannot hold it; ``param`` names it.
    """

    format: Format = "wav"
    sample_rate: int | None = None
    channels: int | None = None
    start_s: float | None = None
    end_s: float | None = None

    def __post_init__(self) -> None:
        if self.format not in _TARGETS:
            raise InputError(f"The format must be one of {', '.join(FORMATS)}.", param="format")
        self._check_rate(_TARGETS[self.format])
        most = _TARGETS[self.format].max_channels
        if self.channels is not None and not 1 <= self.channels <= most:
            raise InputError(f"{self.format} takes 1 to {most} channels.", param="channels")
        self._check_times()

    def _check_rate(self, target: _Target) -> None:
        rate = self.sample_rate
        if rate is None:
            return
        if target.rates and rate not in target.rates:
            allowed = ", ".join(map(str, target.rates))
            raise InputError(f"{self.format} takes these sample rates: {allowed}.", param="sample_rate")
        if not _RATE_HZ[0] <= rate <= _RATE_HZ[1]:
            raise InputError(f"The sample rate must be {_RATE_HZ[0]} to {_RATE_HZ[1]} Hz.", param="sample_rate")

    def _check_times(self) -> None:
        for name, value in (("start_s", self.start_s), ("end_s", self.end_s)):
            # Not a number and infinity fail both comparisons.
            if value is not None and not 0 <= value < 1e7:
                raise InputError(f"{name} must be a number of seconds, 0 or more.", param=name)
        if self.end_s is not None and self.end_s <= (self.start_s or 0.0):
            raise InputError("end_s must be greater than start_s.", param="end_s")


@dataclass(frozen=True)
class Extracted:
    """The file that was made: seconds, bytes, Hz."""

    path: Path
    duration_s: float
    size_bytes: int
    sample_rate: int
    channels: int
    format: str


async def extract(src: Path, dst: Path, options: ExtractOptions, settings: Settings) -> Extracted:
    """Write the first audio stream of ``src`` into the new file ``dst`` (absolute paths, made by the server).

    On an error ``dst`` is gone.

    Raises:
        NotMedia: no audio, or none in the wanted part, or not within ``settings.decode_timeout_s``.
        TooLong: the source or the wanted part is longer than ``settings.max_audio_s``.
        TooLarge: the result would be larger than ``settings.max_download_mb``.
        DiskFull: no room for it.
    """
    info = await probe(src, settings)
    check_shape(info)
    check_length(info, settings.max_audio_s)
    target = _TARGETS[options.format]
    rate, channels = _shape(info, options, target)
    cap_s = _cap_s(options, settings)
    most_bytes = settings.max_download_mb * MB
    if info.duration_s and not info.estimated:
        span_s = max(0.0, min(info.duration_s, options.end_s or info.duration_s) - (options.start_s or 0.0))
        expected = int(span_s * rate * channels * target.bytes_per_sample)
        _check_size(options, expected, most_bytes)
        require_disk(dst.parent, min(expected, most_bytes), settings.disk_reserve_mb)
    try:
        argv = _arguments(src, dst, options, (rate, channels), downmix(info), cap_s, settings)
        await run_capped("extract", argv, dst, most_bytes, settings)
        return await _checked(dst, options, most_bytes, settings)
    except BaseException:
        await asyncio.to_thread(dst.unlink, missing_ok=True)
        raise


def _cap_s(options: ExtractOptions, settings: Settings) -> float:
    """Seconds of source after which ffmpeg stops: where the caller's end is, else just past the cap."""
    if options.end_s is not None and options.end_s <= settings.max_audio_s:
        return options.end_s
    return settings.max_audio_s + 1


def _shape(info: MediaInfo, options: ExtractOptions, target: _Target) -> tuple[int, int]:
    """Sample rate (Hz) and channels of the result."""
    rate = options.sample_rate or min(max(info.sample_rate or 48_000, _RATE_HZ[0]), _RATE_HZ[1])
    if target.rates and rate not in target.rates:
        rate = next((allowed for allowed in target.rates if allowed >= rate), target.rates[-1])
    if options.channels:
        return rate, options.channels
    channels = info.channels or 2
    return rate, channels if channels <= target.max_channels else 2


def _check_size(options: ExtractOptions, size: int, most: int) -> None:
    # Only wav's size is known beforehand; the others stop at the limit on the file.
    if options.format == "wav" and size > most:
        raise _too_large(most)


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"The result would be larger than {most // MB} MB.", hint="Ask for opus or mp3, or for a shorter part.")


def _arguments(
    src: Path, dst: Path, options: ExtractOptions, shape: tuple[int, int], mix: str | None, cap_s: float, settings: Settings
) -> list[str]:
    target = _TARGETS[options.format]
    audio = ffmpeg.input(ffmpeg_cli.file_url(src), **ffmpeg_cli.input_options())["a:0"]
    # Time is counted in samples, whatever the file's own time stamps say; see decode.py.
    if mix:
        audio = audio.filter("pan", args=mix.removeprefix("pan="))
    cut = audio.filter("asetpts", "N/SR/TB").filter("atrim", start=options.start_s or 0.0, end=cap_s)
    out = cut.filter("asetpts", "PTS-STARTPTS").output(
        ffmpeg_cli.file_url(dst),
        f=target.muxer,
        acodec=target.codec,
        ar=shape[0],
        ac=shape[1],
        map_metadata=-1,
        map_chapters=-1,
        fflags="+bitexact",
        **target.extra,
    )
    quiet = ("-nostdin", "-hide_banner", "-nostats", "-loglevel", "error", "-filter_complex_threads", "1", "-y")
    compiled: list[str] = out.global_args(*quiet).compile(ffmpeg_cli.binary(settings))
    return compiled


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def _checked(dst: Path, options: ExtractOptions, most_bytes: int, settings: Settings) -> Extracted:
    size = _size(dst)
    if size >= most_bytes:
        raise _too_large(most_bytes)
    nothing = NotMedia("There is no audio in the part that was asked for.")
    if not size:
        raise nothing
    made = await probe(dst, settings)
    if made.duration_s is None or not made.sample_rate or not made.channels:
        raise nothing
    _check_result(made.duration_s, options, settings)
    return Extracted(dst, made.duration_s, size, made.sample_rate, made.channels, options.format)


def _check_result(duration_s: float, options: ExtractOptions, settings: Settings) -> None:
    """Hitting the cap is an error, never a silent cut (0.1 s for what an encoder pads)."""
    end_s = (options.start_s or 0.0) + duration_s
    if (options.end_s is None or options.end_s > settings.max_audio_s) and end_s > settings.max_audio_s + 0.1:
        raise too_long(settings.max_audio_s)
