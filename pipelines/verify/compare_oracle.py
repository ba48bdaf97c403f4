"""Comparing sampled predictions with the oracle, in plain Python.

`features.oracle.values` shares no code with the kernel, so this finds a fault that stream and batch
have in common.

The sample is a function of the served rows: requests evenly over time, in a random order with a
fixed seed, as long as their predicted cost fits (`affordable`). The cost is that of the events of
their keys, once a key, and of late values, whose windows are computed singly. A deadline of the
clock is a net below it: what it cuts off is stated, and the rest holds.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array, window_tail
from tidemill.features.definitions import FeatureView
from tidemill.features.kernel.columns import column_arrays, plain_array
from tidemill.features.oracle.values import FeatureValue, Oracle
from tidemill.pipelines.run.progress import StageProgress
from tidemill.pipelines.verify.compare_predictions import ViewVerdict
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.instants import value_text
from tidemill.pipelines.verify.release_evidence import Evidence
from tidemill.pipelines.verify.served import Served

MOST_STEPS: Final = 3_000_000
"""The most steps of a sample; a step (an event, or a request, for a feature) takes about 5 us."""
DEADLINE_S: Final = 60.0
"""When the comparison ends at the latest, in seconds."""

_SEED: Final = 1


class Sample(NamedTuple):
    """The requests to compare.

    Attributes:
        rows: int64, ``(requests,)``: their rows.
        costly: How many of the drawn requests are left out because they cost too much.
        steps: The predicted cost.
        spans: By view: the first instant that a window of the drawn requests can hold, and the last
            instant of a request.
    """

    rows: Int64Array
    costly: int
    steps: int
    spans: Mapping[str, tuple[int, int]]


class Compared(NamedTuple):
    """What was compared.

    Attributes:
        values: The number of values.
        requests: The number of requests, with all their views.
    """

    values: int
    requests: int


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


def affordable(
    verdicts: Sequence[ViewVerdict], rows: Int64Array, most_steps: int = MOST_STEPS
) -> Sample:
    """Take of drawn requests those whose predicted cost fits.

    Args:
        verdicts: The verdict about each view.
        rows: The drawn rows.
        most_steps: The most steps that the sample may cost.
    """
    known: set[tuple[int, object]] = set()
    spans = [_span(verdict, rows) for verdict in verdicts]
    keys = [verdict.keys.take(pa.array(rows)).to_pylist() for verdict in verdicts]
    taken, steps = [], 0
    for place in np.random.default_rng(_SEED).permutation(len(rows)).tolist():
        row, cost = int(rows[place]), 0
        new = {(number, of_view[place]) for number, of_view in enumerate(keys)} - known
        for number, verdict in enumerate(verdicts):
            features = len(verdict.view.features)
            cost += features
            if (number, keys[number][place]) in new:
                cost += features * len(verdict.events.within(keys[number][place], *spans[number]))
            if verdict.late[row].any():
                cost += features * len(verdict.window(row))
        if steps + cost <= most_steps:
            steps += cost
            known |= new
            taken.append(row)
    by_view = {verdict.view.name: span for verdict, span in zip(verdicts, spans, strict=True)}
    return Sample(np.array(sorted(taken), np.int64), len(rows) - len(taken), steps, by_view)


def _span(verdict: ViewVerdict, rows: Int64Array) -> tuple[int, int]:
    """Return the span of the events that a window of some rows can hold."""
    if not len(rows):
        return 0, 0
    instants, view = verdict.as_of_us[rows], verdict.view
    first = window_tail(int(instants.min()), view.longest_window_us, view.hop_us)
    return first, int(instants.max())


def check_with_oracle(
    verdicts: Sequence[ViewVerdict],
    evidence: Evidence,
    served: Served,
    sample: Sample,
    findings: Findings,
    stage: StageProgress,
    deadline_s: float = DEADLINE_S,
    clock: Callable[[], float] = time.monotonic,
) -> Compared:
    """Compare the values of sampled predictions with the oracle's.

    For a late value the oracle gets only the events that the release had seen.

    Args:
        verdicts: The verdict about each view.
        evidence: The releases.
        served: The predictions.
        sample: The requests to compare.
        findings: Where mismatches are noted.
        stage: Where progress is shown, in steps.
        deadline_s: After so many seconds no other key is begun.
        clock: A monotonic clock, in seconds.

    Returns:
        What was compared.
    """
    ends_s = clock() + deadline_s
    values = 0
    whole = set(sample.rows.tolist())
    for verdict in verdicts:
        stage.note(verdict.view.name)
        span = sample.spans[verdict.view.name]
        by_key: dict[Any, list[int]] = {}
        keys = verdict.keys.take(pa.array(sample.rows)).to_pylist()
        for row, key in zip(sample.rows.tolist(), keys, strict=True):
            by_key.setdefault(key, []).append(row)
        for key, rows in by_key.items():
            if clock() > ends_s:
                whole -= set(rows)
                continue
            values += _check_key(verdict, evidence, served, key, rows, span, findings, stage)
    return Compared(values, len(whole))


def _check_key(
    verdict: ViewVerdict,
    evidence: Evidence,
    served: Served,
    key: Any,
    rows: Sequence[int],
    span: tuple[int, int],
    findings: Findings,
    stage: StageProgress,
) -> int:
    """Compare the values of a key's requests; return their number."""
    view, events = verdict.view, verdict.events
    features = len(view.features)
    mine = events.within(key, *span)
    oracle = Oracle(view, plain_rows(view, events.rows, mine))
    instants = [int(verdict.as_of_us[row]) for row in rows]
    values, nulls = verdict.seen
    arrays = column_arrays(view.columns, values[list(rows)], nulls[list(rows)])
    used = plain_values(arrays)
    dtypes = {column.name: column.dtype for column in view.columns}
    complete = oracle.values_at(key, instants)
    stage.advance(features * len(mine))
    for row, as_of, right, served_values in zip(rows, instants, complete, used, strict=True):
        late = verdict.late[row]
        if late.any():
            seen_then = plain_rows(view, events.rows, verdict.known_events(row, evidence))
            as_seen = Oracle(view, seen_then).values(key, as_of)
            right = {
                name: as_seen[name] if late[place] else value
                for place, (name, value) in enumerate(right.items())
            }
            stage.advance(features * len(verdict.window(row)))
        for name, value in served_values.items():
            if not same(value, right[name]):
                findings.add(
                    Mismatch(
                        "oracle", served.predictions.column("request_id")[row].as_py(), view.name,
                        name, as_of, value_text(value, dtypes[name]),
                        value_text(right[name], dtypes[name]),
                        "the oracle gives another value than the prediction used",
                    )
                )  # fmt: skip
        stage.advance(features)
    return len(rows) * len(view.columns)


def plain_rows(view: FeatureView, rows: pa.Table, places: Int64Array) -> list[dict[str, Any]]:
    """Return events as plain Python values, times as int microseconds, for the oracle."""
    table = rows.select(list(view.stream.schema)).take(pa.array(places, pa.int64()))
    return plain_values(dict(zip(table.column_names, table.columns, strict=True)))


def plain_values(columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> list[dict[str, Any]]:
    """Return columns as rows of plain Python values, times as int microseconds, as the oracle's."""
    plain: list[dict[str, Any]] = pa.table(
        {name: plain_array(column) for name, column in columns.items()}
    ).to_pylist()
    return plain


def same(one: FeatureValue, other: FeatureValue) -> bool:
    """Return whether two values have the same type and the same bits."""
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    return type(one) is type(other) and one == other
