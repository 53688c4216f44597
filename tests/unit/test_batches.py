"""The rows of batches: whole or not at all, counted from their items, due, old and forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from app.batches_store import Batch, BatchRows
from app.jobs import Job, Status, TranscribeOptions
from app.retention import Retention
from app.store import AsyncStore, Store
from tests.fakes.clock import Clock
from tests.fakes.server import make_settings

NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)
DAY = 86_400.0


class Bench:
    """A store, its batches, and a monotonic clock."""

    def __init__(self, folder: Path) -> None:
        self.settings = make_settings(folder, result_ttl_s=DAY, results_mb=1)
        self.store = Store(self.settings.store_url, now=Clock(NOW))
        self.store.create_schema()
        self.rows = BatchRows(self.store)
        self.retention = Retention(self.settings, AsyncStore(self.store), self._forget, lambda: 0.0)

    async def _forget(self, job_id: str) -> None:
        self.store.delete(job_id)

    def add(self, name: str, *statuses: Status, most: int = 0, owner: str = "alice", age_s: float = 0.0, **known: Any) -> int:
        """A batch with an item of each status, each ended ``age_s`` seconds ago, the last one first."""
        moment = NOW - timedelta(seconds=age_s)
        items = [
            Job(
                f"{name}-{number}",
                owner,
                TranscribeOptions("demo"),
                NOW - timedelta(days=9),
                status,
                finished_at=moment - timedelta(hours=number) if status.final else None,
                background=True,
                source={"url": "http://example.com/"},
                batch_id=name,
                batch_index=number,
                label=f"item {number}",
            )
            for number, status in enumerate(statuses)
        ]
        return self.rows.add(Batch(name, owner, NOW - timedelta(days=9), len(items), **known), items, most)

    def ids(self) -> set[str]:
        return {job.id for job in self.store.list(None)}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


Q, R, S, F, C = Status.QUEUED, Status.RUNNING, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED


@pytest.mark.parametrize(
    ("statuses", "state"),
    [
        ((Q, Q), "queued"),
        ((Q, R), "running"),
        ((Q, S), "running"),
        ((Q, C), "running"),
        ((R, F), "running"),
        ((S, S), "completed"),
        ((S, F), "completed"),
        ((F, F), "completed"),
        ((S, C), "cancelled"),
        ((C, C), "cancelled"),
    ],
)
def test_state_of_a_batch_is_what_its_items_say(bench: Bench, statuses: tuple[Status, ...], state: str) -> None:
    bench.add("one", *statuses)
    bench.add("other", Q)
    batch = bench.rows.get("one")
    assert batch is not None
    assert (batch.state, sum(batch.counts.values()), batch.finished_at is None) == (state, 2, batch.unfinished > 0)


def test_end_of_a_batch_is_the_end_of_its_last_item(bench: Bench) -> None:
    bench.add("one", S, F, C, S)
    batch = bench.rows.get("one")
    assert batch is not None
    assert batch.finished_at == NOW


def test_items_over_what_a_key_may_have_keep_nothing_and_ended_ones_do_not_count(bench: Bench) -> None:
    assert bench.add("a", Q, R, S, F, C, most=5) == 0
    assert bench.add("b", Q, Q, Q, Q, most=5) == 1
    assert bench.rows.get("b") is None
    assert bench.add("c", Q, Q, Q, most=5) == 0
    assert bench.add("d", Q, Q, Q, Q, most=5, owner="bob") == 0
    assert (bench.rows.unfinished_of("alice"), bench.rows.unfinished_of("bob")) == (5, 4)
    assert len(bench.ids()) == 12


def test_second_batch_under_a_key_is_refused_whole(bench: Bench) -> None:
    bench.add("a", Q, idempotency_key="k")
    with pytest.raises(ValueError):
        bench.add("b", Q, Q, idempotency_key="k")
    bench.add("c", Q, idempotency_key="k", owner="bob")
    found = bench.rows.by_key("alice", "k")
    assert found is not None
    assert (found.id, bench.ids()) == ("a", {"a-0", "c-0"})


def test_what_waits_is_found_in_order_and_only_there(bench: Bench) -> None:
    bench.add("a", S, Q, R, Q, F)
    bench.add("b", S, R)
    bench.add("c", Q, owner="bob")
    assert bench.rows.with_waiting() == [("a", "alice"), ("c", "bob")]
    assert bench.rows.next_waiting("a", -1) == (1, "a-1")
    assert bench.rows.next_waiting("a", 1) == (3, "a-3")
    assert bench.rows.next_waiting("a", 3) is None


def test_items_of_a_killed_server_wait_again_but_go_through_the_feeder(bench: Bench) -> None:
    bench.add("a", R, Q, S)
    alone = replace(Job("alone", "alice", TranscribeOptions("demo"), NOW), background=True, source={"file": "upload"})
    bench.store.add(alone)
    assert bench.store.recover(3) == [alone]
    assert [bench.rows.next_waiting("a", -1), bench.rows.next_waiting("a", 0)] == [(0, "a-0"), (1, "a-1")]


def test_item_that_was_there_at_every_death_fails_and_its_batch_ends(bench: Bench) -> None:
    bench.add("a", Q)
    for _ in range(3):
        assert bench.store.start("a-0") is not None
        bench.store.recover(3)
    batch = bench.rows.get("a")
    assert batch is not None
    assert (batch.state, bench.rows.items("a", 9)[0].error_code) == ("completed", "worker_lost")


def test_cancel_ends_what_has_not_ended_and_says_what_that_was(bench: Bench) -> None:
    bench.add("a", Q, R, S, F, C)
    bench.add("b", Q)
    assert sorted(bench.rows.cancel("a")) == ["a-0", "a-1"]
    assert [item.status for item in bench.rows.items("a", 9)] == [C, C, S, F, C]
    assert bench.rows.cancel("a") == []
    assert bench.store.get("b-0").status is Q  # type: ignore[union-attr]


def test_webhook_is_due_once_the_last_item_has_ended(bench: Bench) -> None:
    bench.add("a", S, R, webhook_url="http://example.com/")
    bench.add("b", S)
    bench.add("c", F, webhook_url="http://example.com/")
    assert [one.id for one in bench.rows.webhooks_due(9)] == ["c"]
    bench.store.cancel("a-1")
    assert {one.id for one in bench.rows.webhooks_due(9)} == {"a", "c"}
    bench.rows.webhook_tried("a", timedelta(hours=1))
    bench.rows.webhook_tried("c", None)
    assert bench.rows.webhooks_due(9) == []


async def test_items_grow_old_together_and_their_batch_goes_with_them(bench: Bench) -> None:
    bench.add("old", S, F, C, age_s=DAY + 60)
    bench.add("young", S, S, S, age_s=DAY - 60)  # its last two items are older than a day
    bench.add("goes on", S, Q, age_s=2 * DAY)
    bench.store.add(
        replace(Job("alone", "alice", TranscribeOptions("demo"), NOW), status=S, finished_at=NOW - timedelta(days=3))
    )
    await bench.retention.look()
    assert bench.ids() == {"young-0", "young-1", "young-2", "goes on-0", "goes on-1"}
    assert bench.rows.get("old") is None
    assert {one.id for one in bench.rows.page("alice", 9)} == {"young", "goes on"}


async def test_where_results_are_too_large_the_oldest_items_go_one_by_one(bench: Bench) -> None:
    bench.add("a", S, S, S)
    for number in (2, 1, 0):
        folder = bench.settings.jobs_dir / f"a-{number}"
        folder.mkdir(parents=True)
        (folder / "result-1.json").write_bytes(b"x" * 400_000)
    await bench.retention.look()
    assert bench.ids() == {"a-0", "a-1"}
    batch = bench.rows.get("a")
    assert batch is not None
    assert (batch.total, batch.counts) == (3, {S: 2})


async def test_batch_of_which_every_item_was_deleted_is_forgotten(bench: Bench) -> None:
    bench.add("a", S, S)
    bench.store.delete("a-0")
    await bench.retention.look()
    assert bench.rows.get("a") is not None
    bench.store.delete("a-1")
    await bench.retention.look()
    assert bench.rows.get("a") is None
