"""An API of several machines, and a node, wired together."""

from __future__ import annotations

from app.build import ENGINE, PRELOAD, build_pool
from app.cluster.claims import NodeStore
from app.cluster.dispatch import Dispatch
from app.cluster.media import Media
from app.cluster.node import WorkNode
from app.cluster.queue import Queue
from app.cluster.remote import RemotePool
from app.cluster.rows import SharedStore
from app.desk.desk import Desk
from app.intake import Intake
from app.measurements import Measurements
from app.service import Service
from app.settings import Settings
from app.store import AsyncStore


def build_api(settings: Settings) -> Service:
    """The service of an API whose jobs run on nodes."""
    assert settings.redis_url is not None
    rows = SharedStore(settings.store_url)
    store = AsyncStore(rows)
    pool = RemotePool(store, rows, settings.lease_s)
    desk = Desk(settings, pool, Measurements(rows), elsewhere=pool.memory)
    pool.resized = desk.resize
    pool.see(())  # until nodes are heard of, nothing is too large
    queue = Queue(settings.redis_url.get_secret_value(), settings.lease_s)
    pool.on_close = queue.close
    runs = Dispatch(settings, store, rows, desk, Intake(settings, desk), _media(settings), queue)
    return Service(settings, store, pool, desk, runs)


def build_node(settings: Settings, name: str, engine: str = ENGINE, preload: tuple[str, ...] = PRELOAD) -> WorkNode:
    """A node. To be called in its event loop."""
    rows = NodeStore(settings.store_url, name, settings.lease_s, settings.max_deaths)
    pool = build_pool(settings, engine, preload)
    return WorkNode(settings, rows, pool, Desk(settings, pool, Measurements(rows)), _media(settings))


def _media(settings: Settings) -> Media:
    assert settings.media_url is not None
    return Media(settings.media_url.get_secret_value())
