"""Every format in, 16 kHz mono out; damaged files give something or NotMedia, and nothing else."""

from __future__ import annotations

import random
import stat
import struct
import sys
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import DiskFull, NotMedia, TooLong
from app.media.decode import BYTES_PER_S, Decoded, decode
from app.settings import Settings

VIDEO = ("-f", "lavfi", "-i", "testsrc=size=160x120:rate=5:duration=3", "-f", "lavfi", "-i", "sine=frequency=440:duration=3")
SURROUND = ("-f", "lavfi", "-i", "aevalsrc=0.1*sin(2764*t)|0|0|0|0|0:s=48000:d=3:c=5.1")
FORMATS: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]] = {
    "a.wav": ((), None),
    "pcm24.wav": (("-c:a", "pcm_s24le"), None),
    "float.wav": (("-c:a", "pcm_f32le"), None),
    "mulaw-8k-mono.wav": (("-c:a", "pcm_mulaw", "-ar", "8000", "-ac", "1"), None),
    "adpcm.wav": (("-c:a", "adpcm_ima_wav"), None),
    "8k-mono.wav": (("-ar", "8000", "-ac", "1"), None),
    "surround.wav": ((), SURROUND),
    "a.mp3": (("-b:a", "64k"), None),
    "a.m4a": ((), None),
    "alac.m4a": (("-c:a", "alac"), None),
    "surround.m4a": ((), SURROUND),
    "a.aac": ((), None),
    "a.flac": ((), None),
    "surround.flac": ((), SURROUND),
    "vorbis.ogg": (("-c:a", "libvorbis"), None),
    "a.opus": (("-c:a", "libopus"), None),
    "a.webm": (("-c:a", "libopus"), None),
    "surround.webm": (("-c:a", "libopus"), SURROUND),
    "a.aiff": ((), None),
    "a.caf": ((), None),
    "a.au": ((), None),
    "a.w64": ((), None),
    "a.wma": ((), None),
    "a.ac3": ((), None),
    "video.mp4": (("-c:v", "libx264", "-c:a", "aac", "-pix_fmt", "yuv420p"), VIDEO),
    "video.webm": (("-c:v", "libvpx", "-c:a", "libopus"), VIDEO),
    "video.mkv": (("-c:v", "libx264", "-c:a", "libvorbis"), VIDEO),
    "video.ts": (("-c:v", "mpeg2video", "-c:a", "mp2"), VIDEO),
    "video.avi": (("-c:v", "mpeg4", "-c:a", "libmp3lame"), VIDEO),
    "video.mov": (("-c:v", "mpeg4", "-c:a", "pcm_s16le"), VIDEO),
    "video.flv": (("-c:v", "flv", "-c:a", "libmp3lame", "-ar", "44100"), VIDEO),
}


def built(media: Callable[..., Path], name: str) -> Path:
    arguments, source = FORMATS[name]
    return media(name, *arguments, source=source) if source else media(name, *arguments)


def loudness(path: Path) -> float:
    samples = array("h", path.read_bytes())
    if sys.byteorder == "big":
        samples.byteswap()
    return (sum(s * s for s in samples) / len(samples)) ** 0.5


async def attempt(data: bytes, tmp_path: Path, settings: Settings) -> Decoded | None:
    """Decode ``data``; None for NotMedia. Any other exception fails the test."""
    (tmp_path / "in").write_bytes(data)
    try:
        made = await decode(tmp_path / "in", tmp_path / "out.pcm", settings)
    except NotMedia:
        assert not (tmp_path / "out.pcm").exists()
        return None
    made.path.unlink()
    return made


@pytest.mark.parametrize("name", FORMATS)
async def test_format_decodes_to_its_length(name: str, media: Callable[..., Path], tmp_path: Path, settings: Settings) -> None:
    made = await decode(built(media, name), tmp_path / "out.pcm", settings)
    assert made.duration_s == pytest.approx(3.0, abs=0.12)
    assert made.path.stat().st_size == round(made.duration_s * BYTES_PER_S)
    assert loudness(made.path) > 200
    assert made.info.has_video == name.startswith("video")


async def test_name_says_nothing_about_the_format(media: Callable[..., Path], tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "in.mp3").write_bytes(built(media, "a.flac").read_bytes())
    assert (await decode(tmp_path / "in.mp3", tmp_path / "out.pcm", settings)).info.container == "flac"


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.m4a", "a.flac", "vorbis.ogg", "a.webm", "video.mp4"])
async def test_truncated_file_gives_its_beginning_or_not_media(
    name: str, media: Callable[..., Path], tmp_path: Path, settings: Settings
) -> None:
    data = built(media, name).read_bytes()
    for part in (0.01, 0.3, 0.9):
        made = await attempt(data[: int(len(data) * part)], tmp_path, settings)
        assert made is None or 0 < made.duration_s < 3.2


async def test_most_of_a_truncated_recording_is_kept(media: Callable[..., Path], tmp_path: Path, settings: Settings) -> None:
    for name in ("a.wav", "a.mp3", "a.flac", "vorbis.ogg", "a.webm"):
        data = built(media, name).read_bytes()
        made = await attempt(data[: int(len(data) * 0.7)], tmp_path, settings)
        assert made is not None, name
        assert made.duration_s > 0.9, name


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.m4a", "a.flac", "vorbis.ogg", "a.webm", "video.mp4"])
async def test_bit_flips_give_audio_or_not_media(
    name: str, media: Callable[..., Path], tmp_path: Path, settings: Settings
) -> None:
    chance = random.Random(f"flips of {name}")
    for flips in (3, 40, 400):
        data = bytearray(built(media, name).read_bytes())
        for _ in range(flips):
            # Half of them in the headers, where they do the most.
            data[chance.randrange(min(2000, len(data)) if chance.random() < 0.5 else len(data))] ^= 1 << chance.randrange(8)
        try:
            await attempt(bytes(data), tmp_path, settings)
        except TooLong:
            assert not (tmp_path / "out.pcm").exists()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\0", id="one-byte"),
        pytest.param(bytes(50_000), id="zeros"),
        pytest.param(random.Random(1).randbytes(50_000), id="noise"),
        pytest.param(b"hello, this is a text file\n" * 100, id="text"),
        pytest.param(b"RIFF\xff\xff\xff\xffWAVE", id="wav-header-only"),
        pytest.param(b"fLaC" + bytes(200), id="flac-magic-only"),
        pytest.param(b"OggS" + bytes(200), id="ogg-magic-only"),
        pytest.param(b"ID3\x04\0\0\x7f\x7f\x7f\x7f", id="id3-without-end"),
        pytest.param(b"\x1aE\xdf\xa3" + bytes(200), id="matroska-magic-only"),
        pytest.param(b"\0\0\0\x18ftypM4A " + bytes(200), id="mp4-magic-only"),
        pytest.param(b"%PDF-1.7\n" + bytes(1000), id="pdf"),
        pytest.param(b"PK\x03\x04" + bytes(1000), id="zip"),
        pytest.param(b"\x1f\x8b\x08" + bytes(1000), id="gzip"),
        pytest.param(b"\x7fELF" + bytes(1000), id="program"),
    ],
)
async def test_what_is_no_media_is_refused(data: bytes, tmp_path: Path, settings: Settings) -> None:
    made = await attempt(data, tmp_path, settings)
    assert made is None or made.duration_s < 1


async def test_video_without_sound_is_not_media(media: Callable[..., Path], tmp_path: Path, settings: Settings) -> None:
    silent = media("silent.mp4", "-an", "-c:v", "libx264", source=VIDEO[:4])
    with pytest.raises(NotMedia, match="no audio stream"):
        await decode(silent, tmp_path / "out.pcm", settings)


async def test_missing_file_is_not_media(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(NotMedia):
        await decode(tmp_path / "none", tmp_path / "out.pcm", settings)


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.flac", "a.webm", "video.mp4"])
async def test_audio_over_the_cap_is_too_long(
    name: str, media: Callable[..., Path], tmp_path: Path, settings: Settings
) -> None:
    with pytest.raises(TooLong):
        await decode(built(media, name), tmp_path / "out.pcm", settings, max_s=2)
    assert not (tmp_path / "out.pcm").exists()


async def test_cap_given_by_the_caller_cannot_raise_the_setting(
    media: Callable[..., Path], tmp_path: Path, settings: Settings
) -> None:
    with pytest.raises(TooLong):
        await decode(built(media, "a.wav"), tmp_path / "out.pcm", settings.model_copy(update={"max_audio_s": 2.0}), max_s=99)


async def test_header_that_claims_less_than_there_is_cannot_pass_the_cap(
    media: Callable[..., Path], tmp_path: Path, settings: Settings
) -> None:
    data = bytearray(built(media, "a.flac").read_bytes())
    # STREAMINFO holds the number of samples in the low 36 bits of bytes 21 to 25: half a second instead of three.
    data[22:26] = struct.pack(">I", 24_000)
    (tmp_path / "in").write_bytes(data)
    with pytest.raises(TooLong):
        await decode(tmp_path / "in", tmp_path / "out.pcm", settings, max_s=2)


async def test_slow_decode_ends_at_the_deadline(media: Callable[..., Path], tmp_path: Path, settings: Settings) -> None:
    tool = tmp_path / "ffmpeg"
    real = "Input #0, wav, from 'x':\\n  Duration: 00:00:03.00\\n  Stream #0:0: Audio: pcm_s16le, 16000 Hz, mono\\n"
    tool.write_text(f'#!/bin/sh\ncase "$*" in *"-f s16le"*) sleep 600 ;; *) printf "{real}" >&2 ;; esac\n')
    tool.chmod(stat.S_IRWXU)
    slow = settings.model_copy(update={"ffmpeg": tool, "decode_timeout_s": 0.6})
    with pytest.raises(NotMedia, match=r"more than 0\.6 s"):
        await decode(built(media, "a.wav"), tmp_path / "out.pcm", slow)


async def test_full_disk_is_reported_as_such(media: Callable[..., Path], tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(DiskFull):
        await decode(built(media, "a.wav"), tmp_path / "out.pcm", settings.model_copy(update={"disk_reserve_mb": 1 << 40}))
