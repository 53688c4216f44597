"""What a process says it takes, against memory that is really allocated. Linux: elsewhere the figures are coarser."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, time
from app.pool.meter import Meter
MB = 1_000_000
meter = Meter()
time.sleep(0.1)
load = bytearray(80 * MB); time.sleep(0.1)
del load
keeps = bytearray(30 * MB)
kept, peak = meter.loaded()
meter.began("a", 5 * MB)
one = bytearray(50 * MB); time.sleep(0.1)
del one
alone = meter.ended("a")
meter.began("b", 10 * MB)
meter.began("c", 0)
both = bytearray(80 * MB); time.sleep(0.1)
del both
of_b = meter.ended("b")
of_c = meter.ended("c")
print(json.dumps([kept, peak, alone, of_b, of_c]))
"""

LEFT_BEHIND = """
import ctypes, json, time
from app.pool.meter import Meter
MB = 1_000_000
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
meter = Meter(10 * MB)
meter.loaded()
meter.began("gone", 0)
pieces = [libc.malloc(100_000) for _ in range(800)]
for piece in pieces:
    ctypes.memset(piece, 1, 100_000)
time.sleep(0.1)
for piece in pieces[:-1]:  # the last one holds the heap's end in its place
    libc.free(piece)
meter.began("stays", 0)
meter._highest["stays"] = 0  # it came a moment later
meter.ended("gone")
meter._highest["stays"] = 0
time.sleep(0.1)
print(json.dumps(meter.ended("stays")[0]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the exact figures come from /proc")
def test_what_a_job_left_behind_is_given_back_and_not_blamed_on_those_that_still_run() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_BEHIND], capture_output=True, check=True, text=True)
    assert int(done.stdout) < 12_000_000  # not the 80 MB


@pytest.mark.skipif(sys.platform != "linux", reason="the exact figures come from /proc")
def test_load_peak_and_what_jobs_take_together_are_what_was_allocated() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True, text=True)
    kept, peak, alone, of_b, of_c = json.loads(done.stdout)
    mb = 1_000_000
    assert 30 * mb < kept < 60 * mb
    assert 75 * mb < peak - kept + 30 * mb < 95 * mb
    assert 43 * mb < alone[0] < 50 * mb  # less the five that were its own
    assert abs(alone[1] - kept) < 5 * mb  # idle afterwards: what it keeps
    assert of_b[1] is None  # not idle yet
    assert 68 * mb < of_b[0] < 73 * mb
    assert of_c[0] >= of_b[0]
    assert of_c[1] is not None
