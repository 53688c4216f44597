"""The tests of everything that is kept in a database, on PostgreSQL instead of SQLite."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cluster.servers import Postgres
from tests.integration.server import ROOT


@pytest.mark.parametrize(
    "tests", ["tests/unit/test_store.py", "tests/unit/test_measurements.py", "tests/unit/cluster/test_claims.py"]
)
def test_what_holds_on_sqlite_holds_on_postgresql(postgres: Postgres, tests: str) -> None:
    url = postgres.database(os.path.basename(tests))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "STENOPOOL_TEST_DATABASE_URL": url}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
