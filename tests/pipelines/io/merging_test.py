"""Sorted runs, merged a block at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.features.contract import Int64Array
from tidemill.features.kernel import hashing
from tidemill.pipelines.ingest.accepted_rows import sorted_order
from tidemill.pipelines.io import merging
from tidemill.pipelines.io.merging import Run, merged


def times_of(rows: pa.RecordBatch) -> Int64Array:
    return hashing.bits(rows.column("time"))


def in_order(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows.take(pa.array(sorted_order(times_of(rows), rows.column("id"))))


def rows_of(pairs: list[tuple[int, str]], first: int = 0) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "time": pa.array([time for time, _ in pairs], pa.int64()),
            "id": pa.array([name for _, name in pairs], pa.string()),
            "place": pa.array(range(first, first + len(pairs)), pa.int64()),
        }
    )


PAIRS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["", "a", "b", "ç", "aa"])))


@settings(max_examples=150, deadline=None)
@given(st.lists(PAIRS, max_size=6), st.integers(1, 5))
def test_merged_runs_are_all_rows_sorted(runs: list[list[tuple[int, str]]], block: int) -> None:
    """Rows that compare equal come in the order of the runs, and of the rows within each."""
    sorted_runs, expected, place = [], [], 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "MERGE_ROWS", block)
        for pairs in runs:
            rows = rows_of(pairs, place)
            place += len(pairs)
            expected += rows.to_pylist()
            if pairs:
                sorted_runs.append(Run(in_order(rows), None))
        found = list(merged(sorted_runs, times_of, in_order))
    assert all(batch.num_rows for batch in found)
    expected.sort(key=lambda row: (row["time"], row["id"].encode()))
    assert [row for batch in found for row in batch.to_pylist()] == expected


def test_a_run_in_a_file_is_read_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "MERGE_ROWS", 3)
    rows = rows_of([(n, str(n)) for n in range(8)])
    run = Run(rows, tmp_path / "run")
    assert run.blocks == 3
    assert pa.Table.from_batches([run.read(n) for n in range(3)]).to_batches() == [
        rows.slice(0, 3),
        rows.slice(3, 3),
        rows.slice(6),
    ]


@given(PAIRS)
def test_the_order_is_arrows_order(pairs: list[tuple[int, str]]) -> None:
    rows = rows_of(pairs)
    order = sorted_order(times_of(rows), rows.column("id"))
    expected = sorted(range(len(pairs)), key=lambda n: (pairs[n][0], pairs[n][1].encode()))
    assert order.tolist() == expected
    assert order.dtype == np.int64
