"""Whatever happens, in whatever order: the desk, the ledger and the store agree, and nothing is left over."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.admission.controller import Controller
from app.admission.ledger import Ledger
from app.admission.quotas import Quota
from app.admission.ticket import Ask, Limits, Phase, Ticket
from app.errors import CapacityError, ModelUnavailable, QueueTimeout, StenopoolError, WorkerLost
from app.jobs import Job, Status, TranscribeOptions
from app.store import Store
from tests.unit.admission.rooms import Room, Rooms, Seat

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
BUDGET = 100
LANES = {"small": (2, 10), "large": (1, 40), "other": (3, 25)}

keys = st.sampled_from(["ann", "bob", "cyd"])
lanes = st.sampled_from(sorted(LANES))
seconds = st.sampled_from([0.0, 0.5, 3.0, 20.0])
amounts = st.sampled_from([0, 1, 5, 20, 55])
indexes = st.integers(0, 1000)


class CheckedLedger(Ledger):
    """Whoever takes, takes within the budget, also where the budget has shrunk below what is held."""

    def _set(self, name: str, amount: int) -> None:
        grows = amount > self.held(name)
        super()._set(name, amount)
        assert not grows or self.reserved <= self.budget


class Client:
    """One ticket, its row, and what it was told."""

    def __init__(self, job_id: str, ticket: Ticket) -> None:
        self.job_id, self.ticket = job_id, ticket
        self.seat: Seat | None = None
        self.error: StenopoolError | None = None
        self.attempt = 0


class Machine(RuleBasedStateMachine):
    """The rules are what callers, workers, memory and time do; a client is forgotten when it has left."""

    @initialize(queued=st.sampled_from([0, 3, 12]), running=st.sampled_from([1, 2, 4]), queue_s=st.sampled_from([5.0, 60.0]))
    def opens(self, queued: int, running: int, queue_s: float) -> None:
        self.now = 0.0
        self.store = Store("sqlite://", now=lambda: START + timedelta(seconds=self.now))
        self.store.create_schema()
        self.memory = CheckedLedger(BUDGET)
        self.rooms = Rooms(self.memory, *(Room(lane, *size) for lane, size in LANES.items()))
        limits = Limits(running, queued, queue_s if queued else 0.0, large_wait_s=10.0)
        self.desk = Controller("jobs", limits, self.memory, self.rooms, lambda: self.now)
        self.clients: list[Client] = []
        self.number = self.unchecked = 0

    # -- those who come

    @rule(
        key=keys,
        lane=lanes,
        seconds=seconds,
        amount=amounts,
        within=st.sampled_from([None, None, 1.0, 30.0]),
        most=st.sampled_from([0, 2]),
    )
    def comes(self, key: str, lane: str, seconds: float, amount: int, within: float | None, most: int) -> None:
        ask = self.ask(key, lane, seconds, amount, within, Quota(jobs=most))
        before = (self.desk.admitted, self.memory.reserved)
        try:
            ticket = self.desk.enter(ask)
        except StenopoolError as refusal:
            error = refusal
        else:
            self.accept(ticket)
            return
        assert (self.desk.admitted, self.memory.reserved) == before
        assert isinstance(error, CapacityError) or amount + LANES[lane][1] > BUDGET
        assert error.retry_after_s is None or 0 < error.retry_after_s <= 120

    @rule(key=keys, lane=lanes, seconds=seconds)
    def a_part_joins(self, key: str, lane: str, seconds: float) -> None:
        self.unchecked += 1
        self.accept(self.desk.join(self.ask(key, lane, seconds, 1, None, Quota())))

    def ask(self, key: str, lane: str, seconds: float, amount: int, within: float | None, quota: Quota) -> Ask:
        return Ask(key, lane, seconds, amount, seconds * 10, LANES[lane][1], 5.0, within, "same", quota)

    def accept(self, ticket: Ticket) -> None:
        self.number += 1
        client = Client(f"job-{self.number}", ticket)
        self.store.add(Job(client.job_id, ticket.key, TranscribeOptions("demo"), START))
        self.clients.append(client)

    # -- what becomes of them

    def pick(self, index: int, *phases: Phase) -> Client | None:
        found = [one for one in self.clients if one.ticket.phase in phases]
        return found[index % len(found)] if found else None

    @rule(index=indexes)
    def is_ready_to_run(self, index: int) -> None:
        if client := self.pick(index, Phase.ENTERED):
            self.waits(client)

    def waits(self, client: Client) -> None:
        def on_turn(seat: Any, error: StenopoolError | None) -> None:
            client.seat, client.error = seat, error
            if error is None:
                assert not self.desk.paused
                started = self.store.start(client.job_id)
                assert started is not None
                client.attempt = started.attempts

        client.error = None
        self.desk.wait(client.ticket, on_turn)

    @rule(index=indexes, lane=lanes, seconds=seconds, amount=amounts)
    def turns_out_to_be_otherwise(self, index: int, lane: str, seconds: float, amount: int) -> None:
        client = self.pick(index, Phase.ENTERED, Phase.WAITING)
        if client is None:
            return
        ask = client.ticket.ask
        try:
            self.desk.settle(client.ticket, self.ask(ask.key, lane, seconds, amount, ask.within_s, ask.quota))
        except StenopoolError as error:
            self.fails(client, error)

    @rule(index=indexes, fraction=st.floats(0.0, 1.0))
    def tells_how_far_it_is(self, index: int, fraction: float) -> None:
        if client := self.pick(index, *Phase):
            self.desk.progressed(client.ticket, fraction)

    @rule(index=indexes)
    def succeeds(self, index: int) -> None:
        if client := self.pick(index, Phase.RUNNING):
            assert self.store.finish(client.job_id, client.attempt, Status.SUCCEEDED)
            self.leaves(client)

    @rule(index=indexes)
    def is_cancelled(self, index: int) -> None:
        if client := self.pick(index, *Phase):
            assert self.store.cancel(client.job_id)
            self.leaves(client)

    @rule(index=indexes)
    def expires(self, index: int) -> None:
        if client := self.pick(index, Phase.WAITING):
            self.desk.withdraw(client.ticket)
            self.fails(client, QueueTimeout())

    @rule(index=indexes)
    def withdraws_for_now(self, index: int) -> None:
        if client := self.pick(index, Phase.WAITING):
            self.desk.withdraw(client.ticket)

    @rule()
    def those_who_were_told_an_error_go(self) -> None:
        for client in [one for one in self.clients if one.error is not None]:
            assert client.ticket.phase is Phase.ENTERED
            self.fails(client, client.error or StenopoolError())

    def fails(self, client: Client, error: StenopoolError) -> None:
        assert self.store.fail(client.job_id, error)
        self.leaves(client)

    def leaves(self, client: Client) -> None:
        self.clients.remove(client)
        if client.seat is not None and client.ticket.phase is Phase.RUNNING:
            client.seat.leave()
        self.desk.release(client.ticket)
        self.desk.release(client.ticket)  # a second time changes nothing

    # -- what workers do

    @rule(lane=lanes)
    def a_model_is_loaded(self, lane: str) -> None:
        if self.rooms.rooms[lane].state == "loading":
            self.rooms.loaded(lane)
            self.desk.pump()

    @rule(lane=lanes, again=st.booleans(), growth=st.sampled_from([1.0, 1.5, 100.0]))
    def a_worker_ends(self, lane: str, again: bool, growth: float) -> None:
        lost = self.rooms.gone(lane)
        for client in [one for one in self.clients if one.seat in lost and one.ticket.phase is Phase.RUNNING]:
            if again:
                self.unchecked += 1
                self.desk.again(client.ticket, amount=int(client.ticket.bytes * growth))
                assert self.store.requeue(client.job_id, client.attempt)
                self.waits(client)
            else:
                self.fails(client, WorkerLost())
        self.desk.pump()

    @rule(lane=lanes)
    def a_model_cannot_be_loaded(self, lane: str) -> None:
        if self.rooms.rooms[lane].state == "loading":
            self.rooms.gone(lane)
            self.rooms.rooms[lane].failure = ModelUnavailable()
            self.desk.fail_lane(lane, ModelUnavailable())
            self.desk.pump()
            assert not any(one.ask.lane == lane and one.phase is Phase.WAITING for one in self.desk.inside)

    @rule(lane=lanes)
    def a_failure_is_mended(self, lane: str) -> None:
        self.rooms.rooms[lane].failure = None
        self.desk.pump()

    # -- what the machine does

    @rule(budget=st.sampled_from([0, 30, 60, BUDGET, BUDGET, 150]))
    def memory_changes(self, budget: int) -> None:
        self.memory.budget = budget
        self.desk.pump()

    @rule()
    def starting_is_stopped_or_allowed_again(self) -> None:
        self.desk.paused = not self.desk.paused
        self.desk.pump()

    @rule(passed=st.sampled_from([0.1, 2.0, 11.0, 200.0]))
    def time_passes(self, passed: float) -> None:
        self.now += passed
        self.desk.pump()

    @rule(key=keys, lane=lanes, seconds=seconds)
    def somebody_only_asks(self, key: str, lane: str, seconds: float) -> None:
        before = (self.desk.promises.made, self.desk.admitted, self.memory.reserved, len(self.desk.line))
        with suppress(CapacityError):
            self.desk.preview(self.ask(key, lane, seconds, 1, None, Quota(jobs=2)))
        assert before == (self.desk.promises.made, self.desk.admitted, self.memory.reserved, len(self.desk.line))

    # -- what always holds

    def running(self) -> list[Client]:
        return [one for one in self.clients if one.ticket.phase is Phase.RUNNING]

    @invariant()
    def the_ledger_holds_what_runs_and_what_is_loaded(self) -> None:
        workers = {room.name: room.worker_bytes for room in self.rooms.rooms.values() if room.state != "cold"}
        jobs = {one.ticket.name: one.ticket.bytes for one in self.running()}
        assert self.memory.holders() == workers | jobs
        assert self.memory.reserved == sum(workers.values()) + sum(jobs.values()) >= 0
        assert self.memory.free == max(0, self.memory.budget - self.memory.reserved)

    @invariant()
    def accepted_is_queued_running_and_ended(self) -> None:
        rows, running = self.store.counts(), len(self.running())
        waiting = len(self.clients) - running
        assert self.desk.admitted == waiting + running + self.desk.ended == self.number
        assert set(self.desk.inside) == {one.ticket for one in self.clients}
        assert set(self.desk.running) == {one.ticket for one in self.running()}
        assert (rows[Status.QUEUED], rows[Status.RUNNING]) == (waiting, running)
        assert sum(count for status, count in rows.items() if status.final) == self.desk.ended

    @invariant()
    def nobody_has_more_than_there_is(self) -> None:
        assert len(self.desk.running) <= self.desk.limits.running
        for room in self.rooms.rooms.values():
            assert len(room.taken) <= (1 if any(seat.solo for seat in room.taken) else room.streams)
            assert all(any(one.seat is seat for one in self.running()) for seat in room.taken)

    @invariant()
    def the_line_is_counted_right_and_bounded(self) -> None:
        waiting = [one.ticket for one in self.clients if one.ticket.phase is not Phase.RUNNING]
        total = self.desk.bounds.total
        assert total.count == len(waiting) == len(self.desk.line) + len(self.desk._front)
        assert abs(total.seconds - sum(one.seconds for one in waiting)) < 1e-6
        queued = self.desk.limits.queued
        assert total.count <= self.desk.limits.running + 1.5 * queued + 1 + self.unchecked
        for key in ("ann", "bob", "cyd"):
            mine = [one.ticket for one in self.clients if one.ticket.key == key]
            assert self.desk.quotas.in_use(key)["jobs"] == len(mine)
            assert abs(self.desk.quotas.in_use(key)["audio_s"] - sum(one.audio_s for one in mine)) < 0.1

    @invariant()
    def the_sums_that_are_kept_in_step_are_right(self) -> None:
        tally, tickets = self.desk._tally, [one.ticket for one in self.clients]
        assert tally.bytes == sum(one.bytes for one in tickets)
        assert tally.held == sum(self.memory.held(one.name) for one in self.desk.running)
        assert tally.lanes == {one.ask.lane for one in tickets if one.phase is Phase.WAITING}
        assert set(self.desk._blocked) == {one for one in tickets if one.blocked_since is not None}

    @invariant()
    def nobody_is_kept_waiting_by_nothing(self) -> None:
        """A ticket that is the only one in line starts where a seat and its bytes are there."""
        waiting = [one.ticket for one in self.clients if one.ticket.phase is Phase.WAITING]
        if len(waiting) == 1 and not self.desk.paused and len(self.desk.running) < self.desk.limits.running:
            ticket = waiting[0]
            assert not (self.rooms.rooms[ticket.ask.lane].can_take(ticket.solo) and self.memory.fits(ticket.bytes))

    def teardown(self) -> None:
        if not hasattr(self, "desk"):
            return
        for client in list(self.clients):
            assert self.store.cancel(client.job_id)
            self.leaves(client)
        for lane in LANES:
            self.rooms.gone(lane)
        assert self.memory.holders() == {}
        assert self.memory.reserved == 0
        assert (self.desk.inside, self.desk.running, self.desk._front, self.desk.line.active) == ({}, {}, [], {})
        assert (len(self.desk.line), self.desk.bounds.total.count, self.desk.bounds.total.seconds) == (0, 0, 0.0)
        assert self.desk.admitted == self.desk.ended == sum(n for s, n in self.store.counts().items() if s.final)
        self.store.close()


Machine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMachine = Machine.TestCase
