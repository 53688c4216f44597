"""Long and short jobs: how many long ones run side by side, and what both are told of their start and end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.admission.ticket import Ask, Phase, Ticket
from app.errors import DeadlineUnreachable, QueueFull
from tests.unit.admission.test_turns import Desk, runs

HOUR = 3600.0
CLIP = Ask("clips", "model", 1.0, audio_s=5.0)
FILE = Ask("files", "model", 100.0, audio_s=HOUR)


def crowded(*, files: int, queue_s: float = 1e6, **limits: int) -> tuple[Desk, list[Ticket]]:
    """Eight places, two streams, of which four may be long; so many files of an hour, each 100 s of work."""
    desk = Desk(running=8, parallel=2, long=4)
    desk.limits = desk.bounds.limits = replace(desk.limits, queue_s=queue_s)
    return desk, [desk.comes(seconds=100.0, key="files", audio_s=HOUR) for _ in range(files)]


def test_short_jobs_pass_long_ones_that_would_be_one_too_many_and_these_follow_one_by_one() -> None:
    desk = Desk(running=4, long=2)
    first, second, third, fourth = (desk.comes(audio_s=3600.0) for _ in range(4))
    short, at_most, over = (desk.comes(audio_s=audio_s) for audio_s in (5.0, 60.0, 60.1))
    assert runs(first, second, short, at_most)
    assert not any(runs(ticket) for ticket in (third, fourth, over))
    desk.release(short)
    assert not any(runs(ticket) for ticket in (third, fourth, over))
    desk.release(first)
    assert runs(third)
    desk.release(second)
    assert runs(fourth)
    assert not runs(over)


def test_second_attempt_of_a_long_job_waits_for_no_other_long_one() -> None:
    desk = Desk(running=4, long=1)
    died = desk.comes(audio_s=3600.0)
    desk.again(died, amount=0)
    other = desk.comes(audio_s=3600.0)
    assert runs(other)
    desk.waits(died)
    assert runs(died)


def test_long_jobs_that_have_ended_count_no_more_however_they_changed() -> None:
    desk = Desk(running=4, long=1)
    for audio_s in (3600.0, 30.0):
        ticket = desk.comes(audio_s=audio_s)
        desk.settle(ticket, Ask("key", "model", 10.0, 0, 3630.0 - audio_s))
        assert runs(ticket)
        desk.release(ticket)
        assert desk._tally.long == 0
    assert runs(desk.comes(audio_s=3600.0))


def test_clip_beside_a_line_of_files_is_let_in_and_starts_at_once() -> None:
    desk, _ = crowded(files=20, queue_s=10.0)
    expected = desk.preview(CLIP)
    assert (expected.position, expected.start_s, expected.end_s) == (0, 0.0, 1.0)
    clips = [desk.enter(CLIP) for _ in range(4)]
    for clip in clips:
        desk.waits(clip)
    assert runs(*clips)


def test_clip_beside_a_line_of_files_may_have_a_deadline() -> None:
    desk, _ = crowded(files=20)
    assert desk.preview(replace(CLIP, within_s=2.0)).end_s == 1.0
    with pytest.raises(DeadlineUnreachable):
        desk.preview(replace(FILE, within_s=99.0))


def test_clips_that_have_taken_all_places_left_wait_for_each_other_only() -> None:
    desk, _ = crowded(files=20)
    running = [desk.comes(seconds=1.0, audio_s=5.0) for _ in range(4)]
    assert runs(*running)
    assert desk.preview(CLIP).start_s == desk.wait_s() == 4.0  # eight share two streams


def test_file_that_finds_all_long_places_taken_waits_for_one_of_them_though_others_are_free() -> None:
    desk, files = crowded(files=4)
    expected = desk.preview(FILE)
    assert expected.start_s == desk.wait_s(is_long=True) == 400.0
    assert desk.wait_s() == 0.0
    waiting = desk.comes(seconds=100.0, audio_s=HOUR)
    assert desk.estimate(waiting).start_s == 400.0
    desk.release(files[0])
    assert runs(waiting)


def test_file_is_refused_where_it_would_wait_longer_than_the_line_may_be() -> None:
    desk, _ = crowded(files=4, queue_s=10.0)
    assert desk.has_place(is_long=False)
    assert not desk.has_place(is_long=True)
    with pytest.raises(QueueFull):
        desk.enter(FILE)


def test_of_free_places_files_get_no_more_than_are_for_long_ones() -> None:
    desk, _ = crowded(files=3)
    assert (desk.places_for(True), desk.places_for(False)) == (4, 5)
    assert (desk.idle_places(True), desk.idle_places(False)) == (1, 5)
    assert desk.has_place(is_long=True)
    desk.comes(seconds=100.0, audio_s=HOUR)
    assert (desk.places_for(True), desk.places_for(False)) == (4, 4)


def test_upload_that_turns_out_to_be_long_is_counted_as_such() -> None:
    desk, _ = crowded(files=4)
    ticket = desk.enter(CLIP)
    desk.settle(ticket, FILE)
    desk.waits(ticket)
    assert ticket.phase is Phase.WAITING
    assert desk.estimate(ticket).start_s == 400.0


def test_line_of_files_is_not_walked_while_none_of_them_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, files = crowded(files=300)
    with monkeypatch.context() as patch:
        patch.setattr(desk.line, "in_order", lambda: pytest.fail("it was"))
        desk.pump()
    clip = desk.comes(seconds=1.0, audio_s=5.0)
    assert runs(clip)
    desk.release(files[0])
    assert runs(files[4])


def test_wait_behind_hundreds_is_told_for_each_kind() -> None:
    desk, _ = crowded(files=300)
    assert desk.wait_s() == 0.0
    assert desk.wait_s(is_long=True) == pytest.approx(296 / 4 * 400.0 + 400.0)
    assert desk.wait_s() == 0.0


def test_second_attempt_of_a_file_is_seen_though_the_others_wait() -> None:
    desk, files = crowded(files=300)
    desk.again(files[0], amount=0)
    desk.waits(files[0])
    assert runs(files[0])
