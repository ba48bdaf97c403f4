"""The digest of a training table: a function of its rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support import trained_bundle as given
from tidemill.pipelines.training.table_digest import in_canonical_order, table_digest

ROWS = given.rows(500)


def _digest(rows: pa.Table) -> str:
    return table_digest(in_canonical_order(rows))


def test_order_chunks_slices_and_order_of_columns_do_not_count() -> None:
    expected = _digest(ROWS)
    shuffled = ROWS.take(pa.array(np.random.default_rng(3).permutation(len(ROWS))))
    assert _digest(shuffled) == expected
    assert _digest(pa.concat_tables([ROWS.slice(300), ROWS.slice(0, 300)])) == expected
    assert _digest(ROWS.select(ROWS.column_names[::-1])) == expected
    padded = pa.concat_tables([ROWS.slice(0, 7), ROWS, ROWS.slice(9)])
    assert _digest(padded.slice(7, len(ROWS))) == expected


def test_the_bytes_behind_a_null_do_not_count() -> None:
    column = ROWS["grams"].combine_chunks()
    hidden = column.is_null().to_numpy(zero_copy_only=False)
    values = np.where(hidden, 17, column.fill_null(0).to_numpy())
    other = pa.Array.from_buffers(pa.int64(), len(column), [
        pa.py_buffer(np.packbits(~hidden, bitorder="little")), pa.py_buffer(values),
    ])  # fmt: skip
    assert other.equals(column)
    assert hidden.any()
    index = ROWS.column_names.index("grams")
    assert _digest(ROWS.set_column(index, "grams", other)) == _digest(ROWS)


def _with(name: str, values: Any) -> pa.Table:
    return ROWS.set_column(ROWS.column_names.index(name), name, values)


def _next_after(column: pa.ChunkedArray) -> pa.Array:
    values = column.to_pylist()
    values[100] = float(np.nextafter(5.0 if values[100] is None else values[100], np.inf))
    return pa.array(values)


@pytest.mark.parametrize(
    "other",
    [
        ROWS.slice(0, 499),
        ROWS.drop_columns(["fragile"]),
        ROWS.rename_columns([{"fragile": "broken"}.get(n, n) for n in ROWS.column_names]),
        _with("metres", _next_after(ROWS["metres"])),
        _with("fragile", ROWS["fragile"].cast(pa.int64())),
        _with("grams", ROWS["grams"].fill_null(0)),
        _with("request_time", pa.array(ROWS["request_time"].cast(pa.int64()).to_numpy() + 1,
                                       pa.timestamp("us", tz="UTC"))),
    ],
    ids=["row", "column", "name", "ulp", "type", "null", "time"],
)  # fmt: skip
def test_any_other_change_counts(other: pa.Table) -> None:
    assert _digest(other) != _digest(ROWS)


def test_where_one_text_ends_counts() -> None:
    one, two = (
        _with("size", pa.array([*pair, *ROWS["size"].to_pylist()[2:]]))
        for pair in (("ab", "c"), ("a", "bc"))
    )
    assert _digest(one) != _digest(two)


def test_requests_of_equal_time_and_id_are_ordered_by_their_values() -> None:
    same = pa.concat_tables([ROWS.slice(0, 50)] * 3).drop_columns(["request_id"])
    same = same.append_column("request_id", pa.array(["x"] * 150))
    expected = in_canonical_order(same)
    for seed in range(5):
        order = pa.array(np.random.default_rng(seed).permutation(150))
        assert in_canonical_order(same.take(order)).equals(expected)
    times = same["request_time"].combine_chunks()
    mixed = same.set_column(
        same.column_names.index("request_time"), "request_time", pa.repeat(times[0], 150)
    )
    one = in_canonical_order(mixed)
    two = in_canonical_order(mixed.take(pa.array(np.arange(150)[::-1])))
    assert one.equals(two)
    assert _digest(mixed) == _digest(mixed.take(pa.array(np.arange(150)[::-1])))
