"""ffmpeg's report, as recorded from several versions, and the probe itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import NotMedia
from app.media.probe import MediaInfo, check_shape, parse_stderr, probe
from app.settings import Settings

MP4_5_1 = """\
[h264 @ 0x559de21fec80] Codec (h264) not on whitelist 'aac,mp3float,mp3,opus,libopus'
[mov,mp4,m4a,3gp,3g2,mj2 @ 0x559de21faa00] Failed to open codec in avformat_find_stream_info
Input #0, mov,mp4,m4a,3gp,3g2,mj2, from 'file:/tmp/mb/v.mp4':
  Metadata:
    major_brand     : isom
    title           : evil
                    :   Stream #0:0: Audio: pcm, 1 Hz, mono
    encoder         : Lavf61.1.100
  Duration: 00:00:02.00, start: 0.000000, bitrate: 95 kb/s
  Stream #0:0[0x1](und): Audio: aac (LC) (mp4a / 0x6134706D), 44100 Hz, mono, fltp, 69 kb/s (default)
    Metadata:
      handler_name    : SoundHandler
  Stream #0:1[0x2](und): Video: h264 (High 4:4:4 Predictive) (avc1 / 0x31637661), yuv444p(progressive), 64x64, 25 fps (default)
At least one output file must be specified
"""
MP3_7_0 = """\
[mp3 @ 0x37047200] Estimating duration from bitrate, this may be inaccurate
Input #0, mp3, from 'file:/tmp/mb/m.mp3':
  Metadata:
    encoder         : Lavf61.1.100
  Duration: 00:00:02.04, start: 0.025057, bitrate: 64 kb/s
  Stream #0:0: Audio: mp3 (mp3float), 44100 Hz, stereo, fltp, 64 kb/s
  Stream #0:1: Video: png, rgb24(pc), 300x300, 90k tbr, 90k tbn (attached pic)
At least one output file must be specified
"""
WEBM_9_0 = """\
Input #0, matroska,webm, from 'file:/tmp/mb/w.webm':
  Metadata:
    ENCODER         : Lavf63.1.102
  Duration: 12:34:56.78, start: 0.000000, bitrate: 166 kb/s
  Stream #0:0: Video: vp8, none(tv, progressive), 320x240, SAR 1:1 DAR 4:3, 25 fps, 25 tbr, 1k tbn
    Metadata:
      ENCODER         : Lavc63.1.102 libvpx
  Stream #0:1: Audio: opus, 48000 Hz, 5.1(side), fltp
At least one output file must be specified
"""
TS_9_0 = """\
Input #0, mpegts, from 'file:/tmp/mb/w.ts':
  Duration: N/A, start: 1.429089, bitrate: 845 kb/s
  Program 1
  Stream #0:0[0x100]: Video: mpeg2video ([2][0][0][0] / 0x0002), none(progressive), 320x240, 25 fps, start 1.440000
  Stream #0:1[0x101](eng): Audio: mp2 (mp3float) ([3][0][0][0] / 0x0003), 44100 Hz, 10 channels, fltp, 384 kb/s, start 1.429
"""
OLD_4_4 = """\
Input #0, wav, from 'file:/x':
  Duration: 00:01:00.50, bitrate: 256 kb/s
    Stream #0:0: Audio: pcm_s16le ([1][0][0][0] / 0x0001), 16000 Hz, 1 channels, s16, 256 kb/s
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(MP4_5_1, MediaInfo("mov,mp4,m4a,3gp,3g2,mj2", "aac", 2.0, 44100, 1, True), id="5.1-mp4"),
        pytest.param(MP3_7_0, MediaInfo("mp3", "mp3", 2.04, 44100, 2, False, estimated=True), id="7.0-mp3-with-cover"),
        pytest.param(WEBM_9_0, MediaInfo("matroska,webm", "opus", 45296.78, 48000, 6, True), id="9.0-webm"),
        pytest.param(TS_9_0, MediaInfo("mpegts", "mp2", None, 44100, 10, True), id="9.0-ts-without-duration"),
        pytest.param(OLD_4_4, MediaInfo("wav", "pcm_s16le", 60.5, 16000, 1, False), id="4.4-wav"),
    ],
)
def test_recorded_report_is_read(text: str, expected: MediaInfo) -> None:
    assert parse_stderr(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "file:/x: Invalid data found when processing input\n",
        "Input #0, mp4, from 'file:/x':\n  Duration: 00:00:01.00\n  Stream #0:0: Video: h264, 64x64\n",
        "title : Input #0, mp3, from 'x'\n  Stream #0:0: Audio: mp3, 44100 Hz, mono\n",
    ],
)
def test_report_without_audio_is_not_media(text: str) -> None:
    with pytest.raises(NotMedia):
        parse_stderr(text)


def test_unknown_rate_and_layout_stay_unknown() -> None:
    info = parse_stderr("Input #0, mp3, from 'x':\n  Duration: N/A\n  Stream #0:0: Audio: mp3, 0 channels, fltp\n")
    assert (info.duration_s, info.sample_rate, info.channels) == (None, None, 0)


@pytest.mark.parametrize(("rate", "channels"), [(0, 1), (999, 1), (768_001, 1), (4_294_967_295, 1), (48_000, 65), (48_000, 0)])
def test_impossible_shape_is_refused(rate: int, channels: int) -> None:
    with pytest.raises(NotMedia):
        check_shape(MediaInfo("wav", "pcm_s16le", 1.0, rate, channels, False))


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (768_000, 64), (None, None)])
def test_possible_shape_passes(rate: int | None, channels: int | None) -> None:
    check_shape(MediaInfo("wav", "pcm_s16le", 1.0, rate, channels, False))


async def test_probe_of_a_real_file_tells_what_it_is(media: Callable[..., Path], settings: Settings) -> None:
    info = await probe(media("probe.flac", "-ac", "2"), settings)
    assert (info.container, info.codec, info.sample_rate, info.channels, info.has_video) == ("flac", "flac", 48000, 2, False)
    assert info.duration_s == pytest.approx(3.0, abs=0.05)


async def test_missing_file_is_not_media(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(NotMedia):
        await probe(tmp_path / "none.mp3", settings)


async def test_relative_path_is_a_programming_error(settings: Settings) -> None:
    with pytest.raises(ValueError):
        await probe(Path("x.mp3"), settings)
