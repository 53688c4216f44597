"""Who starts when: seats and bytes in one step, small before large for a while, second attempts first."""

from __future__ import annotations

from typing import Any

import pytest

from app.admission.controller import Controller
from app.admission.ledger import Ledger
from app.admission.ticket import Ask, Count, Limits, Phase, Seats, Ticket
from app.errors import ModelUnavailable, StenopoolError
from app.work import Blocked
from tests.unit.admission.rooms import Room, Rooms


class Desk(Controller):
    """With a clock to turn; ``turns`` is who was told what, in order."""

    def __init__(
        self, *, running: int = 4, memory: int = 100, seats: Seats | None = None, large_wait_s: float = 30.0, parallel: int = 0
    ) -> None:
        self.time = 0.0
        self.turns: list[tuple[Ticket, Any]] = []
        limits = Limits(running, 1000, 1e6, large_wait_s, parallel=parallel)
        super().__init__("jobs", limits, Ledger(memory), seats or Count(), lambda: self.time)

    def comes(self, amount: int = 0, seconds: float = 10.0, key: str = "key", lane: str = "model", worker: int = 0) -> Ticket:
        ticket = self.join(Ask(key, lane, seconds, amount, worker_bytes=worker))
        self.waits(ticket)
        return ticket

    def waits(self, ticket: Ticket) -> None:
        self.wait(ticket, lambda seat, error: self.turns.append((ticket, error or seat)))

    def ends(self, ticket: Ticket) -> None:
        next(seat for one, seat in self.turns if one is ticket).leave()
        self.release(ticket)

    def passes(self, seconds: float) -> None:
        self.time += seconds
        self.pump()


def runs(*tickets: Ticket) -> bool:
    return all(ticket.phase is Phase.RUNNING for ticket in tickets)


def with_rooms(*rooms: Room, memory: int = 100, running: int = 4) -> tuple[Desk, Rooms]:
    desk = Desk(running=running, memory=memory)
    desk._seats = found = Rooms(desk.memory, *rooms)
    for room in rooms:
        if room.state == "ready":
            desk.memory.take(room.name, room.worker_bytes)
    return desk, found


# -- starting


def test_no_more_run_than_allowed_and_the_next_one_follows_at_once() -> None:
    desk = Desk(running=2)
    first, second, third = (desk.comes() for _ in range(3))
    assert runs(first, second)
    assert third.phase is Phase.WAITING
    desk.time = 4.0
    desk.release(first)
    assert runs(third)
    assert (third.waited_s, desk.memory.reserved) == (4.0, 0)


def test_a_ticket_that_is_not_ready_is_passed_and_keeps_its_place() -> None:
    desk = Desk(running=1)
    running = desk.comes()
    uploading = desk.join(Ask("key", "model", 10.0))
    ready = desk.comes()
    assert desk.estimate(uploading).position == 0
    desk.release(running)
    assert runs(ready)
    desk.waits(uploading)
    desk.release(ready)
    assert runs(uploading)


def test_nothing_starts_while_starting_is_stopped() -> None:
    desk = Desk()
    desk.paused = True
    ticket = desk.comes()
    assert not runs(ticket)
    desk.paused = False
    desk.pump()
    assert runs(ticket)


def test_a_ticket_that_was_withdrawn_is_not_called() -> None:
    desk = Desk(running=1)
    running, other = desk.comes(), desk.comes()
    desk.withdraw(other)
    desk.withdraw(running)
    desk.release(running)
    assert [ticket for ticket, _ in desk.turns] == [running]
    desk.waits(other)
    assert runs(other)


def test_what_comes_free_while_others_are_told_their_turn_is_used_at_once() -> None:
    desk = Desk()
    running = desk.comes(60)
    large = desk.comes(60)
    small = desk.join(Ask("key", "model", 1.0, 10))
    desk.wait(small, lambda seat, error: desk.release(running))
    assert runs(small, large)


def test_bytes_are_given_back_where_there_is_no_seat() -> None:
    class Broken(Count):
        answer: Any = Blocked.BUSY

        def take(self, lane: str, *, solo: bool, keep: frozenset[str]) -> Any:
            if isinstance(self.answer, Exception) and not isinstance(self.answer, StenopoolError):
                raise self.answer
            return self.answer

    seats = Broken()
    desk = Desk(seats=seats)
    ticket = desk.comes(10)
    assert (desk.memory.reserved, ticket.phase) == (0, Phase.WAITING)
    seats.answer = RuntimeError("no")
    with pytest.raises(RuntimeError):
        desk.pump()
    assert desk.memory.reserved == 0
    seats.answer = ModelUnavailable()
    desk.pump()
    assert (desk.memory.reserved, ticket.phase) == (0, Phase.ENTERED)
    assert desk.turns == [(ticket, seats.answer)]


def test_a_busy_model_does_not_hold_up_other_models() -> None:
    desk, _ = with_rooms(Room("a", 1, 10, "ready"), Room("b", 1, 10, "ready"))
    first, second, other = desk.comes(lane="a"), desk.comes(lane="a"), desk.comes(lane="b")
    assert runs(first, other)
    assert not runs(second)


def test_all_who_wait_for_a_model_that_cannot_be_loaded_are_told() -> None:
    desk, rooms = with_rooms(Room("a", 1, 10), Room("b", 1, 10, "ready"))
    waiting = [desk.comes(lane="a") for _ in range(2)]
    entered = desk.join(Ask("key", "a", 1.0))
    running = desk.comes(lane="b")
    rooms.gone("a")
    rooms.rooms["a"].failure = error = ModelUnavailable()
    desk.fail_lane("a", error)
    assert desk.turns[0][0] is running
    assert desk.turns[1:] == [(ticket, error) for ticket in waiting]
    assert entered.phase is Phase.ENTERED
    desk.waits(entered)
    assert desk.turns[-1] == (entered, error)


# -- memory


def test_a_small_job_passes_a_large_one_that_does_not_fit() -> None:
    desk = Desk()
    running, large, small = desk.comes(60), desk.comes(60), desk.comes(30)
    assert runs(running, small)
    assert not runs(large)


def test_a_large_job_that_was_passed_for_long_enough_lets_nobody_pass_any_more() -> None:
    desk = Desk()
    running, large, small = desk.comes(60), desk.comes(80), desk.comes(30)
    desk.passes(29.0)
    desk.release(small)
    passing = desk.comes(30)
    assert runs(passing)
    desk.passes(1.0)
    desk.release(passing)
    late = desk.comes(10)
    assert not runs(late)
    desk.release(running)
    assert runs(large)
    assert runs(late)


def test_only_the_first_that_memory_holds_up_grows_old() -> None:
    desk = Desk()
    desk.comes(90)
    blocked = [desk.comes(50) for _ in range(5)]
    desk.passes(60.0)
    assert [ticket.blocked_since for ticket in blocked] == [0.0, None, None, None, None]


def test_the_jobs_of_a_flood_that_waits_for_memory_do_not_come_before_other_keys() -> None:
    desk = Desk(memory=100)
    running = desk.comes(100, key="flood")
    for _ in range(50):
        desk.comes(100, key="flood")
    desk.passes(100.0)
    other = desk.comes(100, key="other")
    desk.release(running)
    desk.passes(10.0)
    desk.release(next(iter(desk.running)))
    assert runs(other)


def test_a_job_that_memory_could_not_take_if_it_were_alone_holds_up_nobody() -> None:
    desk = Desk()
    running = desk.comes(60)
    desk.memory.budget = 70
    large = desk.comes(80)
    desk.passes(1000.0)
    small, smaller = desk.comes(10), desk.comes(70)
    assert runs(small)
    assert large.blocked_since is None
    assert smaller.blocked_since is not None
    desk.release(running)
    desk.release(small)
    assert runs(smaller)
    desk.memory.budget = 200
    desk.pump()
    assert runs(large)


def test_a_large_job_that_has_waited_long_lets_others_pass_again_once_it_cannot_fit_any_more() -> None:
    desk = Desk()
    running, large = desk.comes(60), desk.comes(80)
    desk.passes(40.0)
    small = desk.comes(10)
    assert not runs(small)
    desk.memory.budget = 75
    desk.pump()
    assert runs(running, small)
    assert not runs(large)


def test_what_a_large_job_has_waited_for_is_not_taken_while_its_model_loads() -> None:
    desk, rooms = with_rooms(Room("small", 4, 10, "ready"), Room("large", 1, 30))
    running = desk.comes(60, lane="small")
    large = desk.comes(60, lane="large", worker=30)
    desk.passes(31.0)
    desk.ends(running)
    assert rooms.rooms["large"].state == "loading"
    small, tiny = desk.comes(20, lane="small"), desk.comes(0, lane="small")
    assert not runs(small)
    assert runs(tiny)
    rooms.loaded("large")
    desk.pump()
    assert runs(large)


def test_an_idle_model_that_nobody_waits_for_is_evicted_and_one_that_is_waited_for_is_not_until_it_is_time() -> None:
    desk, rooms = with_rooms(Room("a", 1, 60, "ready"), Room("b", 1, 60), running=1)
    blocker = desk.comes(lane="a")
    waiting_b, waiting_a = desk.comes(lane="b", key="b", worker=60), desk.comes(lane="a")
    desk.ends(blocker)
    assert runs(waiting_a)  # b's model does not fit beside a's, which is waited for
    assert rooms.rooms["a"].state == "ready"
    more = [desk.comes(lane="a") for _ in range(2)]
    desk.ends(waiting_a)
    assert runs(more[0])
    desk.passes(31.0)
    desk.ends(more[0])
    assert not runs(more[1])
    assert rooms.rooms["a"].state == "ending"
    rooms.gone("a")
    desk.pump()
    assert rooms.rooms["b"].state == "loading"
    rooms.loaded("b")
    desk.pump()
    assert runs(waiting_b)


# -- second attempts


def test_a_second_attempt_goes_first_alone_and_with_more_memory() -> None:
    desk, rooms = with_rooms(Room("model", 3, 10, "ready"), running=3)
    first, second, third = (desk.comes(20) for _ in range(3))
    waiting = desk.comes(0)
    rooms.gone("model")
    for ticket in (first, second, third):
        desk.again(ticket, amount=30)
    assert desk.memory.reserved == 0
    for ticket in (first, second, third):
        desk.waits(ticket)
    rooms.loaded("model")
    desk.pump()
    assert runs(first)
    assert (first.bytes, first.solo, desk.memory.held(first.name)) == (30, True, 30)
    assert not any(runs(ticket) for ticket in (second, third, waiting))
    assert [desk.estimate(ticket).position for ticket in (second, third, waiting)] == [0, 1, 2]


@pytest.mark.parametrize(("amount", "expected"), [(30, 30), (1000, 90), (0, 20)])
def test_a_second_attempt_is_given_more_but_never_more_than_there_is_and_never_less_than_before(
    amount: int, expected: int
) -> None:
    desk = Desk()
    ticket = desk.comes(20, worker=10)
    desk.again(ticket, amount=max(20, amount))
    assert ticket.bytes == expected
    desk.most_bytes = 5
    desk.waits(ticket)
    desk.again(ticket, amount=1000)
    assert ticket.bytes == expected


def test_only_what_runs_can_be_tried_again() -> None:
    desk = Desk(running=1)
    desk.comes()
    waiting = desk.comes()
    desk.again(waiting, amount=5)
    assert (waiting.phase, waiting.solo, desk.bounds.total.count) == (Phase.WAITING, False, 1)


def test_a_key_is_charged_what_its_work_took_and_not_what_was_predicted() -> None:
    desk = Desk(running=1)
    first = desk.comes(seconds=100.0, key="a")
    long, second, last = desk.comes(seconds=50.0, key="b"), desk.comes(key="a"), desk.comes(key="b")
    desk.time = 1.0
    desk.release(first)
    assert runs(long)
    desk.time = 51.0
    desk.release(long)
    assert runs(second)
    assert not runs(last)


def test_the_time_of_an_attempt_that_failed_is_charged_too() -> None:
    desk = Desk(running=1)
    ticket = desk.comes(seconds=5.0, key="a")
    others = [desk.comes(seconds=3.0, key=key) for key in "ab"]
    desk.time = 2.0
    desk.again(ticket, amount=0)
    assert desk.line._served["a"] == 2.0
    desk.release(ticket)
    assert [one.phase is Phase.RUNNING for one in others] == [False, True]


# -- estimates


def test_what_runs_over_its_prediction_is_expected_to_need_a_little_more() -> None:
    desk = Desk(running=1)
    ticket = desk.comes(seconds=10.0)
    desk.time = 4.0
    assert desk.estimate(ticket).end_s == 6.0
    desk.time = 50.0
    assert desk.estimate(ticket).end_s == 1.0


def test_progress_is_believed_more_than_the_prediction() -> None:
    desk = Desk(running=1)
    ticket = desk.comes(seconds=10.0)
    desk.time = 8.0
    desk.progressed(ticket, 0.2)
    assert desk.estimate(ticket).end_s == pytest.approx(32.0)
    desk.progressed(ticket, 0.01)
    assert desk.estimate(ticket).end_s == pytest.approx(32.0)


def test_where_memory_takes_fewer_than_there_are_streams_the_wait_is_longer() -> None:
    desk = Desk(running=4, memory=100)
    for _ in range(6):
        desk.comes(50, seconds=10.0)
    assert desk.streams() == 2
    assert desk.wait_s() == 30.0


def test_a_long_line_is_estimated_like_a_short_one() -> None:
    desk = Desk(running=2)
    for _ in range(500):
        desk.comes(seconds=2.0)
    assert desk.wait_s() == pytest.approx(500.0)


def test_the_ends_of_a_keys_jobs_are_seen() -> None:
    desk = Desk(running=1)
    for key, seconds in (("a", 5.0), ("b", 7.0), ("a", 9.0)):
        desk.comes(seconds=seconds, key=key)
    assert desk.ends_of("a") == [(5.0, 0.0), (21.0, 0.0)]
    assert desk.ends_of("nobody") == []


# -- more places than streams: those inside share


def test_those_inside_share_the_streams_and_progress_counts_in_work() -> None:
    desk = Desk(running=4, parallel=2)
    tickets = [desk.comes(seconds=10.0) for _ in range(4)]
    assert runs(*tickets)
    assert (desk.places(), desk.streams()) == (4, 2)
    desk.passes(10.0)  # each has had half a stream
    assert [desk.estimate(ticket).end_s for ticket in tickets] == [5.0] * 4
    desk.progressed(tickets[0], 0.25)  # of which it has made a quarter in 5 s of work
    assert tickets[0].seconds == 20.0


def test_who_finds_a_place_free_starts_at_once_and_ends_when_the_work_of_all_is_done() -> None:
    desk = Desk(running=4, parallel=2)
    desk.comes(seconds=10.0)
    desk.comes(seconds=10.0)
    third = desk.preview(Ask("key", "model", 4.0))
    assert (third.position, third.start_s, third.end_s) == (0, 0.0, 14.0)


def test_the_next_place_comes_free_later_the_more_share_the_streams() -> None:
    desk, alone = Desk(running=4, parallel=2), Desk(running=4)
    for one in (desk, alone):
        for _ in range(4):
            one.comes(seconds=10.0)
    assert (desk.wait_s(), alone.wait_s()) == (20.0, 10.0)


def test_a_key_is_charged_its_share_of_the_streams_only() -> None:
    desk = Desk(running=2, parallel=1)
    first, _ = desk.comes(seconds=4.0, key="a"), desk.comes(seconds=4.0, key="b")
    desk.passes(8.0)
    charged: list[float] = []
    desk.line.charge = lambda key, seconds: charged.append(seconds)  # type: ignore[method-assign]
    desk.release(first)
    assert charged == [0.0]


# -- places that come and go, and a great many of them


def test_places_that_come_are_filled_at_once_and_those_that_go_are_taken_from_nobody() -> None:
    desk = Desk(running=2)
    tickets = [desk.comes() for _ in range(5)]
    desk.resize(4)
    assert runs(*tickets[:4])
    desk.resize(1)
    assert runs(*tickets[:4])
    for ticket in tickets[:3]:
        desk.release(ticket)
    assert (tickets[4].phase, desk.streams()) == (Phase.WAITING, 1)
    desk.release(tickets[3])
    assert runs(tickets[4])


def test_without_any_place_a_desk_is_to_be_closed_not_resized() -> None:
    with pytest.raises(ValueError, match="place"):
        Desk().resize(0)


def test_of_a_great_many_the_wait_is_counted_now_and_then_and_right_all_the_time() -> None:
    desk = Desk(running=200)
    tickets = [desk.comes(seconds=10.0 + number % 7) for number in range(600)]
    counted: list[float] = []
    exact = desk._count_wait_s
    desk._count_wait_s = lambda: counted.append(exact()) or counted[-1]  # type: ignore[method-assign,func-returns-value]
    wrong = []
    for number in range(400):
        desk.passes(0.05)
        desk.release(tickets[number])
        tickets.append(desk.comes(seconds=12.0))
        wrong.append(abs(desk.wait_s() - exact()) / exact())
    assert max(wrong) < 0.05
    assert 0 < len(counted) <= 20.0 / (1e-4 * 600) + 1
    desk.resize(400)
    assert desk.wait_s() == pytest.approx(exact())
