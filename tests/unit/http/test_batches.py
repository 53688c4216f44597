"""Batches over HTTP: accepted whole or not at all, run a few at a time, watched and cancelled as one.

``initial_prompt`` commands the fake engine (see :mod:`tests.fakes.engine`).
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.http import batches as route
from app.jobs import Status
from app.keys import KeyRing
from app.settings import Settings
from tests.fakes.server import OTHER_KEY, Live, fake_service, held, make_settings, serving, wav
from tests.unit.http.test_jobs import events_of, until
from tests.unit.http.test_middleware import shape

Start = Callable[..., Awaitable[Live]]
OTHER = {"X-API-Key": OTHER_KEY}
REFUSED = "http://localhost/talk.mp3"


def put(settings: Settings, name: str = "a.wav", value: int = 7, content: bytes | None = None) -> str:
    """A file in the media folder; there at once and whole, since an item that runs may be reading one of that name."""
    settings.media_dir.mkdir(parents=True, exist_ok=True)
    written = settings.media_dir / f".{name}.part"
    written.write_bytes(wav(0.05, value) if content is None else content)
    written.replace(settings.media_dir / name)
    return name


def words(value: int) -> str:
    """What the fake engine hears in a recording of ``value``."""
    return value.to_bytes(2, "little").hex() * 32


async def post(live: Live, items: list[Any], headers: dict[str, str] | None = None, **common: Any) -> httpx.Response:
    return await live.client.post("/batches", json={"items": items, **common}, headers=headers)


async def hand_in(live: Live, items: list[Any], **common: Any) -> str:
    answer = await post(live, items, **common)
    assert answer.status_code == 202, answer.text
    batch_id: str = answer.json()["batch_id"]
    return batch_id


def echoes(live: Live, count: int, **options: Any) -> list[dict[str, Any]]:
    return [{"audio_file": put(live.settings, f"{number}.wav", number + 1), **options} for number in range(count)]


async def batch_of(live: Live, batch_id: str, **params: Any) -> dict[str, Any]:
    answer = await live.client.get(f"/batches/{batch_id}", params=params)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def reached(live: Live, batch_id: str, is_there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first picture of the batch of which ``is_there`` holds."""

    async def wait() -> dict[str, Any]:
        while not is_there(shown := await batch_of(live, batch_id)):
            await asyncio.sleep(0.02)
        return shown

    return await asyncio.wait_for(wait(), 30)


async def ended(live: Live, batch_id: str, state: str = "completed") -> dict[str, Any]:
    return await reached(live, batch_id, lambda shown: shown["status"] == state)


async def quiet(live: Live) -> None:
    """Nothing is held for any job any more."""

    async def wait() -> None:
        while held(live.service) or live.busy():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), 15)


# -- the way of a batch


async def test_items_end_each_for_itself_and_what_failed_is_told_apart(start: Start) -> None:
    live = await start(fake=True)
    good = [
        {"audio_file": put(live.settings, "a.wav", 1), "name": "first"},
        {"audio_file": put(live.settings, "b.wav", 2), "response_format": "srt", "id": 17},
    ]
    bad = [
        {"audio_file": put(live.settings, "c.wav", content=b"no media at all"), "name": "broken"},
        {"url": REFUSED, "name": "inward"},
        {"audio_file": "nowhere.wav"},
    ]
    answer = await post(live, [*good, *bad], response_format="text")
    batch_id = answer.json()["batch_id"]
    assert (answer.status_code, answer.headers["location"]) == (202, f"/batches/{batch_id}")
    assert int(answer.headers["retry-after"]) >= 1
    shown = await ended(live, batch_id)
    assert (shown["percent"], shown["total"], shown["next"]) == (100.0, 5, None)
    assert shown["counts"] == {"queued": 0, "running": 0, "succeeded": 2, "failed": 3, "cancelled": 0, "deleted": 0}
    assert shown["finished_at"] >= shown["created_at"]
    assert [(one["index"], one["label"], one["status"]) for one in shown["items"]] == [
        (0, "first", "succeeded"),
        (1, "17", "succeeded"),
        (2, "broken", "failed"),
        (3, "inward", "failed"),
        (4, None, "failed"),
    ]
    codes = {one["index"]: one["error"]["code"] for one in shown["failures"]}
    assert codes == {2: "not_media", 3: "url_refused", 4: "media_not_found"}
    first, second = [await live.client.get(f"/transcribe/{one['job_id']}") for one in shown["items"][:2]]
    assert first.text.strip() == words(1)
    assert second.headers["content-type"].startswith("application/x-subrip")
    assert words(2) in second.text
    status = (await live.client.get(f"/transcribe/{shown['items'][0]['job_id']}/status")).json()
    assert (status["batch_id"], status["index"], status["label"]) == (batch_id, 0, "first")
    await quiet(live)
    assert len(live.folders()) == 2


async def test_options_of_an_item_come_before_those_of_all(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True)
    items = [
        {"audio_file": put(live.settings)},
        {"audio_file": put(live.settings), "initial_prompt": "fail", "model_size": "demo"},
        {"audio_file": put(live.settings), "initial_prompt": None},
    ]
    batch_id = await hand_in(live, items, model="demo", initial_prompt="refuse")
    shown = await ended(live, batch_id)
    codes = [one.get("error", {}).get("code") for one in shown["items"]]
    assert codes == ["not_media", "engine_failed", None]


async def test_items_are_shown_page_by_page_and_by_status(start: Start) -> None:
    live = await start(fake=True)
    items = echoes(live, 5)
    items[3]["audio_file"] = "nowhere.wav"
    batch_id = await hand_in(live, items)
    await ended(live, batch_id)
    seen: list[int] = []
    after = -1
    while after is not None:
        page = await batch_of(live, batch_id, limit=2, after=after)
        seen += [one["index"] for one in page["items"]]
        after = page["next"]
    assert seen == [0, 1, 2, 3, 4]
    assert [one["index"] for one in (await batch_of(live, batch_id, status="failed"))["items"]] == [3]
    assert (await batch_of(live, batch_id, limit=0))["items"] == []
    assert (await live.client.get(f"/batches/{batch_id}?status=lost")).status_code == 422


# -- refused


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "items"),
        ({"items": []}, "items"),
        ({"items": "all"}, "items"),
        ([], "items"),
        ({"items": ["http://example.com/a.mp3"]}, "items[0]"),
        ({"items": [{}]}, "items[0].url"),
        ({"items": [{"url": "http://example.com/a.mp3"}, {"url": "file:///etc/passwd"}]}, "items[1].url"),
        ({"items": [{"url": "http://127.0.0.1/a.mp3"}]}, "items[0].url"),
        ({"items": [{"url": "http://[::1]/a.mp3"}]}, "items[0].url"),
        ({"items": [{"url": "http://example.com:22/a.mp3"}]}, "items[0].url"),
        ({"items": [{"url": "http://example.com/a.mp3", "audio_file": "a.wav"}]}, "items[0].audio_file"),
        ({"items": [{"audio_file": "a.wav", "beam_size": 99}]}, "items[0].beam_size"),
        ({"items": [{"audio_file": "a.wav", "webhook_url": "http://example.com/"}]}, "items[0].webhook_url"),
        ({"items": [{"audio_file": "a.wav", "name": "a", "id": "b"}]}, "items[0].id"),
        ({"items": [{"audio_file": "a.wav", "name": "x" * 201}]}, "items[0].name"),
        ({"items": [{"audio_file": "a.wav", "name": "a\0b"}]}, "items[0].name"),
        ({"items": [{"audio_file": "a.wav"}, {"audio_file": "a.wav", "model": "huge"}]}, "items[1].model_size"),
        ({"items": [{"audio_file": "a.wav", "language": "klingon"}]}, "items[0].language"),
        ({"items": [{"audio_file": "a.wav"}], "beam_size": 99}, "beam_size"),
        ({"items": [{"audio_file": "a.wav"}], "wait": False}, "wait"),
        ({"items": [{"audio_file": "a.wav"}], "task": "translate", "word_timestamps": True}, "word_timestamps"),
        ({"items": [{"audio_file": "a.wav"}], "webhook_url": "http://example.com/"}, "webhook_url"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_one_bad_item_or_option_refuses_the_whole_and_says_which(direct: Live, body: Any, param: str) -> None:
    answer = await direct.client.post("/batches", json=body)
    assert (answer.status_code, shape(answer)["param"]) == (422, param)
    assert (await direct.client.get("/batches")).json() == {"batches": [], "next": None}
    assert (await direct.client.get("/jobs")).json()["jobs"] == []


async def test_body_that_is_no_json_or_too_large_is_refused(direct: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = await direct.client.post("/batches", content=b"{items:")
    assert (answer.status_code, shape(answer)["message"]) == (422, "The body is not JSON.")
    monkeypatch.setattr(route, "OTHER_BYTES", 10)
    monkeypatch.setattr(route, "ITEM_BYTES", 0)
    answer = await direct.client.post("/batches", content=b"x" * 11)
    assert (answer.status_code, shape(answer)["code"]) == (413, "too_large")


async def test_more_items_than_a_batch_may_have_are_413_and_more_than_a_key_may_have_429(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True, max_batch_items=4, key_batch_items=6)
    too_many = await post(live, [{"audio_file": "a.wav"}] * 5)
    assert (too_many.status_code, shape(too_many)["code"], shape(too_many)["param"]) == (413, "too_large", "items")
    batch_id = await hand_in(live, echoes(live, 4), initial_prompt=f"until:{tmp_path}/go")
    refused = await post(live, echoes(live, 3))
    assert (refused.status_code, shape(refused)["code"]) == (429, "quota_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    assert shape(refused)["details"]["over"] == 1
    await hand_in(live, echoes(live, 2), initial_prompt=f"until:{tmp_path}/go")
    full = await live.client.post("/batches", content=b"not even read")
    assert (full.status_code, shape(full)["code"]) == (429, "quota_exceeded")
    assert (await post(live, echoes(live, 4), headers=OTHER)).status_code == 202
    (tmp_path / "go").touch()
    await ended(live, batch_id)
    assert len((await live.client.get("/batches")).json()["batches"]) == 2
    assert (await post(live, echoes(live, 4))).status_code == 202


async def test_model_that_could_never_run_here_refuses_the_whole(start: Start) -> None:
    live = await start(direct=True, memory_limit_mb=900)
    answer = await post(live, [{"audio_file": "a.wav"}, {"audio_file": "a.wav", "model": "large-v3"}])
    assert (answer.status_code, shape(answer)["code"], shape(answer)["param"]) == (413, "never_fits", "items[1].model_size")


# -- a few at a time


async def test_only_as_many_items_as_there_are_places_are_in_line_however_many_wait(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True, streams=2)
    batch_id = await hand_in(live, echoes(live, 12), initial_prompt=f"until:{tmp_path}/go")
    await reached(live, batch_id, lambda shown: shown["counts"]["running"] == 2)
    inside = live.service.desk.jobs.inside
    most = 0
    assert (len(inside), len(live.service.background.items())) == (2, 2)
    (tmp_path / "go").touch()
    while (await batch_of(live, batch_id))["status"] != "completed":
        most = max(most, len(inside))
        await asyncio.sleep(0)
    assert most == 2
    shown = await batch_of(live, batch_id)
    assert shown["counts"]["succeeded"] == 12
    for one in shown["items"]:
        answer = await live.client.get(f"/transcribe/{one['job_id']}?response_format=text")
        assert answer.text.strip() == words(one["index"] + 1)


async def test_caller_of_the_same_key_and_another_keys_batch_pass_the_items_that_wait(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True, streams=1)
    first = await hand_in(live, echoes(live, 6), initial_prompt=f"until:{tmp_path}/go")
    await reached(live, first, lambda shown: shown["counts"]["running"] == 1)
    caller = asyncio.create_task(live.client.post("/transcribe", content=wav(0.05, 99)))
    theirs = (await post(live, echoes(live, 2), headers=OTHER)).json()["batch_id"]
    while len(live.service.desk.jobs.inside) < 3:  # the running item, the caller, one item of the other key
        await asyncio.sleep(0.01)
    assert not caller.done()
    (tmp_path / "go").touch()
    assert (await caller).json()["text"] == words(99)
    while (shown := (await live.client.get(f"/batches/{theirs}", headers=OTHER)).json())["status"] != "completed":
        await asyncio.sleep(0.01)
    mine = await ended(live, first)
    order = {one["job_id"]: job.started_at for one in mine["items"] if (job := live.service.store.sync.get(one["job_id"]))}
    other = [live.service.store.sync.get(one["job_id"]).started_at for one in shown["items"]]  # type: ignore[union-attr]
    assert max(filter(None, other)) < max(filter(None, order.values()))
    await quiet(live)


async def test_places_are_shared_evenly_between_the_batches_of_keys_and_of_one_key(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True, streams=4)
    gates = iter(range(100))

    def gated(count: int) -> list[dict[str, Any]]:
        return [{"audio_file": put(live.settings), "initial_prompt": f"until:{tmp_path}/{next(gates)}"} for _ in range(count)]

    def in_line() -> Counter[str]:
        return Counter(one.job.batch_id or "" for one in live.service.background.items())

    async def until_in_line(wanted: dict[str, int]) -> None:
        while in_line() != wanted:
            await asyncio.sleep(0.01)

    first = await hand_in(live, gated(8))
    await asyncio.wait_for(until_in_line({first: 4}), 10)
    second = await hand_in(live, gated(8))
    theirs = (await post(live, gated(8), headers=OTHER)).json()["batch_id"]
    await asyncio.wait_for(until_in_line({first: 4, theirs: 1}), 10)  # one of a key that has none, whatever the others have
    for number in range(3):
        (tmp_path / f"{number}").touch()
    await asyncio.wait_for(until_in_line({first: 1, second: 1, theirs: 2}), 10)
    for number in range(100):
        (tmp_path / f"{number}").touch()
    await ended(live, first)
    await ended(live, second)


async def test_places_that_batches_may_not_have_are_free_for_callers(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True, streams=3, batch_places=1)
    batch_id = await hand_in(live, echoes(live, 3), initial_prompt=f"until:{tmp_path}/go")
    theirs = (await post(live, echoes(live, 3), headers=OTHER)).json()["batch_id"]
    await reached(live, batch_id, lambda shown: shown["counts"]["running"] == 1)
    assert not await live.service.batches.feeder.feed()
    assert len(live.service.background.items()) == 1
    assert (await live.client.post("/transcribe", content=wav(0.05, 99))).json()["text"] == words(99)
    (tmp_path / "go").touch()
    await ended(live, batch_id)
    while (await live.client.get(f"/batches/{theirs}", headers=OTHER)).json()["status"] != "completed":
        await asyncio.sleep(0.01)


async def test_full_line_refuses_callers_but_no_batch(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True, streams=1, max_queued=1, max_queue_s=0.001)
    params = {"wait": "false", "initial_prompt": f"until:{tmp_path}/go"}
    while (await live.client.post("/transcribe", params=params, content=wav())).status_code == 202:
        pass
    batch_id = await hand_in(live, echoes(live, 3))
    (tmp_path / "go").touch()
    assert (await ended(live, batch_id))["counts"]["succeeded"] == 3


async def test_items_leave_a_key_the_jobs_that_it_may_have_at_once(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True, streams=2, key_jobs=1)
    job_id = (
        await live.client.post("/transcribe", params={"wait": "false", "initial_prompt": f"until:{tmp_path}/go"}, content=wav())
    ).json()["job_id"]
    await until(live, job_id, "running")
    batch_id = await hand_in(live, echoes(live, 2))
    assert not await live.service.batches.feeder.feed()
    assert live.service.background.items() == []
    (tmp_path / "go").touch()
    assert (await ended(live, batch_id))["counts"]["succeeded"] == 2


# -- cancelled


async def test_batch_that_is_cancelled_keeps_its_results_and_frees_the_rest(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True, streams=1)
    items = echoes(live, 6, initial_prompt="sleep:60")
    items[0]["initial_prompt"] = "echo"
    batch_id = await hand_in(live, items)
    await reached(live, batch_id, lambda shown: shown["counts"]["succeeded"] == 1 and shown["counts"]["running"] == 1)
    answer = await live.client.delete(f"/batches/{batch_id}")
    assert (answer.status_code, answer.json()["status"], answer.json()["percent"]) == (200, "cancelled", 100.0)
    assert answer.json()["counts"] | {"succeeded": 1, "cancelled": 5} == answer.json()["counts"]
    await quiet(live)
    done = (await batch_of(live, batch_id))["items"][0]["job_id"]
    assert (await live.client.get(f"/transcribe/{done}")).json()["text"] == words(1)
    assert live.folders() == [done]
    again = await live.client.delete(f"/batches/{batch_id}")
    assert again.json()["counts"] == answer.json()["counts"]
    assert (await live.client.post("/transcribe", content=wav())).status_code == 200


async def test_batch_that_is_forgotten_is_gone_with_its_results(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True, streams=1)
    items = echoes(live, 3, initial_prompt="sleep:60")
    items[0]["initial_prompt"] = "echo"
    batch_id = await hand_in(live, items)
    await reached(live, batch_id, lambda shown: shown["counts"]["succeeded"] == 1 and shown["counts"]["running"] == 1)
    assert (await live.client.delete(f"/batches/{batch_id}?forget=true")).status_code == 204
    await live.settled()
    assert (await live.client.get(f"/batches/{batch_id}")).status_code == 404
    assert (await live.client.get("/jobs")).json()["jobs"] == []


async def test_item_that_is_cancelled_by_itself_shows_in_its_batch(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True, streams=1)
    batch_id = await hand_in(live, echoes(live, 3), initial_prompt=f"until:{tmp_path}/go")
    shown = await reached(live, batch_id, lambda shown: shown["counts"]["running"] == 1)
    waiting = shown["items"][2]["job_id"]
    status = (await live.client.get(f"/transcribe/{waiting}")).json()
    assert (status["status"], status["attempts"]) == ("queued", 0)
    assert (await live.client.delete(f"/transcribe/{waiting}")).json()["status"] == "cancelled"
    (tmp_path / "go").touch()
    shown = await ended(live, batch_id, "cancelled")
    assert [one["status"] for one in shown["items"]] == ["succeeded", "succeeded", "cancelled"]
    assert (await live.client.delete(f"/transcribe/{waiting}")).status_code == 204
    shown = await batch_of(live, batch_id)
    assert (shown["status"], shown["counts"]["deleted"], shown["percent"]) == ("completed", 1, 100.0)


async def test_events_of_an_item_that_waits_go_on_to_its_end(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True, streams=1)
    batch_id = await hand_in(live, echoes(live, 2), initial_prompt=f"until:{tmp_path}/go")
    shown = await reached(live, batch_id, lambda shown: shown["counts"]["running"] == 1)
    watching = asyncio.create_task(events_of(live, shown["items"][1]["job_id"]))
    await asyncio.sleep(0.1)
    assert not watching.done()
    (tmp_path / "go").touch()
    found = await asyncio.wait_for(watching, 20)
    assert (found[0][1]["status"], found[-1][1]["status"]) == ("queued", "succeeded")


# -- whose


async def test_batch_of_another_key_is_404_as_one_that_does_not_exist(direct: Live) -> None:
    batch_id = await hand_in(direct, [{"audio_file": "a.wav"}])
    for method, path in (("GET", ""), ("DELETE", ""), ("DELETE", "?forget=true")):
        theirs = await direct.client.request(method, f"/batches/{batch_id}{path}", headers=OTHER)
        nobodys = await direct.client.request(method, f"/batches/{'0' * 32}{path}")
        assert theirs.status_code == nobodys.status_code == 404
        assert shape(theirs)["message"] == shape(nobodys)["message"]
    assert (await direct.client.get(f"/batches/{batch_id}")).status_code == 200


async def test_batches_are_the_keys_own_newest_first_page_by_page(direct: Live) -> None:
    mine = [await hand_in(direct, [{"audio_file": "a.wav"}] * (number + 1)) for number in range(5)]
    await post(direct, [{"audio_file": "a.wav"}], headers=OTHER)
    seen: list[Any] = []
    after: str | None = None
    while True:
        page = (await direct.client.get("/batches", params={"limit": 2} | ({"after": after} if after else {}))).json()
        seen += page["batches"]
        after = page["next"]
        if after is None:
            break
    assert [one["batch_id"] for one in seen] == mine[::-1]
    assert [one["total"] for one in seen] == [5, 4, 3, 2, 1]


# -- sent again


async def test_batch_that_is_sent_again_under_its_key_is_the_same_and_another_body_is_refused(start: Start) -> None:
    live = await start(fake=True, key_batch_items=2)
    items, key = echoes(live, 2), {"Idempotency-Key": "night-1"}
    answers = await asyncio.gather(*(post(live, items, headers=key) for _ in range(4)))
    assert [answer.status_code for answer in answers] == [202] * 4
    (batch_id,) = {answer.json()["batch_id"] for answer in answers}
    await ended(live, batch_id)
    late = await post(live, items, headers=key)
    assert (late.status_code, late.json()["batch_id"], late.json()["status"]) == (202, batch_id, "completed")
    swapped = await post(live, items[::-1], headers=key)  # as long as the first
    assert (swapped.status_code, shape(swapped)["param"]) == (422, "Idempotency-Key")
    theirs = await post(live, items, headers={**key, **OTHER})
    assert theirs.json()["batch_id"] != batch_id
    assert len((await live.client.get("/batches")).json()["batches"]) == 1
    await live.client.delete(f"/batches/{batch_id}?forget=true")
    assert (await post(live, items, headers=key)).json()["batch_id"] != batch_id


async def test_batch_that_the_store_did_not_take_leaves_nothing(direct: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    with direct.service.store.sync.writing() as db:
        db.execute(
            text("CREATE TRIGGER no BEFORE INSERT ON jobs WHEN NEW.batch_index = 2 BEGIN SELECT RAISE(ABORT, 'no'); END")
        )
    answer = await post(direct, [{"audio_file": "a.wav"}] * 4)
    assert answer.status_code == 500
    assert (await direct.client.get("/batches")).json()["batches"] == []
    assert (await direct.client.get("/jobs")).json()["jobs"] == []


# -- the next start


async def test_batch_goes_on_after_a_restart_a_few_items_at_a_time(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, streams=1, shutdown_grace_s=0.1)
    async with serving(settings, fake_service) as live:
        items = echoes(live, 8, initial_prompt=f"until:{tmp_path}/go")
        items[0]["initial_prompt"] = "echo"
        batch_id = await hand_in(live, items)
        before = await reached(live, batch_id, lambda shown: shown["counts"]["succeeded"] == 1 == shown["counts"]["running"])
    async with serving(settings, fake_service) as live:
        shown = await reached(live, batch_id, lambda shown: shown["counts"]["running"] == 1)
        assert len(live.service.background.items()) == 1
        assert shown["counts"] | {"queued": 6, "succeeded": 1} == shown["counts"]
        (tmp_path / "go").touch()
        shown = await ended(live, batch_id)
        assert [one["job_id"] for one in shown["items"]] == [one["job_id"] for one in before["items"]]
        assert shown["counts"]["succeeded"] == 8
        text = await live.client.get(f"/transcribe/{shown['items'][0]['job_id']}?response_format=text")
        assert text.text.strip() == words(1)
        await quiet(live)
        assert len(live.folders()) == 8


async def test_limits_of_a_key_hold_for_its_batches_after_a_restart(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, streams=2, shutdown_grace_s=0.1)
    async with serving(settings, fake_service) as live:
        plain, _ = KeyRing(live.service.store.sync).create("one at a time", limits={"jobs": 1})
        key = {"X-API-Key": plain}
        batch = (await post(live, echoes(live, 4), headers=key, initial_prompt=f"until:{tmp_path}/go")).headers["location"]
        while (await live.client.get(batch, headers=key)).json()["counts"]["running"] != 1:
            await asyncio.sleep(0.01)
        assert len(live.service.background.items()) == 1
    async with serving(settings, fake_service) as live:
        while (shown := (await live.client.get(batch, headers=key)).json())["counts"]["running"] != 1:
            await asyncio.sleep(0.01)
        assert (shown["counts"]["queued"], len(live.service.background.items())) == (3, 1)
        (tmp_path / "go").touch()
        while (shown := (await live.client.get(batch, headers=key)).json())["status"] != "completed":
            await asyncio.sleep(0.01)
        assert shown["counts"]["succeeded"] == 4


async def test_statuses_of_a_batch_are_those_of_jobs() -> None:
    shown = route.schemas.BatchViewParams.model_json_schema()["properties"]["status"]["anyOf"][0]["enum"]
    assert shown == [status.value for status in Status]
    assert json.dumps(route._openapi())
