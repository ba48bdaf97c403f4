"""Mended messages through a live reader: each becomes rows once, whole, in a poll of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.support.arrow_streams import stream as arrow_stream
from tests.support.scripted_topics import PAID, START, Rig, ScriptedTopic, row
from tidemill.features.contract import SECOND, TIME_MAX
from tidemill.features.errors import InputError
from tidemill.pipelines.ingest.mended_live import next_replay, read_mended, write_mended
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.live.mended import MendedMessage, Origin, record_id
from tidemill.pipelines.io.live.set_aside import mended_outcomes, rejected_records
from tidemill.pipelines.io.log import POSITION, RECEIVED
from tidemill.pipelines.io.payloads.arrow_rows import ArrowDecoder
from tidemill.pipelines.io.payloads.metadata import Metadata


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, ScriptedTopic(2, first=5), ScriptedTopic(1), mends=True, files=1)


def rejected(rig: Rig) -> list[dict[str, Any]]:
    return [one for table in rejected_records(rig.live) for one in table.to_pylist()]


def outcomes(rig: Rig) -> list[dict[str, Any]]:
    return [one for table in mended_outcomes(rig.live) for one in table.to_pylist()]


def mend(rig: Rig, *payloads: bytes, **changed: Any) -> None:
    """Mend the first rejected records of the log, in order."""
    write_mended(
        rig.folder,
        [
            replace(
                MendedMessage(
                    record_id(one["stream"], one["origin"], one["payload"]),
                    one["stream"],
                    one["origin"],
                    payload,
                    "mended.jsonl:1",
                    next_replay(rig.folder),
                    Origin.parse(one["origin"]).row is not None,
                    one["message_key"],
                    one["message_timestamp_us"],
                    tuple((h["name"], h["value"]) for h in one["message_headers"]),
                ),
                **changed,
            )
            for one, payload in zip(rejected(rig), payloads, strict=False)
        ],
    )


def steps(rig: Rig, count: int = 4) -> None:
    for _ in range(count):
        rig.step(2.0)


def test_a_mended_message_becomes_a_row_in_a_poll_of_its_own(rig: Rig) -> None:
    rig.paid.send(row("a", START), b"{", row("b", START + 1), partition=1)
    rig.step()
    mend(rig, row("mended", START + 1))
    rig.paid.send(row("c", START + SECOND), partition=1)
    found = rig.step(2.0)
    assert found is not None
    assert found.offsets == rig.logged()[0].offsets  # nothing was read from the topic for it
    rows = rig.rows("paid")
    assert [(one["id"], one[POSITION]) for one in rows] == [("a", 0), ("b", 1), ("mended", 2)]
    assert rows[2][RECEIVED] == rig.now_us
    steps(rig)
    assert [one["id"] for one in rig.rows("paid")] == ["a", "b", "mended", "c"]
    (outcome,) = outcomes(rig)
    assert outcome == {
        "record": record_id("paid", "topic/1@6", b"{"), "stream": "paid", "partition": 2,
        "position": 2, "rows": 1, "origin": "topic/1@6", "line": "mended.jsonl:1", "replay": 1,
        "stage": "", "reason": "", "detail": "",
    }  # fmt: skip
    assert rig.reader.figures.mended == {"asked": 0, "paid": 1}


@pytest.mark.parametrize("seals", [False, True])
def test_it_counts_once_over_restarts_and_replays(rig: Rig, seals: bool) -> None:
    rig.paid.send(b"{")
    rig.step()
    mend(rig, row("mended", START))
    mend(rig, row("mended", START))  # both wait at once
    steps(rig)
    for _ in range(2):
        if seals:
            rig.live.seal(rig.build, TIME_MAX)
        rig.restarted()
        steps(rig)
    mend(rig, row("otherwise", START))
    steps(rig)
    assert len(outcomes(rig)) == 1
    rig.live.seal(rig.build, TIME_MAX)
    assert rig.log.read("paid", 1).column("id").to_pylist() == ["mended"]
    assert len(list(read_mended(rig.folder))) == 3  # what a person wrote is kept


def test_what_is_rejected_again_can_be_mended_again(rig: Rig) -> None:
    rig.paid.send(b"{")
    rig.step()
    mend(rig, row("mended", START, amount="much"))
    steps(rig)
    assert rig.rows("paid") == []
    assert len(rejected(rig)) == 1  # the topic of rejected records has it once
    mend(rig, row("mended", START))
    rig.restarted()
    steps(rig)
    first, second = outcomes(rig)
    assert (first["stage"], first["reason"], first["rows"]) == ("validate", "wrong_type", 0)
    assert "much" in first["detail"]
    assert (second["reason"], second["replay"], second["rows"]) == ("", 2, 1)
    assert [one["id"] for one in rig.rows("paid")] == ["mended"]


def test_a_message_of_several_rows_counts_whole_or_not_at_all(rig: Rig) -> None:
    good, bad = row("x", START), row("y", START, amount="?")
    rig.paid.send(b"[", b"[")
    rig.step()
    mend(rig, b"[%b, %b]" % (good, bad), b"[%b, %b]" % (good, row("y", START)))
    steps(rig)
    refused, accepted = outcomes(rig)
    assert (refused["reason"], refused["rows"], accepted["rows"]) == ("wrong_type", 0, 2)
    assert [one["id"] for one in rig.rows("paid")] == ["x", "y"]


def test_one_row_of_a_message_is_mended_by_itself(rig: Rig) -> None:
    rig.paid.send(b"[%b, %b]" % (row("x", START), row("y", START, amount="?")))
    rig.step()
    (record,) = rejected(rig)
    assert record["origin"] == "topic/0@5:1"
    mend(rig, json.dumps({**json.loads(record["payload"]), "amount": 2}).encode())
    steps(rig)
    assert [(one["id"], one["amount"]) for one in rig.rows("paid")] == [("x", 1.0), ("y", 2.0)]


def test_it_is_too_late_if_its_partition_has_moved_on(rig: Rig) -> None:
    rig.paid.send(b"{", b"{")
    rig.step()
    rig.paid.send(row("a", START + 5 * SECOND))
    rig.step(1.0)
    # Out of order by a second, and late by two at most.
    mend(rig, row("late", START + 2 * SECOND), row("too late", START + 2 * SECOND - 1))
    steps(rig)
    assert [one["reason"] for one in outcomes(rig)] == ["", "too_late"]
    assert [one["id"] for one in rig.rows("paid")] == ["a", "late"]


def test_it_moves_the_highest_time_and_the_watermark(rig: Rig) -> None:
    rig.paid.send(b"{")
    rig.paid.send(row("a", START))
    rig.paid.hidden.add(1)  # nothing is known of the other partition
    rig.step()
    mend(rig, row("mended", START + 9 * SECOND))
    found = rig.step(2.0)
    assert found is not None
    assert found.highest_us["paid"][0] == START + 9 * SECOND
    assert rig.watermark() == START + 9 * SECOND - PAID.out_of_orderness_us
    rig.paid.send(row("b", START + SECOND))
    steps(rig)
    assert rejected(rig)[-1]["reason"] == "too_late"


def test_an_id_of_an_earlier_request_is_refused_and_one_of_a_refused_request_is_free(
    rig: Rig,
) -> None:
    rig.asked.send(row("q", START), b"{", b"{", b"{")
    rig.step()
    mend(rig, row("q", START), row("r", START, amount="?"), row("r", START))
    steps(rig)
    assert [one["reason"] for one in outcomes(rig)] == ["repeated_request_id", "wrong_type", ""]
    rig.asked.send(row("r", START))
    steps(rig)
    assert [one["id"] for one in rig.rows("asked")] == ["q", "r"]
    assert rejected(rig)[-1]["reason"] == "repeated_request_id"


def test_key_headers_and_timestamp_are_those_of_the_first_message(tmp_path: Path) -> None:
    rig = Rig(tmp_path, mends=True, columns={"card": "key"})
    payload = {"id": "a", "at": f"{START}", "amount": 1.0}
    rig.paid.send(json.dumps(payload).encode(), key=b"c-7", sent_us=START - SECOND)
    rig.step()
    (record,) = rejected(rig)
    assert record["message_headers"] == [{"name": "h", "value": b"1"}]
    mend(rig, json.dumps({**payload, "at": "2023-11-14T22:13:20Z"}).encode())
    steps(rig)
    (found,) = rig.rows("paid")
    assert (found["card"], found["sent_at"].timestamp()) == ("c-7", START / SECOND - 1)


def test_a_transform_that_was_corrected_takes_untouched_bytes(tmp_path: Path) -> None:
    def fails(batch: pa.RecordBatch) -> pa.RecordBatch:
        raise ZeroDivisionError

    def drops(batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.append_column("__drop__", pc.equal(batch["id"], "b"))

    rig = Rig(tmp_path, mends=True, transform=fails)
    rig.paid.send(row("a", START), row("b", START))
    rig.step()
    assert [one["reason"] for one in rejected(rig)] == ["transform", "transform"]
    payloads = [one["payload"] for one in rejected(rig)]
    mend(rig, *payloads)
    steps(rig)
    assert [one["reason"] for one in outcomes(rig)] == ["transform", "transform"]
    rig.transform = drops
    rig.restarted()
    mend(rig, *payloads)
    steps(rig)
    assert [(one["reason"], one["rows"]) for one in outcomes(rig)[2:]] == [("", 1), ("", 0)]
    assert [one["id"] for one in rig.rows("paid")] == ["a"]


def test_a_tombstone_stays_one(rig: Rig) -> None:
    rig.paid.send(None)
    rig.step()
    mend(rig, b"")
    steps(rig)
    assert [one["reason"] for one in outcomes(rig)] == ["no_value"]


def test_another_log_takes_over_what_became_of_them(rig: Rig, tmp_path: Path) -> None:
    rig.paid.send(b"{", b"{")
    rig.step()
    mend(rig, row("a", START), row("b", START, amount="?"))
    steps(rig)
    rig.live.seal(rig.build, TIME_MAX)
    other = Rig(tmp_path / "other", ScriptedTopic(2, first=5), ScriptedTopic(1), files=1)
    other.live.take_rejected(rig.live, lambda table: table)
    other.live.write_sealed(rig.live.sealed())
    assert outcomes(other) == outcomes(rig)
    assert [one["reason"] for one in outcomes(other)] == ["", "wrong_type"]
    assert rejected(other) == rejected(rig)


@pytest.mark.parametrize("text", ["orders.csv:3", "topic", "t/x@1", "t/1@", "t/1@2:y", ""])
def test_an_origin_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected topic/partition@offset"):
        Origin.parse(text)


def test_an_origin_is_parsed() -> None:
    assert Origin.parse("a/b.c-d/12@345") == Origin("a/b.c-d", 12, 345, None)
    assert Origin.parse("t/0@5:17") == Origin("t", 0, 5, 17)


@pytest.mark.parametrize("seals", [False, True])
def test_rows_of_an_arrow_message_keep_their_types_for_the_transform(
    tmp_path: Path, seals: bool
) -> None:
    def doubled(rows: pa.RecordBatch) -> pa.RecordBatch:
        if len(rows) and pc.min(rows["amount"]).as_py() < lowest:
            raise ValueError("amounts below what is known")
        place = rows.schema.get_field_index("amount")
        return rows.set_column(place, "amount", pc.multiply(rows["amount"], pa.scalar(2.0)))

    lowest = 0.0
    columns = {"sent_at": "timestamp"}
    rig = Rig(
        tmp_path, mends=True, transform=doubled,
        decoder=ArrowDecoder(Reader("paid"), Metadata(columns)),
    )  # fmt: skip
    at = pa.array([START, START + 1], pa.timestamp("us", "UTC"))
    batch = pa.RecordBatch.from_pydict(
        {"id": ["a", "b"], "at": at, "card": ["c", "c"], "amount": [-1.5, 1.0]}
    )
    rig.paid.send(arrow_stream(batch))
    rig.step()
    if seals:
        rig.live.seal(rig.build, TIME_MAX)
    (record,) = rejected(rig)
    assert json.loads(record["payload"])["amount"] == -1.5
    lowest = -5.0
    rig.restarted()
    mend(rig, record["payload"], types=record["row_types"])
    steps(rig)
    assert [one["reason"] for one in outcomes(rig)] == [""]
    rows = rig.rows("paid")
    assert [(one["id"], one["amount"]) for one in rows[-1:]] == [("a", -3.0)]


def test_what_was_mended_and_rejected_before_types_were_kept_is_read(rig: Rig) -> None:
    rig.paid.send(b"{")
    rig.step()
    rig.live.seal(rig.build, TIME_MAX)
    (kept,) = (rig.folder / "live" / "rejected").glob("*.arrow")
    before = pa.ipc.open_file(kept.read_bytes()).read_all().drop_columns(["row_types"])
    before = before.replace_schema_metadata(None)  # nor was there a digest
    with pa.OSFile(str(kept), "wb") as sink, pa.ipc.new_file(sink, before.schema) as writer:
        writer.write_table(before)
    mend(rig, row("mended", START))
    (replay,) = (rig.folder / "mended_live").glob("*.parquet")
    pq.write_table(pq.read_table(replay).drop_columns(["row_types"]), replay)
    rig.paid.send(b"[", partition=1)
    rig.restarted()
    steps(rig)
    rig.live.seal(rig.build, TIME_MAX)
    assert [one["reason"] for one in outcomes(rig)] == [""]
    assert [one["payload"] for one in rejected(rig)] == [b"{", b"["]
