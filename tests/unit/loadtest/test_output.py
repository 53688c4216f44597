"""Table, JSON and picture."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from loadtest import plot, report, table
from loadtest.advice import recommend
from loadtest.client import Target
from loadtest.records import Load, Run, Unusable, Vitals
from loadtest.runner import Plan
from loadtest.stats import summarize
from tests.unit.loadtest.build import record, recording, summary

PNG = b"\x89PNG\r\n\x1a\n"
RUN = Run(
    Load(level=2),
    (record(0, queue_wait_s=0.25), record(1, kind="lost", reason="timeout", detail="no answer", text=None)),
    2.0,
    Vitals(1_500_000_000, 2_000_000_000, 0.012),
)


def test_the_table_has_a_line_for_each_level_with_columns_that_line_up() -> None:
    lines = table.render([summary(1, 10), summary(8, 12345.678)]).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[0].split()[:4] == ["at", "once", "requests", "ok"]
    assert lines[3].split()[0] == "8"
    assert "12345.68" in lines[3]


def test_the_table_shows_memory_health_and_queue_wait() -> None:
    row = table.render([summarize(RUN)]).splitlines()[2]
    assert "1.50 GB 75%" in row
    assert row.split()[-1] == "12"
    assert "0.25" in row


def test_the_table_has_dashes_where_nothing_is_known() -> None:
    row = table.render([summarize(Run(Load(rate=0.5), (record(kind="lost", reason="timeout"),), 1.0))]).splitlines()[2]
    assert row.split()[0] == "0.5/s"
    assert row.split().count("-") == 5 + 2 + 2


def test_reasons_are_listed_below_the_table() -> None:
    text = table.render([summary(4, 1, kind="refused", reason="too_many_active", refusals=("not_ready", "too_many_active"))])
    assert "level 4: refused 16 × too_many_active; came back after 16 × not_ready" in text


def test_failures_name_file_reason_and_request_id_and_are_cut_after_five() -> None:
    lines = table.failures([record(), *(record(n, kind="wrong", reason="unequal", detail="heard 'x'") for n in range(7))])
    assert lines[0] == "  wrong, a.wav at 1: unequal: heard 'x', request id r1"
    assert len(lines) == 6
    assert "2 more" in lines[-1]


def made() -> tuple[Plan, report.Outcome]:
    target = Target("http://user:secret@host:8000", "steno_secret", "demo", 60.0)
    plan = Plan(target, (recording("ä.wav"),), (Load(level=2),), None, None, 10, 0)
    summaries = (summarize(RUN),)
    started = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    return plan, report.Outcome(started, "demo", record(load="warm-up"), (RUN,), summaries, recommend(summaries))


def test_the_json_report_holds_every_request_and_no_secret(tmp_path: Path) -> None:
    report.write(tmp_path / "out.json", *made())
    text = (tmp_path / "out.json").read_text("utf-8")
    assert "secret" not in text
    data = json.loads(text)
    assert [one["load"] for one in data["requests"]] == ["warm-up", "1", "1"]
    assert data["requests"][1]["latency_s"] == 1.0
    assert data["runs"][0]["lost_by"] == {"timeout": 1}
    assert data["runs"][0]["memory_share"] == 0.75
    assert data["files"][0]["name"] == "ä.wav"
    assert (data["mode"], data["complete"], data["started"]) == ("closed", True, "2026-01-02T03:04:05+00:00")


def test_the_plot_against_levels_is_a_png(tmp_path: Path) -> None:
    summaries = [summary(1, 10, queue_wait_s=0.1), summary(2, 20, kind="lost"), summary(4, 20)]
    plot.draw(tmp_path / "out.png", "t", [RUN], summaries, 1)
    assert (tmp_path / "out.png").read_bytes().startswith(PNG)


def test_the_plot_over_time_is_a_png(tmp_path: Path) -> None:
    kinds = ("ok", "refused", "wrong", "lost")
    run = Run(Load(rate=1.0), tuple(record(n, kind=kind, due_s=n, done_s=n + 1) for n, kind in enumerate(kinds)), 5.0)
    plot.draw(tmp_path / "out.png", "t", [run], [summarize(run)], None)
    assert (tmp_path / "out.png").read_bytes().startswith(PNG)


def test_the_plot_of_runs_without_a_right_answer_is_a_png(tmp_path: Path) -> None:
    for load in (Load(level=1), Load(rate=1.0)):
        run = Run(load, (record(kind="lost", audio_s=None, done_s=0.0),), 0.0)
        plot.draw(tmp_path / "out.png", "t", [run], [summarize(run)], None)
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)


def test_without_matplotlib_there_is_a_plain_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Unusable, match="matplotlib is not installed"):
        plot.draw(tmp_path / "out.png", "t", [RUN], [], None)
