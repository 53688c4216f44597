"""The tests of everything that is kept in a database, on PostgreSQL instead of SQLite."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from app import database
from app.errors import CapacityError
from app.store import Store
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


def test_postgresql_that_is_frozen_keeps_nobody_waiting_and_is_used_again_when_it_answers(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ANSWER_S", 0.5)
    monkeypatch.setitem(database._DEADLINES, "connect_timeout", 2)
    store = Store(postgres.database("frozen"))
    store.create_schema()
    postgres.freeze()
    rescue = threading.Timer(10, postgres.thaw)
    rescue.start()
    try:
        began = time.monotonic()
        with pytest.raises(CapacityError):
            store.get("anything")
        assert time.monotonic() - began < 9
    finally:
        rescue.cancel()
        postgres.thaw()
    assert store.get("anything") is None
    store.close()
