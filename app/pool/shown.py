"""What the pool shows of itself, as JSON values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from app.pool.lane import Lane


def lanes(every: dict[str, Lane]) -> dict[str, Any]:
    """What runs where, by model, as JSON values."""
    return {
        name: {
            "workers": [worker.stats() for worker in lane.workers],
            "starting": lane.starting,
            "devices": {site.device: site.state(lane.workers) for site in lane.sites},
        }
        for name, lane in every.items()
    }


def devices(every: dict[str, Lane], names: Iterable[str], now: float) -> dict[str, Any]:
    """The same by device: what it does, and what fails there. ``state`` is ready, loading, failing or unloaded."""
    shown = {}
    for device in names:
        sites = [(name, lane, site) for name, lane in every.items() for site in lane.sites if site.device == device]
        states = {site.state(lane.workers) for _, lane, site in sites}
        workers = [worker for _, lane, site in sites for worker in lane.workers if worker.site is site]
        shown[device] = {
            "state": next((state for state in ("ready", "loading", "failing") if state in states), "unloaded"),
            "models": sorted({worker.model for worker in workers}),
            "workers": len(workers),
            "running": sum(len(worker.running) for worker in workers),
            "failures": {
                name: {"code": site.failure.code, "message": site.failure.message, "failed": site.deaths}
                | {"retry_in_s": round(max(0.0, site.not_before - now), 1)}
                for name, _, site in sites
                if site.failure is not None
            },
        }
    return shown
