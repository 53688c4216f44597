#!/usr/bin/env python3
"""A list of addresses in the evening, a folder of transcripts in the morning.

    overnight.py talks.txt --out transcripts --format srt --model tiny

Each line of the list is an http(s) address, or a path in the server's media folder; behind a tab there may be a name for the
result. Empty lines and lines that begin with # do not count. Results are written as they come. Run it again with the same list
and options and it goes on where it was: the server knows the batch by its Idempotency-Key, and what was written is not fetched
again.

STENOPOOL_URL and STENOPOOL_KEY are read from the environment. Standard library only. The exit status is 0 where every item
succeeded, 1 where some failed (they are listed at the end), 2 where the batch was refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

URL = os.environ.get("STENOPOOL_URL", "http://127.0.0.1:8000")
PAGE = 500
TIMEOUT_S = 60.0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path, help="file of addresses or media paths, one in a line")
    parser.add_argument("--out", type=Path, default=Path("transcripts"), help="folder for the results")
    parser.add_argument("--format", default="srt", choices=("srt", "vtt", "tsv", "text", "json", "verbose_json"))
    parser.add_argument("--model", help="name of the model; the server's default, if left out")
    parser.add_argument("--language", help="code or English name; detected, if left out")
    parser.add_argument("--webhook", help="address that is told when all has ended")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two looks")
    options = parser.parse_args()
    order: dict[str, Any] = {"items": items_of(options.list), "response_format": options.format}
    chosen = {"model_size": options.model, "language": options.language, "webhook_url": options.webhook}
    order |= {name: value for name, value in chosen.items() if value}
    try:
        batch = hand_in(order)
    except Refused as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    print(f"{URL}/batches/{batch}: {len(order['items'])} items", file=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    return collect(batch, options.out, options.format, options.every)


def items_of(path: Path) -> list[dict[str, str]]:
    """The items of a list."""
    items = []
    for line in path.read_text("utf-8").splitlines():
        source, _, name = (part.strip() for part in line.partition("\t"))
        if source and not source.startswith("#"):
            kind = "url" if source.startswith(("http://", "https://")) else "audio_file"
            items.append({kind: source, "name": (name or Path(source.split("?")[0]).stem)[:200]})
    return items


def hand_in(order: dict[str, Any]) -> str:
    """The id of the batch; the same order gets the same one."""
    body = json.dumps(order).encode()
    key = {"Idempotency-Key": f"overnight-{hashlib.sha256(body).hexdigest()[:32]}", "Content-Type": "application/json"}
    batch: str = json.loads(ask("POST", "/batches", body, key))["batch_id"]
    return batch


def collect(batch: str, out: Path, form: str, every_s: float) -> int:
    """Write what has succeeded until all has ended."""
    seen: set[int] = set()
    while True:
        shown = json.loads(ask("GET", f"/batches/{batch}?limit=0"))
        for item in all_of(batch, "succeeded"):
            if item["index"] not in seen:
                seen.add(item["index"])
                write(item, out, form)
        counts = {name: count for name, count in shown["counts"].items() if count}
        print(f"{shown['status']}, {shown['percent']} %: {counts}", file=sys.stderr, flush=True)
        if shown["status"] in ("completed", "cancelled"):
            break
        time.sleep(every_s)
    failed = all_of(batch, "failed")
    for item in failed:
        print(f"{item['index']}\t{item['label']}\t{item['error']['code']}\t{item['error']['message']}")
    return 1 if failed or shown["status"] == "cancelled" else 0


def all_of(batch: str, status: str) -> list[dict[str, Any]]:
    """All items of a status, page by page."""
    found: list[dict[str, Any]] = []
    after: int | None = -1
    while after is not None:
        page = json.loads(ask("GET", f"/batches/{batch}?status={status}&limit={PAGE}&after={after}"))
        found += page["items"]
        after = page["next"]
    return found


def write(item: dict[str, Any], out: Path, form: str) -> None:
    """One result as a file, whole or not at all; nothing where it is there already."""
    name = re.sub(r"[^\w.-]+", "-", item["label"] or "").strip("-.") or "item"
    suffix = {"text": "txt", "verbose_json": "json"}.get(form, form)
    target = out / f"{item['index'] + 1:04}-{name}.{suffix}"
    if target.exists():
        return
    try:
        result = ask("GET", f"/transcribe/{item['job_id']}?response_format={form}")
    except Refused as error:  # it was deleted, or had to make room for others
        print(f"{target.name}: {error}", file=sys.stderr)
        return
    part = target.with_suffix(".part")
    part.write_bytes(result)
    part.replace(target)


class Refused(Exception):
    """The server says that trying again would not help."""


def ask(method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
    """One request; tried again, for as long as it takes, where the server is away or says that it may work later.

    Raises:
        Refused: it will not work.
    """
    key = {"X-API-Key": os.environ["STENOPOOL_KEY"]}
    request = urllib.request.Request(URL + path, body, {**key, **(headers or {})}, method=method)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                data: bytes = answer.read()
                return data
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")
            if error.code not in (408, 429, 502, 503, 504, 507):
                raise Refused(said) from None
            wait_s = float(error.headers.get("Retry-After", 10))
        except OSError:  # it may be starting again
            wait_s = 10.0
        time.sleep(wait_s)


if __name__ == "__main__":
    sys.exit(main())
