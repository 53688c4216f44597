"""Start the server: ``python main.py``. Imports stay inside, because worker processes import this module too (macOS)."""

from __future__ import annotations

import sys
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.service import Service


def main() -> int:
    """Serve until a signal; returns the exit code."""
    import uvicorn
    from setproctitle import setproctitle

    from app import logs, welcome
    from app.http.app import create_app
    from app.settings import Settings

    settings = Settings()
    logs.configure(settings.log_level)
    problem = welcome.prepare(settings)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    setproctitle("stenopool api")
    services: list[Service] = []

    class Server(uvicorn.Server):
        """Tells the service at the signal, not only when the last connection is closed."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """SIGTERM or SIGINT."""
            for service in services:
                service.drain_soon()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        create_app(settings, started=services.append),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.shutdown_grace_s),
    )
    Server(config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
