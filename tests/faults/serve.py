"""A server with the fake engine: ``python -m tests.faults.serve``, settings from the environment.

Imports stay inside: every worker imports the main module of the server that it belongs to.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.service import Service
    from app.settings import Settings


def run() -> int:
    """As ``main.py`` does, with another engine, in workers that know of failpoints."""
    import main
    from app import build as wiring
    from app.http import app
    from tests.faults import failpoints

    def build(settings: Settings) -> Service:
        preload = ("tests.faults.worker_failpoints",) if "FAILPOINT" in os.environ else ()
        return wiring.build_service(settings, os.environ.get("FAKE_ENGINE", "tests.fakes.engine"), preload)

    failpoints.install("api")
    app.create_app.__defaults__ = (build, *app.create_app.__defaults__[1:])  # type: ignore[index]
    return main.main()


if __name__ == "__main__":
    sys.exit(run())
