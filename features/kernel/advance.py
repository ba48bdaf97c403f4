"""The kernel's interface: events and requests in, answers and publications out.

    advance(state, events, requests, until, publish) -> Advance

Batch calls it once with all rows of a shard; the stream calls it many times with the rows that the
frontier released. However a log is cut into calls, the answers and the state are the same bytes. No
other code computes a feature.

`advance` does no I/O and reads no clock. It changes the state in place.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import TIME_MIN, Int64Array
from tidemill.features.errors import InputError
from tidemill.features.kernel import hashing
from tidemill.features.kernel.compiled import read_only
from tidemill.features.kernel.exact.accumulators import WIDE_SQUARE, WIDE_SUM
from tidemill.features.kernel.folds.finish import release_answers
from tidemill.features.kernel.plan import MASKS_PER_WORD, Plan, PlannedPartial
from tidemill.features.kernel.prepare import (
    CELLS,
    ID,
    KEY,
    ORDINAL,
    TIME,
    fixed_binary,
    matrix_of,
)
from tidemill.features.kernel.registry import OWNS_WIDE_SQUARE, OWNS_WIDE_SUM
from tidemill.features.kernel.tiles import layout, wheel
from tidemill.features.kernel.tiles.layout import (
    Q_CHANGED,
    Q_ENTITY,
    Q_REQUEST,
    Q_REVISION,
    Q_TAILS,
    Q_VALID_UNTIL,
)
from tidemill.features.kernel.tiles.state import LENGTH, State, resolve

CHUNK_ROWS: Final = 262_144
"""Rows handled at once: enough to make calls cheap, few enough that the tiles of a long history are
not in memory at the same time."""
BLOCK_STEPS: Final = 2_048
"""Steps that all folds handle before the next ones, so that tiles stay in the processor's cache."""

VALUES: Final = "values"
NULLS: Final = "nulls"


class Publish(enum.Enum):
    """What an advance publishes."""

    NOTHING = layout.PUBLISH_NOTHING
    NEWEST = layout.PUBLISH_NEWEST
    EVERY = layout.PUBLISH_EVERY
    ALL = layout.PUBLISH_ALL


@dataclass(frozen=True)
class Advance:
    """The result of an advance.

    Attributes:
        answers: One row per request, in the order of the requests; see `answers_schema`.
        publications: See `publications_schema`; those of an entity are in order of event_timestamp.
    """

    answers: pa.RecordBatch
    publications: pa.RecordBatch


def answers_schema(plan: Plan) -> pa.Schema:
    """Return the schema of answers.

    ``ordinal``: the caller's number for the request. ``as_of``: the instant of the answer.
    ``values``: the 64-bit patterns of the view's columns. ``nulls``: a byte per column, 1 = null.
    """
    return pa.schema(
        [
            pa.field(ORDINAL, pa.int64()),
            pa.field("as_of", pa.int64()),
            pa.field(VALUES, pa.binary(8 * len(plan.columns))),
            pa.field(NULLS, pa.binary(len(plan.columns))),
        ]
    )


def publications_schema(plan: Plan) -> pa.Schema:
    """Return the schema of publications.

    A publication says that an entity has these values from ``event_timestamp`` until
    ``valid_until``, unless an event comes. Of an anchored column it has the anchor.
    """
    return pa.schema(
        [
            pa.field(KEY, pa.string()),
            pa.field("event_timestamp", pa.int64()),
            pa.field("valid_until", pa.int64()),
            pa.field("revision", pa.int64()),
            pa.field(VALUES, pa.binary(8 * len(plan.columns))),
            pa.field(NULLS, pa.binary(len(plan.columns))),
        ]
    )


def advance(
    state: State,
    events: pa.RecordBatch | None,
    requests: pa.RecordBatch | None,
    until_us: int,
    publish: Publish = Publish.NOTHING,
) -> Advance:
    """Advance a state to ``until_us``.

    Args:
        state: The state of one view in one shard; changed in place. It must not be used again after
            an exception.
        events: Prepared events of the view (`prepare.events_schema`), without duplicates, in any
            order, all before ``until_us``. Events before the state's frontier are late: they count
            for every later answer.
        requests: Prepared requests (`prepare.REQUESTS_SCHEMA`), in any order, none after
            ``until_us``. Requests before the frontier are answered as of the frontier.
        until_us: The new frontier, not before the old one.
        publish: What to publish.

    Returns:
        Answers and publications.

    Raises:
        InputError: A row is not before ``until_us``, or the frontier would move back.
    """
    if until_us < state.frontier_us:
        raise InputError(
            f"view {state.plan.view!r}: the frontier cannot go back from {state.frontier_us} "
            f"to {until_us}"
        )
    work = _Work(state, events, requests, until_us)
    if publish in (Publish.NEWEST, Publish.ALL):
        chunks = iter([(len(work.event_order), len(work.request_order), until_us)])
    else:
        chunks = work.chunks(until_us)
    values, nulls = _empty_answers(state.plan, work.n_requests)
    published: list[pa.RecordBatch] = []
    first_event = first_request = 0
    since = state.frontier_us
    for last_event, last_request, until in chunks:
        queries, chunk_values, chunk_nulls = _advance_chunk(
            state,
            work,
            work.event_order[first_event:last_event],
            work.request_order[first_request:last_request],
            since,
            until,
            publish,
        )
        asked = queries[:, Q_REQUEST] >= 0
        values[queries[asked, Q_REQUEST]] = chunk_values[asked]
        nulls[queries[asked, Q_REQUEST]] = chunk_nulls[asked]
        if not asked.all():
            published.append(
                _publications(state, queries[~asked], chunk_values[~asked], chunk_nulls[~asked])
            )
        first_event, first_request, since = last_event, last_request, until
    state.frontier_us = until_us
    state.counters.events += work.n_events
    state.counters.late += work.n_late
    answers = pa.RecordBatch.from_arrays(
        [
            work.ordinals,
            pa.array(work.request_as_of, pa.int64()),
            fixed_binary(values),
            fixed_binary(nulls),
        ],
        schema=answers_schema(state.plan),
    )
    return Advance(answers, _one_batch(published, publications_schema(state.plan)))


def nothing_advanced(plan: Plan) -> Advance:
    """Return the result of an advance without rows to an unchanged frontier."""
    return Advance(_one_batch([], answers_schema(plan)), _one_batch([], publications_schema(plan)))


def _one_batch(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    if not batches:
        return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)
    return pa.concat_batches(batches)


def _empty_answers(plan: Plan, rows: int) -> tuple[Int64Array, npt.NDArray[np.uint8]]:
    empty, null = plan.empty_values
    return (
        np.broadcast_to(empty, (rows, len(empty))).copy(),
        np.broadcast_to(null.astype(np.uint8), (rows, len(empty))).copy(),
    )


class _Work:
    """The rows of one call, with their entities and their order in time."""

    def __init__(
        self,
        state: State,
        events: pa.RecordBatch | None,
        requests: pa.RecordBatch | None,
        until_us: int,
    ) -> None:
        plan = state.plan
        frontier = state.frontier_us
        if events is None or events.num_rows == 0:
            self.n_events = 0
            event_time = np.zeros(0, np.int64)
            self.event_change = np.zeros(0, np.int64)
            self.event_entity = np.zeros(0, np.int64)
            cells = np.zeros((0, plan.row_words), np.int64)
            id_offsets, id_data = np.zeros(1, np.int32), np.zeros(0, np.uint8)
        else:
            self.n_events = events.num_rows
            event_time = hashing.bits(events.column(TIME))
            self.event_change = np.maximum(event_time + 1, frontier)
            self.event_entity = _resolve(state, events.column(KEY), insert=True)
            cells = matrix_of(events.column(CELLS))
            id_offsets, id_data = hashing.text_buffers(events.column(ID))
            _check_before(event_time, until_us, plan.view, "event")
        self.event_time, self.cells = read_only(event_time), read_only(cells)
        self.id_offsets, self.id_data = read_only(id_offsets), read_only(id_data)
        self.n_late = int((self.event_time < frontier).sum()) if frontier > TIME_MIN else 0
        if requests is None or requests.num_rows == 0:
            self.n_requests = 0
            self.request_as_of = np.zeros(0, np.int64)
            self.request_entity = np.zeros(0, np.int64)
            self.ordinals = pa.array([], pa.int64())
        else:
            self.n_requests = requests.num_rows
            self.request_as_of = np.maximum(hashing.bits(requests.column(TIME)), frontier)
            self.request_entity = _resolve(state, requests.column(KEY), insert=False)
            self.ordinals = requests.column(ORDINAL)
            _check_before(self.request_as_of - 1, until_us, plan.view, "request")
        self.event_order = _order(self.event_time)
        self.request_order = _order(self.request_as_of)

    def chunks(self, until_us: int) -> Iterator[tuple[int, int, int]]:
        """Cut the rows into chunks between distinct instants.

        Yields:
            The end of the chunk among the events and among the requests, and its frontier.
        """
        change = self.event_change[self.event_order]
        as_of = self.request_as_of[self.request_order]
        rows = len(change) + len(as_of)
        if rows > CHUNK_ROWS:
            instants = np.sort(np.concatenate([change, as_of]), kind="stable")
            cut = CHUNK_ROWS
            while cut < rows:
                # Keep the rows of one instant together.
                end = int(np.searchsorted(instants, instants[cut], "left"))
                if end == 0 or instants[end - 1] == instants[0]:
                    end = int(np.searchsorted(instants, instants[cut], "right"))
                if end >= rows:
                    break
                next_instant = instants[end]
                yield (
                    int(np.searchsorted(change, next_instant, "left")),
                    int(np.searchsorted(as_of, next_instant, "left")),
                    int(next_instant) - 1,
                )
                cut = end + CHUNK_ROWS
        yield len(change), len(as_of), until_us


def _order(instants: Int64Array) -> Int64Array:
    """Return the rows in order of their instants (stable)."""
    if len(instants) < 2 or bool((instants[1:] >= instants[:-1]).all()):
        return np.arange(len(instants))
    return np.argsort(instants, kind="stable")


def _check_before(times: Int64Array, until_us: int, view: str, what: str) -> None:
    if len(times) and int(times.max()) >= until_us:
        raise InputError(
            f"view {view!r}: an {what} at {int(times.max())} is not before the frontier "
            f"{until_us} it is released with"
        )


def _resolve(state: State, keys: pa.Array, insert: bool) -> Int64Array:
    valid = read_only(hashing.validity(keys))
    offsets, data = (read_only(buffer) for buffer in hashing.text_buffers(keys))
    hashes = hashing.hash_column(keys)
    out = np.empty(len(keys), np.int64)
    if insert:
        state.reserve_entities(len(keys), int(offsets[-1]) - int(offsets[0]))
    state.n_entities = resolve(
        hashes,
        offsets,
        data,
        valid,
        insert,
        state.table,
        state.entities,
        state.key_offsets,
        state.key_data,
        state.n_entities,
        out,
    )
    return out


def _advance_chunk(
    state: State,
    work: _Work,
    event_order: Int64Array,
    request_order: Int64Array,
    since: int,
    until: int,
    publish: Publish,
) -> tuple[Int64Array, Int64Array, npt.NDArray[np.uint8]]:
    """Handle the rows of one chunk; return the queries with their values and nulls."""
    plan = state.plan
    until_hop = until // plan.hop_us
    if publish is Publish.ALL:
        due = np.arange(state.n_entities)
    else:
        due = wheel.due_entities(
            state.entities,
            state.wheel,
            state.wheel_nodes,
            state.wheel_meta,
            state.wheel_hop,
            until_hop,
        )
    state.batch_number += 1
    group_entity, group_start, codes = layout.group_rows(
        work.event_entity,
        event_order,
        work.event_change,
        work.request_entity,
        request_order,
        work.request_as_of,
        due,
        state.stamps,
        state.batch_number,
    )
    steps, queries = _lay_out(state, work, group_entity, group_start, codes, since, until, publish)
    step_row, step_at = steps
    layout.mark_presence(step_row, step_at, queries, state.tiles, plan.hop_us, plan.window_hops)
    answers = _fold_all(state, work, step_row, step_at, queries)
    values, nulls = _finish(state, answers, queries)
    state.reserve_wheel(len(group_entity))
    wheel.settle(
        group_entity,
        state.entities,
        state.tiles,
        state.tile_meta,
        state.arena,
        state.arena_meta,
        plan.references,
        state.wheel,
        state.wheel_nodes,
        state.wheel_meta,
        plan.hop_us,
        state.watched_hops,
        until,
    )
    state.wheel_hop = until_hop
    return queries, values, nulls


def _lay_out(
    state: State,
    work: _Work,
    group_entity: Int64Array,
    group_start: Int64Array,
    codes: Int64Array,
    since: int,
    until: int,
    publish: Publish,
) -> tuple[tuple[Int64Array, Int64Array], Int64Array]:
    plan = state.plan
    room = len(codes) + 2 * len(group_entity)
    step_row = np.empty(room, np.int64)
    step_at = np.empty(room, np.int64)
    queries = np.empty((room, Q_TAILS + len(plan.windows_us)), np.int64)
    filled = np.zeros(3, np.int64)
    group = 0
    while True:
        group = layout.lay_out(
            group,
            group_entity,
            group_start,
            codes,
            work.event_time,
            work.event_change,
            work.request_as_of,
            state.entities,
            state.tiles,
            state.tile_meta,
            plan.template,
            plan.hop_us,
            plan.window_hops,
            publish.value,
            state.publishes,
            since,
            until,
            step_row,
            step_at,
            queries,
            filled,
        )
        if group >= len(group_entity):
            break
        # Make room for the steps and queries of this group, and for its tiles.
        rows = int(group_start[group + 1] - group_start[group])
        tiles = int(state.entities[group_entity[group], LENGTH]) + rows
        need = rows + 2 + (rows + tiles) * len(plan.windows_us)
        if filled[0] + need > len(step_row):
            room = max(2 * len(step_row), int(filled[0]) + need)
            step_row = np.resize(step_row, room)
            step_at = np.resize(step_at, room)
            grown = np.empty((room, queries.shape[1]), np.int64)
            grown[: filled[1]] = queries[: filled[1]]
            queries = grown
        if int(state.tile_meta[0]) + 2 * tiles + 2 > len(state.tiles):
            state.grow_tiles(2 * tiles + 2)
    state.counters.expired += int(filled[2])
    return (step_row[: filled[0]], step_at[: filled[0]]), queries[: filled[1]]


def _fold_all(
    state: State, work: _Work, step_row: Int64Array, step_at: Int64Array, queries: Int64Array
) -> list[Int64Array]:
    """Run every partial's fold over the steps; return the answers of each."""
    plan = state.plan
    answers = []
    for partial in plan.partials:
        words = partial.fold.answer_words or 2 * partial.size
        answers.append(np.empty((len(queries) * len(partial.asks), words), np.int64))
    # Any cut is right: the steps of an entity are in order.
    for first in range(0, len(step_row), BLOCK_STEPS):
        rows = step_row[first : first + BLOCK_STEPS]
        at = step_at[first : first + BLOCK_STEPS]
        for partial, out in zip(plan.partials, answers, strict=True):
            _fold(state, work, partial, rows, at, queries, out)
    return answers


def _fold(
    state: State,
    work: _Work,
    partial: PlannedPartial,
    step_row: Int64Array,
    step_at: Int64Array,
    queries: Int64Array,
    out: Int64Array,
) -> None:
    step = 0
    while True:
        step = partial.fold.run(
            partial.fold.variant,
            step,
            step_row,
            step_at,
            queries,
            state.tiles,
            partial.base,
            partial.size,
            work.cells,
            partial.value_cell,
            len(state.plan.cells) + partial.mask // MASKS_PER_WORD,
            partial.mask % MASKS_PER_WORD,
            work.event_time,
            work.id_offsets,
            work.id_data,
            state.arena,
            state.arena_meta,
            partial.ask_windows,
            partial.ask_params,
            state.scratch(partial.fold),
            out,
        )
        if step >= len(step_row):
            return
        state.grow_arena()


_NO_ANSWERS: Final = np.zeros((0, 1), np.int64)


def _finish(
    state: State, answers: list[Int64Array], queries: Int64Array
) -> tuple[Int64Array, npt.NDArray[np.uint8]]:
    plan = state.plan
    values = np.empty((len(queries), len(plan.columns)), np.int64)
    nulls = np.empty((len(queries), len(plan.columns)), np.uint8)
    if len(queries):
        for feature in plan.features:
            taken: list[object] = []
            for index in range(3):
                if index < len(feature.takes):
                    partial, ask = feature.takes[index]
                    taken += [answers[partial], ask, len(plan.partials[partial].asks)]
                else:
                    taken += [_NO_ANSWERS, 0, 0]
            state.counters.overflows += feature.finish.run(
                feature.finish.variant,
                *taken,
                queries,
                state.arena,
                feature.param,
                feature.width,
                feature.is_float,
                feature.column,
                values,
                nulls,
            )
    for partial_, out in zip(plan.partials, answers, strict=True):
        if partial_.fold.owns in (OWNS_WIDE_SUM, OWNS_WIDE_SQUARE):
            wide = WIDE_SUM if partial_.fold.owns == OWNS_WIDE_SUM else WIDE_SQUARE
            release_answers(out, wide, state.arena, state.arena_meta)
    return values, nulls


def _publications(
    state: State,
    queries: Int64Array,
    values: Int64Array,
    nulls: npt.NDArray[np.uint8],
) -> pa.RecordBatch:
    entities = queries[:, Q_ENTITY]
    return pa.RecordBatch.from_arrays(
        [
            state.keys(entities),
            pa.array(queries[:, Q_CHANGED], pa.int64()),
            pa.array(queries[:, Q_VALID_UNTIL], pa.int64()),
            pa.array(queries[:, Q_REVISION], pa.int64()),
            fixed_binary(values),
            fixed_binary(nulls),
        ],
        schema=publications_schema(state.plan),
    )
