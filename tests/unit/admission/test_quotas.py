"""What a key may have: counted once, given back once, and told in headers that programs can read."""

from __future__ import annotations

import re
from random import Random

import pytest

from app.admission import quotas as module
from app.admission.quotas import Quota, Quotas
from app.errors import QuotaExceeded

ITEM = re.compile(r'"[a-z-]+"(;[a-z]+=(\d+|"[a-z-]+"))+')


class Desk(Quotas):
    """With a clock to turn, and jobs that end when the test says."""

    def __init__(self) -> None:
        self.time = 0.0
        self.ends: list[tuple[float, float]] = []
        super().__init__(lambda: self.time)

    def ask(self, quota: Quota, fingerprint: str = "print", *, audio_s: float = 10.0, key: str = "key", **how: bool) -> float:
        """Seconds until to come back; 0 where it was let in (and its job has ended at once)."""
        error = None
        try:
            self.check(
                key, quota, audio_s, lambda: [(end - self.time, length) for end, length in self.ends], fingerprint, **how
            )
        except QuotaExceeded as refusal:
            error = refusal
        told = 0.0 if error is None else error.retry_after_s
        assert told is not None
        assert error is None or 1 <= told <= 120
        return told

    def enters(self, end: float, audio_s: float = 10.0) -> None:
        self.take("key", audio_s)
        self.ends.append((end, audio_s))


# -- requests per minute


def test_a_minutes_worth_at_once_and_then_one_by_one() -> None:
    desk, quota = Desk(), Quota(requests_per_minute=6)
    assert [desk.ask(quota) for _ in range(6)] == [0.0] * 6
    assert desk.ask(quota) == 10
    desk.time = 10.0
    assert desk.ask(quota) == 0
    assert desk.ask(quota) > 0


def test_nobody_ever_has_more_than_the_bucket_and_what_flowed_into_it() -> None:
    random, desk, quota = Random(1), Desk(), Quota(requests_per_minute=30)
    let_in = 0
    for _ in range(2000):
        desk.time += random.expovariate(2.0)
        let_in += desk.ask(quota, str(random.random())) == 0
        assert let_in <= 30 + desk.time * 0.5 + 1e-6
    assert let_in >= 0.9 * desk.time * 0.5


@pytest.mark.parametrize("identical", [False, True])
def test_of_several_that_were_refused_each_gets_in_when_it_was_told(identical: bool) -> None:
    desk, quota = Desk(), Quota(requests_per_minute=30)
    for _ in range(30):
        desk.ask(quota)
    told = {}
    for number in range(20):
        desk.time += 0.01 if identical else 0.37  # nobody is due yet, or one could not tell who comes
        name = "same" if identical else str(number)
        told[number] = (desk.time + desk.ask(quota, name), name)
    assert len({when for when, _ in told.values()}) == 20
    for when, name in sorted(told.values()):
        desk.time = when
        assert desk.ask(quota, name) == 0


def test_a_newcomer_does_not_take_the_turn_of_one_who_was_told_to_come_back() -> None:
    desk, quota = Desk(), Quota(requests_per_minute=60)
    for _ in range(60):
        desk.ask(quota)
    assert desk.ask(quota, "first") == 1
    desk.time = 1.0
    assert desk.ask(quota, "newcomer") == 1
    desk.time = 1.04
    assert desk.ask(quota, "first") == 0


def test_where_nobody_comes_back_newcomers_are_not_kept_out_for_long() -> None:
    desk, quota = Desk(), Quota(requests_per_minute=60)
    let_in = 0
    for number in range(6000):
        desk.time += 0.1
        let_in += desk.ask(quota, str(number)) == 0
    assert let_in >= 0.8 * desk.time


@pytest.mark.parametrize("looks", range(1, 60))
def test_fractions_of_a_second_do_not_add_up_to_a_broken_promise(looks: int) -> None:
    desk, quota = Desk(), Quota(requests_per_minute=60)
    for _ in range(60):
        desk.ask(quota)
    assert desk.ask(quota) == 1
    for number in range(1, looks + 1):
        desk.time = number / looks
        desk.headers("key", quota)
    assert desk.ask(quota) == 0


def test_who_has_paid_pays_no_more_and_looking_costs_nothing() -> None:
    desk, quota = Desk(), Quota(requests_per_minute=1)
    for _ in range(5):
        assert desk.ask(quota, dry=True) == 0
    assert desk.ask(quota) == 0
    assert desk.ask(quota, paid=True) == 0
    assert desk.ask(quota) == 60


def test_a_job_that_joined_before_the_first_request_does_not_empty_the_bucket() -> None:
    desk, quota = Desk(), Quota(requests_per_minute=2)
    desk.take("key", 1.0)
    assert [desk.ask(quota) for _ in range(2)] == [0.0, 0.0]


# -- jobs at once and seconds of audio


def test_as_many_jobs_as_allowed_and_the_next_one_comes_when_one_has_ended() -> None:
    desk, quota = Desk(), Quota(jobs=2)
    for end in (8.0, 20.0):
        assert desk.ask(quota) == 0
        desk.enters(end)
    first, second = desk.ask(quota, "first"), desk.ask(quota, "second")
    assert 8 <= first <= 8 * 1.25
    assert 20 <= second <= 20 * 1.25
    desk.give_back("key", 10.0)
    desk.time = first
    assert desk.ask(quota, "newcomer") > 0
    assert desk.ask(quota, "first") == 0


def test_queued_audio_is_limited_but_a_single_job_may_be_longer() -> None:
    desk, quota = Desk(), Quota(audio_s=100.0)
    assert desk.ask(quota, audio_s=500.0) == 0
    desk.enters(30.0, 90.0)
    assert desk.ask(quota, audio_s=10.0) == 0
    assert 30 <= desk.ask(quota, audio_s=10.5) <= 40
    desk.settle("key", -50.0)
    assert desk.ask(quota, "other", audio_s=10.5) == 0
    desk.give_back("key", 40.0)
    assert desk.in_use("key") == {"jobs": 0, "audio_s": 0.0}


def test_more_refused_than_there_are_jobs_are_told_later_and_later_times() -> None:
    desk, quota = Desk(), Quota(jobs=2)
    desk.enters(10.0)
    desk.enters(10.0)
    told = [desk.ask(quota, str(number)) for number in range(8)]
    assert told == sorted(told)
    assert told[0] < told[2] < told[4] < told[6]


def test_a_key_without_jobs_is_told_some_time() -> None:
    desk = Desk()
    desk.take("key", 1.0)
    assert desk.ask(Quota(jobs=1)) >= 1


def test_looking_at_the_places_keeps_none() -> None:
    desk, quota = Desk(), Quota(jobs=1)
    desk.enters(10.0)
    assert [desk.ask(quota, dry=True) for _ in range(3)] == [12.5] * 3
    desk.give_back("key", 10.0)
    assert desk.ask(quota) == 0


def test_a_key_is_not_held_to_what_others_use() -> None:
    desk, quota = Desk(), Quota(jobs=1, audio_s=5.0, requests_per_minute=1)
    assert desk.ask(quota) == 0
    desk.enters(10.0)
    assert desk.ask(quota, key="other") == 0


# -- limits and headers


def test_a_keys_own_limits_come_before_the_servers() -> None:
    server = Quota(jobs=5, audio_s=600.0, requests_per_minute=60)
    assert server.with_own(None) == server
    assert server.with_own({"jobs": 0, "audio_s": 60.0, "unknown": 1}) == Quota(0, 60.0, 60)


def test_where_there_are_no_limits_nothing_is_said() -> None:
    assert Desk().headers("key", Quota()) == {}


def test_the_headers_say_what_is_allowed_and_what_is_left() -> None:
    desk, quota = Desk(), Quota(jobs=3, audio_s=90.5, requests_per_minute=6)
    desk.ask(quota)
    desk.enters(5.0, 30.0)
    assert desk.headers("key", quota) == {
        "ratelimit-policy": '"requests";q=6;w=60, "jobs";q=3;qu="concurrent-requests", '
        '"audio-seconds";q=90;qu="concurrent-seconds"',
        "ratelimit": '"requests";r=5;t=10, "jobs";r=2, "audio-seconds";r=60',
    }


def test_the_headers_are_lists_of_strings_with_parameters_whatever_was_used() -> None:
    random, desk = Random(2), Desk()
    for _ in range(300):
        quota = Quota(random.choice([0, 1, 7]), random.choice([0.0, 0.5, 33.3]), random.choice([0, 1, 60]))
        desk.time += random.random() * 10
        desk.ask(quota, str(random.random()))
        if random.random() < 0.1:
            desk.enters(desk.time + 5, random.random() * 100)
        for value in desk.headers("key", quota).values():
            assert all(ITEM.fullmatch(item) for item in value.split(", "))


def test_what_is_left_is_never_negative_and_a_full_bucket_resets_at_once() -> None:
    desk, quota = Desk(), Quota(jobs=1, audio_s=5.0, requests_per_minute=2)
    assert '"requests";r=2;t=0' in desk.headers("key", quota)["ratelimit"]
    for _ in range(3):
        desk.enters(5.0)
        desk.ask(quota)
    assert desk.headers("key", quota)["ratelimit"] == '"requests";r=0;t=60, "jobs";r=0, "audio-seconds";r=0'


def test_a_refusal_names_the_limit() -> None:
    desk = Desk()
    desk.take("key", 1.0)
    with pytest.raises(QuotaExceeded) as error:
        desk.check("key", Quota(jobs=1), 1.0, list)
    assert error.value.details == {"reason": "key_quota", "limit": "jobs at once", "most": 1}
    assert error.value.status == 429


def test_keys_that_hold_nothing_are_forgotten_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 10)
    desk = Desk()
    desk.take("busy", 5.0)
    for number in range(100):
        desk.ask(Quota(requests_per_minute=5), key=f"key-{number}")
    assert len(desk._uses) <= 11
    assert desk.in_use("busy") == {"jobs": 1, "audio_s": 5.0}
