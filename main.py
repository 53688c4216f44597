"""Start the server: ``python main.py``. Imports stay inside, because worker processes import this module too (macOS)."""

from __future__ import annotations

import sys


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
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.shutdown_grace_s),
    )
    uvicorn.Server(config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
