"""One JSON object per line, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import logs
from app.logs import JsonFormatter


def line(message: str = "m", *arguments: Any, exc_info: Any = None, **extra: Any) -> str:
    record = logging.getLogger("stenopool.t").makeRecord(
        "stenopool.t", logging.WARNING, "file.py", 1, message, arguments, exc_info, extra=extra
    )
    return JsonFormatter().format(record)


def test_time_level_logger_and_message_are_there_and_nothing_of_the_file() -> None:
    entry = json.loads(line("hello %s", "you"))
    assert entry.pop("time").endswith("+00:00")
    assert entry == {"level": "warning", "logger": "stenopool.t", "message": "hello you"}


def test_extra_values_are_there_even_where_json_does_not_know_them() -> None:
    assert json.loads(line(path="/x", odd={1}))["path"] == "/x"
    assert json.loads(line(odd={1}))["odd"] == "{1}"


def test_the_request_id_is_there_while_one_is_set() -> None:
    token = logs.request_id.set("abc")
    try:
        assert json.loads(line())["request_id"] == "abc"
    finally:
        logs.request_id.reset(token)
    assert "request_id" not in json.loads(line())


def test_a_traceback_is_one_field_of_the_same_line() -> None:
    try:
        raise ValueError("deep\nreason")
    except ValueError:
        written = line(exc_info=sys.exc_info())
    assert len(written.splitlines()) == 1
    assert "deep\nreason" in json.loads(written)["traceback"]


@given(st.text(st.characters(), max_size=60))
def test_no_text_breaks_the_line_or_reaches_a_terminal_as_a_control(text: str) -> None:
    written = line("%s", text, path=text)
    assert written.isascii()
    assert written.isprintable()
    assert json.loads(written)["message"] == json.loads(written)["path"] == text


def test_a_lone_surrogate_can_be_written_to_a_stream() -> None:
    io.TextIOWrapper(io.BytesIO(), "utf-8").write(line("\ud800"))


def test_configuring_sends_everything_through_one_handler_at_the_wanted_level(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.getLogger("httpx").level)
    root.handlers[:] = []
    try:
        logs.configure("warning")
        logging.getLogger("stenopool.x").info("quiet")
        logging.getLogger("other").warning("loud")
        logging.getLogger("httpx").info("GET http://secret")
    finally:
        root.handlers[:], level, httpx_level = before
        root.setLevel(level)
        logging.getLogger("httpx").setLevel(httpx_level)
    (written,) = capsys.readouterr().err.splitlines()
    assert json.loads(written)["message"] == "loud"
