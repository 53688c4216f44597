"""What is measured, as plain data. All times are seconds, all sizes bytes, unless a name says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["ok", "wrong", "lost", "refused"]


class Unusable(Exception):
    """The test cannot be run as it was asked for. The message is for the person at the keyboard."""


@dataclass(frozen=True)
class Recording:
    """One audio file. ``seconds`` and ``expected`` (what is said in it) are known for the bundled samples only."""

    name: str
    path: Path
    size_bytes: int
    seconds: float | None = None
    expected: str | None = None


@dataclass(frozen=True)
class Task:
    """Request number ``number`` of a run. ``due_s``: when it must be sent (open loop), else as soon as somebody is free."""

    number: int
    recording: Recording
    due_s: float | None = None


@dataclass(frozen=True)
class Load:
    """Either so many requests at once (closed loop) or so many per second (open loop)."""

    level: int | None = None
    rate: float | None = None

    @property
    def label(self) -> str:
        """``4`` or ``0.5/s``."""
        return str(self.level) if self.level is not None else f"{self.rate:g}/s"


@dataclass(frozen=True)
class Reply:
    """What one try brought. ``retry_after_s`` is set where the server says that trying again makes sense."""

    kind: Kind
    reason: str = ""
    detail: str = ""
    status: int | None = None
    text: str | None = None
    audio_s: float | None = None
    queue_wait_s: float | None = None
    retry_after_s: float | None = None
    request_id: str = ""


@dataclass(frozen=True)
class Record:
    """One request with all its tries. Instants count from the start of the run.

    ``latency_s`` runs from ``due_s`` (open loop) or from the first try to the end of the last answer, waits for
    ``Retry-After`` included. ``refusals`` are the reasons of the refused tries, in order. ``audio_s``: as the answer says,
    else as known beforehand.
    """

    load: str
    number: int
    user: int
    file: str
    kind: Kind
    reason: str
    detail: str
    status: int | None
    text: str | None
    audio_s: float | None
    queue_wait_s: float | None
    request_id: str
    tries: int
    refusals: tuple[str, ...]
    due_s: float
    sent_s: float
    done_s: float
    last_try_s: float

    @property
    def latency_s(self) -> float:
        """What the caller waited."""
        return self.done_s - self.due_s


@dataclass(frozen=True)
class Vitals:
    """How the server was during a run; ``None`` where it does not tell."""

    memory_peak_bytes: int | None = None
    memory_limit_bytes: int | None = None
    health_max_s: float | None = None
    health_failed: int = 0


@dataclass(frozen=True)
class Run:
    """One load, and what came of it. ``wall_s``: from the start to the last answer."""

    load: Load
    records: tuple[Record, ...]
    wall_s: float
    vitals: Vitals = Vitals()
