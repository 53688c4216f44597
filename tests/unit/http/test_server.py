"""Where the server listens, and how it ends where it cannot."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from app.http.app import create_app
from app.http.server import Server, listeners
from app.service import Service
from app.settings import Settings
from tests.fakes.pool import quiet_service
from tests.fakes.server import make_settings

V4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
V6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0))
UNKNOWN = (socket.AF_APPLETALK, socket.SOCK_STREAM, 6, "", ("", 0))


@pytest.mark.parametrize("missing", [V6, UNKNOWN], ids=["address", "family"])
def test_address_that_this_machine_lacks_is_left_out_where_there_is_another(
    missing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [missing, V4])
    (one,) = listeners("localhost", 0)
    assert one.getsockname()[0] == "127.0.0.1"
    one.close()


@pytest.mark.parametrize("host", ["2001:db8::1", "nowhere.invalid", "a..b"])
def test_host_that_is_not_here_or_no_name_is_an_os_error_that_says_so(host: str) -> None:
    with pytest.raises(OSError, match=r"\S") as caught:
        listeners(host, 0)
    assert caught.value.strerror


async def test_port_that_another_server_took_in_between_ends_the_service_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stopped: list[Service] = []

    def build(settings: Settings) -> Service:
        service = quiet_service(settings)
        stop = service.stop

        async def noted() -> None:
            await stop()
            stopped.append(service)

        monkeypatch.setattr(service, "stop", noted)
        return service

    (first,) = listeners("127.0.0.1", 0)
    (second,) = listeners("127.0.0.1", first.getsockname()[1])  # both may bind it, as long as none listens
    first.listen()
    with caplog.at_level(logging.ERROR, "stenopool.http"), pytest.raises(SystemExit):
        await Server(create_app(make_settings(tmp_path), build=build), make_settings(tmp_path)).serve([second])
    assert len(stopped) == 1
    assert "Address already in use" in caplog.text
    first.close()
    second.close()
