"""What was lost and accepted, in the log: a poll of its own, once, from position to position."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.scripted_topics import PROJECT, START, Rig, ScriptedTopic, row
from tidemill.features.contract import HOUR
from tidemill.features.errors import DamagedFile, StateMismatch
from tidemill.pipelines.io.live.live_log import LiveLog
from tidemill.pipelines.io.live.live_records import LiveOrigin
from tidemill.pipelines.io.live.lost import INCARNATION, Loss, Why, records_of
from tidemill.pipelines.io.live.poll_files import LOST, read_table
from tidemill.pipelines.io.live.poll_log import LoggedPoll
from tidemill.pipelines.io.live.set_aside import losses_of
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.verify.compare_lost import LossCheck
from tidemill.pipelines.verify.findings import Findings

LOSS = Loss("paid", "payments", 1, Why.DELETED, 2, 5, "id-1", "id-1")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A stream that has read two messages of each of two partitions."""
    rig = Rig(tmp_path, ScriptedTopic(2), ScriptedTopic(1))
    for partition in range(2):
        values = (row(f"{partition}-{n}", START) for n in range(2))
        rig.paid.send(*values, partition=partition)
    rig.step(1)
    return rig


def lose(rig: Rig, messages: int = 3) -> None:
    """Let the second partition begin after messages that nobody has read; restart the reader."""
    rig.paid.skip(messages, partition=1)
    rig.restarted()
    rig.paid.seek([2, 2 + messages])


def faults(rig: Rig) -> list[str]:
    found = Findings()
    LossCheck(rig.live).check(found)
    return [one.cause for one in found.listed]


def test_what_is_accepted_is_a_poll_without_rows_whose_positions_go_on_behind_it(rig: Rig) -> None:
    lose(rig)
    rig.now_us += HOUR
    poll = rig.reader.accept_lost([LOSS], "me@here")
    assert [one.number for one in rig.logged()] == [1, 2]
    logged = rig.logged()[-1]
    assert logged.offsets["paid"] == (2, 5) == poll.offsets["paid"]
    assert logged.encode() == poll.encode()
    before, after = rig.polls()
    assert [part.rows for part in after.parts] == [None] * 3
    assert [part.stop for part in after.parts] == [part.stop for part in before.parts]
    for was, now in zip(before.parts, after.parts, strict=True):
        assert now.watermark_us >= was.watermark_us
    (one,) = losses_of(rig.live)
    assert (one.poll, one.loss, one.accepted_by) == (2, LOSS, "me@here")
    assert one.accepted_us == after.sent_us
    assert one.is_whole


def test_a_reader_that_is_killed_then_goes_on_behind_it(rig: Rig) -> None:
    lose(rig)
    rig.reader.accept_lost([LOSS], "me")
    rig.paid.send(row("1-9", START), partition=1)
    rig.restarted()
    rig.step(1)
    assert [one["id"] for one in rig.rows("paid")][-1] == "1-9"
    assert len(losses_of(rig.live)) == 1


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (replace(LOSS, start=1), "the log is at position 2, not at 1"),
        (replace(LOSS, stop=2), "the log is at position 2, not at 2"),
        (replace(LOSS, stop=4), "begins at position 5 of partition 1"),
    ],
)
def test_what_does_not_lead_from_the_log_to_the_topic_is_not_written_down(
    rig: Rig, loss: Loss, why: str
) -> None:
    lose(rig)
    with pytest.raises(StateMismatch, match=why):
        rig.reader.accept_lost([loss], "me")
    assert len(rig.logged()) == 1


def test_a_jump_that_was_not_accepted_is_not_written_down(rig: Rig) -> None:
    lose(rig)
    with pytest.raises(StateMismatch, match="what was accepted leads to 2"):
        rig.reader.accept_lost([], "me")


def test_it_is_sealed_with_its_poll_and_read_once(rig: Rig) -> None:
    lose(rig)
    rig.reader.accept_lost([LOSS], "me")
    before = losses_of(rig.live)
    # A seal that was killed after it had written the records.
    sealed = rig.live.sealed()
    rig.live.seal(rig.build)
    rig.live.write_sealed(sealed)
    assert losses_of(rig.live) == before
    rig.live.seal(rig.build)
    assert losses_of(rig.live) == before
    assert rig.live.sealed().offsets["paid"] == [2, 5]
    assert faults(rig) == []


def test_a_poll_without_lost_messages_has_the_bytes_that_it_always_had() -> None:
    poll = Poll(1, 0, ()).encode()
    plain = LoggedPoll(1, {"paid": (1,)}, {"paid": (2,)}, poll)
    lost = replace(plain, lost=records_of([LOSS], 5, "me"), topic_ids={"paid": "id-1"})
    for one in (plain, lost):
        assert LoggedPoll.decode(one.encode(), "").encode() == one.encode()
    assert b"lost" not in plain.encode()
    found = LoggedPoll.decode(lost.encode(), "")
    assert found.topic_ids == {"paid": "id-1"}
    assert found.lost is not None
    assert found.mended is None
    assert found.lost.to_pylist() == records_of([LOSS], 5, "me").to_pylist()


def test_where_offsets_begin_anew_positions_rise(rig: Rig) -> None:
    again = [
        Loss("paid", "payments", n, Why.RECREATED, 2, INCARNATION, "id-1", "id-2") for n in range(2)
    ]
    fresh = ScriptedTopic(2, first=INCARNATION)
    rig.restarted()
    rig.paid._messages, rig.paid._firsts = fresh._messages, fresh._firsts
    rig.paid.seek([INCARNATION] * 2)
    rig.reader.accept_lost(again, "me")
    rig.paid.send(row("new", START), partition=0)
    rig.step(1)
    assert rig.logged()[-1].offsets["paid"] == (INCARNATION + 1, INCARNATION)
    assert [one.offset for one in rig.reader.standings() if one.source == "paid"] == [1, 0]
    rig.live.seal(rig.build)
    assert faults(rig) == []


@pytest.fixture
def sealed(rig: Rig) -> Rig:
    """A sealed log in which one loss was accepted."""
    lose(rig)
    rig.reader.accept_lost([LOSS], "me")
    rig.paid.send(row("1-9", START), partition=1)
    rig.step(1)
    rig.live.seal(rig.build)
    assert faults(rig) == []
    return rig


def rewrite(rig: Rig, kind: str, change: dict[str, list[object]] | None) -> None:
    (path,) = (rig.live.folder / kind).glob("*.arrow")
    table = read_table(path)
    if change is None:
        table = table.slice(0, 0)
    for name, values in (change or {}).items():
        place = table.schema.get_field_index(name)
        column = pa.array(values, table.schema.field(name).type)
        table = table.set_column(place, name, column)
    rig.live.files(kind).write(int(path.stem), table)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", 4),
        ("start", 1),
        ("accepted_us", 0),
        ("accepted_by", "you"),
        ("topic_id", "other"),
        ("partition", 0),
        ("digest", "0" * 32),
        ("why", "recreated"),
    ],
)
def test_a_record_that_was_changed_is_found(sealed: Rig, name: str, value: object) -> None:
    rewrite(sealed, LOST, {name: [value]})
    assert faults(sealed)


def test_a_record_that_was_removed_is_found(sealed: Rig) -> None:
    rewrite(sealed, LOST, None)
    assert faults(sealed) == [
        "positions pass over lost messages, and the record that says so is missing"
    ]


def test_a_record_of_another_poll_is_found(sealed: Rig) -> None:
    rewrite(sealed, LOST, {"_poll": [3]})
    assert sorted(faults(sealed)) == [
        "a record of lost messages that the poll does not have",
        "positions pass over lost messages, and the record that says so is missing",
    ]


def test_a_record_with_a_reason_that_there_is_not_is_damaged(sealed: Rig) -> None:
    rewrite(sealed, LOST, {"why": ["bored"]})
    with pytest.raises(DamagedFile, match="bored"):
        losses_of(sealed.live)


@pytest.mark.parametrize(
    ("offsets", "why"),
    [
        ([2, 5, 4], "the position steps back"),
        ([2, 5, INCARNATION], "offsets begin anew, and no record says that it was accepted"),
        ([2, 6, 6], "the record of lost messages does not lead to the position"),
        ([3, 5, 6], "the record of lost messages does not begin where the log was"),
    ],
)
def test_positions_that_no_record_explains_are_found(
    sealed: Rig, offsets: list[object], why: str
) -> None:
    rewrite(sealed, "cuts", {"offset/paid/1": offsets})
    assert faults(sealed) == [why]


def test_what_is_sealed_later_is_checked_from_where_the_last_check_was(sealed: Rig) -> None:
    check, found = LossCheck(sealed.live), Findings()
    check.check(found)
    sealed.paid.send(row("1-10", START), partition=1)
    sealed.step(1)
    sealed.live.seal(sealed.build)
    check.check(found)
    assert found.count == 0
    cuts = next(iter((sealed.live.folder / "cuts").glob("*.arrow")))
    number = np.array(read_table(cuts).column("number"))
    rewrite(sealed, "cuts", {"offset/paid/1": [*[6] * (len(number) - 1), 0]})
    check.check(found)
    assert found.count == 0  # it has been read
    assert faults(sealed)


def test_a_log_that_goes_on_with_another_has_its_records(sealed: Rig, tmp_path: Path) -> None:
    other = LiveLog(tmp_path / "other", PROJECT)
    other.begin(sealed.live.topics(), LiveOrigin())
    other.take_cuts(sealed.live)
    other.take_rejected(sealed.live, lambda records: records)
    other.write_sealed(sealed.live.sealed())
    assert losses_of(other) == losses_of(sealed.live)
    found = Findings()
    LossCheck(other).check(found)
    assert found.count == 0
