"""WAV files that hold already what decoding would make of them: 16 kHz, mono, signed 16-bit.

They are looked at here and not by ffmpeg, whose start takes longer than a short clip takes to transcribe. This is safe because
there is nothing to decode: chunk headers are walked. Whatever is unusual is left to ffmpeg.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_PCM, _EXTENSIBLE = 1, 0xFFFE
_PCM_GUID = bytes.fromhex("0100000000001000800000aa00389b71")
_MOST_CHUNKS = 64
_MOST_AROUND = 1 << 20
"""Bytes that a file may have beside its samples, where those are fewer: all of it stays on the disk as long as the job."""


def samples_in(path: Path, rate: int) -> tuple[int, int] | None:
    """Offset and length, in bytes, of the samples of a mono s16le WAV of ``rate`` Hz; None for everything else.

    Also for a file that is cut off, that does not say how long it is, that has several runs of samples, or that is not there.
    """
    try:
        with path.open("rb") as file:
            riff, _, wave = struct.unpack("<4sI4s", _exactly(file, 12))
            return _samples(file, path.stat().st_size, rate) if (riff, wave) == (b"RIFF", b"WAVE") else None
    except FileNotFoundError:
        return None


def _samples(file: BinaryIO, size: int, rate: int) -> tuple[int, int] | None:
    known = [chunk for chunk in _chunks(file, size) if chunk[0] in (b"fmt ", b"data")]
    if [name for name, _, _ in known] != [b"fmt ", b"data"]:
        return None
    (_, layout_at, layout_length), (_, start, length) = known
    file.seek(layout_at)
    usual = _is_usual(_exactly(file, min(layout_length, 40)), rate)
    whole = length and not length % 2 and start + length <= size <= length + max(length, _MOST_AROUND)
    return (start, length) if usual and whole else None


def _chunks(file: BinaryIO, size: int) -> list[tuple[bytes, int, int]]:
    """Names, offsets and lengths (bytes, as they are said) of all chunks; empty where there are too many."""
    found: list[tuple[bytes, int, int]] = []
    at = 12
    while at + 8 <= size:
        if len(found) == _MOST_CHUNKS:
            return []
        file.seek(at)
        name, length = struct.unpack("<4sI", _exactly(file, 8))
        found.append((name, at + 8, length))
        at += 8 + length + length % 2
    return found


def _is_usual(layout: bytes, rate: int) -> bool:
    if len(layout) < 16:
        return False
    kind, channels, hz, _, block, bits = struct.unpack_from("<HHIIHH", layout)
    if kind == _EXTENSIBLE:
        kind = _PCM if layout[24:40] == _PCM_GUID and layout[18:20] == b"\x10\x00" else kind
    return (kind, channels, hz, block, bits) == (_PCM, 1, rate, 2, 16)


def _exactly(file: BinaryIO, count: int) -> bytes:
    """The next bytes; zeros where the file ends, which are no chunk that anybody knows."""
    return file.read(count).ljust(count, b"\0")
