"""What callers see of the front desk: refusals with a time to come back, deadlines, quotas, ``/capacity``, ``/estimate``."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from app.admission.ticket import Ask
from app.desk.desk import Desk
from app.errors import MemoryLow
from app.http.asking import patience, within_s
from app.jobs import Status, TranscribeOptions
from app.keys import KeyRing
from tests.fakes.server import KEY, OTHER_KEY, Live, wav
from tests.unit.http.test_middleware import shape

Start = Callable[..., Awaitable[Live]]
OTHER = {"X-API-Key": OTHER_KEY}


def ask_for(desk: Desk, seconds: float, key: str = "somebody") -> Ask:
    """A job that is predicted to take so long."""
    return replace(desk.prices.transcription(key, TranscribeOptions("demo"), 10.0), seconds=seconds)


@contextmanager
def crowd(live: Live, number: int, seconds: float = 30.0, key: str = "somebody") -> Iterator[None]:
    """So many transcriptions inside that have not started."""
    desk = live.service.desk
    with ExitStack() as places:
        for _ in range(number):
            ticket = desk.jobs.join(ask_for(desk, seconds, key))
            places.callback(desk.release, desk.jobs, ticket)
        yield


def owner_of(live: Live, plain: str) -> str:
    key = KeyRing(live.service.store.sync, live.settings.configured_keys).known(plain)
    assert key is not None
    return key.id


async def until_ready(live: Live) -> None:
    while not live.service.pool.ready:
        await asyncio.sleep(0.01)


# -- a full line


async def test_full_line_is_429_with_a_time_to_come_back_and_what_it_would_have_cost(start: Start) -> None:
    live = await start(direct=True, max_queued=4)
    with crowd(live, 6):
        response = await live.client.post("/transcribe", content=wav())
    assert response.status_code == 429
    error = shape(response)
    assert (error["code"], error["retryable"], error["type"]) == ("queue_full", True, "capacity_error")
    assert error["details"]["reason"] == "queue"
    assert error["details"]["waiting"] == 6
    assert error["details"]["wait_s"] > 0
    assert error["details"]["predicted_s"] > 0
    assert error["details"]["predicted_bytes"] > 1_000_000
    assert 1 <= int(response.headers["retry-after"]) <= 120
    assert "x-should-retry" not in response.headers
    await live.settled()


async def test_line_is_full_by_its_seconds_too(start: Start) -> None:
    live = await start(direct=True, max_queue_s=60.0)
    with crowd(live, 6, seconds=100.0):
        response = await live.client.post("/transcribe", content=wav())
    assert (response.status_code, shape(response)["code"]) == (429, "queue_full")
    await live.settled()


async def test_one_class_of_work_does_not_fill_the_line_of_another(start: Start) -> None:
    live = await start(direct=True, max_queued=1)
    with crowd(live, 5):
        assert (await live.client.post("/transcribe", content=b"x")).status_code == 429
        assert (await live.client.post("/extract-audio", content=b"x")).status_code == 422
        assert (await live.client.post("/download?url=file:///x")).status_code == 422
    await live.settled()


async def test_turn_that_does_not_come_in_time_is_504_with_a_time_to_come_back(start: Start) -> None:
    live = await start(fake=True, streams=1, queue_timeout_s=3.0)
    first = asyncio.create_task(live.client.post("/transcribe?initial_prompt=sleep:60", content=wav()))
    while not any(worker["running"] for lane in live.service.pool.stats().values() for worker in lane["workers"]):
        await asyncio.sleep(0.01)
    response = await live.client.post("/transcribe", content=wav())
    assert (response.status_code, shape(response)["code"]) == (504, "queue_timeout")
    assert 1 <= int(response.headers["retry-after"]) <= 120
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await live.settled()


# -- memory and disk


async def test_low_memory_refuses_with_503_until_it_is_over(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    live = await start(direct=True)
    desk = live.service.desk
    calm = desk.reading
    for share, status, code in ((0.85, 503, "memory_low"), (0.5, 503, "not_ready")):
        seen = replace(calm, used=int(share * calm.limit))
        monkeypatch.setattr(desk._probe, "read", lambda seen=seen: seen)
        desk.look(seen)
        for _ in range(3):
            response = await live.client.post("/transcribe", content=wav())
            assert (response.status_code, shape(response)["code"]) == (status, code)
            assert 1 <= int(response.headers["retry-after"]) <= 120
    await live.settled()


async def test_low_memory_does_not_gather_the_stacks_of_those_it_refuses(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    live = await start(direct=True)
    desk = live.service.desk
    seen = replace(desk.reading, used=int(0.85 * desk.reading.limit))
    monkeypatch.setattr(desk._probe, "read", lambda: seen)
    desk.look(seen)
    lengths = []
    for _ in range(5):
        with pytest.raises(MemoryLow) as error:
            desk.jobs.enter(ask_for(desk, 1.0))
        lengths.append(len(list(traceback.walk_tb(error.value.__traceback__))))
    assert lengths == lengths[:1] * 5


async def test_model_that_is_larger_than_all_memory_is_413_before_and_after_the_upload(start: Start) -> None:
    live = await start(direct=True, memory_limit_mb=2_000)
    for response in (
        await live.client.post("/transcribe?model=large-v3", content=wav()),
        await live.client.post("/transcribe", files={"file": ("a.wav", wav())}, data={"model": "large-v3"}),
    ):
        assert response.status_code == 413
        error = shape(response)
        assert (error["code"], error["retryable"]) == ("never_fits", False)
        assert error["details"]["predicted_bytes"] > error["details"]["most_bytes"] > 0
        assert response.headers["x-should-retry"] == "false"
        assert "retry-after" not in response.headers
    await live.settled()


async def test_disk_that_others_were_promised_is_not_given_away_twice(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    live = await start(direct=True)
    desk = live.service.desk
    monkeypatch.setattr("app.desk.desk.free_bytes", lambda folder: 21_000_000)
    ask = ask_for(desk, 1.0)
    with live.service.admitted(desk.jobs, ask, 19_000_000):
        response = await live.client.post("/transcribe", content=b"x" * 1_000_000)
        assert (response.status_code, shape(response)["code"]) == (507, "disk_full")
    response = await live.client.post("/transcribe", content=b"x" * 1_000_000)
    assert shape(response)["code"] == "not_media"
    await live.settled()


async def test_model_in_the_form_is_the_one_that_runs(start: Start) -> None:
    live = await start(fake=True)
    file = {"file": ("a.wav", wav())}
    response = await live.client.post("/transcribe", files=file, data={"model": "base.en", "response_format": "verbose_json"})
    assert response.status_code == 200, response.text
    lanes = live.service.pool.stats()
    assert [worker["state"] for worker in lanes["base.en"]["workers"]] == ["ready"]
    await live.settled()


# -- how long the caller waits


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], None),
        (["wait=7"], 7.0),
        (["respond-async, wait=10"], 10.0),
        (["respond-async", "wait=10"], 10.0),
        (['WAIT = "30"'], 30.0),
        (["wait=1, wait=2"], 1.0),
        (["nowait=5"], None),
        (["wait"], None),
        (["wait=-1"], None),
        (["wait=x"], None),
        (["wait=1234567"], None),
    ],
    ids=repr,
)
def test_the_preference_is_read_as_the_standard_says(given: list[str], expected: float | None) -> None:
    from starlette.requests import Request

    headers = [(b"prefer", value.encode()) for value in given]
    assert patience(Request({"type": "http", "headers": headers})) == expected


@pytest.mark.parametrize(("query", "prefer"), [(b"", b"respond-async, wait=10"), (b"wait=false", b"wait=10")])
def test_who_comes_back_for_the_result_is_never_too_late(query: bytes, prefer: bytes) -> None:
    from starlette.requests import Request

    assert within_s(Request({"type": "http", "headers": [(b"prefer", prefer)], "query_string": query})) is None
    assert within_s(Request({"type": "http", "headers": [(b"prefer", b"wait=10")], "query_string": b""})) == 10.0


async def test_wait_that_cannot_be_met_is_refused_on_arrival(start: Start) -> None:
    live = await start(direct=True)
    with crowd(live, 4, seconds=50.0, key=owner_of(live, OTHER_KEY)):  # with this key in line, it would be next
        assert (await live.client.post("/transcribe", content=b"x", headers={"Prefer": "wait=20"})).status_code == 422
    with crowd(live, 4, seconds=50.0, key=owner_of(live, KEY)):
        for path in ("/transcribe", "/transcribe?model=demo"):
            response = await live.client.post(path, content=wav(), headers={"Prefer": "wait=20"})
            assert response.status_code == 429
            error = shape(response)
            assert (error["code"], error["retryable"]) == ("deadline_unreachable", True)
            assert error["details"]["within_s"] == 20
            assert error["details"]["ends_in_s"] > 100
            assert 80 <= int(response.headers["retry-after"]) <= 120
            assert "preference-applied" not in response.headers
    assert [row.error_code for row in live.service.store.sync.list(None)] == ["not_media"]
    await live.settled()


async def test_wait_that_passes_while_the_job_runs_is_504_and_ends_the_job(start: Start) -> None:
    live = await start(fake=True)
    await until_ready(live)
    began = asyncio.get_running_loop().time()
    response = await live.client.post("/transcribe?initial_prompt=sleep:60", content=wav(), headers={"Prefer": "wait=2"})
    assert (response.status_code, shape(response)["code"]) == (504, "deadline_exceeded")
    assert 1.9 < asyncio.get_running_loop().time() - began < 10
    await live.settled()
    assert live.service.store.sync.counts()[Status.CANCELLED] == 1


async def test_wait_that_is_met_is_confirmed(start: Start) -> None:
    live = await start(fake=True)
    response = await live.client.post("/transcribe", content=wav(), headers={"Prefer": "wait=100"})
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=100"
    assert int(response.headers["x-queue-wait-ms"]) >= 0
    response = await live.client.post("/transcribe", content=wav())
    assert "preference-applied" not in response.headers
    await live.settled()


# -- quotas


async def test_requests_per_minute_of_one_key_do_not_touch_another(start: Start) -> None:
    live = await start(direct=True, key_requests_per_minute=2)
    for left in (1, 0):
        response = await live.client.post("/transcribe", content=b"x")
        assert response.status_code == 422
        assert response.headers["ratelimit-policy"] == '"requests";q=2;w=60'
        assert response.headers["ratelimit"].startswith(f'"requests";r={left};')
    response = await live.client.post("/transcribe", content=b"x")
    assert (response.status_code, shape(response)["code"]) == (429, "quota_exceeded")
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert response.headers["ratelimit"].startswith('"requests";r=0;')
    assert (await live.client.post("/transcribe", content=b"x", headers=OTHER)).status_code == 422
    assert (await live.client.get("/models")).status_code == 200
    await live.settled()


async def test_jobs_at_once_of_a_key_are_bounded_and_come_back(start: Start) -> None:
    live = await start(fake=True, key_jobs=1)
    first = asyncio.create_task(live.client.post("/transcribe?initial_prompt=sleep:1", content=wav()))
    while not live.service.desk.jobs.inside:
        await asyncio.sleep(0.01)
    refused = await live.client.post("/transcribe", content=wav())
    assert (refused.status_code, shape(refused)["code"]) == (429, "quota_exceeded")
    assert refused.json()["error"]["details"]["reason"] == "key_quota"
    assert (await live.client.post("/transcribe", content=wav(), headers=OTHER)).status_code == 200
    assert (await first).status_code == 200
    await live.settled()


async def test_limits_of_a_key_itself_replace_those_of_the_server(start: Start) -> None:
    live = await start(direct=True, key_requests_per_minute=1)
    plain, _ = KeyRing(live.service.store.sync).create("big", limits={"requests_per_minute": 3})
    codes = [(await live.client.post("/transcribe", content=b"x", headers={"X-API-Key": plain})).status_code for _ in range(4)]
    assert codes == [422, 422, 422, 429]
    shown = (await live.client.get("/capacity", headers={"X-API-Key": plain})).json()["your_key"]
    assert shown["limits"] == {"jobs": 0, "audio_s": 0.0, "requests_per_minute": 3}
    assert (await live.client.get("/capacity")).json()["your_key"]["limits"]["requests_per_minute"] == 1
    await live.settled()


# -- what the desk shows


async def test_capacity_shows_memory_streams_and_lines(start: Start) -> None:
    live = await start(direct=True, memory_limit_mb=4_000, key_jobs=5)
    with crowd(live, 3, seconds=20.0):
        answer = (await live.client.get("/capacity")).json()
    memory = answer["memory"]
    assert (memory["source"], memory["limit_bytes"]) == ("STENOPOOL_MEMORY_LIMIT_MB", 4_000 << 20)
    assert memory["reserved_bytes"] + memory["free_bytes"] <= memory["limit_bytes"]
    assert set(memory["reservations"]) == {"base"}
    assert (answer["queue"]["waiting"], answer["queue"]["waiting_s"], answer["queue"]["policy"]) == (3, 60.0, "queue")
    assert set(answer["classes"]) == {"transcriptions", "extractions", "downloads"}
    assert answer["models"]["demo"]["streams"] == 2
    assert answer["models"]["large-v3"]["streams"] <= 1
    assert answer["pressure"]["warnings"] == []
    assert answer["your_key"]["limits"]["jobs"] == 5
    assert answer["your_key"]["in_use"] == {"jobs": 0, "audio_s": 0.0}  # the crowd is another's
    await live.settled()


@pytest.mark.parametrize(
    "how",
    [
        {"params": {"minutes": "10", "model": "demo"}},
        {"json": {"seconds": 600, "model_size": "demo"}},
        {"data": {"minutes": "10"}},
        {"files": {"minutes": (None, "10")}},
        {"params": {"seconds": "1"}, "json": {"seconds": 600}},
    ],
    ids=repr,
)
async def test_estimate_prices_what_would_come_and_keeps_nothing(direct: Live, how: dict[str, Any]) -> None:
    for _ in range(2):
        answer = (await direct.client.post("/estimate", **how)).json()
        assert (answer["model"], answer["audio_s"], answer["admitted"], answer["position"]) == ("demo", 600, True, 0)
        assert answer["predicted_bytes"] > 0
        assert 0 < answer["predicted_s"] <= answer["ends_in_s"]
    await direct.settled()
    assert direct.service.desk.jobs.admitted == 0


async def test_estimate_goes_by_the_limits_of_the_key_itself(start: Start) -> None:
    live = await start(direct=True, key_jobs=1)
    plain, key = KeyRing(live.service.store.sync).create("big", limits={"jobs": 2})
    answers = []
    for number in (0, 1, 2):
        with crowd(live, number, key=key.id):
            answers.append((await live.client.post("/estimate?minutes=1", headers={"X-API-Key": plain})).json())
    assert [answer["admitted"] for answer in answers] == [True, True, False]
    assert answers[2]["refusal"]["code"] == "quota_exceeded"
    await live.settled()


async def test_estimate_says_why_it_would_be_refused_and_when_to_come_back(start: Start) -> None:
    live = await start(direct=True, max_queued=4)
    with crowd(live, 6):
        answer = (await live.client.post("/estimate?minutes=1")).json()
    assert (answer["admitted"], answer["refusal"]["code"]) == (False, "queue_full")
    assert 1 <= answer["retry_after_s"] <= 120
    assert live.service.desk.jobs.refused == {}
    await live.settled()


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({}, "invalid_request"),
        ({"params": {"minutes": "1", "seconds": "60"}}, "invalid_request"),
        ({"params": {"minutes": "0"}}, "invalid_request"),
        ({"params": {"minutes": "-1"}}, "invalid_request"),
        ({"params": {"minutes": "nan"}}, "invalid_request"),
        ({"params": {"minutes": "inf"}}, "invalid_request"),
        ({"params": {"minutes": "1", "model": "huge"}}, "unknown_model"),
        ({"params": {"minutes": "1", "url": "http://example.com"}}, "invalid_request"),
        ({"params": {"minutes": "1"}, "files": {"file": ("a.wav", b"x")}}, "invalid_request"),
        ({"params": {"minutes": "1"}, "content": b"not JSON"}, "invalid_request"),
        ({"data": {f"f{number}": "1" for number in range(1000)}}, "invalid_request"),
        ({"params": {"minutes": "1"}, "content": b"x" * 1_000_000}, "invalid_request"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_estimate_refuses_nonsense_in_the_one_shape(direct: Live, how: dict[str, Any], code: str) -> None:
    response = await direct.client.post("/estimate", **how)
    assert response.status_code == 422
    assert shape(response)["code"] == code
