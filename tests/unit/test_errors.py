"""The exception tree: codes, statuses and the one wire shape."""

from __future__ import annotations

import re

import pytest

from app import errors
from app.errors import ALL, InputError, StenopoolError, WorkError, by_code

every = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


def test_every_code_is_unique() -> None:
    codes = [kind.code for kind in ALL]
    assert len(set(codes)) == len(codes)


def test_the_tree_holds_every_error_of_the_module() -> None:
    defined = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, StenopoolError)}
    assert set(ALL) == defined


def test_the_drawing_matches_the_code() -> None:
    drawn = re.findall(r"(\w+) +(\d{3})  (\w+)", errors.__doc__ or "")
    assert {(kind.__name__, str(kind.status), kind.code) for kind in ALL} == set(drawn)


@every
def test_an_error_has_a_stable_code_a_status_and_a_hint(kind: type[StenopoolError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)
    assert 400 <= kind.status < 600
    assert kind.default_hint
    assert kind.kind


@every
def test_the_wire_shape_is_the_same_for_all(kind: type[StenopoolError]) -> None:
    body = kind("What happened.", param="file").to_wire("req-1")
    assert list(body) == ["error"]
    assert body["error"] == {
        "code": kind.code,
        "message": "What happened.",
        "type": kind.kind,
        "param": "file",
        "hint": kind.default_hint,
        "retryable": kind.retryable,
        "request_id": "req-1",
    }


@every
def test_an_error_comes_back_from_its_code(kind: type[StenopoolError]) -> None:
    again = by_code(kind.code, "What happened.", "Do this.")
    assert type(again) is kind
    assert (again.message, again.hint, str(again)) == ("What happened.", "Do this.", "What happened.")


def test_a_code_of_another_version_becomes_a_failure_of_the_work() -> None:
    assert type(by_code("of_tomorrow", "What happened.")) is WorkError


def test_an_empty_hint_stays_empty_and_a_missing_one_is_the_default() -> None:
    assert InputError("x", hint="").hint == ""
    assert InputError("x").hint == InputError.default_hint


def test_waiting_time_is_kept() -> None:
    assert errors.TooManyActive("x", retry_after_s=2.5).retry_after_s == 2.5
