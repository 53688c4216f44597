"""The weights in a CTranslate2 model file (``model.bin``), as float32.

The format is that of ``ctranslate2.specs.model_spec.ModelSpec._serialize`` (binary version 6): little-endian; a string is its
length with the closing zero (uint16), then its bytes.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_VERSION = 6
_TYPES: dict[int, type[np.generic]] = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16, 5: np.uint16}
_BFLOAT16 = 5


class Weights:
    """Variables by name. The file is mapped; what is not asked for is not read.

    Raises:
        ValueError: this is no model file of a version that is known.
    """

    def __init__(self, path: Path) -> None:
        self._found: dict[str, tuple[int, tuple[int, ...], int]] = {}
        self._aliases: dict[str, str] = {}
        self._head = 0
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._read(_Reader(self._map))
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ValueError(f"not a CTranslate2 model file: {path.name}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def same(self, name: str, other: str) -> bool:
        """Whether both are there and are one and the same variable."""
        return name in self and other in self and self._found[name] == self._found[other]

    def raw(self, name: str) -> np.ndarray:
        """A variable as it is stored."""
        kind, shape, offset = self._found[name]
        size = int(np.prod(shape, dtype=np.int64))
        stored = np.frombuffer(self._map, _TYPES[kind], size, offset).reshape(shape)
        return stored if kind != _BFLOAT16 else (stored.astype(np.uint32) << 16).view(np.float32)

    def float32(self, name: str) -> np.ndarray:
        """A weight; where it is stored as integers, with its scales (one for each row) taken out."""
        stored, scales = self.raw(name), f"{name}_scale"
        if scales not in self:
            return stored.astype(np.float32)
        scale = self.raw(scales).astype(np.float32)
        return stored.astype(np.float32) / scale.reshape(-1, *[1] * (stored.ndim - 1) if scale.ndim else [1] * stored.ndim)

    def write_without(self, dropped: Callable[[str], bool], path: Path) -> None:
        """The model file again, but for the variables whose names are ``dropped``.

        Raises:
            OSError: it could not be written.
        """
        kept = [name for name in self._found if not dropped(name)]
        aliases = {name: self._aliases[name] for name in kept if name in self._aliases and not dropped(self._aliases[name])}
        stored = [name for name in kept if name not in aliases]
        with open(path, "wb") as file, memoryview(self._map) as data:
            file.write(data[: self._head])
            file.write(struct.pack("<I", len(stored)))
            for name in stored:
                kind, shape, offset = self._found[name]
                size = np.dtype(_TYPES[kind]).itemsize * int(np.prod(shape, dtype=np.int64))
                file.write(_string(name) + struct.pack(f"<B{len(shape)}I", len(shape), *shape))
                file.write(struct.pack("<BI", kind, size))
                file.write(data[offset : offset + size])
            file.write(struct.pack("<I", len(aliases)))
            file.writelines(_string(name) for both in aliases.items() for name in both)

    def _read(self, reader: _Reader) -> None:
        if (version := reader.number("I")) != _VERSION:
            raise ValueError(f"binary version {version} of a model file is not known")
        reader.string()  # the name of the architecture
        reader.number("I")  # its revision
        self._head = reader.at
        for _ in range(reader.number("I")):
            name = reader.string()
            shape = tuple(reader.number("I") for _ in range(reader.number("B")))
            kind, size = reader.number("B"), reader.number("I")
            if np.dtype(_TYPES[kind]).itemsize * np.prod(shape, dtype=np.int64) != size:
                raise ValueError(f"{name} is not as long as its shape says")
            self._found[name] = (kind, shape, reader.skip(size))
        for _ in range(reader.number("I")):  # variables that equal another one are stored once
            alias = reader.string()
            self._aliases[alias] = reader.string()
            self._found[alias] = self._found[self._aliases[alias]]


def _string(text: str) -> bytes:
    plain = text.encode() + b"\0"
    return struct.pack("<H", len(plain)) + plain


class _Reader:
    def __init__(self, data: Any) -> None:
        self._data, self.at = data, 0

    def number(self, kind: str) -> int:
        value: int = struct.unpack_from(f"<{kind}", self._data, self.at)[0]
        self.at += struct.calcsize(kind)
        return value

    def string(self) -> str:
        length = self.number("H")
        return str(self._data[self.skip(length) : self.at - 1].decode())

    def skip(self, size: int) -> int:
        """Where that begins which is passed over."""
        began = self.at
        self.at += size
        if self.at > len(self._data):
            raise ValueError("the file ends too early")
        return began
