"""Uploads that are something else: none makes ffmpeg read another file of the server or call anyone.

The canary is a recording next to the upload. For the attacks that work against ffmpeg as it comes, a second test shows
that they do, so that the first one cannot pass for the wrong reason.
"""

from __future__ import annotations

import asyncio
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import pytest

from app.errors import NotMedia
from app.media.decode import decode
from app.media.extract import FORMATS, ExtractOptions, extract
from app.settings import Settings

from .conftest import Listener

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n{extra}#EXTINF:5,\n{uri}\n#EXT-X-ENDLIST\n"
MPD = """<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT5S"
 profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="audio/mp4" contentType="audio">
<Representation id="a" bandwidth="64000" codecs="mp4a.40.2" audioSamplingRate="16000"><BaseURL>{uri}</BaseURL>
</Representation></AdaptationSet></Period></MPD>"""
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="{uri}" width="9" height="9"/></svg>'
Make = Callable[[Path, str], bytes]


def text(template: str, extra: str = "") -> Make:
    """A script; {file} is the canary, {http} the listener, {port} its port."""
    return lambda canary, http: (
        template.replace("{extra}", extra)
        .replace("{uri}", "{file}")
        .replace("{file}", f"file://{canary}")
        .replace("{path}", str(canary))
        .replace("{name}", canary.name)
        .replace("{http}", http)
        .replace("{port}", http.rsplit(":", 1)[1])
        .encode()
    )


def hls(uri: str, extra: str = "") -> Make:
    return text(HLS.replace("{uri}", uri), extra)


def png(_: Path, __: str) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "color=s=16x16", "-frames:v", "1"]
    return subprocess.run([*command, "-c:v", "png", "-f", "image2pipe", "-"], check=True, capture_output=True).stdout


DISGUISES: dict[str, Make] = {
    "hls-file": hls("{file}"),
    "hls-path": hls("{path}"),
    "hls-relative": hls("{name}"),
    "hls-http": hls("{http}/x.ts"),
    "hls-tcp": hls("tcp://127.0.0.1:{port}"),
    "hls-key": hls("{file}", '#EXT-X-KEY:METHOD=AES-128,URI="{http}/key"\n'),
    "hls-map": hls("{file}", '#EXT-X-MAP:URI="{file}"\n'),
    "hls-concat": hls("concat:{path}|{path}"),
    "hls-subfile": hls("subfile,,start,0,end,5000,,:{path}"),
    "hls-crypto": hls("crypto+{file}"),
    "hls-data": hls("data:audio/mpeg;base64,AAAA"),
    "hls-variant": text(
        '#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="a",URI="{http}/a.m3u8"\n'
        '#EXT-X-STREAM-INF:BANDWIDTH=1,AUDIO="a"\n{http}/b.m3u8\n'
    ),
    "hls-byte-order-mark": lambda canary, http: b"\xef\xbb\xbf" + hls("{file}")(canary, http),
    "hls-behind-id3": lambda canary, http: b"ID3\x04\0\0\0\0\0\0" + hls("{file}")(canary, http),
    "hls-behind-riff": lambda canary, http: b"RIFF" + struct.pack("<I", 4) + b"WAVE" + hls("{file}")(canary, http),
    "ffconcat": text("ffconcat version 1.0\nfile '{name}'\n"),
    "ffconcat-absolute": text("ffconcat version 1.0\nfile '{path}'\n"),
    "ffconcat-url": text("ffconcat version 1.0\nfile '{http}/x.mp3'\n"),
    "ffconcat-option": text("ffconcat version 1.0\nfile '{name}'\noption safe 0\noption protocol_whitelist file,http,tcp\n"),
    "concat-url": text("concat:{path}|{path}"),
    "subfile-url": text("subfile,,start,0,end,9,,:{path}"),
    "sdp": text(SDP),
    "dash": text(MPD),
    "dash-http": text(MPD.replace("{uri}", "{http}/x.mp4")),
    "svg": text(SVG),
    "svg-http": text(SVG.replace("{uri}", "{http}/x.png")),
    "png": png,
    "ppm": lambda *_: b"P6 4 4 255\n" + bytes(48),
    "srt": text("1\n00:00:00,000 --> 00:00:05,000\nhello\n"),
    "ass": text("[Script Info]\nScriptType: v4.00+\n\n[Events]\nDialogue: 0,0:00:00.00,0:00:05.00,x,,0,0,0,,hello\n"),
    "vtt": text("WEBVTT\n\n00:00.000 --> 00:05.000\nhello\n"),
    "metadata": text(";FFMETADATA1\ntitle=x\n"),
    "binaural-beats-script": text("-SE\na: 100+1/50\nb: -\nNOW a\n+00:00:05 b\n"),
    "avisynth": text('DirectShowSource("{path}")\n'),
    "playlist-pls": text("[playlist]\nFile1={file}\nNumberOfEntries=1\n"),
    "asx": text('<asx version="3.0"><entry><ref href="{http}/x.mp3"/></entry></asx>'),
    "asf-redirect": text("[Reference]\nRef1={http}/x.asf?MSWMExt=.asf\n"),
    "imf": text('<?xml version="1.0"?><AssetMap xmlns="http://www.smpte-ra.org/schemas/429-9/2007/AM"><Path>{path}</Path></AssetMap>'),
    "module-music": lambda *_: b"song".ljust(1080, b"\0") + b"M.K." + bytes(1024),
    "rm-reference": text(".ra4 {http}/x.rm"),
}  # fmt: skip
WORKS_UNPROTECTED = ("hls-file", "hls-path", "hls-relative", "hls-map", "ffconcat", "binaural-beats-script")
CALLS_UNPROTECTED = ("hls-http", "hls-variant", "hls-key", "dash-http")
# ffmpeg 7 and later also look at the name before they believe in a playlist; ffmpeg 5 does not.
NAMES = ("x.mp3", "x.m3u8")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A recording in MPEG-TS, which HLS and ffconcat both read."""
    path = tmp_path / "canary.ts"
    source = ["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000:duration=2", "-c:a", "mp2", "-f", "mpegts"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", *source, str(path)], check=True, timeout=30)
    return path


def disguised(name: str, canary: Path, listener: Listener, filename: str = "x.m3u8") -> Path:
    path = canary.parent / filename
    path.write_bytes(DISGUISES[name](canary, f"http://127.0.0.1:{listener.port}"))
    return path


@pytest.mark.parametrize("name", DISGUISES)
async def test_disguised_upload_is_not_media_and_calls_nobody(
    name: str, canary: Path, listener: Listener, tmp_path: Path, settings: Settings
) -> None:
    sources = [disguised(name, canary, listener, filename) for filename in NAMES]
    for src in sources:
        with pytest.raises(NotMedia) as caught:
            await decode(src, tmp_path / "out.pcm", settings)
        assert str(tmp_path) not in caught.value.message
    with pytest.raises(NotMedia):
        await extract(sources[1], tmp_path / "out", ExtractOptions(FORMATS[len(name) % len(FORMATS)]), settings)  # type: ignore[arg-type]
    await asyncio.sleep(0.02)
    assert listener.connections == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canary.ts", "x.m3u8", "x.mp3"]


async def unprotected(src: Path, out: Path, *options: str) -> bytes:
    """What ffmpeg makes of ``src`` without the whitelists."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", *options, "-i", str(src), "-t", "5", "-f", "s16le"]
    process = await asyncio.create_subprocess_exec(
        *command, str(out), cwd=src.parent, stderr=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        await asyncio.wait_for(process.wait(), 6)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
    return out.read_bytes() if out.exists() else b""


@pytest.mark.parametrize("name", WORKS_UNPROTECTED)
async def test_attack_reads_the_canary_where_ffmpeg_is_not_protected(
    name: str, canary: Path, listener: Listener, tmp_path: Path
) -> None:
    assert len(await unprotected(disguised(name, canary, listener), tmp_path / "leak")) > 100_000


@pytest.mark.parametrize("name", CALLS_UNPROTECTED)
async def test_attack_calls_out_where_ffmpeg_is_not_protected(
    name: str, canary: Path, listener: Listener, tmp_path: Path
) -> None:
    await unprotected(disguised(name, canary, listener), tmp_path / "leak", "-protocol_whitelist", "file,http,tcp,crypto,data")
    assert listener.connections > 0


async def test_protocol_whitelist_alone_does_not_stop_it(canary: Path, listener: Listener, tmp_path: Path) -> None:
    src = disguised("ffconcat", canary, listener)
    assert len(await unprotected(src, tmp_path / "leak", "-protocol_whitelist", "file")) > 100_000


def wav(tag: int, rate: int, channels: int, bits: int, data: bytes) -> bytes:
    block = max(1, channels * bits // 8)
    form = struct.pack("<HHIIHH", tag, channels & 0xFFFF, rate, (rate * block) & 0xFFFFFFFF, block & 0xFFFF, bits)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


@pytest.mark.parametrize("tag", [0x0000, 0x0055, 0x2001, 0x00FF, 0x674F, 0x706D, 0x6134, 0xF1AC, 0xFFFE, 0xFFFF])
async def test_wav_with_an_odd_codec_never_shows_the_canary(
    tag: int, canary: Path, listener: Listener, tmp_path: Path, settings: Settings
) -> None:
    script = hls("{file}")(canary, f"http://127.0.0.1:{listener.port}") * 50
    (tmp_path / "x.wav").write_bytes(wav(tag, 16_000, 1, 16, script))
    try:
        made = await decode(tmp_path / "x.wav", tmp_path / "out.pcm", settings)
    except NotMedia:
        return
    # What was decoded is the upload's own bytes, never the two seconds of the canary.
    assert made.duration_s < 1
    assert listener.connections == 0


async def test_mov_that_keeps_its_samples_in_another_file_does_not_get_them(
    canary: Path, listener: Listener, tmp_path: Path, settings: Settings
) -> None:
    raw = tmp_path / "plain.mov"
    source = ["-f", "lavfi", "-i", "sine=duration=2", "-c:a", "pcm_s16le"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", *source, str(raw)], check=True, timeout=30)
    data = bytearray(raw.read_bytes())
    at = data.index(b"dref") + 12
    kind = bytes(data[at + 4 : at + 8])
    assert kind in (b"url ", b"alis")
    data[at + 4 : at + 12] = b"alis" + bytes(4)  # the flag "in this file" is off
    (tmp_path / "x.mov").write_bytes(data)
    try:
        made = await decode(tmp_path / "x.mov", tmp_path / "out.pcm", settings)
    except NotMedia:
        return
    assert made.duration_s <= 2.1
    assert listener.connections == 0
