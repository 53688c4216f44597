"""What workers tell glibc's heap, asked of a real heap."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from app import heap

BATCH = """
import ctypes, os
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

before = resident()
block = libc.malloc(80 << 20)
ctypes.memset(block, 1, 80 << 20)
libc.free(block)
kept = resident() - before
from app import heap
heap.give_back()
given_back = resident() - before
keeper = heap.Keeper()
left = []
for size in (40 << 20, 120 << 20):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    keeper.settle()
    left.append(resident() - before)
heap.give_back()
keeper = heap.Keeper()
stays = libc.malloc(50 << 20)
ctypes.memset(stays, 1, 50 << 20)
for size in (120 << 20, 30 << 20):
    at_first = resident()
    block, pin = libc.malloc(size), libc.malloc(1 << 20)
    ctypes.memset(block, 1, size)
    ctypes.memset(pin, 1, 1 << 20)
    libc.free(block)
    keeper.settle()
    pinned = resident() - at_first
print(kept, given_back, *left, pinned)
"""
BLOCKS = """
import ctypes, json, os, sys
from app import heap
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
heap.keep_blocks(8 << 20, 8 << 20, json.loads(sys.argv[1]))
kept = []
for size in (4 << 20, 40 << 20):
    before = heap.anonymous()
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    kept.append(heap.anonymous() - before)
print(*kept)
"""
MIB = 1 << 20


@pytest.mark.parametrize(
    ("libc", "expected"),
    [
        ("glibc 2.36", (1, 128 * MIB, 1 << 40)),
        ("glibc 2.35", (1, 128 * MIB, 1 << 40)),
        ("glibc 2.34", (2, 32 * MIB, 64 * MIB)),
        ("glibc 2.4", (2, 32 * MIB, 64 * MIB)),
    ],
)
def test_large_blocks_are_left_to_the_heap_only_where_glibc_takes_such_a_threshold(
    libc: str, expected: tuple[int, ...]
) -> None:
    assert tuple(map(int, heap.settings(libc, {}).values())) == expected


def test_nothing_is_told_to_another_c_library() -> None:
    assert heap.settings("", {}) == heap.settings("musl 1.2", {}) == {}


@pytest.mark.parametrize(
    "given",
    [{"MALLOC_ARENA_MAX": "2"}, {"MALLOC_TRIM_THRESHOLD_": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}],
)
def test_what_the_operator_set_stays_and_the_rest_is_not_made_for_one_heap(given: dict[str, str]) -> None:
    told = heap.settings("glibc 2.36", given)
    assert told.keys().isdisjoint(given)
    assert told["MALLOC_MMAP_THRESHOLD_"] == str(32 * MIB)
    assert told.get("MALLOC_TRIM_THRESHOLD_") in (None, str(64 * MIB))


@pytest.mark.skipif(not heap.libc(), reason="there is no glibc here")
def test_what_a_batch_freed_is_kept_until_it_is_given_back_and_a_keeper_keeps_little() -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    told = heap.settings(heap.libc(), plain)
    if told["MALLOC_ARENA_MAX"] != "1":
        pytest.skip("this glibc takes blocks of that size from the system")

    def kept(told: dict[str, str]) -> list[int]:
        done = subprocess.run([sys.executable, "-c", BATCH], env=plain | told, capture_output=True, timeout=60, check=True)
        return [int(figure) for figure in done.stdout.split()]

    with_settings, given_back, after_little, after_much, pinned = kept(told)
    without, *_ = kept({})
    assert with_settings > 75 * MIB
    assert max(given_back, without) < 20 * MIB
    assert after_little > 35 * MIB
    assert heap.KEPT_BYTES - 20 * MIB < after_much < heap.SPARE_BYTES
    assert pinned > 25 * MIB  # what stays is no spare, so that this much may be left behind


@pytest.mark.skipif(not heap.libc(), reason="there is no glibc here")
def test_a_freed_block_of_an_upload_stays_for_the_next_unless_larger_or_the_operator_has_set_the_heap() -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def kept(given: dict[str, str]) -> list[int]:
        command = [sys.executable, "-c", BLOCKS, json.dumps(given)]
        return [int(figure) for figure in subprocess.check_output(command, env=plain, timeout=60).split()]

    block, large = kept({})
    assert block > 3 * MIB
    assert large < MIB
    assert kept({"MALLOC_ARENA_MAX": "4"})[0] < MIB


def test_a_keeper_that_cannot_look_leaves_everything_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = heap.Keeper()
    monkeypatch.setattr(heap, "anonymous", Mock(side_effect=OSError(errno.EMFILE, "too many open files")))
    monkeypatch.setattr(heap, "give_back", Mock(side_effect=AssertionError("given back")))
    keeper.settle()
