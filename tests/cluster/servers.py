"""Real Redis and PostgreSQL servers for tests: on free ports, with their files in a folder, started and killed at will."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import redis

from app.cluster.queue import QUEUE
from tests.integration.server import free_port


def postgres_bin() -> Path | None:
    """The folder with PostgreSQL's own programs, which Debian keeps off the path."""
    found = shutil.which("postgres")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((one for one in folders if (one / "initdb").exists()), Path(found).parent if found else None)


def missing() -> str | None:
    """What is not installed; None where everything is."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed"
    if postgres_bin() is None:
        return "PostgreSQL is not installed"
    return "PostgreSQL does not run as root, and there is no user postgres" if os.geteuid() == 0 and not _user() else None


def _user() -> str | None:
    try:
        return pwd.getpwnam("postgres").pw_name if os.geteuid() == 0 else None
    except KeyError:
        return None


def until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Wait for something that no signal tells of."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {timeout_s:g} s")


class Redis:
    """A Redis that keeps nothing over a restart."""

    def __init__(self, folder: Path) -> None:
        self.port, self._folder = free_port(), folder
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it answers."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen([*command, "--dir", str(self._folder)], stdout=subprocess.DEVNULL)
        until(lambda: _listens(self.port), "Redis")

    def stop(self) -> None:
        """SIGKILL: what was in it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections stay up, new ones are made, and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def pause(self, seconds: float) -> None:
        """CLIENT PAUSE: it reads what is asked, and answers so much later."""
        with redis.Redis(port=self.port) as client:
            client.client_pause(int(1000 * seconds), all=True)

    def flush(self) -> None:
        """FLUSHALL."""
        with redis.Redis(port=self.port) as client:
            client.flushall()

    def waiting(self) -> int:
        """Messages that no node has taken."""
        with redis.Redis(port=self.port) as client:
            return int(client.llen(QUEUE))


class Postgres:
    """A PostgreSQL with one database."""

    def __init__(self, folder: Path) -> None:
        found = postgres_bin()
        assert found is not None
        self.port, self._bin, self._data, self._user = free_port(), found, folder / "data", _user()
        self.admin = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        folder.mkdir(parents=True, exist_ok=True)
        if self._user:
            shutil.chown(folder, self._user)
        options = ["-D", self._data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
        subprocess.run([found / "initdb", *options], user=self._user, check=True, stdout=subprocess.DEVNULL, cwd="/")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it answers."""
        command = [self._bin / "postgres", "-D", self._data, "-p", str(self.port), "-k", "", "-h", "127.0.0.1"]
        self._process = subprocess.Popen(
            command, user=self._user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self._answers, "PostgreSQL")

    def stop(self) -> None:
        """At once, without a word to its clients ("immediate")."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(3)
            self._process.wait(20)

    def freeze(self) -> None:
        """SIGSTOP: connections stay up, and nobody answers."""
        for one in self._family():
            one.suspend()

    def thaw(self) -> None:
        """SIGCONT."""
        for one in self._family():
            one.resume()

    def _family(self) -> list[psutil.Process]:
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        return [server, *server.children(recursive=True)]

    def database(self, name: str) -> str:
        """The URL of a new, empty database."""
        with psycopg.connect(self.admin, autocommit=True) as db:
            db.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
        return self.admin.removesuffix("postgres") + name

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.admin, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
