"""A job and its life, as data. No I/O."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from enum import Enum
from typing import Any


class Status(str, Enum):
    """Where a job is. ``SUCCEEDED``, ``FAILED`` and ``CANCELLED`` are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self not in TRANSITIONS


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELLED, Status.FAILED}),
    Status.RUNNING: frozenset({Status.QUEUED, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}),
}


@dataclass(frozen=True)
class VadOptions:
    """Voice activity detection: ``onset`` and ``offset`` are probabilities, the rest seconds."""

    method: str = "silero"
    onset: float = 0.5
    offset: float = 0.363
    min_silence_s: float = 0.5
    speech_pad_s: float = 0.2
    chunk_s: float = 30.0


@dataclass(frozen=True)
class TranscribeOptions:
    """What one transcription was asked for.

    ``word_timestamps``: "" for none, ``fast`` for those of Whisper's own attention, ``aligned`` for forced alignment.
    """

    model: str
    language: str | None = None
    task: str = "transcribe"
    word_timestamps: str = ""
    initial_prompt: str | None = None
    hotwords: str | None = None
    beam_size: int = 5
    temperature: float = 0.0
    vad: VadOptions = field(default_factory=VadOptions)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TranscribeOptions:
        """The inverse of :meth:`to_dict`; unknown names are ignored, so that old rows open in new versions."""
        known = {name: data[name] for name in _names(cls) if name in data}
        vad = known.pop("vad", {})
        if isinstance(words := known.get("word_timestamps"), bool):  # as versions wrote it that knew only one kind
            known["word_timestamps"] = "aligned" if words else ""
        return cls(**known, vad=VadOptions(**{name: vad[name] for name in _names(VadOptions) if name in vad}))


def _names(cls: type) -> list[str]:
    return [f.name for f in fields(cls)]


@dataclass(frozen=True)
class Job:
    """One piece of work. ``created_at`` and the like are timezone-aware; durations are seconds.

    ``attempts`` counts runs that began: it is raised and committed before the work starts. ``background``: it was acknowledged
    before its end, so it survives the server; ``source`` says where its audio is then (``{"file": name}`` in its folder,
    ``{"url": address}``, or ``{"audio_file": path}`` in the media folder), ``response_format`` in what form the answer was
    wanted. ``idempotency_key``: the same request gets this job if it is sent again under it; ``request_hash`` tells whether it
    is the same. ``webhook_url`` is told of its end. ``batch_id``: it is item ``batch_index`` of that batch, which its owner
    calls ``label``.
    """

    id: str
    owner: str
    options: TranscribeOptions
    created_at: datetime
    status: Status = Status.QUEUED
    attempts: int = 0
    duration_s: float | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error_code: str | None = None
    error_message: str | None = None
    background: bool = False
    source: dict[str, str] | None = None
    response_format: str = "json"
    idempotency_key: str | None = None
    request_hash: str | None = None
    webhook_url: str | None = None
    webhook_tries: int = 0
    batch_id: str | None = None
    batch_index: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        for name in ("created_at", "started_at", "finished_at"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                raise ValueError(f"{name} has no timezone")

    def moved(self, status: Status, **changes: Any) -> Job:
        """The job in its next state.

        Raises:
            ValueError: the transition is not allowed.
        """
        if status not in TRANSITIONS.get(self.status, frozenset()):
            raise ValueError(f"a {self.status.value} job cannot become {status.value}")
        return replace(self, status=status, **changes)

    def to_wire(self) -> dict[str, Any]:
        """What its owner may see of it, as JSON values. Times are seconds, or ISO 8601."""
        shown: dict[str, Any] = {
            "job_id": self.id,
            "status": self.status.value,
            "model": self.options.model,
            "created_at": self.created_at.isoformat(),
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "finished_at": self.finished_at.isoformat() if self.finished_at else None,
            "duration": self.duration_s,
            "attempts": self.attempts,
        }
        if self.batch_id is not None:
            shown |= {"batch_id": self.batch_id, "index": self.batch_index, "label": self.label}
        if self.status is Status.FAILED:
            shown["error"] = {"code": self.error_code, "message": self.error_message}
        return shown


def new_id() -> str:
    """A random job id, 128 bits, safe in a URL and as a folder name."""
    return secrets.token_hex(16)
