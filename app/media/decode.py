"""Any accepted file to 16 kHz mono signed 16-bit PCM on disk.

The cap on length does not trust the file: ffmpeg counts samples (``asetpts`` replaces the file's own time stamps, so
they can neither stretch nor hide audio), stops one second after the cap, and cannot write a larger file in any case.
Gaps between time stamps are closed, as ``whisperx.load_audio`` does. A WAV that is this PCM already is read where it lies
(:func:`in_place`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ffmpeg

from app.durable import room
from app.errors import DiskFull, NotMedia, TooLong
from app.media import ffmpeg_cli, wav
from app.media.paths import free_bytes, require_disk
from app.media.probe import MediaInfo, check_shape, downmix, probe
from app.media.process import MB, ChildFailed, ChildStopped, ChildTimeout, Finished, run
from app.settings import Settings

RATE = 16_000
"""Samples per second of the PCM."""
BYTES_PER_S = RATE * 2

_NO_AUDIO = "The file holds no audio that can be decoded."
_SLOW_HINT = "Convert the file to wav, flac or mp3, or split it, and send it again."


@dataclass(frozen=True)
class Decoded:
    """PCM in the file ``path``: 16 kHz, mono, s16le, ``length`` bytes from byte ``start`` on (None: to the end).

    ``duration_s`` (seconds) is counted, not claimed.
    """

    path: Path
    duration_s: float
    info: MediaInfo
    start: int = 0
    length: int | None = None


async def decode(src: Path, dst: Path, settings: Settings, *, max_s: float | None = None) -> Decoded:
    """Decode ``src`` into the new file ``dst`` (absolute paths, made by the server); at most ``max_s`` seconds of audio.

    ``max_s`` can only lower ``settings.max_audio_s``. A damaged file gives what can be decoded. On an error ``dst`` is
    gone.

    Raises:
        NotMedia: nothing could be decoded, or not within ``settings.decode_timeout_s``.
        TooLong: more audio than allowed.
        DiskFull: no room for the PCM.
    """
    cap_s = min(settings.max_audio_s, max_s or settings.max_audio_s)
    info = await probe(src, settings)
    check_shape(info)
    check_length(info, cap_s)
    known_s = info.duration_s if info.duration_s and not info.estimated else 0.0
    require_disk(dst.parent, int(known_s * BYTES_PER_S), settings.disk_reserve_mb)
    try:
        await run_capped("decode", _arguments(src, dst, info, cap_s, settings), dst, _most_bytes(cap_s), settings)
        return Decoded(dst, _measured(dst, cap_s), info)
    except BaseException:
        await asyncio.to_thread(dst.unlink, missing_ok=True)
        raise


async def in_place(src: Path, settings: Settings) -> Decoded | None:
    """The samples of a WAV that is such PCM already, where they lie; None where it is anything else.

    Raises:
        TooLong: more audio than allowed.
        CapacityError: there are no descriptors or threads left.
    """
    with room():
        samples = await asyncio.to_thread(wav.samples_in, src, RATE)
    if samples is None:
        return None
    start, length = samples
    seconds = length / BYTES_PER_S
    info = MediaInfo("wav", "pcm_s16le", seconds, RATE, 1, has_video=False)
    check_length(info, settings.max_audio_s)
    return Decoded(src, seconds, info, start, length)


def check_length(info: MediaInfo, cap_s: float) -> None:
    """Refuse early what says itself that it is too long (seconds). A guessed duration does not count.

    Raises:
        TooLong: it is.
    """
    if info.duration_s is not None and info.duration_s > cap_s and not info.estimated:
        raise too_long(cap_s)


def too_long(cap_s: float) -> TooLong:
    """The error for audio over ``cap_s`` seconds."""
    return TooLong(f"The audio is longer than {cap_s:g} s, the most that this server accepts.")


async def run_capped(step: str, argv: list[str], dst: Path, file_bytes: int, settings: Settings) -> Finished:
    """Run an ffmpeg that writes ``dst``, at most ``file_bytes``, watching the free disk.

    Raises:
        NotMedia: it did not end in time, or was killed.
        DiskFull: the disk filled up.
    """
    limits = ffmpeg_cli.limits(settings.decode_timeout_s, file_bytes)
    watch = _disk_watch(dst.parent, settings.disk_reserve_mb)
    try:
        done = await run(argv, cwd=dst.parent, timeout_s=settings.decode_timeout_s, limits=limits, watch=watch)
    except ChildFailed as error:
        ffmpeg_cli.log_failure(step, error)
        if isinstance(error, ChildStopped):
            raise DiskFull("The server ran out of disk space.") from error
        if isinstance(error, ChildTimeout):
            raise NotMedia(f"Reading the file took more than {settings.decode_timeout_s:g} s.", hint=_SLOW_HINT) from error
        raise NotMedia(_NO_AUDIO) from error
    if done.returncode:
        ffmpeg_cli.log_failure(step, done)
        if ffmpeg_cli.is_full(done):
            raise DiskFull("The server ran out of disk space.")
    return done


def _disk_watch(folder: Path, reserve_mb: int) -> Callable[[], str | None]:
    # Half the reserve: uploads stop at the whole of it, so that running work can still end.
    return lambda: "disk" if free_bytes(folder) < reserve_mb * MB // 2 else None


def _most_bytes(cap_s: float) -> int:
    return int((cap_s + 2) * BYTES_PER_S)


def _arguments(src: Path, dst: Path, info: MediaInfo, cap_s: float, settings: Settings) -> list[str]:
    steps = ("asetpts=N/SR/TB", downmix(info), f"aresample={RATE}")
    audio = ffmpeg.input(ffmpeg_cli.file_url(src), **ffmpeg_cli.input_options())["a:0"]
    out = audio.output(
        ffmpeg_cli.file_url(dst),
        af=",".join(step for step in steps if step),
        f="s16le",
        acodec="pcm_s16le",
        ac=1,
        ar=RATE,
        t=f"{cap_s + 1:.3f}",
        fs=_most_bytes(cap_s),
        vn=None,
        sn=None,
        dn=None,
        map_metadata=-1,
    )
    quiet = ("-nostdin", "-hide_banner", "-nostats", "-loglevel", "error", "-filter_threads", "1", "-y")
    compiled: list[str] = out.global_args(*quiet).compile(ffmpeg_cli.binary(settings))
    return compiled


def _measured(dst: Path, cap_s: float) -> float:
    """Seconds of PCM in ``dst``, which is cut to whole samples.

    A damaged file makes ffmpeg end with an error although it decoded something, so only the size decides.
    """
    size = dst.stat().st_size if dst.exists() else 0
    if size < 2:
        raise NotMedia(_NO_AUDIO)
    if size > cap_s * BYTES_PER_S:
        raise too_long(cap_s)
    if size % 2:
        with dst.open("r+b") as file:
            file.truncate(size - 1)
    return (size // 2) / RATE
