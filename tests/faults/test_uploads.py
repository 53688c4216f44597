"""The server is killed, and then stopped, in the middle of an upload."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.process import Process, started
from tests.integration.server import KEY

TUS = {"Tus-Resumable": "1.0.0"}
OCTETS = {"Content-Type": "application/offset+octet-stream"}
BYTES = bytes(range(256)) * 8000
CUT = 1_000_000


def begun(server: Process) -> str:
    """The path of a new upload."""
    path: str = server.client.post("/uploads", headers=TUS | {"Upload-Length": str(len(BYTES))}).headers["location"]
    return path


def offset(server: Process, path: str) -> int:
    return int(server.client.head(path, headers=TUS).headers["upload-offset"])


@contextmanager
def half_sent(server: Process, path: str) -> Iterator[socket.socket]:
    """A connection on which a part of all bytes was sent, and has arrived."""
    port = server.client.base_url.port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        lines = [f"PATCH {path} HTTP/1.1", "Host: x", f"X-API-Key: {KEY}", "Upload-Offset: 0", f"Content-Length: {len(BYTES)}"]
        lines += [f"{name}: {value}" for name, value in (TUS | OCTETS).items()]
        client.sendall("\r\n".join([*lines, "", ""]).encode() + BYTES[:CUT])
        deadline = time.monotonic() + 10
        while offset(server, path) < CUT:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield client


def test_upload_goes_on_after_sigkill_and_a_server_that_stops_does_not_wait_for_one(tmp_path: Path) -> None:
    with started(tmp_path, ready="/health") as server:
        path = begun(server)
        with half_sent(server, path):
            server.kill()
    with started(tmp_path, ready="/health") as server:
        assert offset(server, path) == CUT
        answer = server.client.patch(path, headers=TUS | OCTETS | {"Upload-Offset": str(CUT)}, content=BYTES[CUT:])
        assert answer.status_code == 204
        assert (server.data / "media" / answer.headers["stenopool-audio-file"]).read_bytes() == BYTES
        path = begun(server)
        with half_sent(server, path) as client:
            server.process.send_signal(signal.SIGTERM)
            assert client.recv(65536).startswith(b"HTTP/1.1 503 ")
        server.process.wait(15)
        assert (server.data / path.strip("/") / "data").read_bytes() == BYTES[:CUT]
