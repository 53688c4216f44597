"""What a request will cost here: the cost model, fed with this server's settings and with what its workers report."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from app.admission import prior
from app.admission.cost import Batches, CostModel, Footprint, Work
from app.admission.quotas import Quota
from app.admission.ticket import Ask
from app.jobs import TranscribeOptions
from app.pool.handle import Measured
from app.pool.interface import AnyPool
from app.settings import Settings
from app.work import kind_of

MEDIA_BYTES = 80_000_000
"""One ffmpeg or yt-dlp child."""
ROOM_FOR_JOBS = 20_000_000
"""What the smallest server must have room for beside a worker at work."""
MEDIA_S = 2.0
FOLLOW = 0.1


class Prices:
    """Asks for the desk. ``costs`` learns from every job; ``most_bytes()`` is what a worker and its job may take at most."""

    def __init__(self, settings: Settings, pool: AnyPool, most_bytes: Callable[[], int]) -> None:
        self._settings, self._pool, self._most_bytes = settings, pool, most_bytes
        self.costs = CostModel(time.time)
        self._media_s: dict[str, float] = {}

    def transcription(
        self,
        owner: str,
        options: TranscribeOptions,
        audio_s: float,
        *,
        within_s: float | None = None,
        fingerprint: str = "",
        quota: Quota | None = None,
    ) -> Ask:
        """What a transcription of ``audio_s`` seconds wants of the desk."""
        *_, device = self._kind(options.model)
        worker, cost = self.worker(options.model, device), self.costs.job(self._work(options, audio_s, device))
        at_work = worker.resident_bytes + self.batches_bytes(options.model, device)
        return Ask(
            key=owner,
            lane=options.model,
            seconds=cost.seconds,
            bytes=cost.bytes,
            audio_s=cost.audio_s,
            worker_bytes=max(at_work, worker.load_peak_bytes - cost.bytes),
            load_s=0.0 if self.is_loaded(options.model) else worker.load_s,
            within_s=within_s,
            fingerprint=fingerprint,
            quota=self.quota if quota is None else quota,
        )

    def batches(self, model: str, device: str = "") -> Batches:
        """What a worker of ``model`` may have at work: as set, or so much less that it fits. Slower is better than never."""
        return self._batches(self._kind(model, device))[0]

    def batches_bytes(self, model: str, device: str = "") -> int:
        """What a worker of ``model`` takes for its engine calls while it has jobs."""
        return self._batches(self._kind(model, device))[1]

    def gpu_bytes(self, model: str, device: str) -> tuple[int, int]:
        """What a worker takes of the memory of ``device``: for itself, and per window at work. Nothing where that is no GPU."""
        _, compute_type, kind = self._kind(model, device)
        return prior.gpu_bytes(model, compute_type, self._settings.align_device != "cpu") if kind == "cuda" else (0, 0)

    def minute_s(self, model: str, device: str) -> float:
        """Seconds that a minute of audio takes on ``device``."""
        return self.costs.job(Work(*self._kind(model, device), 60.0)).seconds

    def _batches(self, kind: tuple[str, str, str]) -> tuple[Batches, int]:
        calls, size = self._settings.runner_count, self._settings.batch_size
        room = self._most_bytes() - self.costs.worker(*kind).resident_bytes - ROOM_FOR_JOBS
        while (amount := self.costs.batches(*kind, Batches(calls, calls * size))) > room and calls * size > 1:
            calls, size = (calls, size // 2) if size > 1 else (calls // 2, 1)
        return Batches(calls, calls * size), amount

    def media(self, owner: str, what: str, *, within_s: float | None = None, fingerprint: str = "") -> Ask:
        """What one ffmpeg or yt-dlp run wants."""
        seconds = self._media_s.get(what, MEDIA_S)
        return Ask(owner, what, seconds, MEDIA_BYTES, within_s=within_s, fingerprint=fingerprint)

    @property
    def quota(self) -> Quota:
        """What a key may have that has no limits of its own."""
        return Quota(self._settings.key_jobs, self._settings.key_audio_s, self._settings.key_requests_per_minute)

    def worker(self, model: str, device: str = "") -> Footprint:
        """What a worker of ``model`` takes beside the shared base."""
        return self.costs.worker(*self._kind(model, device))

    def is_loaded(self, model: str) -> bool:
        """Whether a worker of ``model`` is ready."""
        return any(worker["state"] == "ready" for worker in self._workers(model))

    def learn_worker(
        self, model: str, device: str, *, kept: int | None = None, peak: int | None = None, seconds: float | None = None
    ) -> None:
        """What a worker keeps when idle, took at most while it loaded (bytes), and how long that was (seconds)."""
        kind = self._kind(model, device)
        self.costs.observe_worker(*kind, resident_bytes=kept, load_peak_bytes=peak, load_s=seconds)

    def learn_job(self, options: TranscribeOptions, audio_s: float, measured: Measured) -> None:
        """What a transcription took, and what its worker took meanwhile."""
        self.learn_seconds(options, audio_s, measured.seconds, measured.device)
        kind, used = self._kind(options.model, measured.device), Batches(measured.calls, measured.windows)
        billed, _ = self._batches(kind)
        self.costs.observe_batches(*kind, actual_bytes=measured.bytes, used=used, billed=billed)

    def learn_seconds(self, options: TranscribeOptions, audio_s: float, seconds: float, device: str = "") -> None:
        """How long a transcription worked, wherever that was."""
        self.costs.observe_job(self._work(options, audio_s, device), actual_seconds=seconds)

    def learn_media(self, what: str, seconds: float) -> None:
        """How long an ffmpeg or yt-dlp run was."""
        before = self._media_s.get(what, MEDIA_S)
        self._media_s[what] = before + FOLLOW * (seconds - before)

    def learn_death(self, model: str) -> None:
        """The kernel killed a worker of ``model`` for its memory."""
        self.costs.out_of_memory(*self._kind(model))

    def _work(self, options: TranscribeOptions, audio_s: float, device: str = "") -> Work:
        vad, kind = options.vad, self._kind(options.model, device)
        return Work(*kind, audio_s, vad.chunk_s, options.word_timestamps, vad.method, options.beam_size)

    def _kind(self, model: str, device: str = "") -> tuple[str, str, str]:
        """Model, compute type and kind of device, as the cost model knows them. Without a device: that of its first worker."""
        if device in ("", "auto"):
            known = (worker["device"] for worker in self._workers(model) if worker["device"] not in ("", "auto"))
            device = next(known, self._settings.device_list[0])
        device = "cpu" if device == "auto" else kind_of(device)
        automatic = "int8" if device == "cpu" else "float16"
        return model, automatic if self._settings.compute_type == "auto" else self._settings.compute_type, device

    def _workers(self, model: str) -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = self._pool.stats().get(model, {"workers": []})["workers"]
        return workers
