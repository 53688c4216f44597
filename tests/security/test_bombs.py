"""Small files that hold ten hours, and headers that claim the impossible: refused at the cap, in bounded time and disk."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import imageio_ffmpeg
import pytest

from app.errors import NotMedia, TooLong
from app.media.decode import BYTES_PER_S, decode
from app.media.extract import ExtractOptions, extract
from app.settings import Settings

HOURS_10 = 36_000
RATE = 8_000
CAP_S = 600


def ffmpeg(*arguments: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-y", *arguments]
    subprocess.run(command, check=True, timeout=60)


def claiming(flac: bytes, samples: int) -> bytes:
    """The same file with another total in its STREAMINFO (36 bits; 0 means unknown)."""
    data = bytearray(flac)
    data[21] = (data[21] & 0xF0) | samples >> 32
    data[22:26] = struct.pack(">I", samples & 0xFFFFFFFF)
    return bytes(data)


@pytest.fixture(scope="session")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten hours of silence each; five minutes are encoded and then repeated by copying."""
    folder = tmp_path_factory.mktemp("bombs")
    silence = ("-f", "lavfi", "-i", f"anullsrc=r={RATE}:cl=mono", "-t", "300")
    cheap = ("-compression_level", "0")
    ffmpeg(*silence, *cheap, str(folder / "s.flac"))
    ffmpeg(*silence, *cheap, "-c:a", "libopus", "-b:a", "6k", "-frame_duration", "120", str(folder / "s.opus"))
    for source, made, extra in (
        ("s.flac", "lying.flac", ()),
        ("s.opus", "honest.opus", ()),
        ("s.opus", "hidden.webm", ("-f", "webm", "-live", "1")),
    ):
        copied = ("-stream_loop", "119", "-i", str(folder / source), "-c", "copy", "-t", str(HOURS_10))
        ffmpeg(*copied, *extra, str(folder / made))
    lying = (folder / "lying.flac").read_bytes()
    (folder / "honest.flac").write_bytes(claiming(lying, HOURS_10 * RATE))
    (folder / "hidden.flac").write_bytes(claiming(lying, 0))
    return folder


@asynccontextmanager
async def most_disk(folder: Path) -> AsyncIterator[list[int]]:
    """The largest size that the files in ``folder`` had, sampled."""
    peak = [0]

    async def look() -> None:
        while True:
            total = 0
            for path in folder.iterdir():
                with contextlib.suppress(OSError):
                    total += path.stat().st_size
            peak[0] = max(peak[0], total)
            await asyncio.sleep(0.005)

    task = asyncio.ensure_future(look())
    try:
        yield peak
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def capped(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_audio_s": float(CAP_S)})


@pytest.mark.parametrize("name", ["honest.flac", "honest.opus"])
async def test_bomb_that_says_its_length_is_refused_before_a_byte_is_written(
    name: str, bombs: Path, tmp_path: Path, settings: Settings
) -> None:
    assert (bombs / name).stat().st_size < 12_000_000
    async with most_disk(tmp_path) as peak:
        began = time.monotonic()
        with pytest.raises(TooLong):
            await decode(bombs / name, tmp_path / "out.pcm", capped(settings))
        with pytest.raises(TooLong):
            await extract(bombs / name, tmp_path / "out", ExtractOptions(), capped(settings))
        assert time.monotonic() - began < 5
    assert peak[0] == 0


@pytest.mark.parametrize("name", ["lying.flac", "hidden.flac", "hidden.webm"])
async def test_bomb_that_hides_its_length_is_refused_at_the_cap(
    name: str, bombs: Path, tmp_path: Path, settings: Settings
) -> None:
    async with most_disk(tmp_path) as peak:
        began = time.monotonic()
        with pytest.raises(TooLong):
            await decode(bombs / name, tmp_path / "out.pcm", capped(settings))
        assert time.monotonic() - began < 10
    assert 0 < peak[0] <= (CAP_S + 2) * BYTES_PER_S
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["lying.flac", "hidden.flac", "hidden.webm"])
@pytest.mark.parametrize("kind", ["wav", "flac"])
async def test_bomb_is_refused_by_extraction_too(name: str, kind: str, bombs: Path, tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(TooLong):
        await extract(bombs / name, tmp_path / "out", ExtractOptions(kind), capped(settings))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


async def test_time_stamps_alone_would_not_have_stopped_it(bombs: Path, tmp_path: Path) -> None:
    """Why samples are counted: this file's time stamps start over every five minutes, so ``-t`` never fires."""
    out = tmp_path / "out.pcm"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "quiet", "-i", str(bombs / "lying.flac")]
    await asyncio.to_thread(
        subprocess.run, [*command, "-t", str(CAP_S), "-fs", "40000000", "-f", "s16le", str(out)], timeout=60, check=False
    )
    assert out.stat().st_size > 1.5 * CAP_S * RATE * 2


def wav(rate: int, channels: int, bits: int = 16, seconds: float = 1.0) -> bytes:
    data = bytes(int(RATE * 2 * seconds))
    block = (channels * bits // 8) & 0xFFFF
    form = struct.pack("<HHIIHH", 1, channels, rate, (rate * block) & 0xFFFFFFFF, block, bits)
    head = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data))
    return b"RIFF" + struct.pack("<I", len(head) + len(data)) + head + data


def au(rate: int, channels: int) -> bytes:
    return b".snd" + struct.pack(">IIIII", 24, 0xFFFFFFFF, 3, rate, channels) + bytes(20_000)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(wav(0, 1), id="wav-0-hz"),
        pytest.param(wav(1, 1), id="wav-1-hz"),
        pytest.param(wav(999, 1), id="wav-999-hz"),
        pytest.param(wav(768_001, 1), id="wav-768001-hz"),
        pytest.param(wav(2_147_483_647, 1), id="wav-2-ghz"),
        pytest.param(wav(4_294_967_295, 1), id="wav-4-ghz"),
        pytest.param(wav(16_000, 0), id="wav-no-channels"),
        pytest.param(wav(16_000, 65), id="wav-65-channels"),
        pytest.param(wav(16_000, 65_535), id="wav-65535-channels"),
        pytest.param(wav(16_000, 1, bits=0), id="wav-0-bits"),
        pytest.param(wav(16_000, 1, bits=65_535), id="wav-65535-bits"),
        pytest.param(au(1, 1), id="au-1-hz"),
        pytest.param(au(4_294_967_295, 1), id="au-4-ghz"),
        pytest.param(au(16_000, 100_000), id="au-100000-channels"),
    ],
)
async def test_forged_shape_is_refused_at_once(data: bytes, tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "in").write_bytes(data)
    began = time.monotonic()
    with pytest.raises((NotMedia, TooLong)):
        await decode(tmp_path / "in", tmp_path / "out.pcm", settings)
    assert time.monotonic() - began < 3
    assert not (tmp_path / "out.pcm").exists()


@pytest.mark.parametrize(("rate", "channels"), [(767_999, 1), (1_000, 1), (44_101, 64), (16_000, 64)])
async def test_odd_but_possible_shape_decodes_in_bounded_time(
    rate: int, channels: int, tmp_path: Path, settings: Settings
) -> None:
    (tmp_path / "in").write_bytes(wav(rate, channels))
    began = time.monotonic()
    made = await decode(tmp_path / "in", tmp_path / "out.pcm", settings)
    await extract(tmp_path / "in", tmp_path / "out.mp3", ExtractOptions("mp3"), settings)
    assert time.monotonic() - began < 4
    assert made.duration_s == pytest.approx(RATE * 2 / (rate * channels * 2), abs=0.1)
