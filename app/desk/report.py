"""What the desk shows: ``GET /capacity`` and ``POST /estimate``. Reads, never changes anything."""

from __future__ import annotations

from typing import Any

from app import catalogue
from app.admission.controller import Controller
from app.admission.memory import guide_table
from app.admission.quotas import Quota
from app.desk.desk import Desk
from app.errors import StenopoolError
from app.jobs import TranscribeOptions, VadOptions
from app.media.paths import free_bytes

SAMPLE_S = 60.0


def capacity(desk: Desk, owner: str, quota: Quota | None = None) -> dict[str, Any]:
    """Everything that admission knows, as plain JSON values: bytes and seconds. ``quota``: what the owner itself may have."""
    return {
        "memory": _memory(desk),
        "cpu": {
            "cores": desk.settings.cores,
            "streams": desk.jobs.limits.running,
            "runners": desk.jobs.limits.parallel,
            "threads_per_runner": desk.settings.thread_count,
            "running": len(desk.jobs.running),
            "worked_s": round(desk.prices.costs.worked_s, 3),
        },
        "disk": {
            "free_bytes": free_bytes(desk.settings.jobs_dir),
            "reserve_bytes": desk.settings.disk_reserve_mb * 1_000_000,
            "reserved_bytes": desk.disk.reserved,
        },
        "queue": _queue(desk, desk.jobs) | {"policy": desk.settings.overload_policy},
        "classes": {one.what: _queue(desk, one) for one in desk.controllers},
        "devices": _devices(desk),
        "models": _models(desk),
        "nodes": desk.pool.others(),
        "pressure": {
            "step": desk.step.name.lower(),
            "warnings": list(desk.ladder.warnings),
            "counts": dict(desk.ladder.counts),
        },
        "estimates": desk.prices.costs.accuracy(),
        "your_key": {"in_use": desk.jobs.quotas.in_use(owner), "limits": vars(quota or desk.prices.quota)},
    }


def estimate(desk: Desk, owner: str, options: TranscribeOptions, audio_s: float, quota: Quota | None = None) -> dict[str, Any]:
    """What a transcription would cost, whether it would be admitted now, and when it would start and end."""
    ask = desk.prices.transcription(owner, options, audio_s, quota=quota)
    answer: dict[str, Any] = {
        "model": options.model,
        "audio_s": audio_s,
        "predicted_bytes": ask.bytes,
        "worker_bytes": ask.worker_bytes,
        "predicted_s": round(ask.seconds, 3),
        "model_loaded": desk.prices.is_loaded(options.model),
        "load_s": round(ask.load_s, 1),
    }
    try:
        return answer | {"admitted": True} | desk.jobs.preview(ask).to_dict()
    except StenopoolError as error:
        refusal = error.to_wire("")["error"]
        return (
            answer
            | {"admitted": False, "refusal": {name: refusal[name] for name in ("code", "message", "hint")}}
            | ({"retry_after_s": round(error.retry_after_s, 1)} if error.retry_after_s is not None else {})
        )


def _memory(desk: Desk) -> dict[str, Any]:
    reading, ledger = desk.reading, desk.memory
    return {
        "source": reading.source,
        "container": reading.container,
        "limit_bytes": reading.limit,
        "used_bytes": reading.used,
        "available_bytes": reading.available,
        "own_bytes": reading.own,
        "peak_bytes": desk.peak_bytes,
        "swap_used_bytes": reading.swap_used,
        "oom_kills": reading.oom_kills,
        "budget_bytes": ledger.budget,
        "reserve_bytes": reading.limit - desk.static_bytes,
        "reserved_bytes": ledger.reserved,
        "reserved_peak_bytes": ledger.peak,
        "free_bytes": ledger.free,
        "reservations": _by_kind(ledger.holders()),
    }


def _devices(desk: Desk) -> dict[str, Any]:
    """What each device does, and the memory of those GPUs that have workers."""
    memory = desk.devices_shown()
    return {name: state | {"memory": memory.get(name)} for name, state in desk.pool.devices().items()}


def _by_kind(holders: dict[str, int]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for name, amount in holders.items():
        kind = name.partition("-")[0]
        kinds[kind] = kinds.get(kind, 0) + amount
    return kinds


def _queue(desk: Desk, controller: Controller) -> dict[str, Any]:
    limits, waiting = controller.limits, controller.bounds.total
    return {
        "running": len(controller.running),
        "most_running": limits.running,
        "waiting": waiting.count,
        "most_waiting": limits.queued,
        "waiting_s": round(waiting.seconds, 2),
        "most_wait_s": limits.queue_s,
        "estimated_wait_s": round(controller.wait_s(), 2),
        "admitted": controller.admitted,
        "started": controller.started,
        "ended": controller.ended,
        "refused": dict(controller.refused),
        "promises": {
            "made": controller.promises.made,
            "kept": controller.promises.kept,
            "lapsed": controller.promises.lapsed,
        },
    }


def _models(desk: Desk) -> dict[str, Any]:
    ram = {spec.name: spec.ram_bytes for spec in catalogue.MODELS.values()}
    guide = guide_table(desk.reading.limit, desk.reading.container, ram, desk.settings.cores)
    return {name: _model(desk, name) | {"guide": guide[name]} for name in ram}


def _model(desk: Desk, name: str) -> dict[str, Any]:
    """``streams``: jobs of a minute that may run at once if nothing else is loaded; ``batches``: what they share."""
    vad = VadOptions(chunk_s=catalogue.MODELS[name].chunk_s)
    ask = desk.prices.transcription("", TranscribeOptions(name, vad=vad), SAMPLE_S)
    worker, batches = desk.prices.worker(name), desk.prices.batches(name)
    room = desk.jobs.most_bytes
    left, at_work = room - worker.resident_bytes, desk.prices.batches_bytes(name)
    by_memory = max(0, (left - at_work) // max(1, ask.bytes)) if worker.load_peak_bytes <= room else 0
    return {
        "loaded": desk.prices.is_loaded(name),
        "worker_bytes": worker.resident_bytes,
        "load_peak_bytes": worker.load_peak_bytes,
        "load_s": round(worker.load_s, 1),
        "batches": {"calls": batches.calls, "windows": batches.windows, "bytes": at_work},
        "job_bytes_per_minute_of_audio": ask.bytes,
        "seconds_per_minute_of_audio": round(ask.seconds, 2),
        "streams_by_memory": by_memory,
        "streams": min(by_memory, desk.jobs.limits.running),
    }
