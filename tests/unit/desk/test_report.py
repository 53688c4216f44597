"""What /capacity and /estimate say, against what the desk holds."""

from __future__ import annotations

from collections.abc import Callable

from app import catalogue
from app.desk.report import capacity, estimate
from app.jobs import TranscribeOptions, VadOptions
from tests.unit.desk.conftest import GB, Bench

Make = Callable[..., Bench]
OPTIONS = TranscribeOptions("demo", vad=VadOptions(chunk_s=10.0))


def test_capacity_adds_up(make: Make) -> None:
    bench = make()
    desk = bench.desk
    ticket = desk.enter(desk.jobs, desk.prices.transcription("a", OPTIONS, 30.0), 1000)
    shown = capacity(desk, "a")
    memory = shown["memory"]
    assert memory["source"] == "cgroup v2"
    assert memory["free_bytes"] == memory["budget_bytes"] - memory["reserved_bytes"]
    assert memory["reserved_bytes"] == sum(memory["reservations"].values())
    assert shown["queue"]["waiting"] == 1
    assert shown["your_key"]["in_use"] == {"jobs": 1, "audio_s": 30.0}
    assert capacity(desk, "b")["your_key"]["in_use"]["jobs"] == 0
    assert set(shown["models"]) == set(catalogue.MODELS)
    desk.release(desk.jobs, ticket)
    assert capacity(desk, "a")["queue"]["waiting"] == 0


def test_the_guides_table_for_eight_gigabytes_and_eight_cores_is_the_guides(make: Make) -> None:
    bench = make()
    bench.desk.reading = bench.probe.set(source="host", container=False, limit=8 * GB)
    bench.settings.__dict__["cores"] = 8
    models = capacity(bench.desk, "a")["models"]
    recommended = {name: models[name]["guide"]["recommended"] for name in ("tiny", "medium", "turbo", "large-v2")}
    assert 4 <= recommended.pop("tiny") <= 6
    assert recommended == {"medium": 2, "turbo": 1, "large-v2": 1}


def test_streams_of_a_model_that_does_not_fit_are_none(make: Make) -> None:
    bench = make()
    bench.desk.look(bench.probe.set(limit=2 * GB, used=GB // 2, available=GB + GB // 2))
    models = capacity(bench.desk, "a")["models"]
    assert models["large-v3"]["streams"] == 0
    assert models["demo"]["streams"] >= 1


def test_estimate_keeps_nothing(make: Make) -> None:
    bench = make()
    answer = estimate(bench.desk, "a", OPTIONS, 600.0)
    assert answer["admitted"]
    assert answer["starts_in_s"] < answer["ends_in_s"]
    assert answer["predicted_s"] > 0
    assert not bench.desk.jobs.inside
    assert (bench.desk.jobs.admitted, bench.desk.jobs.refused) == (0, {})


def test_estimate_says_why_not_and_promises_nothing(make: Make) -> None:
    bench = make(overload_policy="reject", streams=1)
    desk = bench.desk
    desk.enter(desk.jobs, desk.prices.transcription("a", OPTIONS, 30.0), 0)
    answer = estimate(desk, "a", OPTIONS, 600.0)
    assert not answer["admitted"]
    assert answer["refusal"]["code"] == "too_many_active"
    assert answer["retry_after_s"] > 0
    assert desk.jobs.promises.made == 0
