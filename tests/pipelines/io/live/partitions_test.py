"""Topics that get more partitions while they are read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.scripted_topics import EAGER, START, Rig, ScriptedTopic, row
from tidemill.features.contract import SECOND, TIME_MAX, TIME_MIN
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.ingest.mended_live import next_replay, write_mended
from tidemill.pipelines.io.live.live_records import Sealed
from tidemill.pipelines.io.live.mended import MendedMessage, record_id
from tidemill.pipelines.io.live.set_aside import mended_outcomes
from tidemill.pipelines.io.log import POSITION
from tidemill.pipelines.verify.compare_lost import LossCheck
from tidemill.pipelines.verify.findings import Findings

PACE = replace(EAGER, partitions_s=0.0)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A topic of two partitions behind one of a file, and requests in one."""
    return Rig(tmp_path, ScriptedTopic(2, first=5), ScriptedTopic(1), PACE, files=1, file_rows=2)


def test_a_partition_that_a_topic_gets_is_read_from_its_beginning(rig: Rig) -> None:
    rig.paid.send(row("a", START))
    rig.step()
    rig.paid.grow(4)
    rig.paid.send(row("b", START), row("c", START), partition=2)
    rig.paid.send(row("d", START), partition=3)
    rig.paid.send(row("e", START), partition=0)
    found = rig.step()
    assert found is not None
    assert found.offsets["paid"] == (7, 5, 2, 1)
    assert found.highest_us["paid"] == (START, TIME_MIN, START, START)
    assert [one["id"] for one in rig.rows("paid")].count("a") == 1
    # The log keeps its partitions: the third of the topic is written to the first, ...
    parts = [part for part in rig.polls()[-1].parts if part.source == "paid"]
    assert [(part.partition, part.start, part.stop) for part in parts] == [
        (0, 2, 2), (1, 1, 4), (2, 0, 1)
    ]  # fmt: skip
    first, second = (part.rows.to_pylist() for part in parts[1:] if part.rows is not None)
    assert sorted(one["id"] for one in first) == ["b", "c", "e"]
    assert [one[POSITION] for one in first] == [1, 2, 3]
    assert [one["id"] for one in second] == ["d"]
    assert [said for said in rig.said if "4 partitions now, 2 before" in said] == rig.said[-1:]


def test_brokers_are_asked_for_partitions_every_few_seconds(rig: Rig) -> None:
    rig.pace = replace(EAGER, partitions_s=2.0)
    rig.restarted()
    rig.step()
    rig.paid.grow(3)
    rig.paid.send(row("a", START), partition=2)
    rig.step(1.0)
    assert rig.rows("paid") == []
    rig.paid.is_away = True
    rig.step(2.0)
    rig.paid.is_away = False
    rig.step(2.0)
    assert [one["id"] for one in rig.rows("paid")] == ["a"]


def test_a_new_partition_holds_the_watermark_until_it_has_rows_or_is_quiet(rig: Rig) -> None:
    rig.paid.send(row("a", START))
    rig.step()
    assert rig.watermark() == START - SECOND
    rig.paid.grow(3)
    rig.paid.stable[2] = 0  # a transaction is open: nothing is known of it
    rig.paid.send(row("b", START - 20 * SECOND), partition=2)
    rig.paid.send(row("c", START + 5 * SECOND))
    rig.step(5.0)
    assert rig.watermark() == START - SECOND
    assert rig.watermark(partition=1) == START + 3 * SECOND  # another one goes on
    # Its rows are judged by its own times: it is behind the others, and no row of it is too late.
    del rig.paid.stable[2]
    rig.paid.send(row("d", START + 4 * SECOND), partition=2)
    rig.pace = replace(PACE, check_s=1e9)
    rig.step()
    assert rig.rejected() == []
    assert rig.watermark() == START + 3 * SECOND
    rig.step(60.0)
    assert rig.watermark() == START + 63 * SECOND


def test_a_rejected_record_of_a_new_partition_has_its_origin(rig: Rig) -> None:
    rig.paid.grow(4)
    rig.paid.send(b"no row", partition=1)
    rig.paid.send(b"no row", partition=3)
    rig.step()
    found = {(one["partition"], one["position"], one["origin"]) for one in rig.rejected()}
    assert found == {(2, 5, "topic/1@5"), (4, 0, "topic/3@0")}


def test_a_topic_with_fewer_partitions_stops_the_reader(rig: Rig) -> None:
    rig.step()
    rig.paid.count = 1
    with pytest.raises(StateMismatch, match=r"'paid' has 1 partitions now.* reads 2: restore"):
        rig.step()


@pytest.mark.parametrize("seed", range(12))
def test_every_row_is_read_once_whenever_a_topic_grows_and_the_reader_is_killed(
    rig: Rig, seed: int
) -> None:
    chance = random.Random(seed)
    sent: dict[int, list[str]] = {}
    watermarks: dict[int, int] = {}
    number = 0
    for _ in range(60):
        if chance.random() < 0.1 and rig.paid.count < 7:
            rig.paid.grow(rig.paid.count + chance.choice([1, 1, 2]))
        for _ in range(chance.randrange(4)):
            partition, at_us = chance.randrange(rig.paid.count), rig.now_us
            rig.paid.send(row(f"{number}", at_us), partition=partition, sent_us=at_us)
            sent.setdefault(partition, []).append(f"{number}")
            number += 1
        if chance.random() < 0.15:
            rig.restarted()
        rig.step(chance.choice([0.0, 1.0, 1.0]))
        if not rig.polls():
            continue
        for part in rig.polls()[-1].parts:
            if part.source == "paid" and part.partition:
                before = watermarks.get(part.partition, TIME_MIN)
                assert part.watermark_us >= before, "a watermark has stepped back"
                watermarks[part.partition] = part.watermark_us
    rig.restarted()
    rig.step()
    rig.step()
    read = [one["id"] for one in rig.rows("paid")]
    assert sorted(read) == sorted(one for of in sent.values() for one in of)
    for of_partition in sent.values():
        assert [one for one in read if one in set(of_partition)] == of_partition
    for partition in (1, 2):
        parts = [p for one in rig.polls() for p in one.parts if p.source == "paid"]
        mine = [part for part in parts if part.partition == partition]
        assert [one.start for one in mine] == [0, *(one.stop for one in mine[:-1])]
    assert rig.rejected() == []
    offsets = [(sealed.offsets["paid"]) for sealed in sealed_in_pieces(rig, chance)]
    assert [len(one) for one in offsets] == sorted(len(one) for one in offsets)
    findings = Findings()
    LossCheck(rig.live).check(findings)
    assert findings.listed == []
    again = rig.log.read("paid", 1)["id"].to_pylist() + rig.log.read("paid", 2)["id"].to_pylist()
    assert sorted(again) == sorted(read)


def sealed_in_pieces(rig: Rig, chance: random.Random) -> Iterator[Sealed]:
    """Seal what is written down, some polls at a time."""
    last = rig.logged()[-1].number
    ends = sorted(chance.sample(range(1, last), 3))
    for until in (*ends, last):
        yield rig.live.seal(rig.build, until=until)


def test_a_mended_message_of_a_new_partition_has_its_place(rig: Rig) -> None:
    rig.mends = True
    rig.restarted()
    rig.paid.send(row("a", START), b"one", partition=1)
    rig.step()
    rig.paid.grow(4)
    rig.paid.send(row("b", START), b"three", partition=3)
    rig.step()
    for one in rig.rejected():
        id = record_id("paid", one["origin"], one["payload"])
        value = row(f"mended {one['origin']}", START)
        mended = MendedMessage(
            id, "paid", one["origin"], value, "mended.jsonl:1", next_replay(rig.folder), False,
            timestamp_us=START,
        )  # fmt: skip
        write_mended(rig.folder, [mended])
    rig.step(2.0)
    rig.live.seal(rig.build, TIME_MAX)
    found = [one for table in mended_outcomes(rig.live) for one in table.to_pylist()]
    assert [(one["partition"], one["position"], one["reason"]) for one in found] == [
        (2, 2, ""), (2, 3, "")
    ]  # fmt: skip
    assert rig.log.read("paid", 2)["id"].to_pylist() == [
        "a", "b", "mended topic/1@6", "mended topic/3@1"
    ]  # fmt: skip
