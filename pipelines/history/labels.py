"""Joining labels to requests, by key within the horizon.

A label belongs to a request if ``request_time < label time <= request_time + horizon``; of several,
the first by (time, id). A request without a label is unlabelled, not negative.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import Label, Request


@dataclass(frozen=True)
class Labelled:
    """Labels of some requests.

    Attributes:
        values: float64, ``(requests,)``: the label; null where there is none.
        times: timestamp[us, UTC], ``(requests,)``: when it arrived; null where there is none.
    """

    values: pa.Array
    times: pa.Array


def _places(label: Label) -> list[str]:
    return [f"key_{place}" for place in range(len(label.on))]


def _by_place(table: pa.Table, columns: Iterable[str]) -> dict[str, pa.ChunkedArray]:
    """Name the join columns by index, since a user's column may have one of our names."""
    return {f"key_{place}": table.column(name) for place, name in enumerate(columns)}


def find_labels(label: Label, request: Request, requests: pa.Table, events: pa.Table) -> Labelled:
    """Find the label of each request.

    Args:
        label: The label's definition.
        request: The request's definition.
        requests: Validated requests, ``(requests,)``.
        events: Validated rows of the label's stream, ``(events,)``, in any order.

    Returns:
        The labels, in the order of the requests.
    """
    stream = label.stream
    values = pa.chunked_array(
        [label.value.evaluate(batch) for batch in events.to_batches()] or [pa.array([], pa.bool_())]
    )
    known = pa.table(
        {
            **_by_place(events, label.on.values()),
            "_id": events.column(stream.event_id).cast(pa.string()),
            "_at": events.column(stream.event_time).cast(pa.int64()),
            "_value": values.cast(pa.float64()) if len(values) else pa.array([], pa.float64()),
        }
    ).filter(pc.is_valid(pc.field("_value")))
    asked = pa.table(
        {
            **_by_place(requests, label.on),
            "_row": pa.array(np.arange(len(requests))),
            "_asked": requests.column(request.request_time).cast(pa.int64()),
        }
    )
    pairs = asked.join(known, keys=_places(label), join_type="inner")
    after = pc.greater(pairs["_at"], pairs["_asked"])
    within = pc.less_equal(pairs["_at"], pc.add(pairs["_asked"], label.horizon_us))
    pairs = pairs.filter(pc.and_(after, within)).sort_by(
        [(name, "ascending") for name in ("_row", "_at", "_id", "_value")]
    )
    rows: Int64Array = pairs["_row"].to_numpy()
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    missing = np.ones(len(requests), np.bool_)
    missing[rows[first]] = False
    found = np.zeros(len(requests))
    found[rows[first]] = pairs["_value"].to_numpy()[first]
    times = np.zeros(len(requests), np.int64)
    times[rows[first]] = pairs["_at"].to_numpy()[first]
    return Labelled(
        pa.array(found, mask=missing),
        pa.array(times, pa.int64(), mask=missing).cast(pa.timestamp("us", tz="UTC")),
    )


def leaks(label: Label, request: Request, requests: pa.Table, events: pa.Table) -> int:
    """Count the label's events that do not come after the request they belong to.

    Returns:
        The number of pairs of a request and an event of its label at or before the request time.
        If it is above 0, features could see what the model predicts.
    """
    asked = pa.table(
        {
            **_by_place(requests, label.on),
            "_asked": requests.column(request.request_time).cast(pa.int64()),
        }
    )
    known = pa.table(
        {
            **_by_place(events, label.on.values()),
            "_at": events.column(label.stream.event_time).cast(pa.int64()),
        }
    )
    pairs = asked.join(known, keys=_places(label), join_type="inner")
    return int(pc.sum(pc.less_equal(pairs["_at"], pairs["_asked"])).as_py() or 0)
