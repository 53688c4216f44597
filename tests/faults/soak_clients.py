"""What the clients of the soak do, and what they remember of it."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.integration.server import ROOT

SAMPLES = ROOT / "demo" / "samples"
BUSY = {429, 503, 504, 507}
"""What a server may say that is full, ends, or has given up on a hanging ffmpeg."""
HUNG = "not_media of a good recording"
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


@dataclass
class Ledger:
    """``audio``: recordings by name, ``texts``: what each says; ``acknowledged``: async jobs not ended, with recording."""

    audio: dict[str, bytes]
    texts: dict[str, str] = field(default_factory=dict)
    acknowledged: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def beside(cls, data: Path) -> Ledger:
        """The bundled samples, which are also put into the server's media folder, for batches."""
        names = [one["file"] for one in json.loads((SAMPLES / "manifest.json").read_text())]
        (data / "media").mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(SAMPLES / name, data / "media")
        return cls({name: (SAMPLES / name).read_bytes() for name in names})

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def complain(self, what: str) -> None:
        with self.lock:
            self.counts["complaints"] += 1
            self.complaints.append(what[:500])

    def owes(self, job_id: str, name: str) -> None:
        """The server has acknowledged a job ("": one that must fail); maybe again, and it may have ended by now."""
        with self.lock:
            if job_id not in self.done:
                self.acknowledged[job_id] = name

    def blame(self, error: dict[str, Any] | None, otherwise: str) -> None:
        """A good recording was refused: right if its ffmpeg hung, so there must not be more of these than were stopped."""
        if (error or {}).get("code") == "not_media":
            self.count(HUNG)
        else:
            self.complain(otherwise)

    def check(self, name: str, text: str) -> None:
        """The same recording says the same every time; the first time is believed."""
        with self.lock:
            right = self.texts.setdefault(name, text.strip())
        if text.strip() != right:
            self.complain(f"{name}: {text.strip()[:80]!r} instead of {right[:80]!r}")


def refused(answer: httpx.Response, ledger: Ledger, what: str) -> bool:
    """Whether the server said honestly that it cannot now; anything but that or success is a complaint."""
    if answer.status_code in BUSY:
        ledger.count(f"{what}: {answer.json()['error']['code']}")
        return True
    if answer.status_code >= 400:
        ledger.blame(answer.json().get("error"), f"{what}: {answer.status_code} {answer.text[:200]}")
        return True
    ledger.count(f"{what}: done")
    return False


def wait_for_text(client: httpx.Client, ledger: Ledger, chance: random.Random) -> None:
    name = chance.choice(list(ledger.audio))
    answer = client.post("/transcribe", params={"response_format": "text"}, content=ledger.audio[name])
    if not refused(answer, ledger, "sync"):
        ledger.check(name, answer.text)


def hand_in(client: httpx.Client, ledger: Ledger, chance: random.Random) -> None:
    """An async job, sometimes sent twice under one key; who hands it in does not wait for it."""
    name = chance.choice(list(ledger.audio))
    headers = {"Idempotency-Key": str(chance.random())}
    for _ in range(chance.choice([1, 1, 2])):
        answer = client.post("/transcribe", params={"wait": "false"}, content=ledger.audio[name], headers=headers)
        if refused(answer, ledger, "async"):
            return
        ledger.owes(answer.json()["job_id"], name)


def cancel(client: httpx.Client, ledger: Ledger, chance: random.Random) -> None:
    answer = client.post("/transcribe", params={"wait": "false"}, content=ledger.audio["long-conversation.flac"])
    if not refused(answer, ledger, "to be cancelled"):
        url = f"/transcribe/{answer.json()['job_id']}"
        refused(client.delete(url), ledger, "cancelled")
        client.delete(url)


def watch(client: httpx.Client, ledger: Ledger, chance: random.Random) -> None:
    """Listen to the events of a job until it ends, or only for the first few."""
    answer = client.post("/transcribe", params={"wait": "false"}, content=ledger.audio["digits.flac"])
    if refused(answer, ledger, "to be watched"):
        return
    job_id, left = answer.json()["job_id"], chance.choice([2, 1000])
    ledger.owes(job_id, "digits.flac")
    with client.stream("GET", f"/transcribe/{job_id}/events") as events:
        for line in events.iter_lines():
            left -= line.startswith("id:")
            if left <= 0:
                break


def batch(client: httpx.Client, ledger: Ledger, chance: random.Random) -> None:
    names = [chance.choice(list(ledger.audio)) for _ in range(3)]
    body = {"items": [{"audio_file": name} for name in [*names, "nowhere.wav"]]}
    answer = client.post("/batches", json=body)
    if refused(answer, ledger, "batch"):
        return
    items = client.get(answer.headers["location"]).json()["items"]
    for one, name in zip(items, [*names, ""], strict=True):
        ledger.owes(one["job_id"], name)


def garbage(client: httpx.Client, ledger: Ledger, chance: random.Random) -> None:
    whole = ledger.audio["charlie.flac"]
    content = chance.choice([chance.randbytes(5000), whole[: len(whole) // 9], PLAYLIST, b""])
    answer = client.post("/transcribe", content=content)
    if answer.status_code == 200 or 400 <= answer.status_code < 500:
        ledger.count(f"garbage: {answer.status_code}")
    else:
        refused(answer, ledger, "garbage")


def extract(client: httpx.Client, ledger: Ledger, chance: random.Random) -> None:
    content = ledger.audio["long-conversation.flac"]
    refused(client.post("/extract-audio", params={"format": "mp3"}, content=content), ledger, "extract")


def hang_up(client: httpx.Client, ledger: Ledger, chance: random.Random) -> None:
    """In the middle of an upload, or while the answer is awaited."""
    body = ledger.audio["long-conversation.flac"]
    lines = [
        "POST /transcribe HTTP/1.1",
        "Host: x",
        f"X-API-Key: {client.headers['x-api-key']}",
        f"Content-Length: {len(body)}",
    ]
    head = "\r\n".join([*lines, "", ""])
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10) as raw:
        raw.settimeout(0.3)
        raw.sendall(head.encode() + body[: chance.choice([100, len(body) // 2, len(body)])])
        with contextlib.suppress(OSError):
            raw.recv(1)
    ledger.count("hang-up")


def ask(client: httpx.Client, ledger: Ledger, chance: random.Random) -> None:
    for path in ("/jobs", "/capacity", "/models", "/health", "/health"):
        refused(client.get(path), ledger, "asked")


Act = Callable[[httpx.Client, Ledger, random.Random], None]
ACTS: list[Act] = [wait_for_text, wait_for_text, hand_in, hand_in, cancel, watch, batch, garbage, extract, hang_up, ask]


def collect(client: httpx.Client, ledger: Ledger) -> None:
    """Fetch and delete the results of async jobs that have ended."""
    with ledger.lock:
        waiting = list(ledger.acknowledged.items())
    for job_id, name in waiting:
        shown = client.get(f"/transcribe/{job_id}/status")
        status: Any = shown.json().get("status", shown.status_code)
        if status in ("queued", "running"):
            continue
        if status == ("succeeded" if name else "failed"):
            if name:
                ledger.check(name, client.get(f"/transcribe/{job_id}", params={"response_format": "text"}).text)
            ledger.count("acknowledged job: as it should end")
        else:
            ledger.blame(shown.json().get("error"), f"{name or 'nowhere'}: {shown.text[:600]}")
        client.delete(f"/transcribe/{job_id}")
        with ledger.lock:
            ledger.acknowledged.pop(job_id)
            ledger.done.add(job_id)
