"""Comparing sampled predictions with the oracle, in plain Python.

`features.oracle.values` shares no code with the kernel, so this finds a fault that stream and batch
have in common.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import Int64Array, window_tail
from tidemill.features.definitions import FeatureView
from tidemill.features.kernel.columns import column_arrays
from tidemill.features.oracle.values import FeatureValue, Oracle
from tidemill.pipelines.run.progress import StageProgress
from tidemill.pipelines.verify.compare_predictions import ViewVerdict
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.release_evidence import Evidence
from tidemill.pipelines.verify.served import Served

_SEED: Final = 1


def sampled_rows(request_times_us: Int64Array, sample: int, seed: int = _SEED) -> Int64Array:
    """Sample rows evenly over time: a random row out of each of ``sample`` equal parts.

    Args:
        request_times_us: int64, ``(rows,)``.
        sample: The number of rows to sample.
        seed: The seed of the random choice.

    Returns:
        int64, ``(min(sample, rows),)``: ascending in time.
    """
    order = np.argsort(request_times_us, kind="stable")
    count = min(sample, len(order))
    edges = np.linspace(0, len(order), count + 1).astype(np.int64)
    picks = np.random.default_rng(seed).integers(edges[:-1], edges[1:]) if count else edges[:0]
    rows: Int64Array = order[picks]
    return rows


def check_with_oracle(
    verdict: ViewVerdict,
    evidence: Evidence,
    served: Served,
    rows: Int64Array,
    findings: Findings,
    stage: StageProgress,
) -> int:
    """Compare the values of some predictions with the oracle's.

    For a late value the oracle gets only the events that the release had seen.

    Args:
        verdict: The verdict about the view.
        evidence: The releases.
        served: The predictions.
        rows: int64, ``(sample,)``: the rows to compare.
        findings: Where mismatches are noted.
        stage: Where progress is shown.

    Returns:
        The number of values compared.
    """
    view = verdict.view
    oracle = Oracle(view, _events_of(verdict, rows))
    values, nulls = verdict.seen
    arrays = column_arrays(view.columns, values[rows], nulls[rows])
    used: list[dict[str, FeatureValue]] = pa.table(arrays).to_pylist()
    ids = served.predictions.column("request_id")
    keys = verdict.keys.take(pa.array(rows)).to_pylist()
    for row, key, served_values in zip(rows.tolist(), keys, used, strict=True):
        as_of = int(verdict.as_of_us[row])
        late = verdict.late[row]
        right = oracle.values(key, as_of)
        if late.any():
            seen_then = plain_rows(view, verdict.events.rows, verdict.known_events(row, evidence))
            as_seen = Oracle(view, seen_then).values(key, as_of)
            right = {
                name: as_seen[name] if late[place] else value
                for place, (name, value) in enumerate(right.items())
            }
        for name, value in served_values.items():
            if not same(value, right[name]):
                findings.add(
                    Mismatch(
                        "oracle", ids[row].as_py(), view.name, name, as_of,
                        "null" if value is None else repr(value),
                        "null" if right[name] is None else repr(right[name]),
                        "the oracle gives another value than the prediction used",
                    )
                )  # fmt: skip
        stage.advance(len(served_values))
    return len(rows) * len(view.columns)


def _events_of(verdict: ViewVerdict, rows: Int64Array) -> list[dict[str, Any]]:
    """Return the events of the sampled entities that a window of the sample can hold."""
    if not len(rows):
        return []
    view, events = verdict.view, verdict.events
    instants = verdict.as_of_us[rows]
    tail = window_tail(int(instants.min()), view.longest_window_us, view.hop_us)
    keys = pc.unique(verdict.keys.take(pa.array(rows)))
    column = events.rows.column(view.key)
    mine = pc.is_in(column, value_set=keys.drop_null()).to_numpy()
    within = (events.times >= tail) & (events.times <= int(instants.max()))
    return plain_rows(view, events.rows, np.flatnonzero(mine & within))


def plain_rows(view: FeatureView, rows: pa.Table, places: Int64Array) -> list[dict[str, Any]]:
    """Return events as plain Python values, times as int microseconds, for the oracle."""
    table = rows.select(list(view.stream.schema)).take(pa.array(places, pa.int64()))
    columns = {
        name: column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    plain: list[dict[str, Any]] = pa.table(columns).to_pylist()
    return plain


def same(one: FeatureValue, other: FeatureValue) -> bool:
    """Return whether two values have the same type and the same bits."""
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    return type(one) is type(other) and one == other
