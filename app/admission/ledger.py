"""Who holds how much of one thing (bytes of memory, bytes of disk). Pure; every call is one step of the event loop.

Checking and taking are one call: whoever checks, waits and then takes has already lost (vLLM #58192, SGLang #36202).
"""

from __future__ import annotations


class Ledger:
    """``budget`` may move while amounts are held; what was held stays held, and nothing new is taken until it fits again."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._held: dict[str, int] = {}
        self.reserved = 0
        self.peak = 0

    @property
    def free(self) -> int:
        """What can still be taken; never negative."""
        return max(0, self.budget - self.reserved)

    def held(self, name: str) -> int:
        """What ``name`` holds."""
        return self._held.get(name, 0)

    def holders(self) -> dict[str, int]:
        """Everybody and what they hold."""
        return dict(self._held)

    def fits(self, amount: int) -> bool:
        """Whether ``amount`` more can be taken now."""
        return self.reserved + amount <= self.budget

    def take(self, name: str, amount: int) -> bool:
        """Take ``amount`` for ``name``, or nothing where it does not fit.

        Raises:
            ValueError: the amount is negative, or ``name`` holds something already.
        """
        if amount < 0 or name in self._held:
            raise ValueError(f"{name} cannot take {amount}")
        if not self.fits(amount):
            return False
        self._set(name, amount)
        return True

    def resize(self, name: str, amount: int) -> int:
        """Make the amount of ``name`` smaller, or larger as far as it fits; what it holds then.

        Where more is in use than fits, that is memory pressure and not a reservation: see :mod:`app.admission.pressure`.
        """
        if name not in self._held:
            return 0
        before = self._held[name]
        self._set(name, max(0, min(amount, before + self.free) if amount > before else amount))
        return self._held[name]

    def drop(self, name: str) -> None:
        """Give everything back; a second call does nothing."""
        self.reserved -= self._held.pop(name, 0)

    def _set(self, name: str, amount: int) -> None:
        self.reserved += amount - self._held.get(name, 0)
        self._held[name] = amount
        self.peak = max(self.peak, self.reserved)
