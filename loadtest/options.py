"""The command line."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.records import Load, Unusable

LEVELS = (1, 2, 4, 6, 8)
OPEN_DURATION_S = 60.0
_EXAMPLES = """examples:
  python test_concurrency.py --test-all --model tiny
  python test_concurrency.py --concurrent 4 --model medium --audio recordings/
  python test_concurrency.py --rate 0.5 --duration 300 --json out.json --plot out.png

Exit status: 0 all right (refusals are no failure), 1 an answer was wrong or a request was lost or none was answered,
2 the test could not be run."""


@dataclass(frozen=True)
class Options:
    """What the person at the keyboard wants. Times in seconds."""

    url: str
    key: str
    model: str | None
    loads: tuple[Load, ...]
    audio: tuple[str, ...]
    requests: int | None
    duration_s: float | None
    timeout_s: float
    tries: int
    seed: int
    json: Path | None
    plot: Path | None


def parse(argv: Sequence[str] | None = None) -> Options:
    """The command line and the environment as options.

    Raises:
        Unusable: options that make no sense.
        SystemExit: argparse's own complaints (status 2) and ``--help``.
    """
    given = _parser().parse_args(argv)
    loads = _loads(given)
    open_loop = loads[0].level is None
    duration_s = given.duration
    if open_loop and duration_s is None and given.requests is None:
        duration_s = OPEN_DURATION_S
    return Options(
        url=_url(given.url),
        key=_key(given.api_key),
        model=given.model or None,
        loads=loads,
        audio=tuple(given.audio or ()),
        requests=given.requests,
        duration_s=duration_s,
        timeout_s=given.timeout,
        tries=given.max_tries if given.obey or not (open_loop or given.no_retry) else 1,
        seed=given.seed,
        json=_writable(given.json),
        plot=_writable(given.plot),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="test_concurrency.py",
        description="Put load on a Stenopool server, check every answer, and recommend a setting.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    which = parser.add_argument_group("how much load (one of these)").add_mutually_exclusive_group(required=True)
    which.add_argument("--test-all", action="store_true", help="levels 1, 2, 4, 6 and 8, one after the other")
    which.add_argument("--concurrent", type=_positive_int, metavar="N", help="one level: N requests at once")
    which.add_argument("--rate", type=_positive, metavar="R", help="open loop: R Poisson arrivals per second")
    add("--levels", type=_levels, metavar="1,2,…", help="other levels for --test-all")
    add("--model", help="model_size of the requests (default: the server's)")
    url = os.environ.get("STENOPOOL_URL") or "http://127.0.0.1:8000"
    add("--url", default=url, help="default: $STENOPOOL_URL or http://127.0.0.1:8000")
    add("--api-key", metavar="K", help="default, and safer: $STENOPOOL_KEY or $X_API_KEY; others can see a command line")
    add("--audio", nargs="+", metavar="FILE", help="files or folders (default: the bundled samples)")
    add("--requests", type=_positive_int, metavar="N", help="per level (default: four per user, each file at least once)")
    add("--duration", type=_positive, metavar="S", help="stop sending after S seconds (default with --rate: 60)")
    add("--timeout", type=_positive, default=600.0, metavar="S", help="for one try (default: 600)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--obey", action="store_true", help="come back after Retry-After (default without --rate)")
    again.add_argument("--no-retry", action="store_true", help="a refusal is the last word (default with --rate)")
    add("--max-tries", type=_positive_int, default=10, metavar="N", help="tries per request, with --obey (default: 10)")
    add("--seed", type=int, default=0, help="order of the files, arrival times (default: 0)")
    add("--json", type=Path, metavar="OUT.json", help="write all figures and every request's record")
    add("--plot", type=Path, metavar="OUT.png", help="draw latency and throughput")
    return parser


def _loads(given: argparse.Namespace) -> tuple[Load, ...]:
    if given.levels and not given.test_all:
        raise Unusable("--levels goes with --test-all.")
    if given.rate is not None:
        return (Load(rate=given.rate),)
    if given.concurrent is not None:
        return (Load(level=given.concurrent),)
    return tuple(Load(level=level) for level in given.levels or LEVELS)


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _levels(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({_positive_int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid levels: {text!r} (like 1,2,4)") from None


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and text.isprintable()
    except ValueError:
        good = False
    if not good or " " in text:
        raise Unusable(f"{text!r} is not an address like http://127.0.0.1:8000.")
    return text.rstrip("/")


def _key(given: str | None) -> str:
    key = (given or os.environ.get("STENOPOOL_KEY") or os.environ.get("X_API_KEY") or "").strip()
    if not key.isascii() or not (key.isprintable() or not key):
        raise Unusable("The API key has characters in it that no key has.")
    return key


def _writable(path: Path | None) -> Path | None:
    """Complains before a long test rather than after it."""
    if path is None:
        return None
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise Unusable(f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'there is no such folder'}.")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise Unusable(f"{path} cannot be written: no permission.")
    return path
