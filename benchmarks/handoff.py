"""Handing 10 MB of audio to another process: a pipe, a Unix socket, shared memory, a memory-mapped file.

    python -m benchmarks.handoff [--megabytes 10] [--rounds 50] [--into OUT]

In every round each way takes the same samples once, from a buffer in one process until the other process has read them all and
has said their checksum; the two run at the same time only where the way itself lets them. Checksums are compared. ``copies``
says how often the samples are copied on the way. What is timed apart: the checksum alone, which every way pays.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import os
import socket
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

from benchmarks.ratios import Found, conditions, in_turns, per_round, save, show, table

PIPE, SOCKET, SHARED, NEW_SHARED, MAPPED, MAPPED_DISK = (
    "pipe",
    "Unix socket",
    "shared memory, kept",
    "shared memory, made afresh",
    "memory map, file in RAM",
    "memory map, file on disk",
)
COPIES = {PIPE: 3, SOCKET: 2, SHARED: 1, NEW_SHARED: 1, MAPPED: 1, MAPPED_DISK: 1}
"""Of the samples, from buffer to buffer; where memory is shared, the one into it, which a decoder that writes there saves."""


class Receiver:
    """Runs in the other process: reads what was handed over and says its checksum."""

    def __init__(self, pipe: Connection, channel: socket.socket, size: int) -> None:
        self._pipe, self._channel, self._size = pipe, channel, size
        self._buffer = bytearray(size)
        self._kept: SharedMemory | None = None

    def serve(self) -> None:
        """Until the other end is closed."""
        with suppress(EOFError):
            while True:
                way, where = self._pipe.recv()
                self._pipe.send(self._read(way, where))

    def _read(self, way: str, where: str) -> int:
        if way == PIPE:
            return zlib.crc32(self._pipe.recv_bytes())
        if way == SOCKET:
            view, got = memoryview(self._buffer), 0
            while got < self._size:
                got += self._channel.recv_into(view[got:])
            return zlib.crc32(view)
        if way == SHARED:
            self._kept = self._kept or SharedMemory(where)
            return zlib.crc32(self._kept.buf[: self._size])
        if way == NEW_SHARED:
            memory = SharedMemory(where)
            try:
                return zlib.crc32(memory.buf[: self._size])
            finally:
                memory.close()
        with open(where, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return zlib.crc32(mapped)


def receive(pipe: Connection, channel: socket.socket, size: int) -> None:
    """Entry of the other process."""
    Receiver(pipe, channel, size).serve()


class Sender:
    """This end; every way takes the same samples."""

    def __init__(self, size: int, folder: Path, in_ram: Path) -> None:
        self._samples = os.urandom(size)
        self.checksum = zlib.crc32(self._samples)
        self._folder, self._in_ram = folder, in_ram
        self._pipe, theirs = multiprocessing.Pipe()
        self._channel, channel = socket.socketpair()
        self._kept = SharedMemory(create=True, size=size)
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=receive, args=(theirs, channel, size), daemon=True)
        self._process.start()
        theirs.close()
        channel.close()

    def hand(self, way: str) -> float:
        """Seconds until the other process has read all; an error where it read something else."""
        began = time.perf_counter()
        checksum = getattr(self, f"_{KINDS[way]}")(way)
        seconds = time.perf_counter() - began
        if checksum != self.checksum:
            raise SystemExit(f"{way}: the samples that arrived are not those that were sent")
        return seconds

    def check(self) -> float:
        """Seconds of the checksum alone."""
        began = time.perf_counter()
        zlib.crc32(self._samples)
        return time.perf_counter() - began

    def close(self) -> None:
        """End the other process and give back what is shared."""
        self._pipe.close()
        self._channel.close()
        self._process.join(10)
        self._process.kill()
        self._kept.close()
        with suppress(FileNotFoundError):  # with some start methods the other end's tracker was first
            self._kept.unlink()

    def _ask(self, way: str, where: str = "") -> None:
        self._pipe.send((way, where))

    def _answer(self) -> Any:
        if not self._pipe.poll(60):
            raise SystemExit("the other process does not answer")
        return self._pipe.recv()

    def _by_pipe(self, way: str) -> Any:
        self._ask(way)
        self._pipe.send_bytes(self._samples)
        return self._answer()

    def _by_socket(self, way: str) -> Any:
        self._ask(way)
        self._channel.sendall(self._samples)
        return self._answer()

    def _by_kept(self, way: str) -> Any:
        self._kept.buf[: len(self._samples)] = self._samples
        self._ask(way, self._kept.name)
        return self._answer()

    def _by_new(self, way: str) -> Any:
        memory = SharedMemory(create=True, size=len(self._samples))
        try:
            memory.buf[: len(self._samples)] = self._samples
            self._ask(way, memory.name)
            return self._answer()
        finally:
            memory.close()
            with suppress(FileNotFoundError):
                memory.unlink()

    def _by_file(self, way: str) -> Any:
        path = (self._in_ram if way == MAPPED else self._folder) / "samples.pcm"
        path.write_bytes(self._samples)
        try:
            self._ask(way, str(path))
            return self._answer()
        finally:
            path.unlink()


KINDS = {
    PIPE: "by_pipe",
    SOCKET: "by_socket",
    SHARED: "by_kept",
    NEW_SHARED: "by_new",
    MAPPED: "by_file",
    MAPPED_DISK: "by_file",
}


def measure(size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in every round, and of the checksum."""
    ram = Path("/dev/shm")
    with tempfile.TemporaryDirectory() as disk, tempfile.TemporaryDirectory(dir=ram if ram.is_dir() else None) as in_ram:
        sender = Sender(size, Path(disk), Path(in_ram))
        try:
            sides: dict[str, Callable[[], float]] = {way: partial(sender.hand, way) for way in COPIES}
            sides["checksum alone"] = sender.check
            in_turns(sides, 2)  # what is made at first use
            return in_turns(sides, rounds)
        finally:
            sender.close()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--into", type=Path, help="folder for handoff.json")
    args = parser.parse_args()
    given = conditions()
    show(given)
    seconds = measure(int(args.megabytes * 1e6), args.rounds)
    ratios = {way: Found(way, per_round(seconds[PIPE], values)) for way, values in seconds.items()}
    rows = []
    for way, values in seconds.items():
        found = Found(way, tuple(1000 * value for value in values))
        spread = f"{min(found.values):.1f} to {max(found.values):.1f}"
        rows.append([way, COPIES.get(way, 0), f"{found.median:.2f}", spread, f"{ratios[way].median:.2f}x"])
    print(table(["way", "copies", "median, ms", "rounds, ms", "beside the pipe"], rows))
    print(f"\nratios: {'; '.join(f'{way} {one.median:.2f}' for way, one in ratios.items() if way != PIPE)}")
    save(args.into, "handoff", {**given, "megabytes": args.megabytes, "seconds": seconds})


if __name__ == "__main__":
    main()
