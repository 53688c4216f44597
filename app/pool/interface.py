"""What the desk and the service need of a pool, whether its workers are here or on other machines."""

from __future__ import annotations

from typing import Any, Protocol

from app.errors import StenopoolError
from app.pool.lane import Desk


class AnyPool(Protocol):
    """:class:`app.pool.supervisor.Pool`, or :class:`app.cluster.remote.RemotePool`; see there."""

    desk: Desk

    def warm(self, model: str) -> None:
        """Have workers of ``model`` ready from now on."""
        ...

    def take(self, model: str, *, solo: bool, keep: frozenset[str]) -> Any:
        """A place in a worker of ``model``, why there is none now, or an error where there will be none."""
        ...

    def make_room(self, amount: int, keep: frozenset[str]) -> None:
        """Give back ``amount`` bytes of what lies idle."""
        ...

    def tick(self, *, evict_idle: bool = False) -> None:
        """What time brings."""
        ...

    def shed_newest(self) -> bool:
        """End the job that began last, to be tried again; False where nothing runs."""
        ...

    def stats(self) -> dict[str, Any]:
        """What runs where."""
        ...

    def devices(self) -> dict[str, Any]:
        """What each device of this machine does."""
        ...

    def others(self) -> list[dict[str, Any]]:
        """The machines that work for this one."""
        ...

    def failures(self) -> dict[str, StenopoolError]:
        """Why models cannot be loaded."""
        ...

    @property
    def ready(self) -> bool:
        """Whether at least one worker can take a job."""
        ...

    async def close(self) -> None:
        """End every worker that is here."""
        ...
