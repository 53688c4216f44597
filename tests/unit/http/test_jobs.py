"""Jobs that go on without their caller: accepted, watched, fetched, cancelled, listed; and never shown to another key.

``initial_prompt`` commands the fake engine (see :mod:`tests.fakes.engine`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.jobs import Status
from tests.fakes.server import OTHER_KEY, Live, held, wav
from tests.unit.http.test_middleware import shape

Start = Callable[..., Awaitable[Live]]
OTHER = {"X-API-Key": OTHER_KEY}


async def submit(live: Live, command: str = "echo", value: int = 7, **params: Any) -> httpx.Response:
    params = {"wait": "false", "initial_prompt": command, **params}
    return await live.client.post("/transcribe", params=params, content=wav(0.05, value))


async def accepted(live: Live, command: str = "echo", **params: Any) -> str:
    response = await submit(live, command, **params)
    assert response.status_code == 202, response.text
    job_id: str = response.json()["job_id"]
    return job_id


async def status_of(live: Live, job_id: str) -> dict[str, Any]:
    response = await live.client.get(f"/transcribe/{job_id}/status")
    assert response.status_code == 200
    shown: dict[str, Any] = response.json()
    return shown


async def until(live: Live, job_id: str, *wanted: str) -> dict[str, Any]:
    """The first status that is one of ``wanted``."""

    async def wait() -> dict[str, Any]:
        while (shown := await status_of(live, job_id))["status"] not in wanted:
            await asyncio.sleep(0.01)
        return shown

    return await asyncio.wait_for(wait(), 20)


async def quiet(live: Live) -> None:
    """Nothing is held for any job any more."""

    async def wait() -> None:
        while held(live.service) or live.busy():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), 15)


# -- taken over


async def test_async_request_is_202_with_its_place_and_later_has_its_result_in_every_format(start: Start) -> None:
    live = await start(fake=True)
    response = await submit(live, response_format="srt")
    assert response.status_code == 202
    shown = response.json()
    assert shown["status"] == "queued"
    assert {"position", "starts_in_s", "ends_in_s", "attempts"} <= set(shown)
    assert response.headers["location"] == f"/transcribe/{shown['job_id']}"
    assert int(response.headers["retry-after"]) >= 1
    ended = await until(live, shown["job_id"], "succeeded")
    assert (ended["attempts"], ended["duration"]) == (1, 0.05)
    srt = await live.client.get(response.headers["location"])
    assert srt.headers["content-type"].startswith("application/x-subrip")
    text = await live.client.get(response.headers["location"], params={"response_format": "text"})
    assert text.text.strip() == (7).to_bytes(2, "little").hex() * 32
    await quiet(live)
    (folder,) = live.folders()
    assert [path.name for path in (live.settings.jobs_dir / folder).iterdir()] == ["result-1.json"]


async def test_prefer_respond_async_is_the_same_as_wait_false(start: Start) -> None:
    live = await start(fake=True)
    headers = {"Prefer": "respond-async"}
    response = await live.client.post("/transcribe", content=wav(), headers=headers)
    assert (response.status_code, response.headers["preference-applied"]) == (202, "respond-async")
    await until(live, response.json()["job_id"], "succeeded")


async def test_who_prefers_async_but_waits_a_while_gets_the_result_if_it_is_ready_by_then(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True)
    ready = await live.client.post("/transcribe", content=wav(), headers={"Prefer": "respond-async, wait=20"})
    assert (ready.status_code, "text" in ready.json()) == (200, True)
    params = {"initial_prompt": f"until:{tmp_path}/go"}
    late = await live.client.post("/transcribe", content=wav(), params=params, headers={"Prefer": "respond-async, wait=0"})
    assert late.status_code == 202
    (tmp_path / "go").touch()
    await until(live, late.json()["job_id"], "succeeded")


async def test_bad_audio_is_accepted_and_then_fails_with_the_error_a_sync_caller_would_get(start: Start) -> None:
    live = await start(fake=True)
    response = await live.client.post("/transcribe?wait=false", content=b"no media at all")
    job_id = response.json()["job_id"]
    shown = await until(live, job_id, "failed")
    assert shown["error"]["code"] == "not_media"
    answer = await live.client.get(f"/transcribe/{job_id}")
    assert (answer.status_code, shape(answer)["code"]) == (422, "not_media")
    await quiet(live)
    assert live.folders() == []


async def test_wrong_options_are_refused_at_once_and_nothing_is_kept(start: Start) -> None:
    live = await start(fake=True)
    assert (await submit(live, beam_size=99)).status_code == 422
    assert (await live.client.post("/transcribe?wait=false")).status_code == 422
    assert (await live.client.get("/jobs")).json() == {"jobs": [], "next": None}
    await live.settled()


async def test_caller_may_hang_up_and_the_job_goes_on(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True)
    mine = {"base_url": str(live.client.base_url), "headers": live.client.headers, "trust_env": False}
    async with httpx.AsyncClient(**mine) as caller:
        params = {"wait": "false", "initial_prompt": f"until:{tmp_path}/go"}
        job_id = (await caller.post("/transcribe", params=params, content=wav())).json()["job_id"]
    await until(live, job_id, "running")
    (tmp_path / "go").touch()
    await until(live, job_id, "succeeded")


async def test_result_that_is_not_ready_is_202_and_says_when_to_ask_again(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True)
    job_id = await accepted(live, f"until:{tmp_path}/go")
    answer = await live.client.get(f"/transcribe/{job_id}")
    assert (answer.status_code, answer.json()["job_id"]) == (202, job_id)
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    (tmp_path / "go").touch()
    await until(live, job_id, "succeeded")


# -- whose


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/status"), ("GET", "/events"), ("DELETE", "")])
async def test_job_of_another_key_is_404_as_one_that_does_not_exist(start: Start, method: str, path: str) -> None:
    live = await start(fake=True)
    job_id = await accepted(live)
    await until(live, job_id, "succeeded")
    theirs = await live.client.request(method, f"/transcribe/{job_id}{path}", headers=OTHER)
    nobodys = await live.client.request(method, f"/transcribe/{'0' * 32}{path}")
    assert theirs.status_code == nobodys.status_code == 404
    assert shape(theirs)["message"] == shape(nobodys)["message"]
    assert (await live.client.get(f"/transcribe/{job_id}")).status_code == 200


async def test_jobs_are_the_keys_own_by_status_and_page_by_page(start: Start) -> None:
    live = await start(fake=True)
    mine = [await accepted(live) for _ in range(5)]
    for job_id in mine:
        await until(live, job_id, "succeeded")
    bad = (await live.client.post("/transcribe?wait=false", content=b"x")).json()["job_id"]
    await until(live, bad, "failed")
    await live.client.post("/transcribe?wait=false", content=wav(), headers=OTHER)
    assert (await live.client.post("/transcribe", content=wav())).status_code == 200  # sync jobs are not listed
    seen: list[str] = []
    after: str | None = None
    while True:
        page = (await live.client.get("/jobs", params={"limit": 2} | ({"after": after} if after else {}))).json()
        seen += [job["job_id"] for job in page["jobs"]]
        after = page["next"]
        if after is None:
            break
    assert sorted(seen) == sorted([*mine, bad])
    failed = (await live.client.get("/jobs", params={"status": "failed"})).json()["jobs"]
    assert [job["job_id"] for job in failed] == [bad]
    assert (await live.client.get("/jobs?status=lost")).status_code == 422


# -- cancelled


async def test_running_job_that_is_cancelled_frees_its_place_and_folder_and_stays_cancelled(
    start: Start, tmp_path: Path
) -> None:
    live = await start(fake=True)
    job_id = await accepted(live, "sleep:60")
    await until(live, job_id, "running")
    answer = await live.client.delete(f"/transcribe/{job_id}")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    await live.settled()
    gone = await live.client.get(f"/transcribe/{job_id}")
    assert shape(gone)["code"] == "cancelled"
    assert (await live.client.post("/transcribe", content=wav())).status_code == 200


async def test_waiting_job_that_is_cancelled_never_runs(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True, streams=1)
    first = await accepted(live, f"until:{tmp_path}/go")
    await until(live, first, "running")
    second = await accepted(live)
    assert (await status_of(live, second))["stage"] == "queued"
    assert (await live.client.delete(f"/transcribe/{second}")).json()["status"] == "cancelled"
    (tmp_path / "go").touch()
    await until(live, first, "succeeded")
    assert (await status_of(live, second))["attempts"] == 0
    await quiet(live)


async def test_job_that_has_ended_is_deleted_with_its_result(start: Start) -> None:
    live = await start(fake=True)
    job_id = await accepted(live)
    await until(live, job_id, "succeeded")
    await quiet(live)
    assert (await live.client.delete(f"/transcribe/{job_id}")).status_code == 204
    assert (await live.client.get(f"/transcribe/{job_id}/status")).status_code == 404
    assert live.folders() == []


# -- watched


async def events_of(live: Live, job_id: str, last: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    headers = {"Last-Event-ID": last} if last else {}
    found: list[tuple[str, dict[str, Any]]] = []
    number = ""
    async with live.client.stream("GET", f"/transcribe/{job_id}/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                number = value
            elif name == "data":
                found.append((number, json.loads(value)))
    return found


async def test_events_tell_the_way_of_a_job_to_its_end_and_resume_where_they_were_left(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True)
    job_id = await accepted(live, f"until:{tmp_path}/go")
    watching = asyncio.create_task(events_of(live, job_id))
    await until(live, job_id, "running")
    (tmp_path / "go").touch()
    found = await asyncio.wait_for(watching, 20)
    assert found[-1][1]["status"] == "succeeded"
    assert len({number for number, _ in found}) == len(found)
    assert await events_of(live, job_id) == [found[-1]]
    assert await events_of(live, job_id, last=found[0][0]) == [found[-1]]
    assert await events_of(live, job_id, last=found[-1][0]) == []


async def test_listeners_are_let_go_when_the_server_stops(start: Start) -> None:
    live = await start(fake=True, shutdown_grace_s=0.1)
    job_id = await accepted(live, "sleep:60")
    await until(live, job_id, "running")
    watching = asyncio.create_task(events_of(live, job_id))
    await asyncio.sleep(0)
    live.service.drain()
    found = await asyncio.wait_for(watching, 5)
    assert all(shown["status"] in ("queued", "running") for _, shown in found)
    assert live.service.store.sync.get(job_id).status is Status.RUNNING  # type: ignore[union-attr]


# -- sent again


def keyed(live: Live, key: str = "key-1", value: int = 7, **params: Any) -> Any:
    return live.client.post("/transcribe", params=params, content=wav(0.05, value), headers={"Idempotency-Key": key})


async def test_request_that_is_sent_again_under_its_key_gets_the_first_ones_job(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True)
    params = {"wait": "false", "initial_prompt": f"until:{tmp_path}/go"}
    first, again = await keyed(live, **params), await keyed(live, **params)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["job_id"] == again.json()["job_id"]
    (tmp_path / "go").touch()
    await until(live, first.json()["job_id"], "succeeded")
    done = await keyed(live, **params)
    assert (done.status_code, done.json()["text"]) == (200, (7).to_bytes(2, "little").hex() * 32)
    assert len((await live.client.get("/jobs")).json()["jobs"]) == 1


async def test_caller_who_waits_and_asks_again_after_the_end_is_answered_at_once(start: Start) -> None:
    live = await start(fake=True)
    first = await keyed(live)
    again = await asyncio.wait_for(keyed(live), 5)
    assert (first.status_code, again.status_code, again.json()) == (200, 200, first.json())


async def test_two_at_the_same_moment_are_one_job(start: Start) -> None:
    live = await start(fake=True)
    answers = await asyncio.gather(*(keyed(live, initial_prompt="sleep:0.1") for _ in range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    (job,) = (await live.client.get("/jobs")).json()["jobs"]
    assert job["attempts"] == 1
    await quiet(live)
    assert live.folders() == [job["job_id"]]


async def test_caller_who_waited_and_lost_the_connection_gets_the_answer_when_asking_again(
    start: Start, tmp_path: Path
) -> None:
    live = await start(fake=True)
    params = {"initial_prompt": f"until:{tmp_path}/go"}
    waiting = asyncio.create_task(keyed(live, **params))
    while not (jobs := (await live.client.get("/jobs?status=running")).json()["jobs"]):
        await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    (tmp_path / "go").touch()
    answer = await keyed(live, **params)
    assert (answer.status_code, len(jobs)) == (200, 1)


async def test_another_request_under_the_same_key_is_refused_and_another_callers_key_is_another_key(start: Start) -> None:
    live = await start(fake=True)
    assert (await keyed(live)).status_code == 200
    other = await keyed(live, response_format="text")
    assert (other.status_code, shape(other)["param"]) == (422, "Idempotency-Key")
    theirs = await live.client.post("/transcribe", content=wav(), headers={**OTHER, "Idempotency-Key": "key-1"})
    assert theirs.status_code == 200
    assert (await keyed(live, key="x" * 256)).status_code == 422


async def test_what_was_cancelled_runs_again_under_its_key(start: Start, tmp_path: Path) -> None:
    live = await start(fake=True)
    params = {"wait": "false", "initial_prompt": f"until:{tmp_path}/go"}
    first = (await keyed(live, **params)).json()["job_id"]
    await until(live, first, "running")
    await live.client.delete(f"/transcribe/{first}")
    (tmp_path / "go").touch()
    second = (await keyed(live, **params)).json()["job_id"]
    assert second != first
    await until(live, second, "succeeded")
