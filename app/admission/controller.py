"""The front desk: who may come in, and who has to come back later. Pure; the clock is injected.

Every step is synchronous, so what was checked is what is taken. A request enters before its body is read, waits in a line
that is fair between keys, gets a seat and its bytes in one step, and gives both back when it ends, however it ends. What
has to be awaited, or done in other processes, is the business of :mod:`app.desk`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from app.admission import refusals
from app.admission.ledger import Ledger
from app.admission.promises import MAX_WAIT_S
from app.admission.quotas import Quotas
from app.admission.ticket import Ask, Estimate, Limits, Phase, Seats, Ticket
from app.admission.turns import Turns
from app.errors import StenopoolError


class Controller(Turns):
    """One class of work (``what``). Several controllers may share one ledger; then each is pumped when another releases."""

    def __init__(
        self,
        what: str,
        limits: Limits,
        memory: Ledger,
        seats: Seats,
        now: Callable[[], float],
        jitter: Callable[[], float] = lambda: 0.0,
    ) -> None:
        super().__init__(limits, memory, seats, now, jitter)
        self.what = what
        self.quotas = Quotas(now, jitter)
        self.closed_because: StenopoolError | None = None
        self._number = 0
        self.admitted = self.ended = 0
        self.refused: dict[str, int] = {}

    def enter(self, ask: Ask) -> Ticket:
        """Let the request in, in one step.

        Raises:
            NeverFits, MemoryLow, QuotaExceeded, TooManyActive, QueueFull, DeadlineUnreachable: it must go away; says why,
                and when to come back.
        """
        try:
            return self._enter(ask)
        except StenopoolError as error:
            self.refused[error.code] = self.refused.get(error.code, 0) + 1
            raise

    def _enter(self, ask: Ask) -> Ticket:
        self.bounds.see(ask.key)
        self._check_open(ask)
        self._check_quota(ask)
        if (shortage_s := self._shortage_s(ask)) > 0:
            self._evict_for(ask)
            shortage_s = self.promises.make(ask.key, ask.fingerprint, ask.seconds, shortage_s)
            raise self._full(ask, shortage_s)
        if ask.within_s is not None:
            self._check_deadline(ask)
        self.promises.claim(ask.key, ask.fingerprint)
        return self.join(ask)

    @property
    def is_full(self) -> bool:
        """Whether there is no place left, whoever asks."""
        return len(self.inside) >= self.limits.running + self.limits.queued

    def preview(self, ask: Ask) -> Estimate:
        """The estimate that ``ask`` would get if it came now; nothing is kept or counted.

        Raises:
            StenopoolError: it would be refused; as :meth:`enter`.
        """
        self._check_open(ask)
        self._check_quota(ask, dry=True)
        if (shortage_s := self._shortage_s(ask)) > 0:
            raise self._full(ask, min(shortage_s, MAX_WAIT_S))
        return self._check_deadline(ask)

    def _shortage_s(self, ask: Ask) -> float:
        """Seconds until there is room, 0 where there is."""
        if not self.limits.queued and not self.memory.fits(self._needed(ask)):
            next_end_s = min(map(self._left_of, self.running), default=1.0) / self._share()
            return max(1.0, next_end_s)  # nobody may wait, not for memory either
        places = self.places()
        if len(self.inside) < (places if self.limits.queued else self.limits.running):
            return 0.0
        idle = max(0, places - len(self.running)) if self.limits.queued else 0
        return self.bounds.shortage_s(ask, self.wait_s(), self.streams(), idle)

    def _needed(self, ask: Ask) -> int:
        """Bytes for it and for those before it that have taken none yet."""
        return ask.bytes + sum(one.bytes for one in self.inside if one.phase is not Phase.RUNNING)

    def _evict_for(self, ask: Ask) -> None:
        """Where nobody may wait, nobody who waits makes idle models go."""
        if not self.limits.queued and (missing := self._needed(ask) - self.memory.free) > 0:
            self._seats.make_room(missing, frozenset({ask.lane} | {one.ask.lane for one in self.inside}))

    def _check_deadline(self, ask: Ask) -> Estimate:
        self._number += 1
        probe = self._ticket(ask)
        self.line.arrive(ask.key)
        self.line.push(probe)
        expected = self.estimate(probe)
        self.line.remove(probe)
        self.line.leave(ask.key)
        if ask.within_s is not None and expected.end_s > ask.within_s:
            raise refusals.too_late(ask, expected)
        return expected

    def _full(self, ask: Ask, come_back_s: float) -> StenopoolError:
        return refusals.full(self.what, ask, self.limits, come_back_s, self.wait_s(), self.bounds.total.count)

    def _ticket(self, ask: Ask) -> Ticket:
        return Ticket(ask, f"{self.what}-{self._number}", self._now(), ask.seconds, ask.bytes, ask.audio_s)

    def join(self, ask: Ask) -> Ticket:
        """A part of something that was let in already: nothing is checked."""
        self._number += 1
        ticket = self._ticket(ask)
        self.admitted += 1
        self.inside[ticket] = None
        self._tally.add(ticket)
        self.quotas.take(ask.key, ask.audio_s)
        self.line.arrive(ask.key)
        self.bounds.add(ask.key, 1, ask.seconds)
        self.line.push(ticket)
        return ticket

    def check_size(self, amount: int) -> None:
        """Refuse what could not even run alone.

        Raises:
            NeverFits: more bytes than there may ever be.
        """
        if amount > self.most_bytes:
            raise refusals.never_fits(amount, self.most_bytes)

    def settle(self, ticket: Ticket, ask: Ask) -> None:
        """Correct what was asked for, now that more is known (the length of the audio, the model).

        Raises:
            NeverFits, DeadlineUnreachable: as on arrival; the ticket is still to be released.
        """
        if ticket.phase is Phase.ENDED:
            return
        if ticket.phase is not Phase.RUNNING:
            self.bounds.add(ticket.key, 0, ask.seconds - ticket.seconds)
        self.quotas.settle(ticket.key, ask.audio_s - ticket.audio_s)
        self._tally.remove(ticket)
        ticket.ask, ticket.seconds, ticket.bytes, ticket.audio_s = ask, ask.seconds, ask.bytes, ask.audio_s
        self._tally.add(ticket)
        self.check_size(ask.worker_bytes + ask.bytes)
        passed_s = self._now() - ticket.entered_at
        if ask.within_s is not None and (expected := self.estimate(ticket)).end_s > ask.within_s - passed_s:
            raise refusals.too_late(ask, expected)
        if ticket.phase is Phase.WAITING:
            self.pump()

    def release(self, ticket: Ticket) -> None:
        """It has ended, been cancelled or expired; a second call does nothing."""
        if ticket.phase is Phase.ENDED:
            return
        if ticket.phase is Phase.RUNNING:
            self._stop(ticket)
        else:
            self._leave_line(ticket)
        self._tally.remove(ticket)
        self._forget_block(ticket)
        ticket.phase, ticket.on_turn = Phase.ENDED, None
        del self.inside[ticket]
        self.quotas.give_back(ticket.key, ticket.audio_s)
        self.line.leave(ticket.key)
        self.ended += 1
        self.pump()

    def _check_open(self, ask: Ask) -> None:
        self.check_size(ask.worker_bytes + ask.bytes)
        if self.closed_because is not None:
            raise self.closed_because.with_traceback(None)  # it is raised again and again

    def _check_quota(self, ask: Ask, *, dry: bool = False) -> None:
        paid = self.promises.is_due(ask.key, ask.fingerprint)
        ends = partial(self.ends_of, ask.key)
        self.quotas.check(ask.key, ask.quota, ask.audio_s, ends, ask.fingerprint, paid=paid, dry=dry)
