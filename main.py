"""Start the server: ``python main.py``. Imports stay inside, because worker processes import this module too (macOS)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.service import Service


def main() -> int:
    """Serve until a signal; returns the exit code."""
    from setproctitle import setproctitle

    from app import logs, welcome
    from app.http.app import create_app
    from app.http.server import Server
    from app.settings import Settings

    settings = Settings()
    logs.configure(settings.log_level)
    problem = welcome.prepare(settings)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    setproctitle("stenopool api")
    services: list[Service] = []

    def drain() -> None:
        for service in services:
            service.drain_soon()

    Server(create_app(settings, started=services.append), settings, drain).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
