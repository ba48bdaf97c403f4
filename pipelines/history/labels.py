"""Joining labels to requests, by key within the horizon.

A label belongs to a request if ``request_time < label time <= request_time + horizon``; of several,
the first by (time, id). A request without a label is unlabelled, not negative. An event whose value
is null is no label, and a null key equals nothing.

`LabelIndex` is built once from a label's events and finds the labels of any requests. Beyond the
sort that builds it, time and memory are linear in events and requests, however many of either have
one key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import Label, Request
from tidemill.features.errors import InputError, shown
from tidemill.features.kernel import hashing
from tidemill.pipelines.history.sorted_ranges import first_at_or_after
from tidemill.pipelines.io.log import one_batch

UInt64Array = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Labelled:
    """Labels of some requests.

    Attributes:
        values: float64, ``(requests,)``: the label; null where there is none.
        times: timestamp[us, UTC], ``(requests,)``: when it arrived; null where there is none.
    """

    values: pa.Array
    times: pa.Array


class LabelIndex:
    """The events of a label, sorted by key, time, id and value.

    Keys are equal if their 128-bit digests are (`features.kernel.hashing.digest_rows`).

    Args:
        label: The label's definition.
        request: The request's definition.
        events: Validated rows of the label's stream, ``(events,)``, in any order.
    """

    def __init__(self, label: Label, request: Request, events: pa.Table) -> None:
        self._label, self._request = label, request
        values = pa.chunked_array(
            [label.value.evaluate(batch) for batch in events.to_batches()], pa.bool_()
        )
        known = _keyed(events, label.on.values()) & values.is_valid().to_numpy()
        columns = [*label.on.values(), label.stream.event_time, label.stream.event_id]
        rows = events.select(list(dict.fromkeys(columns)))
        if not known.all():
            rows, values = rows.filter(pa.array(known)), values.filter(pa.array(known))
        digests = _digests(rows, label.on.values())
        times = _microseconds(rows, label.stream.event_time)
        labels = values.to_numpy()
        order = _order(digests, times)
        digests, times, labels = digests[order], times[order], labels[order]
        ties = _ties(digests, times)
        if ties.any():
            ids = rows.column(label.stream.event_id).take(pa.array(order[ties]))
            labels[ties] = labels[ties][
                _order_of_ties(digests[ties], times[ties], ids, labels[ties])
            ]
        first = np.ones(len(times), np.bool_)
        first[1:] = (digests[1:] != digests[:-1]).any(axis=1)
        self._starts: Int64Array = np.append(np.flatnonzero(first), len(times))
        self._keys = digests[first]
        self._times, self._values = times, labels
        # Digests are uniform, so their first bits lead to about one key.
        bits = max(len(self._keys).bit_length(), 1)
        self._shift = np.uint64(64 - bits)
        bounds = np.arange(2**bits, dtype=np.uint64) << self._shift
        self._first_keys: Int64Array = np.searchsorted(self._keys[:, 0], bounds)

    def find(self, requests: pa.Table | pa.RecordBatch) -> Labelled:
        """Find the label of each request.

        Args:
            requests: Validated requests, ``(requests,)``.

        Returns:
            The labels, in the order of the requests.
        """
        asked, starts, stops = self._ranges(requests)
        place = first_at_or_after(self._times, asked + 1, starts, stops)
        found = np.flatnonzero(place < stops)
        found = found[self._times[place[found]] - asked[found] <= self._label.horizon_us]
        missing = np.ones(len(asked), np.bool_)
        missing[found] = False
        values, times = np.zeros(len(asked)), np.zeros(len(asked), np.int64)
        values[found] = self._values[place[found]]
        times[found] = self._times[place[found]]
        return Labelled(
            pa.array(values, mask=missing),
            pa.array(times, pa.int64(), mask=missing).cast(pa.timestamp("us", tz="UTC")),
        )

    def before(self, requests: pa.Table | pa.RecordBatch) -> Int64Array:
        """Count the label's events at or before each request's time: int64, ``(requests,)``."""
        asked, starts, stops = self._ranges(requests)
        return first_at_or_after(self._times, asked + 1, starts, stops) - starts

    def _ranges(
        self, requests: pa.Table | pa.RecordBatch
    ) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Return the times of requests, and where the events of their keys start and stop."""
        table = (
            pa.Table.from_batches([requests]) if isinstance(requests, pa.RecordBatch) else requests
        )
        asked = _microseconds(table, self._request.request_time)
        digests = _digests(table, self._label.on)
        keys = len(self._keys)
        code = np.full(len(asked), keys)
        rows = np.flatnonzero(_keyed(table, self._label.on))
        at = self._first_keys[digests[rows, 0] >> self._shift]
        while len(rows):
            inside = at < keys
            rows, at = rows[inside], at[inside]
            high, low = self._keys[at, 0], self._keys[at, 1]
            is_same = (high == digests[rows, 0]) & (low == digests[rows, 1])
            code[rows[is_same]] = at[is_same]
            goes_on = ~is_same & (high <= digests[rows, 0])
            rows, at = rows[goes_on], at[goes_on] + 1
        return asked, self._starts[code], self._starts[np.minimum(code + 1, keys)]


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
    return LabelIndex(label, request, events).find(requests)


def leaks(label: Label, request: Request, requests: pa.Table, events: pa.Table) -> int:
    """Count the label's events that do not come after the request they belong to.

    Returns:
        The number of pairs of a request and an event of its label at or before the request time.
        If it is above 0, features could see what the model predicts. 0 if the label's key recurs:
        then the events before a request are not its own.
    """
    if label.recurring:
        return 0
    return int(LabelIndex(label, request, events).before(requests).sum())


def check_leaks(
    label: Label, request: Request, requests: pa.Table, events: pa.Table, more: int = 0
) -> None:
    """Check that every event of the label comes after the request it belongs to.

    Args:
        label: The label's definition.
        request: The request's definition.
        requests: Validated requests, ``(requests,)``.
        events: Validated rows of the label's stream, ``(events,)``, in any order.
        more: How many such events other requests have, for the error.

    Raises:
        InputError: Some do not, and the label's key does not recur. The message has the first
            request with such an event, in the order of the requests, and the last of its events.
    """
    if label.recurring:
        return
    before = LabelIndex(label, request, events).before(requests)
    if not before.any():
        return
    row = int(np.flatnonzero(before)[0])
    one = requests.slice(row, 1).to_pylist()[0]
    mine = events.filter(_and(pc.equal(events[theirs], one[my]) for my, theirs in label.on.items()))
    time, id_ = label.stream.event_time, label.stream.event_id
    mine = mine.filter(pc.less_equal(mine[time], requests[request.request_time][row]))
    valued = pa.chunked_array([label.value.evaluate(b) for b in mine.to_batches()], pa.bool_())
    (event,) = mine.filter(valued.is_valid()).sort_by([(time, "descending")])[:1].to_pylist()
    key = ", ".join(f"{name} {shown(one[name])}" for name in label.on)
    raise InputError(
        f"label {label.name!r}: {int(before.sum()) + more:,} of its events do not come after their "
        f"request, such as {shown(event[id_])} at {_instant(event[time])} for request "
        f"{shown(one[request.request_id])} at {_instant(one[request.request_time])} ({key}): "
        "features could see the outcome. Give requests an earlier time, drop them, or declare "
        "recurring=True if a key recurs"
    )


def _instant(time: object) -> str:
    return str(time).replace("+00:00", "Z").replace(" ", "T")


def _and(masks: Iterable[pa.ChunkedArray]) -> pa.ChunkedArray:
    first, *others = masks
    for other in others:
        first = pc.and_(first, other)
    return first


def _microseconds(rows: pa.Table, column: str) -> Int64Array:
    return hashing.bits(one_batch(rows.select([column])).column(0))


def _keyed(rows: pa.Table, columns: Iterable[str]) -> BoolArray:
    """Return which rows have no null in some columns: bool, ``(rows,)``."""
    keyed = np.ones(len(rows), np.bool_)
    for name in columns:
        keyed &= rows.column(name).is_valid().to_numpy()
    return keyed


def _digests(rows: pa.Table, columns: Iterable[str]) -> UInt64Array:
    """Return a 128-bit digest of some columns: uint64, ``(rows, 2)``."""
    return hashing.digest_rows(
        pa.RecordBatch.from_arrays(
            [one_batch(rows.select([name])).column(0) for name in columns],
            names=[str(place) for place, _ in enumerate(columns)],
        )
    )


def _order(digests: UInt64Array, times: Int64Array) -> Int64Array:
    """Return the order of rows by digest and time: int64, ``(rows,)``."""
    by_time = np.argsort(times, kind="stable")
    order = by_time[np.argsort(digests[by_time, 0], kind="stable")]
    high, low = digests[order, 0], digests[order, 1]
    if ((high[1:] == high[:-1]) & (low[1:] != low[:-1])).any():
        order = np.lexsort((times, digests[:, 1], digests[:, 0]))
    return order


def _ties(digests: UInt64Array, times: Int64Array) -> BoolArray:
    """Return which sorted rows have the key and the time of a neighbour: bool, ``(rows,)``."""
    same = (times[1:] == times[:-1]) & (digests[1:] == digests[:-1]).all(axis=1)
    ties = np.zeros(len(times), np.bool_)
    ties[1:] |= same
    ties[:-1] |= same
    return ties


def _order_of_ties(
    digests: UInt64Array, times: Int64Array, ids: pa.ChunkedArray, values: BoolArray
) -> Int64Array:
    """Return the order of rows with equal keys and times by id (as UTF-8 bytes) and value."""
    changes = np.ones(len(times), np.bool_)
    changes[1:] = (times[1:] != times[:-1]) | (digests[1:] != digests[:-1]).any(axis=1)
    table = pa.table(
        {"tie": np.cumsum(changes), "id": ids.cast(pa.string()), "value": values.astype(np.int8)}
    )
    order: Int64Array = pc.sort_indices(
        table, sort_keys=[(name, "ascending") for name in table.column_names]
    ).to_numpy()
    return order
