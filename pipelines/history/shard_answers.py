"""The point-in-time answers of a part of a shard, and its state, in one pass over its events.

The kernel goes to the instant of the states, where the state is written, and from there to the end.
So the state that a stream starts from is computed once, with the answers.

A state holds the events that were received before its instant. An event that was received later may
be older than the frontier of the state, and counts for the answers before the frontier: the kernel
then stops at the oldest such event, and a copy of the state goes on without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.kernel import hashing
from tidemill.features.kernel.advance import NULLS, VALUES, Publish, advance
from tidemill.features.kernel.columns import concat
from tidemill.features.kernel.dedupe import first_occurrences
from tidemill.features.kernel.encoding import encode_entities
from tidemill.features.kernel.plan import Plan, make_plan
from tidemill.features.kernel.prepare import (
    DIGEST,
    ORDINAL,
    REQUESTS_SCHEMA,
    TIME,
    matrix_of,
    nulls_of,
)
from tidemill.features.kernel.tiles.state import State
from tidemill.pipelines.history.history_plan import HistoryPlan
from tidemill.pipelines.history.spill import SpillFile, spill_file
from tidemill.pipelines.history.split import events_section, requests_section
from tidemill.pipelines.stream.answer_parts import groups_of
from tidemill.pipelines.stream.sequence import sequenced_events_schema

UInt8Array = npt.NDArray[np.uint8]
UInt64Array = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class PartEvents:
    """The events of a part of a shard, each once.

    Attributes:
        rows: Prepared events (`pipelines.stream.sequence.sequenced_events_schema`), ``(rows,)``.
        places: int64, ``(rows,)``: where each is in the log (`answer_parts.groups_of`).
        received: bool, ``(rows,)``: which were received before the instant of the states.
    """

    rows: pa.RecordBatch
    places: Int64Array
    received: BoolArray


def answer_part(project: Project, plan: HistoryPlan, view_name: str, piece: int) -> int:
    """Write the answers and the state of a part of a view.

    Args:
        project: The project.
        plan: The plan.
        view_name: The view.
        piece: The number of the part among those of all shards.

    Returns:
        The number of its requests.
    """
    view = project.view(view_name)
    kernel = make_plan(view)
    events = _read_events(plan, view, kernel, piece)
    requests = _read_requests(plan, view, piece)
    frontier_us = plan.frontier_us(project, view)
    values, nulls = _advance(plan, view, kernel, events, requests, frontier_us, piece)
    numbers = hashing.bits(requests.column(ORDINAL))
    with spill_file(plan.answers_path(view.name, piece)) as out:
        for rows in plan.by_block(numbers):
            out.write("answers", [numbers[rows], values[rows], nulls[rows]])
    return len(numbers)


def read_answers(
    file: SpillFile, block: int, columns: int
) -> tuple[Int64Array, Int64Array, UInt8Array]:
    """Read the answers of a part to the requests of a block.

    Returns:
        int64 ``(rows,)``: the requests' numbers; int64 and uint8 ``(rows, columns)``: 64-bit
        patterns and nulls (1 = null).
    """
    data = file.read("answers", block)
    rows = data.size // (8 + 9 * columns)
    numbers = np.frombuffer(data, np.int64, rows)
    values = np.frombuffer(data, np.int64, rows * columns, 8 * rows)
    nulls = np.frombuffer(data, np.uint8, rows * columns, 8 * rows * (1 + columns))
    return numbers, values.reshape(rows, columns), nulls.reshape(rows, columns)


def _read_events(plan: HistoryPlan, view: FeatureView, kernel: Plan, piece: int) -> PartEvents:
    schema, section = sequenced_events_schema(kernel), events_section(view.name)
    found, places, received = [], [np.zeros(0, np.int64)], [np.zeros(0, np.bool_)]
    for span in plan.spans(view.stream.name):
        rows = plan.spilled(plan.split_path(span)).read_rows(section, schema, piece)
        if rows is not None:
            positions = hashing.bits(rows.column(ORDINAL))
            found.append(rows)
            places.append(groups_of(np.full(len(positions), span.partition), positions))
            received.append(positions < plan.stops[view.stream.name][span.partition])
    rows = concat(found)
    if rows is None:
        rows = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)
    return _without_duplicates(rows, np.concatenate(places), np.concatenate(received))


def _without_duplicates(
    rows: pa.RecordBatch, places: Int64Array, received: BoolArray
) -> PartEvents:
    """Keep the first of equal rows: of those that the state holds, if it holds one of them."""
    digests = matrix_of(rows.column(DIGEST)).view(np.uint64)
    order = np.argsort(~received, kind="stable")
    kept = order[first_occurrences(digests[order])]
    if len(kept) < len(places):
        kept.sort()
        rows, places, received = rows.take(pa.array(kept)), places[kept], received[kept]
    return PartEvents(rows, places, received)


def _read_requests(plan: HistoryPlan, view: FeatureView, piece: int) -> pa.RecordBatch:
    section = requests_section(view.name)
    found = [
        rows
        for span in plan.spans(plan.request)
        if (rows := plan.spilled(plan.split_path(span)).read_rows(section, REQUESTS_SCHEMA, piece))
    ]
    rows = concat(found)
    if rows is None:
        arrays = [pa.array([], field.type) for field in REQUESTS_SCHEMA]
        return pa.RecordBatch.from_arrays(arrays, schema=REQUESTS_SCHEMA)
    return rows


def _advance(
    plan: HistoryPlan,
    view: FeatureView,
    kernel: Plan,
    events: PartEvents,
    requests: pa.RecordBatch,
    frontier_us: int,
    piece: int,
) -> tuple[Int64Array, UInt8Array]:
    """Answer the requests; write the state at the frontier on the way."""
    times, asked = hashing.bits(events.rows.column(TIME)), hashing.bits(requests.column(TIME))
    later = times[~events.received]
    cut = min(frontier_us, int(later.min())) if len(later) else frontier_us
    columns = len(kernel.columns)
    values, nulls = (
        np.empty((len(asked), columns), np.int64),
        np.empty((len(asked), columns), np.uint8),
    )
    state = State(kernel)

    def answer(mine: BoolArray, theirs: BoolArray, until_us: int) -> None:
        advanced = advance(
            state, _rows(events.rows, mine), _rows(requests, theirs), until_us, Publish.NOTHING
        )
        values[theirs] = matrix_of(advanced.answers.column(VALUES))
        nulls[theirs] = nulls_of(advanced.answers.column(NULLS))

    answer(times < cut, asked < cut, cut)
    handed_over = state
    if cut < frontier_us:
        handed_over = state.copy()
        between = events.received & (times >= cut) & (times < frontier_us)
        advance(handed_over, _rows(events.rows, between), None, frontier_us, Publish.NOTHING)
    _write_state(plan, view, events, handed_over, frontier_us, piece)
    last = asked >= cut
    if last.any():
        # The states that batch makes are published, but these changes are not.
        state.publishes = False
        until_us = max(int(asked.max()), int(times.max()) + 1 if len(times) else 0)
        answer(times >= cut, last, until_us)
    return values, nulls


def _rows(rows: pa.RecordBatch, mask: BoolArray) -> pa.RecordBatch:
    """Return the rows where a mask is true: a slice, if they follow each other."""
    count = int(mask.sum())
    if count == len(mask):
        return rows
    first = int(mask.argmax())
    if count == 0 or mask[first : first + count].all():
        return rows.slice(first, count)
    return rows.take(pa.array(np.flatnonzero(mask)))


def _write_state(
    plan: HistoryPlan,
    view: FeatureView,
    events: PartEvents,
    state: State,
    frontier_us: int,
    piece: int,
) -> None:
    """Write what the state of the shard needs of this part."""
    mine = events.received
    rows, places = _rows(events.rows, mine), events.places[mine]
    times = hashing.bits(rows.column(TIME))
    waiting = times >= frontier_us
    entities = encode_entities(state)
    with spill_file(plan.state_path(view.name, piece)) as out:
        out.write("changed", [entities.changed])
        out.write("words", [entities.words])
        out.write("keys", [entities.keys])
        out.write_rows("waiting", _rows(rows, waiting))
        out.write("waiting places", [places[waiting]])
        out.write("digests", [np.ascontiguousarray(matrix_of(rows.column(DIGEST)))])
        out.write("times", [np.ascontiguousarray(times)])
