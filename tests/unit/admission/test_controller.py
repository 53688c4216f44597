"""Who comes in, who is sent away and why, and that what was taken is given back."""

from __future__ import annotations

import traceback
from random import Random
from typing import Any

import pytest

from app.admission import refusals
from app.admission.controller import Controller
from app.admission.ledger import Ledger
from app.admission.quotas import Quota
from app.admission.ticket import Ask, Count, Limits, Phase, Ticket
from app.errors import (
    DeadlineUnreachable,
    MemoryLow,
    NeverFits,
    QueueFull,
    QuotaExceeded,
    StenopoolError,
    TooManyActive,
)
from tests.unit.admission.rooms import Room, Rooms


class Desk(Controller):
    """With a clock to turn."""

    def __init__(self, limits: Limits, *, memory: int = 100, seats: Any = None) -> None:
        self.time = 0.0
        super().__init__("jobs", limits, Ledger(memory), seats or Count(), lambda: self.time)

    def comes(self, ask: Ask) -> Ticket:
        ticket = self.enter(ask)
        self.wait(ticket, lambda seat, error: None)
        return ticket

    def state(self) -> tuple[Any, ...]:
        promises = self.promises
        return (
            self.admitted,
            self.ended,
            self.memory.reserved,
            len(self.line),
            (self.bounds.total.count, self.bounds.total.seconds, dict(self.bounds._seen)),
            (promises.made, promises.open, promises.kept, promises.broken),
            self.quotas.in_use("key"),
            dict(self.refused),
        )


def job(seconds: float = 10.0, amount: int = 0, key: str = "key", **more: Any) -> Ask:
    return Ask(key, "model", seconds, amount, **more)


QUEUE = Limits(2, 100, 60.0)
REJECT = Limits(2, 0, 0.0)


# -- in and out


def test_who_comes_in_is_counted_until_it_has_left_and_only_once() -> None:
    desk = Desk(QUEUE)
    tickets = [desk.comes(job(amount=10, audio_s=5.0)) for _ in range(4)]
    assert (desk.admitted, desk.started, len(desk.inside), len(desk.running), desk.memory.reserved) == (4, 2, 4, 2, 20)
    assert desk.quotas.in_use("key") == {"jobs": 4, "audio_s": 20.0}
    for ticket in [*tickets, *tickets]:
        desk.release(ticket)
    assert (desk.ended, len(desk.inside), desk.memory.reserved, len(desk.line), desk.line.active) == (4, 0, 0, 0, {})
    assert desk.quotas.in_use("key") == {"jobs": 0, "audio_s": 0.0}
    assert all(ticket.phase is Phase.ENDED for ticket in tickets)


def test_burst_of_as_many_as_run_and_wait_comes_in_whether_anything_was_decoded_yet_or_not() -> None:
    cold, warm = Desk(Limits(2, 10, 600.0)), Desk(Limits(2, 10, 600.0))
    for desk, comes in ((cold, cold.enter), (warm, warm.comes)):
        for _ in range(12):
            comes(job(1.0))
        with pytest.raises(QueueFull):
            comes(job(1.0))
        assert desk.is_full


@pytest.mark.parametrize("last", ["entered", "waiting", "running", "again"])
def test_whatever_a_ticket_was_doing_everything_is_given_back(last: str) -> None:
    desk = Desk(Limits(1, 10, 600.0))
    other = desk.comes(job(amount=5)) if last == "waiting" else None
    ticket = desk.enter(job(amount=7))
    if last != "entered":
        desk.wait(ticket, lambda seat, error: None)
    if last == "again":
        desk.again(ticket, amount=9)
    desk.release(ticket)
    assert desk.memory.reserved == (5 if other else 0)
    assert (desk.bounds.total.count, desk._front, ticket in desk.inside) == (0, [], False)


def test_a_part_of_something_comes_in_although_the_line_is_full() -> None:
    desk = Desk(Limits(1, 1, 600.0))
    for _ in range(2):
        desk.comes(job())
    with pytest.raises(QueueFull):
        desk.enter(job())
    assert desk.is_full
    assert desk.join(job()).phase is Phase.ENTERED


def test_a_refusal_changes_nothing_but_what_is_promised_and_counted() -> None:
    desk = Desk(Limits(1, 1, 600.0))
    for _ in range(2):
        desk.comes(job())
    before = desk.state()
    for _ in range(3):
        with pytest.raises(QueueFull) as error:
            desk.enter(job())
        assert error.value.retry_after_s is not None
    assert desk.state()[:5] == before[:5]
    assert (desk.promises.made, desk.refused) == (3, {"queue_full": 3})


def test_only_looking_changes_nothing() -> None:
    desk = Desk(QUEUE)
    for _ in range(6):
        desk.comes(job(20.0))
    quota = Quota(jobs=20, requests_per_minute=1)
    before = desk.state()
    estimate = desk.preview(job(key="other", quota=quota))
    assert (estimate.position, estimate.start_s, estimate.end_s) == (0, 20.0, 30.0)  # its key was served least
    assert desk.preview(job(quota=quota)).start_s == 60.0
    with pytest.raises(QuotaExceeded):
        desk.preview(job(quota=Quota(jobs=1)))
    with pytest.raises(NeverFits):
        desk.preview(job(amount=1000))
    with pytest.raises(DeadlineUnreachable):
        desk.preview(job(within_s=5.0))
    assert desk.state() == before
    assert desk.comes(job(quota=quota)).phase is Phase.WAITING


def test_looking_at_a_full_line_says_when_there_will_be_room() -> None:
    desk = Desk(Limits(1, 1, 600.0))
    for _ in range(2):
        desk.comes(job())
    before = desk.state()
    with pytest.raises(QueueFull) as error:
        desk.preview(job())
    assert error.value.retry_after_s == pytest.approx(10.0)
    assert desk.state() == before


# -- memory


def test_what_could_not_run_even_alone_is_refused_for_good() -> None:
    desk = Desk(QUEUE)
    with pytest.raises(NeverFits):
        desk.enter(job(amount=60, worker_bytes=41))
    desk.enter(job(amount=60, worker_bytes=40))


def test_while_memory_is_low_nobody_comes_in_and_the_error_does_not_grow() -> None:
    desk = Desk(QUEUE)
    desk.closed_because = refusals.memory_low(0.9)
    depths = []
    for _ in range(5):
        with pytest.raises(MemoryLow) as error:
            desk.enter(job())
        depths.append(len(traceback.extract_tb(error.value.__traceback__)))
    assert len(set(depths)) == 1
    assert desk.refused == {"memory_low": 5}


# -- the policy to reject


def test_where_nobody_may_wait_the_one_too_many_is_refused() -> None:
    desk = Desk(REJECT)
    desk.comes(job(4.0))
    desk.comes(job())
    with pytest.raises(TooManyActive, match="Too many active jobs") as error:
        desk.enter(job())
    assert error.value.code == "too_many_active"
    assert error.value.retry_after_s == 4


def test_where_nobody_may_wait_nobody_waits_for_memory_either() -> None:
    desk = Desk(Limits(4, 0, 0.0))
    desk.enter(job(amount=60))  # its body is still on its way: it has taken nothing yet
    assert desk.memory.reserved == 0
    with pytest.raises(TooManyActive):
        desk.enter(job(amount=60))
    desk.enter(job(amount=40))


def test_where_nobody_may_wait_idle_models_go_all_the_same() -> None:
    memory = Ledger(100)
    rooms = Rooms(memory, Room("model", 1, 10, "ready"), Room("idle", 1, 70, "ready"))
    for room in rooms.rooms.values():
        memory.take(room.name, room.worker_bytes)
    desk = Desk(REJECT, seats=rooms)
    desk.memory = memory
    with pytest.raises(TooManyActive):
        desk.enter(job(amount=30))
    assert rooms.rooms["idle"].state == "ending"
    rooms.gone("idle")
    assert desk.comes(job(amount=30)).phase is Phase.RUNNING


# -- deadlines


def test_what_cannot_be_done_in_time_is_refused_on_arrival() -> None:
    desk = Desk(Limits(1, 100, 600.0))
    desk.comes(job(20.0))
    with pytest.raises(DeadlineUnreachable) as error:
        desk.enter(job(10.0, within_s=29.0))
    assert error.value.retry_after_s == 1
    assert desk.enter(job(10.0, within_s=30.0))


def test_a_model_that_must_be_loaded_first_counts_towards_the_deadline() -> None:
    desk = Desk(QUEUE)
    with pytest.raises(DeadlineUnreachable) as error:
        desk.enter(job(10.0, within_s=12.0, load_s=3.0))
    assert error.value.retry_after_s == 1
    desk.enter(job(10.0, within_s=12.0))


def test_a_job_that_turns_out_to_be_too_long_for_its_deadline_is_refused_then() -> None:
    desk = Desk(Limits(1, 100, 600.0))
    ticket = desk.enter(job(5.0, within_s=20.0))
    desk.time = 8.0
    desk.settle(ticket, job(12.0, within_s=20.0))
    with pytest.raises(DeadlineUnreachable):
        desk.settle(ticket, job(13.0, within_s=20.0))
    desk.release(ticket)
    assert desk.bounds.total.seconds == 0


# -- what is known later


def test_what_is_known_later_takes_the_place_of_what_was_guessed() -> None:
    desk = Desk(Limits(1, 100, 600.0))
    desk.comes(job())
    ticket = desk.comes(job(10.0, 10, audio_s=60.0))
    desk.settle(ticket, job(30.0, 20, audio_s=200.0))
    assert (desk.bounds.total.seconds, desk.quotas.in_use("key")["audio_s"]) == (30.0, 200.0)
    desk.release(next(iter(desk.running)))
    assert desk.memory.reserved == 20


def test_what_turns_out_to_be_small_enough_starts_at_once() -> None:
    desk = Desk(QUEUE)
    desk.comes(job(amount=60))
    ticket = desk.comes(job(amount=60))
    assert ticket.phase is Phase.WAITING
    desk.settle(ticket, job(amount=40))
    assert ticket.phase is Phase.RUNNING


def test_what_turns_out_to_be_too_large_is_refused_and_gives_everything_back() -> None:
    desk = Desk(QUEUE)
    ticket = desk.comes(job(audio_s=1.0))
    waiting = desk.enter(job(audio_s=1.0))
    for one in (ticket, waiting):
        with pytest.raises(NeverFits):
            desk.settle(one, job(99.0, 1000, audio_s=500.0))
        desk.release(one)
    assert (desk.memory.reserved, desk.bounds.total.seconds, desk.quotas.in_use("key")["audio_s"]) == (0, 0.0, 0.0)


def test_what_has_ended_already_cannot_be_changed() -> None:
    desk = Desk(QUEUE)
    ticket, other = desk.enter(job(audio_s=1.0)), desk.enter(job(audio_s=1.0))
    desk.release(ticket)
    desk.settle(ticket, job(audio_s=100.0))
    assert desk.quotas.in_use("key")["audio_s"] == 1.0
    desk.release(other)


# -- keys


def test_a_key_has_no_more_jobs_inside_than_its_quota_allows() -> None:
    desk = Desk(QUEUE)
    ask = job(quota=Quota(jobs=2))
    first = desk.comes(ask)
    desk.comes(ask)
    with pytest.raises(QuotaExceeded) as error:
        desk.enter(ask)
    assert error.value.retry_after_s == 13  # 10 s, and a margin
    desk.enter(job(key="other", quota=Quota(jobs=2)))
    desk.release(first)
    desk.time = 13.0
    desk.enter(ask)


def test_a_request_that_comes_back_as_told_does_not_count_twice() -> None:
    desk = Desk(Limits(1, 1, 600.0))
    running, _ = (desk.comes(job()) for _ in range(2))
    once = Quota(requests_per_minute=1)
    with pytest.raises(QueueFull) as error:
        desk.enter(job(fingerprint="print", quota=once))
    assert error.value.retry_after_s == 10
    desk.time = 10.0
    desk.release(running)
    desk.comes(job(fingerprint="print", quota=once))
    with pytest.raises(QuotaExceeded):
        desk.enter(job(fingerprint="other", quota=once))
    assert desk.promises.kept == 1


def test_keys_take_turns_and_the_one_that_was_served_least_goes_first() -> None:
    desk = Desk(Limits(1, 100, 6000.0))
    order: list[str] = []
    running: list[Ticket] = []

    def comes(key: str) -> None:
        ticket = desk.enter(job(key=key))

        def on_turn(seat: Any, error: StenopoolError | None) -> None:
            order.append(key)
            running.append(ticket)

        desk.wait(ticket, on_turn)

    for key in "aaaaabb":
        comes(key)
    while running:
        desk.time += 10.0
        desk.release(running.pop())
    assert "".join(order) == "ababaaa"


def test_refusals_of_each_kind_are_counted() -> None:
    desk = Desk(Limits(1, 1, 600.0))
    for _ in range(2):
        desk.comes(job())
    for ask in (job(), job(), job(amount=1000), job(quota=Quota(jobs=1))):
        with pytest.raises(StenopoolError):
            desk.enter(ask)
    assert desk.refused == {"queue_full": 2, "never_fits": 1, "quota_exceeded": 1}


def test_nothing_is_left_after_a_busy_day() -> None:
    random = Random(3)
    desk = Desk(Limits(3, 20, 60.0), memory=50)
    for _ in range(3000):
        desk.time += random.expovariate(0.5)
        try:
            ask = job(random.expovariate(0.1), random.randrange(40), random.choice("abcd"), audio_s=random.random() * 100)
            desk.comes(ask)
        except StenopoolError:
            pass
        for ticket in [one for one in desk.inside if random.random() < 0.2]:
            desk.release(ticket)
        assert desk.memory.reserved <= 50
    for ticket in list(desk.inside):
        desk.release(ticket)
    assert desk.admitted == desk.ended > 1000
    assert (desk.memory.holders(), desk.line.active, desk.bounds._by_key) == ({}, {}, {})
    desk.time += 200
    assert desk.promises.calendar() == []
