"""Everything wired together; nothing is started yet."""

from __future__ import annotations

from app.catalogue import worker_setup
from app.desk.desk import Desk
from app.measurements import Measurements
from app.pool.lane import PoolLimits
from app.pool.spawn import Spawner
from app.pool.supervisor import Pool
from app.service import Service
from app.settings import Settings
from app.store import AsyncStore, Store
from app.work import WorkerSetup

ENGINE = "app.engine.pipeline"
PRELOAD = ("app.engine.preload",)


def build_service(settings: Settings, engine: str = ENGINE, preload: tuple[str, ...] = PRELOAD) -> Service:
    """The service with its store and its pool, or with what it knows of nodes."""
    if settings.engine == "celery":
        from app.cluster.build import build_api  # its packages are installed only where they are needed

        return build_api(settings)
    store, pool = Store(settings.store_url), build_pool(settings, engine, preload)
    return Service(settings, AsyncStore(store), pool, Desk(settings, pool, Measurements(store)))


def build_pool(settings: Settings, engine: str, preload: tuple[str, ...]) -> Pool:
    """The pool of this machine."""

    def setup_for(model: str) -> WorkerSetup:
        return worker_setup(settings, model, engine)

    limits = PoolLimits(
        workers_per_model=settings.workers_per_model,
        devices=settings.device_list,
        max_resident_models=settings.max_resident_models,
        ping_interval_s=settings.ping_interval_s,
        ping_timeout_s=settings.ping_timeout_s,
        setup_timeout_s=settings.setup_timeout_s,
        idle_ttl_s=settings.idle_ttl_s,
    )
    return Pool(Spawner(preload), setup_for, limits)
