"""Arrow messages: typed rows, and bytes that nobody has to trust."""

from __future__ import annotations

import datetime
import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.arrow_streams import damaged, stream, typed_rows
from tests.support.markdown import ROOT
from tests.support.payloads import checked, faults_of, messages, rejected_of, rows_of
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.payloads import arrow_rows, ipc_sizes, pieces
from tidemill.pipelines.io.payloads.arrow_rows import MOST_ROWS, MOST_VALUES, ArrowDecoder
from tidemill.pipelines.io.payloads.decoding import IGNORE_TOMBSTONES, Decoded
from tidemill.pipelines.io.payloads.metadata import Metadata


def decode(
    values: Sequence[bytes | None], columns: Sequence[str] | None = None, **options: Any
) -> list[Decoded]:
    decoded = list(ArrowDecoder(Reader("orders", columns), **options).decode(messages(values), 7))
    checked(decoded, 7)
    return decoded


def reasons(value: bytes, **options: Any) -> tuple[str, str]:
    """The reason and the detail of a message that is one rejected record with its bytes."""
    (row,) = rejected_of(decode([value], **options))
    assert row["payload"] == value
    assert row["origin"] == "orders/3@100"
    return row["reason"], row["detail"]


def test_all_batches_of_a_stream_are_rows_in_order() -> None:
    batches = [typed_rows(9), typed_rows(9).slice(0, 0), typed_rows(7, first=9)]
    (part,) = decode([stream(*batches)])
    expected = [row for batch in batches for row in batch.to_pylist()]
    assert part.raw.batch.to_pylist() == expected
    assert part.numbers.tolist() == list(range(16))
    assert part.raw.origins(np.array([3])) == ["orders/3@100:3"]


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_streams_are_read(compression: str) -> None:
    batch = typed_rows(50)
    (part,) = decode([stream(batch, compression=compression)])
    assert part.raw.batch.to_pylist() == batch.to_pylist()


def test_dictionaries_that_grow_or_are_replaced_are_their_values() -> None:
    batches = [
        pa.record_batch({"kind": pa.array(texts).dictionary_encode()})
        for texts in (["a", "b"], ["a", "b", "c"], ["x", None, "x"])
    ]
    value = stream(*batches, emit_dictionary_deltas=True)
    (part,) = decode([value])
    assert part.raw.batch.schema.field("kind").type == pa.string()
    assert part.raw.batch["kind"].to_pylist() == ["a", "b", "a", "b", "c", "x", None, "x"]


def test_messages_of_one_schema_are_one_part_whatever_their_dictionaries() -> None:
    values = [stream(typed_rows(3)), stream(typed_rows(4, first=3))]
    (part,) = decode([values[0], b"broken", values[1]])
    assert part.offsets.tolist() == [100] * 3 + [101] + [102] * 4
    assert part.numbers.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert faults_of([part]) == [(10, Reason.BROKEN_ARROW)]
    assert part.raw.positions.tolist() == [7, 8, 9, 11, 12, 13, 14]


def test_another_schema_begins_another_part() -> None:
    texts = pa.record_batch({"a": ["x"]})
    numbers = pa.record_batch({"a": [1]})
    decoded = decode([stream(texts), stream(numbers), stream(numbers), stream(texts)])
    assert [len(part) for part in decoded] == [1, 2, 1]
    assert rows_of(decoded) == [{"a": "x"}, {"a": 1}, {"a": 1}, {"a": "x"}]


@pytest.mark.parametrize(("name", "most"), [("BATCH_BYTES", 100), ("BATCH_ROWS", 15)])
def test_parts_are_bounded(monkeypatch: pytest.MonkeyPatch, name: str, most: int) -> None:
    value = stream(pa.record_batch({"a": np.arange(10)}))
    assert [len(part) for part in decode([value] * 3)] == [30]
    monkeypatch.setattr(pieces, name, most)
    assert [len(part) for part in decode([value] * 3)] == [10, 10, 10]


def test_payloads_are_the_message_or_the_row_as_json() -> None:
    one, two = stream(typed_rows(1)), stream(pa.record_batch({"a": ["é", None], "b": [1, 2]}))
    parts = decode([one, two])
    assert parts[0].raw.payloads(np.array([0])) == [one]
    assert parts[1].raw.payloads(np.array([0, 1])) == [
        '{"a":"é","b":1}'.encode(),
        b'{"a":null,"b":2}',
    ]


def test_a_row_that_json_cannot_write_is_a_stream_of_its_own() -> None:
    batch = pa.record_batch({"day": pa.array([1, 2**31 - 1], pa.int32()).cast(pa.date32())})
    (part,) = decode([stream(batch)])
    first, second = part.raw.payloads(np.array([0, 1]))
    assert first == b'{"day":"1970-01-02"}'
    with pa.ipc.open_stream(second) as reader:
        assert reader.read_all()["day"].cast(pa.int32()).to_pylist() == [2**31 - 1]


def test_columns_that_are_not_read_are_left_out_unless_one_is_missing() -> None:
    value = stream(pa.record_batch({"a": [1], "b": [2]}))
    assert rows_of(decode([value], ["a"])) == [{"a": 1}]
    assert rows_of(decode([value], ["a", "c"])) == [{"a": 1, "b": 2}]


def test_rows_without_columns_are_rows() -> None:
    empty = pa.RecordBatch.from_struct_array(pa.array([{}] * 3, pa.struct([])))
    (part,) = decode([stream(empty)])
    assert (part.raw.batch.num_rows, len(part)) == (3, 3)


def test_a_column_that_is_read_twice_refuses_the_message() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    reason, detail = reasons(stream(batch), columns=["a"])
    assert (reason, "2 columns 'a'" in detail) == (Reason.DUPLICATE_KEY, True)
    twice = pa.RecordBatch.from_arrays([pa.array([n]) for n in range(3)], names=["a", "a", "b"])
    assert rows_of(decode([stream(twice)], ["b"])) == [{"b": 2}]


def test_tombstones_and_metadata() -> None:
    value = stream(pa.record_batch({"a": [1, 2]}))
    metadata = Metadata({"at": "timestamp", "place": "offset", "part": "partition"})
    decoded = decode([None, value], metadata=metadata)
    assert faults_of(decoded) == [(7, Reason.NO_VALUE)]
    at = datetime.datetime(2023, 11, 14, 22, 13, 20, 1000, tzinfo=datetime.UTC)
    assert rows_of(decoded) == [{"a": n, "at": at, "place": 101, "part": 3} for n in (1, 2)]
    assert decode([None], tombstones=IGNORE_TOMBSTONES) == []


def test_a_payload_with_a_metadata_column_is_rejected_unless_metadata_wins() -> None:
    value = stream(pa.record_batch({"a": [1, 2], "place": ["x", "y"]}))
    columns = {"place": "offset"}
    decoded = decode([value], ["a", "place"], metadata=Metadata(columns))
    assert faults_of(decoded) == [(n, Reason.METADATA_CONFLICT) for n in (7, 8)]
    assert rejected_of(decoded)[1]["payload"] == b'{"a":2,"place":"y"}'
    wins = decode([value], ["a", "place"], metadata=Metadata(columns, wins=True))
    assert rows_of(wins) == [{"a": 1, "place": 100}, {"a": 2, "place": 100}]


# Bytes that are not trusted


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"", "0 schemas"),
        (b"{}", "2 bytes, expected more"),
        (b"\0" * 8, "after the end of the stream"),
        (b"ARROW1\0\0", "an Arrow IPC file"),
        (stream(typed_rows(2)) + b"more", "4 bytes after the end of the stream"),
        (stream(typed_rows(2)) * 2, "after the end of the stream"),
        (stream(typed_rows(2))[:-200], "where a body has"),
    ],
)
def test_what_is_no_stream_is_one_rejected_record(value: bytes, found: str) -> None:
    reason, detail = reasons(value)
    assert reason == Reason.BROKEN_ARROW
    assert found in detail


def bomb(declared: int) -> bytes:
    """A stream with a compressed buffer that says itself how long it is."""
    whole = stream(pa.record_batch({"a": np.zeros(100_000, np.int64)}), compression="zstd")
    length = struct.pack("<q", 800_000)
    assert whole.count(length) == 1
    return whole.replace(length, struct.pack("<q", declared))


@pytest.mark.parametrize("declared", [1 << 27, 1 << 40, 2**63 - 1])
def test_a_compression_bomb_is_refused_before_it_is_allocated(declared: int) -> None:
    before = pa.total_allocated_bytes()
    reason, detail = reasons(bomb(declared))
    assert (reason, f"{declared:,} bytes" in detail) == (Reason.TOO_LARGE, True)
    assert pa.total_allocated_bytes() == before
    assert reasons(bomb(-2))[0] == reasons(bomb(799_999))[0] == Reason.BROKEN_ARROW


def test_the_size_that_is_allowed_counts_all_batches() -> None:
    batch = pa.record_batch({"a": np.zeros(1000, np.int64)})
    value = stream(batch, batch, compression="zstd")
    assert len(decode([value], most_bytes=16_000)) == 1
    assert reasons(value, most_bytes=15_999)[0] == Reason.TOO_LARGE


@pytest.mark.parametrize("rows", [MOST_ROWS + 1, MOST_VALUES + 1, 1 << 50])
def test_nulls_of_any_length_are_not_believed(rows: int) -> None:
    count = 1000
    whole = stream(pa.record_batch({"a": pa.nulls(count)}))
    value = whole.replace(struct.pack("<q", count), struct.pack("<q", rows))
    assert reasons(value)[0] == Reason.TOO_LARGE


def test_a_dictionary_does_not_multiply_its_texts() -> None:
    indices = pa.array(np.zeros(10_000, np.int8))
    batch = pa.record_batch({"a": pa.DictionaryArray.from_arrays(indices, ["x" * 10_000])})
    reason, detail = reasons(stream(batch))
    assert (reason, "100,080,000 bytes" in detail) == (Reason.TOO_LARGE, True)


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view()])
def test_views_do_not_multiply_their_texts(kind: pa.DataType) -> None:
    text = pa.array(["x" * 10_000], kind)
    view, shown = text.buffers()[1].to_pybytes()[:16], text.buffers()[2]
    shared = pa.Array.from_buffers(kind, 10_000, [None, pa.py_buffer(view * 10_000), shown])
    assert reasons(stream(pa.record_batch({"a": shared})))[0] == Reason.TOO_LARGE


@pytest.mark.parametrize(
    "column",
    [
        pa.RunEndEncodedArray.from_arrays(pa.array([3], pa.int32()), pa.array(["x"])),
        pa.array([[1], [2], [3]], pa.list_view(pa.int64())),
        pa.array([[{"a": "x"}]] * 3, pa.list_(pa.struct([("a", pa.string_view())]))),
        pa.StructArray.from_arrays([pa.array(["a"] * 3).dictionary_encode()], names=["a"]),
    ],
    ids=lambda column: str(column.type),
)
def test_types_that_share_values_and_that_parquet_has_not_are_refused(column: pa.Array) -> None:
    reason, detail = reasons(stream(pa.record_batch({"a": column})))
    assert (reason, "which is not read" in detail) == (Reason.BROKEN_ARROW, True)


def test_an_index_outside_its_dictionary_is_refused() -> None:
    indices = pa.array([0, 77, 0], pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, ["x"], safe=False)
    assert reasons(stream(pa.record_batch({"a": column})))[0] == Reason.BROKEN_ARROW


def test_extension_types_are_their_storage() -> None:
    column = pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(["{}", None]))
    assert rows_of(decode([stream(pa.record_batch({"a": column}))])) == [{"a": "{}"}, {"a": None}]


def test_a_text_that_is_not_utf8_does_not_reject_its_message() -> None:
    bad = pa.array([b"good", b"\xff"])
    texts = pa.Array.from_buffers(pa.string(), 2, bad.buffers())
    kinds = pa.DictionaryArray.from_arrays(pa.array([0, 1]), texts)
    (part,) = decode([stream(pa.record_batch({"a": texts, "b": kinds}))])
    assert [part.raw.batch[name][0].as_py() for name in "ab"] == ["good", "good"]
    assert part.raw.payloads(np.array([1])) == [b'{"a":"\xff","b":"\xff"}']


def test_a_zone_that_is_not_utf8_refuses_the_message() -> None:
    at = pa.array([1], pa.timestamp("us", "Europe/Paris"))
    value = stream(pa.record_batch({"at": at})).replace(
        b"Europe/Paris", b"Europe/\xff\xff\xff\xff\xff"
    )
    assert reasons(value)[0] == Reason.BROKEN_ARROW


def test_want_of_memory_is_not_taken_for_a_bad_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(ipc_sizes, "check", full)
    with pytest.raises(MemoryError):
        list(arrow_rows.ArrowDecoder(Reader("orders")).decode(messages([b"x"]), 0))


def test_damaged_streams_are_rejected_or_read_and_never_end_the_process() -> None:
    """In a process of its own, with 1 GiB of memory to spare."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.support.arrow_streams", "600"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    outcomes = found["outcomes"]
    assert sum(outcomes.values()) == 1800
    assert set(outcomes) <= {"decoded", "broken_arrow", "too_large", "duplicate_key"}
    assert min(outcomes["decoded"], outcomes["broken_arrow"], outcomes["too_large"]) > 50
    assert found["grown_bytes"] < 1 << 28


def test_damage_is_the_same_each_time() -> None:
    whole = stream(typed_rows(3))
    assert list(damaged(whole, 30, seed=5)) == list(damaged(whole, 30, seed=5))
