"""Load test of a Stenopool server: several requests at once, every answer checked, a setting recommended.

    python test_concurrency.py --test-all --model tiny
    python test_concurrency.py --concurrent 4 --model medium

``--help`` lists the options; the work is done in ``loadtest/``. Not a pytest module: those are in ``tests/``.
"""

from __future__ import annotations

import sys

__test__ = False  # pytest must not look for tests in here


def main() -> int:
    """Run the tool; the exit status."""
    try:
        from loadtest.cli import main as run
    except ModuleNotFoundError as missing:
        if missing.name and missing.name.partition(".")[0] == "loadtest":
            raise
        print(f"test_concurrency.py needs the package {missing.name}: pip install {missing.name}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
