"""Driving the kernel from plain rows, for the laws."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tests.support.strategies import to_batch
from tidemill import FeatureView
from tidemill.features.contract import TIME_MIN
from tidemill.features.kernel.advance import Advance, Publish, advance
from tidemill.features.kernel.dedupe import first_occurrences
from tidemill.features.kernel.hashing import digest_rows
from tidemill.features.kernel.plan import Plan, make_plan
from tidemill.features.kernel.prepare import (
    COUNTS_FROM,
    REQUESTS_SCHEMA,
    TIME,
    matrix_of,
    prepare_events,
)
from tidemill.features.kernel.tiles.state import State

Row = Mapping[str, Any]
Asked = tuple[Any, int]
"""A request: (key, request time)."""


def prepared(plan: Plan, view: FeatureView, rows: Sequence[Row]) -> pa.RecordBatch:
    """Prepare rows of the view's stream; duplicates count once."""
    batch = to_batch(view.stream.schema, rows)
    digests = digest_rows(batch)
    kept = first_occurrences(digests)
    return prepare_events(plan, view, batch.take(pa.array(kept)), digests[kept])


def asked(requests: Sequence[Asked]) -> pa.RecordBatch:
    """Make prepared requests, numbered in order."""
    return pa.RecordBatch.from_arrays(
        [
            pa.array([None if key is None else str(key) for key, _ in requests], pa.string()),
            pa.array([time for _, time in requests], pa.int64()),
            pa.array(range(len(requests)), pa.int64()),
        ],
        schema=REQUESTS_SCHEMA,
    )


def values_of(plan: Plan, batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Unpack the values of answers or publications into Python."""
    words = matrix_of(batch.column("values"))
    width = len(plan.columns)
    nulls = np.frombuffer(batch.column("nulls").buffers()[1] or b"", np.uint8).reshape(-1, width)
    out = []
    for i in range(batch.num_rows):
        row: dict[str, Any] = {}
        for j, column in enumerate(plan.columns):
            if nulls[i, j]:
                row[column.name] = None
            elif column.dtype == "float64":
                row[column.name] = float(words[i, j : j + 1].view(np.float64)[0])
            elif column.dtype == "bool":
                assert words[i, j] in (0, 1)
                row[column.name] = bool(words[i, j])
            else:
                row[column.name] = int(words[i, j])
        out.append(row)
    return out


def time_of(view: FeatureView, row: Row) -> int:
    """Return a row's event time."""
    return int(row[view.stream.event_time])


def run_all(
    view: FeatureView,
    rows: Sequence[Row],
    requests: Sequence[Asked],
    publish: Publish = Publish.NOTHING,
    until: int | None = None,
) -> tuple[State, Advance, Plan]:
    """Advance once over everything."""
    plan = make_plan(view)
    state = State(plan)
    if until is None:
        times = [time_of(view, row) for row in rows] + [time for _, time in requests]
        until = max(times, default=TIME_MIN) + 1
    advanced = advance(state, prepared(plan, view, rows), asked(requests), until, publish)
    return state, advanced, plan


def counting(
    events: pa.RecordBatch, before: int, until: int, chance: random.Random
) -> pa.RecordBatch:
    """Add change points: some as early as they can be, some later."""
    earliest = [max(time + 1, before) for time in events.column(TIME).to_pylist()]
    changes = [chance.choice([at, at, chance.randint(at, until)]) for at in earliest]
    return events.append_column(COUNTS_FROM, pa.array(changes, pa.int64()))


def sorted_rows(publications: pa.RecordBatch) -> list[dict[str, Any]]:
    names = ("key", "event_timestamp", "revision")
    return publications.sort_by([(name, "ascending") for name in names]).to_pylist()
