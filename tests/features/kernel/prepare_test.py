"""Preparing rows: expressions are evaluated once per batch, into cells and mask bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import tidemill
from tests.support.strategies import to_batch
from tidemill import Entity, EventStream, FeatureView, Request, col, count, distinct_count, mean
from tidemill.features.errors import InputError
from tidemill.features.kernel.hashing import digest_rows, hash_column
from tidemill.features.kernel.plan import Plan, make_plan
from tidemill.features.kernel.prepare import (
    REQUESTS_SCHEMA,
    events_schema,
    fixed_binary,
    make_cells,
    matrix_of,
    prepare_events,
    prepare_requests,
)

STREAM = EventStream(
    "calls",
    schema={"at": "timestamp", "id": "int64", "shop": "int64", "x": "float64", "who": "string"},
    event_time="at",
    event_id="id",
)
SHOP = Entity("shop", dtype="int64")
ROWS: list[dict[str, Any]] = [
    {"at": 5, "id": 10, "shop": -7, "x": 1.5, "who": "a"},
    {"at": 6, "id": 11, "shop": 8, "x": None, "who": None},
    {"at": 7, "id": 12, "shop": 8, "x": -2.0, "who": "b"},
]
BATCH = to_batch(STREAM.schema, ROWS)


def view_of(**aggregations: Any) -> FeatureView:
    return FeatureView("shop", entity=SHOP, stream=STREAM, hop="10us", features=aggregations)


def masks_of(plan: Plan, cells: np.ndarray[Any, np.dtype[np.int64]]) -> list[list[bool]]:
    """Return the rows that each mask selects."""
    words = cells[:, len(plan.cells) :].view(np.uint64)
    return [
        [bool(int(word[i // 64]) >> (i % 64) & 1) for word in words] for i in range(len(plan.masks))
    ]


def test_prepared_events_have_key_time_id_digest_and_cells() -> None:
    view = view_of(x=tidemill.sum(col("x"), over="20us"))
    plan = make_plan(view)
    prepared = prepare_events(plan, view, BATCH)
    assert prepared.schema.equals(events_schema(plan))
    assert prepared.column("key").to_pylist() == ["-7", "8", "8"]
    assert prepared.column("time").to_pylist() == [5, 6, 7]
    assert prepared.column("id").to_pylist() == ["10", "11", "12"]
    digests = matrix_of(prepared.column("digest")).view(np.uint64)
    assert digests.tolist() == digest_rows(BATCH).tolist()


def test_a_cell_is_the_bits_of_a_value_or_its_hash() -> None:
    plan = make_plan(
        view_of(x=tidemill.sum(col("x"), over="20us"), who=distinct_count(col("who"), over="20us"))
    )
    cells = make_cells(plan, BATCH)
    by_kind = {cell.hashed: cells[:, index] for index, cell in enumerate(plan.cells)}
    assert by_kind[False].view(np.float64)[[0, 2]].tolist() == [1.5, -2.0]
    hashes = hash_column(BATCH.column("who")).view(np.int64)
    assert by_kind[True][[0, 2]].tolist() == hashes[[0, 2]].tolist()


def test_a_mask_takes_a_row_where_it_is_true_and_the_value_is_there() -> None:
    plan = make_plan(
        view_of(
            all=count(over="20us"),
            some=count(over="20us", where=col("x") > 0),
            value=mean(col("x"), over="20us"),
        )
    )
    found = masks_of(plan, make_cells(plan, BATCH))
    assert sorted(found) == [
        [True, False, False],  # null > 0 is null, and null is not true
        [True, False, True],
        [True, True, True],
    ]


def test_more_masks_than_a_word_has_bits() -> None:
    view = view_of(
        **{f"above_{n}": count(over="20us", where=col("x") > n - 40.5) for n in range(70)}
    )
    plan = make_plan(view)
    assert plan.mask_words == 2
    found = masks_of(plan, make_cells(plan, BATCH))
    assert found == [[n - 40.5 < 1.5, False, n - 40.5 < -2.0] for n in range(70)]


def test_no_rows_are_prepared_to_no_rows() -> None:
    view = view_of(x=tidemill.sum(col("x"), over="20us"))
    plan = make_plan(view)
    prepared = prepare_events(plan, view, BATCH.slice(0, 0))
    assert prepared.num_rows == 0
    assert matrix_of(prepared.column("cells")).shape == (0, plan.row_words)


@pytest.mark.parametrize("column", ["at", "id", "shop"])
def test_rows_that_were_not_validated_are_refused(column: str) -> None:
    view = view_of(all=count(over="20us"))
    bad = to_batch(STREAM.schema, [*ROWS, {**ROWS[0], column: None}])
    with pytest.raises(InputError, match=f"column '{column}' of stream 'calls' has nulls"):
        prepare_events(make_plan(view), view, bad)


def test_prepared_requests_take_the_requests_own_key_column() -> None:
    view = view_of(all=count(over="20us"))
    request = Request(
        "asked",
        schema={"at": "timestamp", "id": "string", "store": "int64"},
        request_time="at",
        request_id="id",
        keys={"shop": "store"},
    )
    batch = to_batch(
        request.schema,
        [{"at": 3, "id": "x", "store": 8}, {"at": 4, "id": "y", "store": None}],
    )
    prepared = prepare_requests(view, request, batch, np.array([5, 9]))
    assert prepared.schema.equals(REQUESTS_SCHEMA)
    assert prepared.to_pylist() == [
        {"key": "8", "time": 3, "ordinal": 5},
        {"key": None, "time": 4, "ordinal": 9},
    ]


def test_a_matrix_travels_as_fixed_size_bytes() -> None:
    matrix = np.array([[1, -2], [3, 4], [5, 6]], np.int64)
    column = fixed_binary(matrix)
    assert column.type == pa.binary(16)
    assert matrix_of(column).tolist() == matrix.tolist()
    assert matrix_of(column.slice(1, 2)).tolist() == [[3, 4], [5, 6]]
    # A transposed matrix is not contiguous.
    assert matrix_of(fixed_binary(matrix.T)).tolist() == matrix.T.tolist()
