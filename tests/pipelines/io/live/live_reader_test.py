"""The live reader: watermarks, receipts, rejections, and what a restart goes on with."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.judged import read_stream
from tests.support.scripted_topics import ASKED, EAGER, PAID, START, Rig, ScriptedTopic, row
from tidemill.features.contract import SECOND, TIME_MIN
from tidemill.features.errors import DamagedState, NoSpace
from tidemill.pipelines.io.live.live_reader import LiveReader
from tidemill.pipelines.io.live.poll_log import PollLog
from tidemill.pipelines.io.log import POSITION, RECEIVED


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, ScriptedTopic(2, first=5), ScriptedTopic(1))


def paid_parts(rig: Rig) -> list[tuple[int, int, int]]:
    return [
        (part.partition, part.start, part.stop)
        for poll in rig.polls()
        for part in poll.parts
        if part.source == "paid"
    ]


# --- what makes a poll -----------------------------------------------------------------------


def test_rows_of_messages_get_positions_and_one_receipt(rig: Rig) -> None:
    rig.paid.send(row("a", START), row("b", START + 1), partition=1)
    rig.asked.send(row("q", START))
    found = rig.step()
    assert found is not None
    assert (found.number, found.offsets) == (1, {"asked": (1,), "paid": (5, 7)})
    assert found.highest_us == {"asked": (START,), "paid": (TIME_MIN, START + 1)}
    rows = rig.rows("paid")
    assert [(one["id"], one[POSITION], one[RECEIVED]) for one in rows] == [
        ("a", 0, START), ("b", 1, START)
    ]  # fmt: skip
    assert {one["sent_at"].timestamp() for one in rows} == {START / SECOND}
    assert paid_parts(rig) == [(0, 0, 0), (1, 0, 2)]


def test_nothing_come_makes_no_poll(rig: Rig) -> None:
    rig.pace = replace(EAGER, check_s=1e9)
    rig.restarted()
    rig.step()
    assert [rig.step(1.0) for _ in range(5)] == [None] * 5


def test_a_poll_has_at_most_so_many_messages(rig: Rig) -> None:
    rig.pace = replace(EAGER, poll_messages=3)
    rig.restarted()
    rig.paid.send(*(row(f"{n}", START) for n in range(8)))
    for _ in range(3):
        assert rig.step() is not None
    assert paid_parts(rig)[::2] == [(0, 0, 3), (0, 3, 6), (0, 6, 8)]


def test_offsets_that_move_without_a_message_make_a_poll(rig: Rig) -> None:
    rig.pace = replace(EAGER, check_s=1e9)
    rig.restarted()
    rig.paid.skip(3, partition=1)
    found = rig.step()
    assert found is not None
    assert found.offsets["paid"] == (5, 8)
    assert rig.rows("paid") == []
    assert rig.step() is None


def test_an_offset_that_steps_back_is_an_error(rig: Rig) -> None:
    rig.paid.send(row("a", START))
    rig.step()
    rig.paid.seek((5, 5))
    rig.paid.hidden = {0, 1}
    with pytest.raises(DamagedState, match="'paid' stepped back from offset 6 to 5 of partition 0"):
        rig.step()


def test_a_broker_that_is_away_proves_nothing_and_stops_nothing(rig: Rig) -> None:
    rig.paid.send(row("a", START))
    rig.step()
    before = rig.watermark()
    rig.paid.is_away = rig.asked.is_away = True
    for _ in range(5):
        assert rig.step(60.0) is None
    rig.paid.is_away = rig.asked.is_away = False
    assert rig.step() is not None
    assert rig.watermark() == START + 300 * SECOND - 2 * SECOND
    assert before == START - SECOND


# --- partitions that are ahead -----------------------------------------------------------------


def backlog(rig: Rig, seconds: int, every: int, partition: int, by: str = "paid") -> None:
    """Send a row for each so many seconds."""
    topic = rig.paid if by == "paid" else rig.asked
    for at in range(0, seconds, every):
        at_us = START + at * SECOND
        topic.send(row(f"{by}-{partition}-{at}", at_us), partition=partition, sent_us=at_us)


def test_no_partition_runs_ahead_of_one_that_has_more_messages(rig: Rig) -> None:
    """As after a standstill: the messages of all lie there, and some are dense."""
    rig.pace = replace(EAGER, poll_messages=4, ahead_us=0)
    rig.now_us += 200 * SECOND
    rig.restarted()
    backlog(rig, 200, 1, 0)
    backlog(rig, 200, 5, 1)
    backlog(rig, 200, 10, 0, "asked")
    apart = []
    for _ in range(150):
        rig.step(0.1)
        highest = [
            rig.reader._sources[name].judge.highest_us(partition)
            for name, partition in (("paid", 0), ("paid", 1), ("asked", 0))
        ]
        if min(highest) > TIME_MIN and max(highest) < START + 190 * SECOND:
            apart.append(max(highest) - min(highest))
    assert len(rig.rows("paid")) == 240
    assert len(apart) > 20
    # Two polls of the sparsest partition; without this, it is at its end in the fifth poll.
    assert max(apart) <= 80 * SECOND


def test_a_source_that_is_ahead_of_another_with_more_messages_is_not_asked(rig: Rig) -> None:
    """Its messages are fewer, or larger, so a poll of it reaches further."""
    rig.pace = replace(EAGER, poll_messages=4, ahead_us=1_000 * SECOND)
    rig.now_us += 200 * SECOND
    rig.restarted()
    backlog(rig, 200, 1, 0)
    backlog(rig, 200, 10, 0, "asked")
    apart = []
    for _ in range(80):
        rig.step(0.1)
        paid, asked = (rig.reader._sources[name].judge.highest_us(0) for name in ("paid", "asked"))
        if min(paid, asked) > TIME_MIN and paid < START + 190 * SECOND:
            apart.append(abs(paid - asked))
    assert len(rig.rows("paid")) == 200
    assert len(rig.rows("asked")) == 20
    assert rig.paid.left_out == rig.asked.left_out == set()
    # Two polls of it and the second; without this, it is at its end in the fifth poll.
    assert max(apart) <= 81 * SECOND


def test_a_partition_that_is_ahead_is_read_once_the_others_have_no_more(rig: Rig) -> None:
    rig.pace = replace(EAGER, ahead_us=SECOND)
    rig.restarted()
    rig.step()
    rig.paid.send(row("old", START), partition=1)
    rig.now_us += 100 * SECOND
    rig.paid.send(row("new", START + 60 * SECOND), sent_us=rig.now_us)
    rig.paid.hidden = {1}  # it is there, and has not come yet
    rig.step(0.1)
    rig.step(0.1)
    assert rig.paid.left_out == set()  # nothing is known of what has never come
    rig.paid.hidden = set()
    rig.step(0.1)
    rig.paid.send(row("more", START + SECOND), row("late", START + 2 * SECOND), partition=1)
    rig.paid.hidden = {1}
    rig.step(0.1)
    rig.paid.send(row("newer", START + 61 * SECOND), sent_us=rig.now_us)
    rig.step(0.1)
    rig.paid.send(row("newest", START + 62 * SECOND), sent_us=rig.now_us)
    for _ in range(3):
        rig.step(0.1)
        assert rig.paid.left_out == {0}
    rig.paid.hidden = set()
    rig.step(0.1)
    rig.step(0.1)
    rig.step(0.1)
    assert rig.paid.left_out == set()
    everything = {"old", "new", "more", "late", "newer", "newest"}
    assert {one["id"] for one in rig.rows("paid")} == everything


def test_a_partition_with_messages_that_came_just_now_holds_back_no_other(rig: Rig) -> None:
    rig.pace = replace(EAGER, check_s=0.5, ahead_us=0, near_us=0)
    rig.restarted()
    for number in range(12):
        at_us = START + 60 * number * SECOND
        rig.now_us = at_us
        rig.paid.send(row(f"slow-{number}", at_us), partition=0, sent_us=at_us)
        rig.paid.send(row(f"fast-{number}", at_us + 9 * SECOND), partition=1, sent_us=at_us)
        rig.paid.hidden = {0}  # it comes right after the others were read
        rig.step(0.25)
        rig.paid.hidden = set()
        rig.step(0.25)
        assert rig.paid.left_out == set()


def test_without_a_frontier_nothing_waits(rig: Rig) -> None:
    rig.pace = replace(EAGER, poll_messages=4, ahead_us=None)
    rig.now_us += 200 * SECOND
    rig.restarted()
    backlog(rig, 100, 1, 0)
    backlog(rig, 100, 25, 1)
    for _ in range(6):
        rig.step(0.1)
        assert rig.paid.left_out == set()


# --- watermarks ------------------------------------------------------------------------------


def test_a_watermark_is_the_highest_time_minus_the_out_of_orderness(rig: Rig) -> None:
    rig.paid.hidden = {1}
    rig.paid.stable = {0: 6}
    rig.paid.send(row("a", START + 5 * SECOND), row("b", START))
    rig.step()
    assert rig.watermark() == START + 4 * SECOND
    assert rig.watermark(partition=1) == START - 2 * SECOND  # empty, and read to its end
    rig.paid.stable = {}
    rig.step()
    assert rig.watermark() == START + 4 * SECOND  # a lower row moves nothing


def test_a_quiet_partition_has_the_instant_of_the_question_minus_its_waits(rig: Rig) -> None:
    rig.step(10.0)
    assert rig.watermark() == START + 8 * SECOND
    rig.step(-5.0)
    assert rig.watermark() == START + 8 * SECOND  # it never steps back
    rig.step(6.0)
    assert rig.watermark() == START + 9 * SECOND


@pytest.mark.parametrize("obstacle", ["open transaction", "unread messages", "empty fetch"])
def test_only_a_partition_that_is_read_to_its_end_is_quiet(rig: Rig, obstacle: str) -> None:
    rig.paid.send(row("a", START))
    rig.step()
    if obstacle == "open transaction":
        rig.paid.stable = {0: 6}
        rig.paid.send(row("b", START + SECOND))
    elif obstacle == "unread messages":
        rig.pace = replace(EAGER, poll_messages=1)
        rig.restarted()
        rig.paid.send(*(row(f"b{n}", START) for n in range(50)))
    else:
        rig.paid.hidden = {0}
        rig.paid.send(row("b", START + SECOND))
    for _ in range(5):
        rig.step(100.0)
    assert rig.watermark() == START - SECOND
    assert rig.watermark(partition=1) == START + 498 * SECOND
    assert rig.reader.figures.caught_up == {"asked": 1, "paid": 1}
    rig.paid.stable, rig.paid.hidden = {}, set()
    for _ in range(60):
        rig.step()
    assert rig.watermark() == START + 498 * SECOND
    assert rig.reader.figures.caught_up == {"asked": 1, "paid": 2}


def test_a_message_that_comes_while_the_ends_are_asked_is_still_to_come(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = rig.paid.ends

    def ends() -> Any:
        if not rig.rows("paid"):
            rig.paid.send(row("b", rig.now_us - SECOND))
        return asked()

    monkeypatch.setattr(rig.paid, "ends", ends)
    rig.step(100.0)
    assert rig.watermark() == TIME_MIN
    monkeypatch.undo()
    rig.step()
    assert rig.watermark() == START + 98 * SECOND
    assert rig.reader.figures.late_after_quiet == {"asked": 0, "paid": 0}


def test_rows_that_come_below_a_quiet_watermark_are_counted(rig: Rig) -> None:
    rig.step(10.0)
    assert rig.watermark() == START + 8 * SECOND
    late = [row("a", START + 7 * SECOND), row("b", START + 8 * SECOND), row("c", START)]
    rig.paid.send(*late, sent_us=rig.now_us)
    rig.step()
    # The third is too late for the log itself: 3 seconds below the highest time.
    assert [one["id"] for one in rig.rows("paid")] == ["a", "b"]
    assert rig.reader.figures.late_after_quiet["paid"] == 1
    rig.restarted()  # it knows that the watermark was of a quiet partition
    rig.paid.send(row("d", START + 7 * SECOND), sent_us=rig.now_us)
    rig.step()
    assert rig.reader.figures.late_after_quiet["paid"] == 1


def test_with_the_clock_of_messages_nothing_is_quiet_after_the_newest_message(rig: Rig) -> None:
    rig.clock = "messages"
    rig.restarted()
    rig.step(100.0)
    assert rig.watermark() is None
    past = START - 1_000 * SECOND
    rig.paid.send(row("a", past), sent_us=past)
    rig.step(100.0)
    assert rig.watermark() == past - SECOND
    assert rig.watermark(partition=1) == past - 2 * SECOND
    rig.step(1_000.0)
    assert rig.watermark(partition=1) == past - 2 * SECOND
    # The newest message of any source that has this clock counts, and is known after a restart.
    rig.asked.send(row("q", past + 60 * SECOND), sent_us=past + 60 * SECOND)
    rig.paid.hidden = {0, 1}
    rig.paid.send(b"", partition=1, sent_us=past)
    rig.step()
    rig.restarted()
    rig.paid.hidden = set()
    rig.step(1.0)
    assert rig.watermark() == past + 58 * SECOND


def test_a_producer_whose_clock_is_ahead_is_judged_by_the_clock_of_the_reader(rig: Rig) -> None:
    """Its timestamps agree with its events, and would let them pass."""
    hour_ahead = START + 3600 * SECOND
    rig.paid.send(row("wrong", hour_ahead), sent_us=hour_ahead)
    rig.paid.send(row("right", START))
    rig.step()
    assert [one["id"] for one in rig.rows("paid")] == ["right"]
    (record,) = rig.rejected()
    assert record["reason"] == "ahead"
    assert "past its receipt at 2023-11-14T22:13:20" in record["detail"]
    assert rig.watermark() == START - PAID.out_of_orderness_us


def test_a_rejected_message_does_not_move_the_clock_of_messages(rig: Rig) -> None:
    rig.clock = "messages"
    rig.restarted()
    rig.now_us = START + 7200 * SECOND
    rig.paid.send(row("a", START), sent_us=START)
    rig.paid.send(row("wrong", START + 3600 * SECOND), sent_us=START + 3500 * SECOND)
    rig.paid.send(b"{", sent_us=START + 3500 * SECOND)
    found = rig.step()
    assert found is not None
    assert found.newest_us["paid"] == START
    assert rig.watermark(partition=1) == START - 2 * SECOND


def test_the_clock_of_messages_is_no_later_than_the_wall_clock(rig: Rig) -> None:
    rig.clock = "messages"
    rig.restarted()
    rig.paid.send(b"[]", sent_us=START + 10**12)
    rig.step()
    rig.step(1.0)
    assert rig.watermark() == START - SECOND


def test_a_source_of_the_wall_clock_does_not_move_one_of_messages(rig: Rig) -> None:
    rig.clock = "messages"
    rig.restarted()
    sources = list(rig.reader._sources.values())
    sources[0] = replace(sources[0], clock="wall")  # asked
    reader = LiveReader(
        sources, rig.reader._order, rig.reader._log, rig.live.sealed().offsets, EAGER,
        clock_us=lambda: rig.now_us, seconds=lambda: rig.seconds,
    )  # fmt: skip
    rig.reader = reader
    past = START - 1_000 * SECOND
    rig.paid.send(row("a", past), sent_us=past)
    rig.asked.send(row("q", START))
    rig.step()
    rig.step(1.0)
    assert rig.watermark("asked") == START - SECOND
    assert rig.watermark(partition=1) == past - 2 * SECOND


def test_a_risen_watermark_is_said_at_the_next_beat_also_if_it_rises_no_more(rig: Rig) -> None:
    rig.clock, rig.pace = "messages", replace(EAGER, beat_s=0.1, check_s=0.5)
    rig.restarted()
    rig.step()
    rig.paid.send(row("a", START))
    rig.step(0.49)
    written = rig.watermark(partition=1)
    assert written == TIME_MIN
    assert rig.step(0.02) is None  # it rises, too soon after the poll before
    assert rig.step(0.05) is None
    assert rig.step(0.05) is not None
    assert rig.watermark(partition=1) == START - 2 * SECOND


def test_a_quiet_stream_beats_no_more_often_than_it_should(rig: Rig) -> None:
    rig.pace = replace(EAGER, beat_s=0.5)
    rig.restarted()
    for _ in range(100):
        rig.step(0.1)
    assert len(rig.logged()) == 20


def test_a_source_that_holds_the_frontier_is_asked_sooner(rig: Rig) -> None:
    rig.pace = replace(EAGER, check_s=10.0, hold_s=0.1)
    rig.paid.send(row("a", START), partition=1)
    rig.restarted()
    rig.step()
    assert rig.step(0.2) is not None  # no row waits, and yet nothing is known of partition 0
    rig.asked.send(row("q", START + 4 * SECOND))
    rig.now_us = START + 4 * SECOND
    rig.step(0.0)
    for _ in range(7):
        rig.step(1.0)
    assert rig.watermark(partition=0) >= START + 4 * SECOND
    assert rig.watermark("asked") >= START + 4 * SECOND
    before = rig.watermark(partition=0)
    rig.step(1.0)  # nothing waits any more
    assert rig.watermark(partition=0) == before


# --- receipts --------------------------------------------------------------------------------


def test_receipts_ascend_though_the_clock_steps_back_and_the_reader_restarts(rig: Rig) -> None:
    for seconds in (0.0, -3_600.0, 0.0, 10.0, 7_200.0, -1.0):
        rig.paid.send(row("a", START))
        rig.step(seconds)
        rig.restarted()
    received = [poll.sent_us for poll in rig.polls()]
    assert received[:4] == [START, START + 1, START + 2, START + 3]
    assert all(after > before for before, after in pairwise(received))


def test_the_first_receipt_is_after_what_the_states_hold(rig: Rig) -> None:
    reader = LiveReader(
        list(rig.reader._sources.values()), rig.reader._order, rig.reader._log,
        rig.live.sealed().offsets, EAGER, after_us=START + 10, clock_us=lambda: START,
    )  # fmt: skip
    rig.paid.send(row("a", START))
    reader.step()
    assert rig.polls()[0].sent_us == START + 11


# --- rejections ------------------------------------------------------------------------------


def places(rig: Rig) -> list[tuple[str, str, int, bytes]]:
    return [
        (one["stage"], one["reason"], one["position"], one["payload"]) for one in rig.rejected()
    ]


def test_messages_that_cannot_be_read_are_rejected_with_their_bytes(rig: Rig) -> None:
    bad = [b"{", None, b"\xff\xfe", b"[1]", b"7"]
    rig.paid.send(row("a", START), *bad, row("b", START), partition=1)
    rig.step()
    assert [one["id"] for one in rig.rows("paid")] == ["a", "b"]
    assert [one[2:] for one in places(rig)] == [
        (6, b"{"), (7, b""), (8, b"\xff\xfe"), (9, b"[1]"), (10, b"7")
    ]  # fmt: skip
    assert {one["partition"] for one in rig.rejected()} == {1}
    assert rig.rejected()[0]["origin"] == "topic/1@6"
    counts = rig.reader.figures.counts["paid"]
    assert (counts.read, counts.kept, counts.rejected) == (7, 2, 5)


def test_a_poll_may_have_rejected_records_alone(rig: Rig) -> None:
    rig.paid.send(b"{")
    found = rig.step()
    assert found is not None
    assert found.rejected is not None
    assert rig.rows("paid") == []


def failing(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Fail on amounts below zero, and on no rows at all."""
    lowest = min(map(float, batch.column("amount").to_pylist()))
    if lowest < 0:
        raise ValueError(f"{lowest} is below zero")
    return batch


def amounts(rig: Rig) -> list[float]:
    return [one["amount"] for one in rig.rows("paid")]


@pytest.mark.parametrize("bad", [(), (0,), (6,), (2, 3), (0, 3, 6), tuple(range(7))])
def test_a_transform_that_fails_on_messages_rejects_these_alone(
    tmp_path: Path, bad: tuple[int, ...]
) -> None:
    rig = Rig(tmp_path, transform=failing)
    values = [row(f"m{n}", START + n, -1.0 if n in bad else float(n)) for n in range(7)]
    rig.paid.send(*values)
    rig.step()
    assert amounts(rig) == [float(n) for n in range(7) if n not in bad]
    assert places(rig) == [("transform", "transform", n, values[n]) for n in bad]
    assert all("-1.0 is below zero" in one["detail"] for one in rig.rejected())
    counts = rig.reader.figures.counts["paid"]
    assert (counts.read, counts.kept, counts.rejected) == (7, 7 - len(bad), len(bad))


def test_unreadable_messages_keep_their_reason_beside_a_failing_transform(tmp_path: Path) -> None:
    rig = Rig(tmp_path, transform=failing)
    values = [b"{", row("a", START, -1.0), None, row("b", START), b"}", row("c", START, -2.0), b"x"]
    rig.paid.send(*values)
    rig.step()
    assert [one[:3] for one in places(rig)] == [
        ("read", "broken_json", 0), ("transform", "transform", 1), ("read", "no_value", 2),
        ("read", "broken_json", 4), ("transform", "transform", 5), ("read", "broken_json", 6),
    ]  # fmt: skip
    assert [one["id"] for one in rig.rows("paid")] == ["b"]
    # Nothing but garbage: the transform fails on no rows, and is not blamed.
    rig.paid.send(b"{")
    rig.step()
    assert places(rig)[-1] == ("read", "broken_json", 7, b"{")


def array(*rows: bytes) -> bytes:
    return b"[" + b",".join(rows) + b"]"


def test_a_row_of_a_message_of_many_rows_is_rejected_alone(tmp_path: Path) -> None:
    rig = Rig(tmp_path, transform=failing)
    bad = row("b", START, -1.0)
    rig.paid.send(
        array(row("a", START), bad, row("c", START)), row("d", START), array(row("e", START), b"3")
    )
    rig.step()
    assert [one["id"] for one in rig.rows("paid")] == ["a", "c", "d", "e"]
    assert [(one["position"], one["origin"]) for one in rig.rejected()] == [
        (0, "topic/0@0:1"), (2, "topic/0@2:1")
    ]  # fmt: skip
    assert rig.rejected()[0]["payload"] == bad


def test_late_and_early_rows_are_judged_in_order_around_a_failing_transform(tmp_path: Path) -> None:
    """The judge sees every row once: a row that is judged twice would be late or repeated."""
    rig = Rig(tmp_path, transform=failing)
    times = [0, 9, 5, 9, 7, 20]
    values = [
        row(f"m{n}", START + at * SECOND, -1.0 if n in (1, 4) else 1.0)
        for n, at in enumerate(times)
    ]
    rig.paid.send(*values)
    rig.step()
    assert [one["id"] for one in rig.rows("paid")] == ["m0", "m2", "m3"]
    assert [one[:3] for one in places(rig)] == [
        ("transform", "transform", 1), ("transform", "transform", 4), ("accept", "ahead", 5)
    ]  # fmt: skip


# --- a restart -------------------------------------------------------------------------------


@given(
    times=st.lists(st.integers(-6, 14), min_size=1, max_size=25),
    ids=st.lists(st.integers(0, 6), min_size=25, max_size=25),
    kills=st.sets(st.integers(0, 25)),
    waits=st.lists(st.sampled_from([0.0, 0.5, 3.0, -1.0]), min_size=25, max_size=25),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_reader_that_is_killed_goes_on_as_if_it_had_not_been(
    tmp_path_factory: pytest.TempPathFactory,
    times: list[int],
    ids: list[int],
    kills: set[int],
    waits: list[float],
) -> None:
    """Polls, rejected records, offsets, watermarks, and what is late, ahead or a repeated id."""
    logs = []
    for is_killed in (False, True):
        rig = Rig(tmp_path_factory.mktemp("rig"), ScriptedTopic(2), ScriptedTopic(2))
        for n, at in enumerate(times):
            if is_killed and n in kills:
                rig.restarted()
            message = row(f"i{ids[n]}", START + at * SECOND)
            for topic in (rig.paid, rig.asked):
                topic.send(message, partition=n % 2, sent_us=START)
            rig.step(waits[n])
        logs.append([one.encode() for one in rig.logged()])
    assert logs[0] == logs[1]


def test_a_poll_that_cannot_be_written_down_was_not_read(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader's number stays, since the stream is told to stop after it."""
    rig.paid.send(row("a", START))
    rig.step()

    def full(log: PollLog, entry: Any) -> None:
        raise NoSpace("the disk is full")

    rig.paid.send(row("b", START))
    with monkeypatch.context() as patched:
        patched.setattr(PollLog, "append", full)
        with pytest.raises(NoSpace):
            rig.step()
    assert rig.reader.number == 1
    rig.restarted()
    rig.step()
    assert [(one["id"], one[POSITION]) for one in rig.rows("paid")] == [("a", 0), ("b", 1)]
    assert PAID.name in rig.logged()[-1].offsets


# --- ids that are remembered for a while -------------------------------------------------------


@pytest.fixture
def asking(tmp_path: Path) -> Rig:
    """Requests of two partitions, whose ids count for ten seconds."""
    request = replace(ASKED, repeated_within="10s", max_ahead="365d")
    return Rig(tmp_path, ScriptedTopic(1), ScriptedTopic(2), request=request)


def accepted_ids(rig: Rig) -> list[str]:
    return [one["id"] for one in rig.rows("asked")]


def ask(rig: Rig, name: str, at_s: int, partition: int = 0) -> None:
    rig.asked.send(row(name, START + at_s * SECOND), partition=partition, sent_us=START)
    rig.step(0.1)


def test_an_id_may_come_again_after_a_while_and_also_after_a_kill(asking: Rig) -> None:
    for at_s in (0, 9, 10, 19, 20):
        ask(asking, "a", at_s)
        asking.restarted()
    assert [one["at"].timestamp() - START / SECOND for one in asking.rows("asked")] == [0, 10, 20]
    assert asking.rejected()[0]["detail"] == (
        "column 'id': found 'a', which an earlier request of partition 0 of the log has, expected "
        "an id of its own within 10s"
    )


def test_a_request_whose_id_cannot_be_compared_any_more_is_too_late(asking: Rig) -> None:
    """In its own partition it would be late as well; another partition may be far ahead."""
    ask(asking, "a", 0, partition=1)
    ask(asking, "b", 100)
    ask(asking, "a", 89, partition=1)
    ask(asking, "c", 90, partition=1)
    assert accepted_ids(asking) == ["a", "b", "c"]
    (refused,) = asking.rejected()
    assert (refused["reason"], refused["partition"]) == ("too_late", 1)
    assert "expected at least 2023-11-14T22:14:50" in refused["detail"]
    assert asking.logged()[-1].highest_us["asked"] == (START + 100 * SECOND, START + 90 * SECOND)


def test_the_memory_of_ids_is_bounded_by_time(asking: Rig) -> None:
    sizes = []
    for n in range(60):
        rows = [row(f"{n}-{m}", START + (5 * n + m // 20) * SECOND) for m in range(100)]
        asking.asked.send(*rows, partition=n % 2, sent_us=START)
        asking.step(0.1)
        sizes.append(asking.ids.nbytes)
    assert len(accepted_ids(asking)) == 6_000
    of_a_span = 200 * 44
    assert 2 * 200 * 24 <= min(sizes[10:]) <= max(sizes) <= 4 * of_a_span
    asking.restarted()
    assert asking.ids.nbytes <= 4 * of_a_span


# --- files and topics ------------------------------------------------------------------------


@given(
    given_rows=st.lists(
        st.tuples(
            st.integers(-8, 25),  # seconds of the event
            st.integers(0, 3),  # seconds until it is sent
            st.sampled_from([1.5, "x", None, -1.0]),
            st.sampled_from(["plain", "plain", "plain", "garbage", "not UTF-8", "no object"]),
        ),
        min_size=1,
        max_size=30,
    ),
    most=st.integers(1, 7),
    within=st.sampled_from([None, "3s"]),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_rows_of_a_topic_are_judged_like_those_of_a_file(
    tmp_path_factory: pytest.TempPathFactory, given_rows: list[Any], most: int, within: str | None
) -> None:
    """Of events and of requests: which are accepted, and why the others are not."""
    folder = tmp_path_factory.mktemp("rig")
    asked = replace(ASKED, repeated_within=within)
    rig = Rig(folder, pace=replace(EAGER, poll_messages=most), request=asked)
    other = {"garbage": b"{", "not UTF-8": b'{"id": "\xff"}', "no object": b"7"}
    lines, sent_us = [], START
    for n, (at, wait, amount, kind) in enumerate(given_rows):
        sent_us += wait * SECOND
        values: dict[str, Any] = {"name": f"i{n // 2}", "at_us": START + at * SECOND}
        values["amount"] = amount
        message = other.get(kind, row(**values))
        for topic in (rig.paid, rig.asked):
            topic.send(message, sent_us=sent_us)
        sent_at = f"{np.datetime64(sent_us, 'us')}Z"
        lines.append(other.get(kind, row(**values, sent_at=sent_at)))
    rig.now_us = sent_us  # a file does not know when it is read
    while rig.paid.positions() != {0: len(lines)} or rig.asked.positions() != {0: len(lines)}:
        rig.step(0.1)
    rig.step()
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    for definition in (PAID, asked):
        accepted, refused = [], []
        for judged in read_stream(definition, [path], received="sent_at"):
            accepted += judged.batch.to_pylist()
            refused += [
                (one["position"], one["stage"], one["reason"])
                for one in judged.rejected.to_pylist()
            ]
        found = [
            {name: one[name] for name in definition.schema} for one in rig.rows(definition.name)
        ]
        assert found == accepted
        assert [
            (one["position"], one["stage"], one["reason"])
            for one in rig.rejected()
            if one["stream"] == definition.name
        ] == refused
        counts = rig.reader.figures.counts[definition.name]
        assert (counts.read, counts.kept) == (len(lines), len(accepted))
