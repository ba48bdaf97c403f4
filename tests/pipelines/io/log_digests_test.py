"""Digests of a log's rows: their form, and that nothing but the rows decides about them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.features.definitions import ARROW_TYPES, EventStream
from tidemill.features.errors import DamagedFile, StateVersionError
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.log_digests import (
    BLOCK_ROWS,
    PartitionDigests,
    block_digest,
    prefix_digest,
)

SCHEMA = {
    "at": "timestamp",
    "id": "string",
    "amount": "float64",
    "count": "int64",
    "paid": "bool",
}
TECHNICAL = ("_position", "_received")
EVERYTHING = EventStream("sales", event_time="at", event_id="id", schema=SCHEMA)


def batch(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            **{
                name: pa.array([row[name] for row in rows], ARROW_TYPES[dtype])
                for name, dtype in SCHEMA.items()
            },
            "_position": pa.array(range(len(rows)), pa.int64()),
            "_received": pa.array([7 * n for n in range(len(rows))], pa.int64()),
        }
    )


def specified(rows: Sequence[dict[str, Any]]) -> bytes:
    """The form of the docstring, value by value."""

    def text(value: str) -> bytes:
        return struct.pack("<q", len(value.encode())) + value.encode()

    out = struct.pack("<q", len(rows))
    for name, dtype in SCHEMA.items():
        values = [row[name] for row in rows]
        out += text(name) + text(dtype) + bytes(value is not None for value in values)
        if dtype == "string":
            texts = ["" if value is None else value for value in values]
            out += b"".join(struct.pack("<q", len(value.encode())) for value in texts)
            out += "".join(texts).encode()
        else:
            form = "<d" if dtype == "float64" else "<q"
            out += b"".join(struct.pack(form, value or 0) for value in values)
    for column in (range(len(rows)), range(0, 7 * len(rows), 7)):
        out += b"".join(struct.pack("<q", value) for value in column)
    return hashlib.sha256(out).digest()


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.integers(-(2**60), 2**60),
            "id": st.text(st.characters(codec="utf-8"), max_size=5),
            "amount": st.none() | st.floats(allow_nan=False, allow_infinity=False).map(abs),
            "count": st.none() | st.integers(-(2**63), 2**63 - 1),
            "paid": st.none() | st.booleans(),
        }
    ),
    max_size=20,
)


@given(ROWS, st.integers(0, 20), st.integers(0, 20))
def test_the_form_is_the_specified_one_wherever_the_rows_lie(
    rows: list[dict[str, Any]], start: int, length: int
) -> None:
    whole = batch(rows)
    assert block_digest(SCHEMA, whole, TECHNICAL) == specified(rows)
    # A slice has the offsets of the batch that it is a part of.
    part = batch([*rows[start:], *rows]).slice(0, len(rows[start:]))
    assert block_digest(SCHEMA, part, TECHNICAL) == specified(rows[start:])


def test_what_lies_under_a_null_is_no_part_of_the_rows() -> None:
    values = pa.array([1, 2], pa.int64())
    validity = pa.py_buffer(b"\x01")
    rows = batch(
        [{"at": 0, "id": "a", "amount": None, "count": n, "paid": None} for n in (1, None)]
    )
    other = pa.Array.from_buffers(pa.int64(), 2, [validity, values.buffers()[1]])
    assert other.equals(rows.column("count"))
    changed = rows.set_column(3, "count", other)
    assert block_digest(SCHEMA, changed, TECHNICAL) == block_digest(SCHEMA, rows, TECHNICAL)


def digests(rows: int) -> PartitionDigests:
    count = -(-rows // BLOCK_ROWS)
    return PartitionDigests(rows, tuple(hashlib.sha256(bytes([n])).digest() for n in range(count)))


def test_a_prefix_has_the_chain_of_its_whole_blocks_and_the_rest() -> None:
    found = digests(2 * BLOCK_ROWS + 10)
    asked: list[tuple[int, int]] = []

    def partial(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return b"p" * 32

    one = hashlib.sha256(bytes(32) + found.blocks[0]).digest()
    two = hashlib.sha256(one + found.blocks[1]).digest()
    expected = {
        0: (bytes(32), bytes(32)),
        5: (bytes(32), b"p" * 32),
        BLOCK_ROWS: (one, bytes(32)),
        BLOCK_ROWS + 1: (one, b"p" * 32),
        2 * BLOCK_ROWS: (two, bytes(32)),
        2 * BLOCK_ROWS + 10: (two, found.blocks[2]),
    }
    for position, (chain, rest) in expected.items():
        assert found.prefix(position, partial) == position.to_bytes(8, "little") + chain + rest
    assert asked == [(0, 5), (BLOCK_ROWS, BLOCK_ROWS + 1)]
    with pytest.raises(ValueError, match="a prefix of 131083 rows"):
        found.prefix(2 * BLOCK_ROWS + 11, partial)


def sales(amounts: Sequence[float]) -> pa.Table:
    size = len(amounts)
    return pa.table(
        {
            "at": pa.array(np.arange(size), ARROW_TYPES["timestamp"]),
            "id": pa.array(map(str, range(size)), pa.string()),
            "amount": pa.array(amounts, pa.float64()),
            "count": pa.array([None] * size, pa.int64()),
            "paid": pa.array([True] * size, pa.bool_()),
        }
    )


def written(root: Path, amounts: Sequence[float], *, chunks: int = 1) -> Log:
    log, table = Log(root), sales(amounts)
    size = -(-len(table) // chunks)
    cut = pa.concat_tables([table.slice(n * size, size) for n in range(chunks)])
    log.write(EVERYTHING, 0, cut, np.arange(len(table)))
    log.write(EVERYTHING, 1, sales([]), np.arange(0))
    return log


def test_a_cut_is_known_by_the_rows_below_it_however_the_log_was_written(tmp_path: Path) -> None:
    amounts = [float(n % 7) for n in range(BLOCK_ROWS + 100)]
    short = written(tmp_path / "short", amounts[:-60])
    long = written(tmp_path / "long", amounts, chunks=3)
    other = written(tmp_path / "other", [*amounts[:-80], 9.0, *amounts[-79:]])
    end = len(amounts)
    for position in (0, 1, BLOCK_ROWS - 1, BLOCK_ROWS, end - 80, end - 60):
        found = short.prefix_digest("sales", [position, 0])
        assert found == long.prefix_digest("sales", [position, 0])
        assert found == other.prefix_digest("sales", [position, 0]) or position == end - 60
    assert long.prefix_digest("sales", [end, 0]) != other.prefix_digest("sales", [end, 0])
    assert short.prefix_digest("sales", [end - 60, 0]) != other.prefix_digest(
        "sales", [end - 60, 0]
    )
    assert len({long.prefix_digest("sales", [n, 0]) for n in (0, 1, 2, BLOCK_ROWS)}) == 4
    # The same rows in another partition are another log.
    swapped = prefix_digest([bytes(72), b"\x01" * 72])
    assert swapped != prefix_digest([b"\x01" * 72, bytes(72)])


def test_a_log_that_ends_before_a_cut_or_has_other_partitions_has_no_digest_of_it(
    tmp_path: Path,
) -> None:
    log = written(tmp_path, [1.0, 2.0])
    assert log.prefix_digest("sales", [3, 0]) is None
    assert log.prefix_digest("sales", [2]) is None
    assert log.prefix_digest("sales", [2, 0, 0]) is None


@pytest.mark.parametrize("column", [*SCHEMA, "_received"])
def test_a_flipped_bit_of_any_column_is_named_when_the_log_is_read(
    tmp_path: Path, column: str
) -> None:
    log = written(tmp_path, [1.0, 2.0, 3.0])
    path = log.path("sales", 0)
    with pa.memory_map(str(path)) as source:
        begin = source.read_buffer(1).address
        values = pa.ipc.open_file(source).read_all().column(column).chunk(0).buffers()
        # The validity where all values are null, else the values.
        at = (values[0] if column == "count" else values[-1]).address - begin
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(DamagedFile, match=r"00000\.arrow was changed .*: rows 0 to 2 do not have"):
        log.read("sales")


def test_rows_are_checked_once_a_process_and_again_after_the_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = written(tmp_path, [1.0, 2.0])
    log.read("sales")
    log.write(EVERYTHING, 0, sales([3.0]), np.arange(1))
    assert log.read("sales", 0).column("amount").to_pylist() == [3.0]

    def fails(*_: object) -> bytes:
        raise AssertionError("digested again")

    monkeypatch.setattr("tidemill.pipelines.io.log.block_digest", fails)
    assert log.read("sales", 0).num_rows == 1


def test_a_log_without_digests_is_refused_with_what_to_do(tmp_path: Path) -> None:
    log = written(tmp_path, [1.0])
    path = log.path("sales", 0)
    table = log.read("sales", 0)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(
        StateVersionError, match=r"of an earlier version, without digests; .*backfill"
    ):
        log.read("sales", 0)
