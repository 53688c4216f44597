"""A WAV that is 16 kHz mono PCM already is read where it lies, the samples that ffmpeg gives; everything else is ffmpeg's."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from app.errors import TooLong
from app.media.decode import RATE, Decoded, decode, in_place
from app.media.wav import samples_in
from app.settings import Settings

PCM_GUID = bytes.fromhex("0100000000001000800000aa00389b71")
SOUND = random.Random(1).randbytes(32_000)
PLAIN = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
EXTENSIBLE = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, 2 * RATE, 2, 16, 22, 16, 4) + PCM_GUID


def chunk(name: bytes, content: bytes, says: int | None = None) -> bytes:
    return name + struct.pack("<I", len(content) if says is None else says) + content + b"\0" * (len(content) % 2)


def wave(*chunks: bytes, riff: bytes = b"RIFF") -> bytes:
    return riff + struct.pack("<I", 4 + sum(map(len, chunks))) + b"WAVE" + b"".join(chunks)


USUAL = {
    "plain": wave(chunk(b"fmt ", PLAIN), chunk(b"data", SOUND)),
    "extensible": wave(chunk(b"fmt ", EXTENSIBLE), chunk(b"data", SOUND)),
    "other chunks before": wave(
        chunk(b"JUNK", b"x" * 28), chunk(b"fmt ", PLAIN), chunk(b"note", b"odd"), chunk(b"data", SOUND)
    ),
    "other chunks behind": wave(
        chunk(b"fmt ", PLAIN), chunk(b"data", SOUND), chunk(b"LIST", b"INFO" + chunk(b"ISFT", b"Lavf"))
    ),
    "wrong length of the whole": wave(chunk(b"fmt ", PLAIN), chunk(b"data", SOUND)).replace(b"\x24\x7d", b"\0\0", 1),
    "some bytes too many": wave(chunk(b"fmt ", PLAIN), chunk(b"data", SOUND)) + b"\0\0\0",
}
UNUSUAL = {
    "nothing": b"",
    "no WAV": b"ID3" + bytes(100),
    "RF64": wave(chunk(b"fmt ", PLAIN), chunk(b"data", SOUND), riff=b"RF64"),
    "no format": wave(chunk(b"data", SOUND)),
    "format behind": wave(chunk(b"data", SOUND), chunk(b"fmt ", PLAIN)),
    "format cut short": wave(chunk(b"fmt ", PLAIN[:14]), chunk(b"data", SOUND)),
    "no samples": wave(chunk(b"fmt ", PLAIN)),
    "length not said": wave(chunk(b"fmt ", PLAIN), chunk(b"data", SOUND, says=0)),
    "mostly something else": wave(chunk(b"fmt ", PLAIN), chunk(b"data", SOUND), chunk(b"JUNK", bytes(2 << 20))),
    "endless": wave(chunk(b"fmt ", PLAIN), chunk(b"data", SOUND, says=0xFFFFFFFF)),
    "cut off": wave(chunk(b"fmt ", PLAIN), chunk(b"data", SOUND))[:-2],
    "half a sample": wave(chunk(b"fmt ", PLAIN), chunk(b"data", SOUND[:-1])),
    "two runs of samples": wave(chunk(b"fmt ", PLAIN), chunk(b"data", SOUND), chunk(b"data", SOUND)),
    "second format": wave(chunk(b"fmt ", PLAIN[:2] + b"\2" + PLAIN[3:]), chunk(b"fmt ", PLAIN), chunk(b"data", SOUND)),
    "stereo": wave(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 2, RATE, 4 * RATE, 4, 16)), chunk(b"data", SOUND)),
    "8 kHz": wave(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 16_000, 2, 16)), chunk(b"data", SOUND)),
    "8 bits": wave(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, RATE, 1, 8)), chunk(b"data", SOUND)),
    "floats": wave(chunk(b"fmt ", struct.pack("<HHIIHH", 3, 1, RATE, 2 * RATE, 2, 16)), chunk(b"data", SOUND)),
    "extensible, not PCM": wave(chunk(b"fmt ", EXTENSIBLE[:24] + b"\3" + EXTENSIBLE[25:]), chunk(b"data", SOUND)),
    "extensible, 12 bits": wave(chunk(b"fmt ", EXTENSIBLE[:18] + b"\x0c" + EXTENSIBLE[19:]), chunk(b"data", SOUND)),
    "chunks without end": wave(*[chunk(b"JUNK", b"")] * 100, chunk(b"fmt ", PLAIN), chunk(b"data", SOUND)),
}


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "in"
    path.write_bytes(data)
    return path


async def found_in(data: bytes, tmp_path: Path, settings: Settings) -> Decoded:
    found = await in_place(written(tmp_path, data), settings)
    assert found is not None
    return found


@pytest.mark.parametrize("name", USUAL)
async def test_samples_that_are_found_are_those_that_ffmpeg_makes(name: str, tmp_path: Path, settings: Settings) -> None:
    found = await found_in(USUAL[name], tmp_path, settings)
    decoded = await decode(tmp_path / "in", tmp_path / "decoded.pcm", settings)
    assert found.length is not None
    assert USUAL[name][found.start : found.start + found.length] == decoded.path.read_bytes() == SOUND
    assert found.duration_s == decoded.duration_s == 1.0
    for told in ("container", "codec", "sample_rate", "channels", "has_video", "estimated"):
        assert getattr(found.info, told) == getattr(decoded.info, told)


@pytest.mark.parametrize("name", UNUSUAL)
async def test_in_an_unusual_file_nothing_is_found(name: str, tmp_path: Path, settings: Settings) -> None:
    assert await in_place(written(tmp_path, UNUSUAL[name]), settings) is None


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_file_is_left_to_ffmpeg(name: str, tmp_path: Path) -> None:
    assert samples_in(written(tmp_path, UNUSUAL[name]), RATE) is None


def test_missing_file_is_left_to_ffmpeg(tmp_path: Path) -> None:
    assert samples_in(tmp_path / "none", RATE) is None


def test_damaged_header_gives_samples_inside_the_file_or_none(tmp_path: Path) -> None:
    choice, found = random.Random(2), 0
    for _ in range(2000):
        data = bytearray(
            wave(chunk(b"JUNK", b"x"), chunk(b"fmt ", PLAIN), chunk(b"data", SOUND[:300]), chunk(b"LIST", SOUND[:90]))
        )
        for _ in range(choice.randrange(1, 4)):
            data[choice.randrange(60)] = choice.choice((0, 1, 2, 0x7F, 0xFF, choice.randrange(256)))
        samples = samples_in(written(tmp_path, bytes(data)), RATE)
        if samples is not None:
            found += 1
            assert 0 < samples[0] < samples[0] + samples[1] <= len(data)
            assert samples[0] % 2 == 0  # numpy maps them as they lie
    assert 0 < found < 2000


async def test_usual_wav_over_the_cap_is_too_long(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(TooLong):
        await found_in(USUAL["plain"], tmp_path, settings.model_copy(update={"max_audio_s": 0.5}))
