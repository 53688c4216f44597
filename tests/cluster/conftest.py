"""One Redis and one PostgreSQL for all tests of several machines; a database and a queue of its own for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cluster import servers
from tests.cluster.machines import Cluster, cluster
from tests.cluster.servers import Postgres, Redis


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if reason := servers.missing():
        pytest.skip(reason)
    with TemporaryDirectory(prefix="stenopool-postgres-") as folder:  # pytest's are private, and the server is another user
        server = Postgres(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    if reason := servers.missing():
        pytest.skip(reason)
    server = Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def here(redis: Redis, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One API for all tests here; each says which nodes it wants."""
    with cluster(tmp_path_factory.mktemp("cluster"), redis, postgres) as made:
        yield made
