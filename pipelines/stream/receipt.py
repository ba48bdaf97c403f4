"""Eager mode: the rows of a poll in the order of their receipt.

An answer uses what arrived before its request did, and nothing else. Rows are taken by arrival
(`pipelines.stream.sequence.arrivals`), requests first where it is equal, then by partition and
position. In this order

* a request is answered as of ``max(its time, every instant before it)``;
* an event counts from ``max(its time + 1, the last answer's as_of + 1, the frontier)``,

where the instants before a row are those as of which earlier requests were answered, and from which
earlier events count. So an event that arrives after a request counts after its answer, whatever its
time is. The kernel then orders by these instants alone (`features.kernel.tiles.layout`).

Between one block of requests and the next, an event can raise the instant by one microsecond beyond
the last answer's. With ``b`` blocks of events after an answer before row ``i``, and ``y`` a row's
own instant (the request's time, or the instant after the event), a request's ``as_of`` is
``b(i) + max over j <= i of (y(j) - b(j))``: a running maximum, over whole columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.kernel import hashing
from tidemill.features.kernel.prepare import COUNTS_FROM, TIME
from tidemill.pipelines.stream.sequence import ARRIVAL, REQUEST_ROWS


class Placed(NamedTuple):
    """The rows of a poll with their instants.

    Attributes:
        events: The events, with ``counts_from`` in place of ``arrival``.
        requests: The requests, with their ``as_of`` as their time.
        until_us: The frontier after them.
        is_answered: Whether an answer was given as of the frontier.
    """

    events: pa.RecordBatch | None
    requests: pa.RecordBatch | None
    until_us: int
    is_answered: bool


def logged_schema(events: pa.Schema) -> pa.Schema:
    """Return the schema of `Placed.events`; ``events`` is that of sequenced events."""
    return pa.schema(
        [field.with_name(COUNTS_FROM) if field.name == ARRIVAL else field for field in events]
    )


def place_by_receipt(
    events: pa.RecordBatch | None,
    requests: pa.RecordBatch | None,
    frontier_us: int,
    *,
    is_answered: bool,
) -> Placed:
    """Find the instants of the rows of a poll.

    Args:
        events: Sequenced events, ``(events,)``, by partition and position; None for none.
        requests: Sequenced requests, ``(requests,)``, likewise.
        frontier_us: The frontier before them.
        is_answered: Whether an answer was given as of that frontier.
    """
    event_times, event_arrivals = _columns(events)
    request_times, request_arrivals = _columns(requests)
    count = len(event_times)
    is_event = np.arange(count + len(request_times)) < count
    arrival = np.concatenate([event_arrivals, request_arrivals])
    if not len(arrival):
        return Placed(None, None, frontier_us, is_answered)
    order = np.lexsort((is_event, arrival))
    ordered = is_event[order]
    own = np.concatenate([event_times + 1, request_times])[order]
    after_answer = np.concatenate([[is_answered], ~ordered[:-1]])
    block = np.cumsum(ordered & after_answer)
    # The running maximum before each row, and with it.
    running = np.maximum.accumulate(np.concatenate([[frontier_us], own - block]))
    instants = running[1:] + block
    starts = np.searchsorted(block, block, "left")
    least = np.where(block > 0, running[starts] + block, frontier_us)
    instants[ordered] = np.maximum(own, least)[ordered]
    placed = np.empty_like(instants)
    placed[order] = instants
    counts_from, as_of = placed[:count], placed[count:]
    until_us = max(frontier_us, int(placed.max()))
    last_answer = int(as_of.max()) if len(as_of) else None
    if last_answer is None:
        is_answered = is_answered and until_us == frontier_us
    else:
        is_answered = last_answer == until_us
    if events is not None:
        place = events.schema.get_field_index(ARRIVAL)
        events = events.set_column(place, COUNTS_FROM, pa.array(counts_from, pa.int64()))
    if requests is not None:
        place = requests.schema.get_field_index(TIME)
        requests = requests.set_column(place, REQUEST_ROWS.field(TIME), pa.array(as_of, pa.int64()))
    return Placed(events, requests, until_us, is_answered)


def _columns(rows: pa.RecordBatch | None) -> tuple[Int64Array, Int64Array]:
    """Return times and arrivals."""
    if rows is None:
        nothing = np.zeros(0, np.int64)
        return nothing, nothing
    return hashing.bits(rows.column(TIME)), hashing.bits(rows.column(ARRIVAL))
