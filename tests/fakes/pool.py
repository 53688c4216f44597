"""A pool without processes, for tests that never reach the engine."""

from __future__ import annotations

from typing import Any

from app.errors import NotReady, StenopoolError
from app.service import Service
from app.settings import Settings
from app.store import AsyncStore, Store


class QuietPool:
    """Always ready, and no job ever gets a worker."""

    ready = True

    def warm(self, model: str) -> None:
        pass

    def stats(self) -> dict[str, Any]:
        return {}

    def failures(self) -> dict[str, StenopoolError]:
        return {}

    async def acquire(self, model: str, *, solo: bool = False, front: bool = False) -> Any:
        raise NotReady("There are no workers in this test.", retry_after_s=7)

    async def close(self) -> None:
        pass


def quiet_service(settings: Settings) -> Service:
    return Service(settings, AsyncStore(Store(settings.store_url)), QuietPool())  # type: ignore[arg-type]
