"""``test_concurrency.py`` as people run it: against the real server, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tests.integration.conftest import SAMPLES, Sample
from tests.integration.server import KEY, ROOT, Server, free_port

PNG = b"\x89PNG\r\n\x1a\n"
Answer = tuple[int, dict[str, str], Any]
BUSY: Answer = (429, {"retry-after": "1", "retry-after-ms": "20"}, {"error": {"code": "too_many_active", "message": "Busy."}})
DROP: Answer = (0, {}, None)


def environment(key: str = KEY) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("STENOPOOL_", "X_API_KEY"))}
    return inherited | {"STENOPOOL_KEY": key}


def tool(url: str, *options: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    """Run the tool to its end."""
    command = [sys.executable, "test_concurrency.py", "--url", url, *options]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(key), capture_output=True, text=True, encoding="utf-8", timeout=200, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


# The real server


def test_test_all_against_the_server_gives_table_json_plot_and_a_recommendation(server: Server, tmp_path: Path) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    done = tool(server.url, "--test-all", "--levels", "1,2", "--model", "demo", "--json", str(out), "--plot", str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Recommended: MAX_CONCURRENT_TRANSCRIPTIONS=" in done.stdout
    assert done.stderr == ""
    data = json.loads(out.read_text("utf-8"))
    assert [(run["level"], run["requests"], run["ok"]) for run in data["runs"]] == [(1, 8, 8), (2, 8, 8)]
    assert len(data["requests"]) == 17
    assert all(run["audio_per_s"] > 0 and run["health_max_s"] > 0 for run in data["runs"])
    assert data["advice"]["level"] in (1, 2)
    assert KEY not in out.read_text("utf-8") + done.stdout
    assert picture.read_bytes().startswith(PNG)


def test_an_open_loop_against_the_server_counts_every_arrival(server: Server, tmp_path: Path) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    files = (str(SAMPLES / "monday.flac"), str(SAMPLES / "charlie.flac"))
    options = ("--requests", "6", "--model", "demo", "--json", str(out), "--plot", str(picture))
    done = tool(server.url, "--rate", "4", "--audio", *files, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(out.read_text("utf-8"))
    assert (data["mode"], data["runs"][0]["ok"], data["runs"][0]["rate"]) == ("open", 6, 4.0)
    assert picture.read_bytes().startswith(PNG)


def test_a_wrong_key_an_unknown_model_and_a_file_without_sound_end_with_status_2_and_a_plain_message(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "a.wav").write_bytes(b"no sound at all")
    for options, key, message in (
        ((), "wrong", "does not take this API key"),
        ((), "", "wants an API key"),
        (("--model", "huge"), KEY, "no model 'huge'"),
        (("--model", "demo", "--audio", str(tmp_path / "a.wav")), KEY, "not_media"),
    ):
        done = tool(server.url, "--concurrent", "1", *options, key=key)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr


# Servers that misbehave


class Fake:
    """A server that answers ``POST /transcribe`` number N (from 0) as ``behave(N, right text)`` says."""

    def __init__(self, samples: list[Sample], behave: Callable[[int, str], Answer], memory: dict[str, int] | None) -> None:
        self._texts = {sample.path.read_bytes(): sample.text for sample in samples}
        self._behave = behave
        self._memory = memory
        self.posts = 0
        self.delay_s = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        status, headers, data = await self._answer(scope["path"], body)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        if not status:  # start an answer and never end it: uvicorn closes the connection
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
            return
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": json.dumps(data).encode()})

    async def _answer(self, path: str, body: bytes) -> Answer:
        if path == "/transcribe":
            number, self.posts = self.posts, self.posts + 1
            await asyncio.sleep(self.delay_s)
            return self._behave(number, self._texts.get(body, ""))
        if path == "/capacity" and self._memory:
            return 200, {}, {"memory": self._memory}
        return (200 if path == "/health" else 404), {}, {}


Faking = Callable[..., Any]


@pytest.fixture
def faking(samples: list[Sample]) -> Faking:
    """``with faking(behave, memory) as (url, fake)``."""

    @contextmanager
    def start(behave: Callable[[int, str], Answer], memory: dict[str, int] | None = None) -> Iterator[tuple[str, Fake]]:
        fake = Fake(samples, behave, memory)
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(fake, log_config=None, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", fake
        finally:
            server.should_exit = True
            thread.join(20)
            listener.close()
        assert not thread.is_alive()

    return start


def right(text: str) -> Answer:
    return 200, {"x-queue-wait-ms": "40"}, {"text": text}


def run_of(out: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(out.read_text("utf-8"))["runs"][0]
    return data


def test_a_server_that_gives_one_file_the_words_of_another_ends_with_status_1(faking: Faking, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with faking(lambda number, text: right("monday red north help" if number == 5 else text)) as (url, _):
        done = tool(url, "--concurrent", "2", "--model", "demo", "--json", str(out))
    assert done.returncode == 1
    assert run_of(out)["wrong_by"] == {"other_words": 1}
    assert "heard 'monday red north help'" in done.stdout


def test_answers_that_change_are_wrong_for_any_model(faking: Faking, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with faking(lambda number, _: right(f"answer {number // 3}")) as (url, _):
        done = tool(url, "--concurrent", "1", "--requests", "5", "--audio", str(SAMPLES / "digits.flac"), "--json", str(out))
    assert done.returncode == 1
    assert run_of(out)["wrong_by"] == {"unequal": 3}  # the warm-up and two more were the same


def test_dropped_connections_and_internal_errors_are_lost_and_end_with_status_1(faking: Faking, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    troubles: dict[int, Answer] = {3: DROP, 5: (500, {}, {"error": {"code": "internal"}}), 6: (503, {}, {})}
    with faking(lambda number, text: troubles.get(number, right(text))) as (url, _):
        done = tool(url, "--concurrent", "2", "--model", "demo", "--json", str(out))
    assert done.returncode == 1
    assert run_of(out)["lost_by"] == {"connection": 1, "internal": 1, "http_503": 1}
    assert run_of(out)["ok"] == 5  # of eight


def test_refusals_are_obeyed_and_then_everything_is_served(faking: Faking, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with faking(lambda number, text: BUSY if number % 2 else right(text)) as (url, _):
        done = tool(url, "--concurrent", "2", "--model", "demo", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    run = run_of(out)
    assert (run["ok"], run["refused"]) == (8, 0)
    assert run["retried"]["too_many_active"] > 0
    assert run["queue_wait"]["p50"] == 0.04


@pytest.mark.parametrize("load", [("--concurrent", "2", "--no-retry", "--requests", "8"), ("--rate", "50", "--requests", "8")])
def test_without_retries_refusals_are_counted_by_reason_and_are_no_failure(
    faking: Faking, tmp_path: Path, load: tuple[str, ...]
) -> None:
    out = tmp_path / "out.json"
    with faking(lambda number, text: BUSY if number % 2 else right(text)) as (url, _):
        done = tool(url, *load, "--model", "demo", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert run_of(out)["refused_by"] == {"too_many_active": 4}
    assert "refused 4 × too_many_active" in done.stdout


def test_a_server_that_only_refuses_ends_with_status_1(faking: Faking) -> None:
    with faking(lambda number, _: BUSY) as (url, _):
        done = tool(url, "--concurrent", "1", "--no-retry", "--requests", "2")
    assert done.returncode == 1
    assert "No setting can be recommended" in done.stdout


def test_a_server_that_is_silent_for_too_long_loses_the_request(faking: Faking, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with faking(lambda number, text: right(text)) as (url, fake):
        fake.delay_s = 5.0
        done = tool(url, "--concurrent", "1", "--requests", "1", "--timeout", "0.5", "--json", str(out))
    assert done.returncode == 1
    assert run_of(out)["lost_by"] == {"timeout": 1}


def test_memory_above_ninety_percent_is_warned_of(faking: Faking) -> None:
    memory = {"limit_bytes": 1_000_000_000, "used_bytes": 950_000_000, "peak_bytes": 950_000_000}
    with faking(lambda number, text: right(text), memory) as (url, _):
        done = tool(url, "--concurrent", "1", "--model", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0.95 GB 95%" in done.stdout
    assert "memory was at 95 % of its limit" in done.stdout


def test_no_server_at_all_ends_with_status_2_and_a_plain_message() -> None:
    done = tool(f"http://127.0.0.1:{free_port()}", "--test-all")
    assert (done.returncode, done.stdout) == (2, "")
    assert "No server answers" in done.stderr


def test_ctrl_c_shows_what_was_measured_until_then(faking: Faking) -> None:
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a job in the background ignores it
    code += "; from test_concurrency import main; sys.exit(main())"
    with faking(lambda number, text: right(text)) as (url, fake):
        fake.delay_s = 0.05
        command = [sys.executable, "-c", code, "--url", url, "--concurrent", "2", "--model", "demo", "--requests", "100000"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=-1, stderr=-1, text=True, encoding="utf-8")
        until = time.monotonic() + 60
        while fake.posts < 12 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "Interrupted; this is what was measured until then."
    assert "requests" in out
    assert "no setting is recommended" in out
