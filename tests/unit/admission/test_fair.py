"""Whoever was served least goes first; nobody saves up turns, and what was guessed wrong is given back."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission import fair
from app.admission.fair import CREDIT_S, FairLine


@dataclass(eq=False)
class Job:
    key: str
    seconds: float = 1.0
    entered_at: float = 0.0


def line_of(*jobs: Job) -> FairLine[Job]:
    line: FairLine[Job] = FairLine()
    for job in jobs:
        line.arrive(job.key)
        line.push(job)
    return line


def order(line: FairLine[Job]) -> str:
    return "".join(job.key for job in line.in_order())


def serve(line: FairLine[Job], took_s: float | None = None) -> Job:
    """The next one works, and ends."""
    job = next(line.in_order())
    line.started(job)
    line.charge(job.key, 0.0 if took_s is None else took_s - job.seconds)
    return job


def test_keys_take_turns_whatever_the_order_of_arrival() -> None:
    line = line_of(*(Job("a", entered_at=at) for at in range(4)), Job("b", entered_at=4), Job("b", entered_at=5))
    assert order(line) == "ababaa"
    assert len(line) == 6


def test_turns_are_counted_in_seconds_not_in_jobs() -> None:
    line = line_of(*(Job("a", 3.0) for _ in range(3)), *(Job("b", 1.0, 1.0) for _ in range(6)))
    assert order(line) == "abbbabbba"


def test_within_a_key_the_order_is_that_of_arrival() -> None:
    jobs = [Job("a", float(9 - at), float(at)) for at in range(5)]
    assert list(line_of(*jobs).in_order()) == jobs


def test_what_was_charged_too_much_is_given_back() -> None:
    line = line_of(*(Job("a", 10.0) for _ in range(3)), *(Job("b", 4.0, 1.0) for _ in range(3)))
    assert serve(line, took_s=1.0).key == "a"
    assert [serve(line).key for _ in range(2)] == ["b", "a"]


def test_who_comes_back_from_idleness_has_saved_up_only_a_few_turns() -> None:
    line = line_of(*(Job("a", 10.0) for _ in range(100)))
    for _ in range(50):
        serve(line)
    late = [Job("b", 10.0, 1.0) for _ in range(20)]
    for job in late:
        line.arrive("b")
        line.push(job)
    first = [serve(line).key for _ in range(20)]
    ahead = int(CREDIT_S / 10.0)
    assert first[:ahead] == ["b"] * ahead
    assert abs(first[ahead + 1 :].count("a") - first[ahead + 1 :].count("b")) <= 1


def test_a_key_that_goes_and_comes_back_does_not_lose_what_it_owes() -> None:
    line = line_of(Job("b"), Job("b"), Job("a", 30.0, -1.0))
    serve(line)
    line.leave("a")
    line.arrive("a")
    line.push(Job("a", 1.0, -1.0))
    assert order(line) == "bba"


def test_when_everybody_has_gone_nobody_owes_anything() -> None:
    line = line_of(Job("a", 1000.0))
    serve(line)
    line.leave("a")
    for job in (Job("a"), Job("b", 1.0, 1.0)):
        line.arrive(job.key)
        line.push(job)
    assert order(line) == "ab"


def test_removing_who_is_not_there_does_nothing() -> None:
    job = Job("a")
    line = line_of(job)
    line.remove(job)
    line.remove(job)
    line.remove(Job("z"))
    assert (len(line), order(line)) == (0, "")


def test_who_looks_through_the_line_meets_all_who_stay_although_others_leave_and_come() -> None:
    jobs = [Job("a", entered_at=float(at)) for at in range(5)]
    line, seen = line_of(*jobs), []
    for job in line.in_order():
        seen.append(job)
        if job is jobs[1]:
            line.started(job)
            line.remove(jobs[0])
            line.remove(jobs[3])
            line.push(Job("b"))
    assert seen == [jobs[0], jobs[1], jobs[2], jobs[4]]
    assert len(line) == 3


def test_keys_that_went_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair, "MAX_IDLE_KEYS", 5)
    line = line_of(Job("here"))
    for number in range(50):
        line.arrive(f"key-{number}")
        line.charge(f"key-{number}", 1.0)
        line.leave(f"key-{number}")
    assert len(line._served) <= 6
    assert set(line.active) == {"here"}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 20.0)), min_size=1, max_size=40))
def test_backlogged_keys_never_drift_apart_by_more_than_a_job(jobs: list[tuple[str, float]]) -> None:
    line = line_of(*(Job(key, seconds, float(at)) for at, (key, seconds) in enumerate(jobs)))
    served = dict.fromkeys("abc", 0.0)
    while len(line):
        waiting = {job.key for job in line.in_order()}
        job = serve(line)
        assert served[job.key] <= min(served[key] for key in waiting) + 1e-6
        served[job.key] += job.seconds
