"""Imported by the forkserver of a server under test, so that its workers know of failpoints."""

from tests.faults import failpoints

failpoints.install("worker")
