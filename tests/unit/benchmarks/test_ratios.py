"""Ratios are taken within a round, their median is judged, and what falls short makes the exit status 1."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.ratios import Found, Target, conditions, finish, in_turns, last_line, per_round, save, table


def test_ratios_are_taken_within_rounds_not_between_medians() -> None:
    """The machine was three times slower in the second round; the ratio was the same in all."""
    theirs, ours = [10.0, 30.0, 12.0], [2.0, 6.0, 2.4]
    assert per_round(theirs, ours) == pytest.approx((5.0, 5.0, 5.0))


def test_sides_of_different_rounds_are_refused() -> None:
    with pytest.raises(ValueError):
        per_round([1.0, 2.0], [1.0])


def test_every_side_runs_once_per_round_in_turns() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    figures = in_turns({"a": lambda: side("a"), "b": lambda: side("b")}, 3)
    assert order == ["a", "b"] * 3
    assert figures == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (Target(5.0), 5.0, True),
        (Target(5.0), 4.99, False),
        (Target(15.0, at_most=True), 15.0, True),
        (Target(15.0, at_most=True), 15.1, False),
        (Target(5.0), math.nan, False),
        (Target(5.0, at_most=True), math.nan, False),
    ],
)
def test_a_target_is_met_on_its_bound_and_never_by_no_number(target: Target, value: float, met: bool) -> None:
    assert target.met(value) is met


def test_the_median_is_judged_so_one_bad_round_is_not_a_miss() -> None:
    assert Found("x", (5.1, 1.0, 5.2), Target(5.0)).verdict == "met"
    assert Found("x", (5.1, 1.0, 1.2), Target(5.0)).verdict == "missed"


def test_a_figure_without_rounds_is_missed_and_one_without_target_is_only_told() -> None:
    assert not Found("x", (), Target(1.0)).ok
    assert Found("x", (0.1,)).ok
    assert Found("x", (0.1,)).verdict == ""


def test_the_last_line_has_all_ratios_and_the_exit_status_tells_of_a_miss(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = Found("fast", (5.0, 6.0, 7.0), Target(5.0)), Found("small", (2.0,), Target(1.6, at_most=True))
    assert finish([good]) == 0
    capsys.readouterr()
    assert finish([good, bad]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "ratios: fast 6.00 (met); small 2.00 (missed)"
    assert last_line([Found("told", (0.5,))]) == "ratios: told 0.50"


def test_the_table_is_markdown_and_says_range_and_target() -> None:
    found = Found("clip", (9.0, 12.0, 20.0), Target(15.0, at_most=True, unit=" ms"))
    assert table(["a", "b", "c", "d", "e"], [found.row()]).splitlines() == [
        "| a | b | c | d | e |",
        "| --- | --- | --- | --- | --- |",
        "| clip | 12.00 ms | 9.00 to 20.00 | at most 15 ms | met |",
    ]


def test_what_is_saved_has_conditions_and_every_round(tmp_path: Path) -> None:
    found = Found("fast", (5.0, 6.0), Target(5.0))
    save(tmp_path / "new", "x", {**conditions(), "ratios": [found.to_dict()]})
    saved = json.loads((tmp_path / "new" / "x.json").read_text())
    assert saved["cores"] >= 1
    assert saved["command"].startswith("python -m ")
    assert saved["ratios"] == [{"what": "fast", "median": 5.5, "rounds": [5.0, 6.0], "target": "at least 5x", "met": True}]
    save(None, "x", {})
