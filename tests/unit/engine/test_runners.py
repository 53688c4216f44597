"""Runners: shared, fair, and nobody fails for another one's sake. No model: windows are numbers and strings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.engine.lease import Lease, Stopped, Unit
from app.engine.runners import Runners

Tools = Callable[..., "Tool"]


def never() -> bool:
    return False


class Tool:
    """Runners whose batches wait until the test lets them go, and are noted."""

    def __init__(self, count: int = 1, size: int = 4, wait_s: float = 0.0, express: bool = False) -> None:
        self.batches: list[list[Any]] = []
        self.gate = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self.at_once: Any = None
        self.now_s = 0.0
        self.runners: Runners[Any] = Runners(self._run, count, size, wait_s, express=express, clock=lambda: self.now_s)

    def _run(self, units: Sequence[Unit[Any]]) -> list[Any]:
        self.batches.append([unit.window for unit in units])
        if units[0].window == self.at_once:
            return [f"<{unit.window}>" for unit in units]
        self.began.release()
        assert self.gate.acquire(timeout=10)
        if any(unit.window == "bad" for unit in units):
            raise ValueError("bad window")
        return [f"<{unit.window}>" for unit in units]

    def go(self, batches: int = 100) -> None:
        for _ in range(batches):
            self.gate.release()

    def until_began(self) -> None:
        assert self.began.acquire(timeout=10)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def job(tool: Tool, windows: Sequence[Any], **how: Any) -> list[Any]:
    with tool.runners.lease(never) as lease:
        return list(lease.windows(windows, **how))


def busy(tool: Tool, threads: ThreadPoolExecutor) -> Any:
    """One batch is at work and nobody else waits."""
    future = threads.submit(job, tool, ["first"])
    tool.until_began()
    return future


def waiting(tool: Tool, threads: ThreadPoolExecutor, *jobs: Sequence[Any], **how: Any) -> list[Any]:
    """Futures of jobs that stand in line in this order."""
    futures = []
    for windows in jobs:
        before = len(tool.runners._ready)
        futures.append(threads.submit(job, tool, windows, **how))
        while len(tool.runners._ready) == before:
            pass
    return futures


def test_results_are_in_order_and_batches_no_larger_than_the_size(threads: ThreadPoolExecutor) -> None:
    tool = Tool()
    tool.go()
    assert job(tool, range(10)) == [f"<{number}>" for number in range(10)]
    assert [len(batch) for batch in tool.batches] == [4, 4, 2]


def test_windows_of_several_jobs_share_a_batch_and_each_gets_its_own(threads: ThreadPoolExecutor) -> None:
    tool = Tool()
    first = busy(tool, threads)
    others = waiting(tool, threads, ["a"], ["b"], ["c"], ["d"], ["e"])
    tool.go()
    assert [future.result(10) for future in others] == [["<a>"], ["<b>"], ["<c>"], ["<d>"], ["<e>"]]
    assert first.result(10) == ["<first>"]
    assert tool.batches == [["first"], ["a", "b", "c", "d"], ["e"]]


def test_a_short_job_waits_for_a_batch_and_not_for_a_long_job(threads: ThreadPoolExecutor) -> None:
    tool = Tool(size=2)
    first = busy(tool, threads)
    long, short = waiting(tool, threads, [f"long {number}" for number in range(100)], ["short"])
    tool.go(2)
    assert short.result(10) == ["<short>"]
    assert tool.batches[1] == ["long 0", "short"]
    tool.go()
    assert len(long.result(10)) == 100
    assert first.result(10)


def test_half_of_a_batch_is_for_the_oldest_job(threads: ThreadPoolExecutor) -> None:
    tool = Tool(size=4)
    first = busy(tool, threads)
    jobs = waiting(tool, threads, *([f"{name} {number}" for number in range(6)] for name in ("old", "new", "newer")))
    tool.go()
    assert all(len(future.result(10)) == 6 for future in jobs)
    assert first.result(10)
    assert tool.batches[1] == ["old 0", "old 1", "new 0", "newer 0"]
    assert sum("old" in window for window in tool.batches[2]) == 2


def test_a_lone_job_is_spread_over_all_idle_runners(threads: ThreadPoolExecutor) -> None:
    tool = Tool(count=2)
    future = threads.submit(job, tool, range(4))
    tool.until_began()
    tool.until_began()
    assert sorted(map(len, tool.batches)) == [2, 2]
    tool.go()
    assert future.result(10)


def test_the_last_windows_of_recordings_are_spread_over_runners_that_end_together(threads: ThreadPoolExecutor) -> None:
    tool = Tool(count=2)
    future = threads.submit(job, tool, range(13))
    tool.until_began()  # both are at work before the first one may end: two idle ones would share what is left
    tool.until_began()
    tool.now_s = 10.0
    for _ in range(2):
        tool.go(1)
        tool.until_began()
    tool.go()
    assert future.result(10) == [f"<{number}>" for number in range(13)]
    assert [len(batch) for batch in tool.batches] == [4, 4, 3, 2]


def test_a_runner_takes_more_of_the_last_windows_where_the_other_has_only_begun(threads: ThreadPoolExecutor) -> None:
    tool = Tool(count=2)
    future = threads.submit(job, tool, range(11))
    tool.until_began()
    tool.until_began()
    tool.go(1)
    tool.until_began()
    assert [len(batch) for batch in tool.batches] == [4, 4, 3]
    tool.go()
    assert len(future.result(10)) == 11


def test_clips_of_one_window_fill_the_next_batch_though_another_runner_is_at_work(threads: ThreadPoolExecutor) -> None:
    tool = Tool(count=2)
    first = busy(tool, threads)
    second = threads.submit(job, tool, ["second"])
    tool.until_began()
    clips = waiting(tool, threads, *([name] for name in "abcd"))
    tool.go(1)
    tool.until_began()
    assert tool.batches[2] == ["a", "b", "c", "d"]
    tool.go()
    assert all(future.result(10) for future in (first, second, *clips))


def test_a_smaller_batch_may_be_asked_for(threads: ThreadPoolExecutor) -> None:
    tool = Tool()
    tool.go()
    with tool.runners.lease(never, 1) as lease:
        assert list(lease.windows([1, 2])) == ["<1>", "<2>"]
    assert tool.batches == [[1], [2]]


def test_where_windows_hold_back_the_first_goes_alone_and_the_others_after_it(threads: ThreadPoolExecutor) -> None:
    tool = Tool(count=2)
    future = threads.submit(job, tool, [1, 2, 3], hold=True)
    tool.until_began()
    assert tool.batches == [[1]]
    assert not tool.runners._ready
    tool.go()
    assert future.result(10) == ["<1>", "<2>", "<3>"]


def test_windows_that_hold_back_are_free_as_soon_as_they_are_released(threads: ThreadPoolExecutor) -> None:
    tool = Tool(count=2)
    leases: list[Lease[Any]] = []

    def run() -> list[Any]:
        with tool.runners.lease(never) as lease:
            leases.append(lease)
            return list(lease.windows([1, 2], hold=True))

    future = threads.submit(run)
    tool.until_began()
    tool.runners.release(leases[0])
    tool.until_began()
    assert tool.batches == [[1], [2]]
    tool.go()
    assert future.result(10) == ["<1>", "<2>"]


def test_runners_are_awaited_while_windows_wait_and_while_a_job_may_still_bring_some(threads: ThreadPoolExecutor) -> None:
    tool = Tool()
    first = busy(tool, threads)
    assert not tool.runners.awaited()
    (second,) = waiting(tool, threads, ["second"])
    assert tool.runners.awaited()
    tool.go()
    assert (first.result(10), second.result(10)) == (["<first>"], ["<second>"])
    assert not tool.runners.awaited()
    with tool.runners.lease(never):
        assert tool.runners.awaited()
    assert not tool.runners.awaited()


def test_runners_are_awaited_by_windows_that_hold_back(threads: ThreadPoolExecutor) -> None:
    tool = Tool(count=2)
    future = threads.submit(job, tool, [1, 2, 3], hold=True)
    tool.until_began()
    assert tool.runners.awaited()
    tool.go()
    assert future.result(10) == ["<1>", "<2>", "<3>"]
    assert not tool.runners.awaited()


def test_one_bad_window_fails_its_own_job_only(threads: ThreadPoolExecutor) -> None:
    tool = Tool()
    first = busy(tool, threads)
    good, bad, other = waiting(tool, threads, ["good"], ["bad"], ["other"])
    tool.go()
    assert (good.result(10), other.result(10), first.result(10)) == (["<good>"], ["<other>"], ["<first>"])
    with pytest.raises(ValueError, match="bad window"):
        bad.result(10)
    assert job(tool, ["again"]) == ["<again>"]


def test_calls_run_in_turn_and_their_errors_are_their_callers(threads: ThreadPoolExecutor) -> None:
    tool = Tool()
    with tool.runners.lease(never) as lease:
        assert list(lease.calls([lambda: 1, lambda: 2])) == [1, 2]
        assert next(lease.calls([threading.current_thread])).name == "runner-0"
        with pytest.raises(ZeroDivisionError):
            list(lease.calls([lambda: 1 / 0]))


def test_a_job_that_is_cancelled_while_it_waits_leaves_at_once_and_its_windows_are_not_computed(
    threads: ThreadPoolExecutor,
) -> None:
    tool = Tool()
    first = busy(tool, threads)
    with pytest.raises(Stopped), tool.runners.lease(lambda: True) as lease:
        list(lease.windows(["gone"]))
    tool.go()
    assert first.result(10) == ["<first>"]
    assert job(tool, ["next"]) == ["<next>"]
    assert tool.batches == [["first"], ["next"]]


def test_what_was_at_work_at_once_is_told_to_every_job_that_was_there(threads: ThreadPoolExecutor) -> None:
    tool = Tool(count=2)
    with tool.runners.lease(never) as watching:
        futures = [threads.submit(job, tool, range(4)), *waiting(tool, threads)]
        tool.until_began()
        tool.until_began()
        tool.go()
        assert futures[0].result(10)
    assert (watching.spent.calls, watching.spent.windows, watching.spent.seconds) == (2, 4, 0.0)


def test_a_batch_waits_for_more_windows_only_where_other_jobs_are_about(threads: ThreadPoolExecutor) -> None:
    tool = Tool(wait_s=30.0)
    tool.go()
    assert job(tool, ["alone"]) == ["<alone>"]
    with tool.runners.lease(never) as other:
        future = threads.submit(job, tool, ["waits"])
        assert list(other.windows(["comes"])) == ["<comes>"]
        assert future.result(10) == ["<waits>"]
    assert sorted(tool.batches[1]) == ["comes", "waits"]


# -- the express, which takes short jobs while all runners have long ones


def long_ones(name: str) -> list[str]:
    return [f"{name} {number}" for number in range(20)]


def test_a_short_job_does_not_wait_for_the_batches_of_long_ones(threads: ThreadPoolExecutor) -> None:
    tool = Tool(count=2, express=True)
    tool.at_once = "short"
    long = threads.submit(job, tool, long_ones("long"))
    tool.until_began()
    tool.until_began()
    assert job(tool, ["short", "short"]) == ["<short>"] * 2
    assert [batch for batch in tool.batches if "short" in batch] == [["short"]] * 2
    tool.go()
    assert len(long.result(10)) == 20


def test_the_first_call_of_a_job_does_not_wait_for_a_long_one_either(threads: ThreadPoolExecutor) -> None:
    tool = Tool(express=True)
    long = threads.submit(job, tool, long_ones("long"))
    tool.until_began()
    with tool.runners.lease(never) as lease:
        assert list(lease.calls([lambda: "found speech"])) == ["found speech"]
    tool.go()
    assert len(long.result(10)) == 20


def test_a_short_job_is_taken_when_a_runner_has_just_begun_a_long_one(threads: ThreadPoolExecutor) -> None:
    tool = Tool(express=True)
    tool.at_once = "short"
    first = busy(tool, threads)
    (long,) = waiting(tool, threads, long_ones("long"), hold=True)
    (short,) = waiting(tool, threads, ["short"])
    tool.go(1)
    assert short.result(10) == ["<short>"]
    tool.go()
    assert [len(future.result(10)) for future in (first, long)] == [1, 20]


def test_a_long_job_waits_for_a_runner_and_a_short_one_behind_a_short_one_too(threads: ThreadPoolExecutor) -> None:
    tool = Tool(express=True)
    first = busy(tool, threads)
    futures = waiting(tool, threads, long_ones("long"), ["short"])
    assert tool.batches == [["first"]]
    tool.go()
    assert [len(future.result(10)) for future in (first, *futures)] == [1, 20, 1]


def test_a_batch_is_of_short_jobs_or_of_long_ones(threads: ThreadPoolExecutor) -> None:
    tool = Tool(express=True)
    first = busy(tool, threads)
    futures = waiting(tool, threads, long_ones("long"), ["short 1"], long_ones("longer"), ["short 2"])
    tool.go()
    assert [len(future.result(10)) for future in (first, *futures)] == [1, 20, 1, 20, 1]
    assert all(len({window.startswith("short") for window in batch}) == 1 for batch in tool.batches)
    assert ["short 1", "short 2"] in tool.batches
    assert any({"long", "longer"} == {window.split()[0] for window in batch} for batch in tool.batches)


def test_what_the_express_has_at_work_is_told_to_everybody(threads: ThreadPoolExecutor) -> None:
    tool = Tool(express=True)
    with tool.runners.lease(never) as watching:
        long = threads.submit(job, tool, long_ones("long"))
        tool.until_began()
        short = threads.submit(job, tool, ["short"])
        tool.until_began()
        tool.go()
        assert short.result(10) == ["<short>"]
        assert len(long.result(10)) == 20
    assert (watching.spent.calls, watching.spent.windows) == (2, 5)


def test_windows_of_a_job_that_is_about_to_bring_them_go_with_those_that_are_there(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.runners.SOON_S", 60.0)
    tool = Tool()
    tool.go()
    with tool.runners.lease(never) as comes:
        future = threads.submit(job, tool, ["first"])
        while not tool.runners._jobs - {comes} or tool.runners._ready:  # until the runner has taken it, and waits
            pass
        assert list(comes.windows(["second"])) == ["<second>"]
    assert future.result(10) == ["<first>"]
    assert tool.batches == [["first", "second"]]


def test_a_batch_does_not_wait_for_a_job_whose_call_is_at_work(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.runners.SOON_S", 60.0)
    tool, calls, may_end = Tool(count=2), threading.Event(), threading.Event()

    def call() -> None:
        calls.set()
        assert may_end.wait(10)

    def called() -> None:
        with tool.runners.lease(never) as lease:
            list(lease.calls([call]))

    calling = threads.submit(called)
    assert calls.wait(10)
    future = threads.submit(job, tool, ["first"])
    tool.until_began()
    tool.go()
    may_end.set()
    assert future.result(10) == ["<first>"]
    calling.result(10)


def test_a_batch_does_not_wait_for_a_job_of_whose_calls_one_has_ended(threads: ThreadPoolExecutor) -> None:
    tool, gate = Tool(count=2), threading.Event()
    ended = threading.Event()
    with tool.runners.lease(never) as lease:
        results = threads.submit(list, lease.calls([ended.set, lambda: gate.wait(10)]))
        assert ended.wait(10)
        while lease.calling != 1:
            pass
        assert not lease.pending
        gate.set()
        results.result(10)
        assert lease.calling == 0


def test_windows_are_spread_over_idle_runners_as_if_those_that_are_coming_were_there(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.runners.SOON_S", 0.0)
    tool = Tool(count=2)
    tool.go()
    with tool.runners.lease(never):
        assert threads.submit(job, tool, ["1", "2"]).result(10) == ["<1>", "<2>"]
    assert tool.batches == [["1", "2"]]


# -- giving way to it


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who rests, rests until the express has done its work."""
    monkeypatch.setattr("app.engine.runners.GIVE_WAY_S", 3600.0)


def with_express(tool: Tool, threads: ThreadPoolExecutor) -> list[Any]:
    """Futures of a long job that keeps all runners busy, and of a short one that the express has."""
    long = threads.submit(job, tool, long_ones("long"))
    for _ in range(tool.runners._count):
        tool.until_began()
    short = threads.submit(job, tool, ["short"])
    tool.until_began()
    return [long, short]


@pytest.mark.usefixtures("patient")
def test_one_of_two_runners_rests_while_the_express_is_at_work(threads: ThreadPoolExecutor) -> None:
    tool = Tool(count=2, express=True)
    long, short = with_express(tool, threads)
    resting = threads.submit(tool.runners.give_way)
    while not tool.runners._resting:
        pass
    threads.submit(tool.runners.give_way).result(10)  # the other one goes on
    assert not resting.done()
    tool.go()
    resting.result(10)
    assert short.result(10) == ["<short>"]
    assert len(long.result(10)) == 20


@pytest.mark.usefixtures("patient")
def test_a_lone_runner_does_not_rest(threads: ThreadPoolExecutor) -> None:
    tool = Tool(count=1, express=True)
    futures = with_express(tool, threads)
    threads.submit(tool.runners.give_way).result(10)
    tool.go()
    assert [len(future.result(10)) for future in futures] == [20, 1]


@pytest.mark.usefixtures("patient")
def test_nobody_rests_while_there_is_a_runner_without_work(threads: ThreadPoolExecutor) -> None:
    tool = Tool(count=2, express=True)
    futures = with_express(tool, threads)
    with tool.runners._changed:
        tool.runners._idle += 1
    threads.submit(tool.runners.give_way).result(10)
    with tool.runners._changed:
        tool.runners._idle -= 1
    tool.go()
    assert [len(future.result(10)) for future in futures] == [20, 1]


@pytest.mark.usefixtures("patient")
def test_a_runner_with_short_jobs_does_not_rest_for_another_short_one(threads: ThreadPoolExecutor) -> None:
    tool = Tool(count=2, express=True)
    futures = with_express(tool, threads)
    futures += waiting(tool, threads, ["short too"])
    tool.gate.release()  # one of the three goes on, until it is a runner that takes the other short one
    tool.until_began()
    while ["short too"] not in tool.batches:
        tool.gate.release()
        tool.until_began()
    threads.submit(tool.runners.give_way).result(10)
    tool.go()
    assert [len(future.result(10)) for future in futures] == [20, 1, 1]


def test_a_runner_does_not_rest_for_ever(threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.runners.GIVE_WAY_S", 0.01)
    tool = Tool(count=2, express=True)
    long, short = with_express(tool, threads)
    threads.submit(tool.runners.give_way).result(10)
    assert not short.done()
    tool.go()
    assert len(long.result(10)) == 20


@pytest.mark.usefixtures("patient")
def test_the_express_itself_does_not_rest(threads: ThreadPoolExecutor) -> None:
    ways: list[str] = []

    def run(units: Sequence[Unit[Any]]) -> list[Any]:
        if units[0].window == "short":
            runners.give_way()
            ways.append(threading.current_thread().name)
            gate.set()
        began.release()
        assert gate.wait(10)
        return [unit.window for unit in units]

    gate, began = threading.Event(), threading.Semaphore(0)
    runners: Runners[Any] = Runners(run, 2, 4, express=True)
    with runners.lease(never) as long:
        results = long.windows(long_ones("long"))
        first = threads.submit(next, results)
        assert all(began.acquire(timeout=10) for _ in range(2))
        with runners.lease(never) as short:
            assert list(short.windows(["short"])) == ["short"]
        assert first.result(10) == "long 0"
        assert len(list(results)) == 19
    assert ways == ["express"]


# -- what batches leave behind


class Noted:
    """Runners that note what they do, one thing after the other."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.runners: Runners[Any] = Runners(self._run, 1, 2, on_rest=lambda: self.events.append("rest"))

    def _run(self, units: Sequence[Unit[Any]]) -> list[Any]:
        self.events.append([unit.window for unit in units])
        return [unit.window for unit in units]


def test_what_batches_left_is_given_back_when_no_window_follows_and_before_the_job_goes_on() -> None:
    noted = Noted()
    with noted.runners.lease(never) as lease:
        assert list(lease.windows(range(5))) == [0, 1, 2, 3, 4]
        noted.events.append("has all")
        for done in lease.calls([lambda: noted.events.append("call")] * 3):
            assert done is None
    assert noted.events == [[0, 1], [2, 3], [4], "rest", "has all", "call", "call", "call", "rest"]


def test_what_batches_left_is_given_back_beside_the_calls_of_another_job(threads: ThreadPoolExecutor) -> None:
    rested = threading.Event()
    gate = threading.Event()
    runners: Runners[Any] = Runners(lambda units: [None] * len(units), 2, 4, on_rest=rested.set)
    with runners.lease(never) as aligning, runners.lease(never) as other:
        call = threads.submit(list, aligning.calls([lambda: gate.wait(10)]))
        assert list(other.windows([1])) == [None]
        assert rested.is_set()
        gate.set()
        assert call.result(10)
