"""The kernel's interface: events and requests in, answers and publications out.

    advance(state, events, requests, until, publish) -> Advance
    advance_steps(state, [Step(events, requests, until), ...], publish) -> [Advance, ...]

Batch calls it once with all rows of a shard; the stream calls it many times with the rows that the
frontier released, several frontiers at once where they have come together: an entity then costs its
fixed part once. However a log is cut into calls, the answers and the state are the same bytes. No
other code computes a feature.

It does no I/O and reads no clock. It changes the state in place.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.kernel.exact.accumulators import WIDE_SQUARE, WIDE_SUM
from tidemill.features.kernel.folds.finish import release_answers
from tidemill.features.kernel.plan import MASKS_PER_WORD, Plan, PlannedPartial
from tidemill.features.kernel.prepare import KEY, ORDINAL, fixed_binary
from tidemill.features.kernel.registry import OWNS_WIDE_SQUARE, OWNS_WIDE_SUM
from tidemill.features.kernel.steps import Publish as Publish
from tidemill.features.kernel.steps import Step as Step
from tidemill.features.kernel.steps import Work, runs_of
from tidemill.features.kernel.tiles import layout, wheel
from tidemill.features.kernel.tiles.layout import (
    Q_CHANGED,
    Q_ENTITY,
    Q_REQUEST,
    Q_REVISION,
    Q_TAILS,
    Q_VALID_UNTIL,
)
from tidemill.features.kernel.tiles.state import LENGTH, Counters, State

BLOCK_STEPS: Final = 2_048
"""Steps that all folds handle before the next ones, so that tiles stay in the processor's cache."""

VALUES: Final = "values"
NULLS: Final = "nulls"


@dataclass(frozen=True)
class Advance:
    """The result of an advance.

    Attributes:
        answers: One row per request, in the order of the requests; see `answers_schema`.
        publications: See `publications_schema`; those of an entity are in order of event_timestamp.
        counters: The state's counters after it.
    """

    answers: pa.RecordBatch
    publications: pa.RecordBatch
    counters: Counters


def answers_schema(plan: Plan) -> pa.Schema:
    """Return the schema of answers.

    ``ordinal``: the caller's number for the request. ``as_of``: the instant of the answer.
    ``values``: the 64-bit patterns of the view's columns. ``nulls``: a byte per column, 1 = null.
    """
    return _answers_schema(len(plan.columns))


@functools.lru_cache(maxsize=256)
def _answers_schema(columns: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field(ORDINAL, pa.int64()),
            pa.field("as_of", pa.int64()),
            pa.field(VALUES, pa.binary(8 * columns)),
            pa.field(NULLS, pa.binary(columns)),
        ]
    )


def publications_schema(plan: Plan) -> pa.Schema:
    """Return the schema of publications.

    A publication says that an entity has these values from ``event_timestamp`` until
    ``valid_until``, unless an event comes. Of an anchored column it has the anchor.
    """
    return _publications_schema(len(plan.columns))


@functools.lru_cache(maxsize=256)
def _publications_schema(columns: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field(KEY, pa.string()),
            pa.field("event_timestamp", pa.int64()),
            pa.field("valid_until", pa.int64()),
            pa.field("revision", pa.int64()),
            pa.field(VALUES, pa.binary(8 * columns)),
            pa.field(NULLS, pa.binary(columns)),
        ]
    )


def advance(
    state: State,
    events: pa.RecordBatch | None,
    requests: pa.RecordBatch | None,
    until_us: int,
    publish: Publish = Publish.NOTHING,
) -> Advance:
    """Advance a state to ``until_us``: one step of `advance_steps`."""
    (advanced,) = advance_steps(state, [Step(events, requests, until_us)], publish)
    return advanced


def advance_steps(
    state: State, steps: Sequence[Step], publish: Publish = Publish.NOTHING
) -> list[Advance]:
    """Advance a state step by step.

    Args:
        state: The state of one view in one shard; changed in place. It must not be used again after
            an exception.
        steps: The steps, in order.
        publish: What each step publishes.

    Returns:
        The result of each step. But for the order of publications of different entities, it is that
        of a call for each step.

    Raises:
        InputError: A row is not before its step's ``until_us``, or the frontier would move back.
    """
    out: list[Advance] = []
    for run in runs_of(state, steps, publish):
        out += _advance_run(state, run, publish)
    return out


def _advance_run(state: State, steps: Sequence[Step], publish: Publish) -> list[Advance]:
    until_us = steps[-1].until_us
    if publish is not Publish.ALL and _nothing_happens(state, steps):
        state.frontier_us = until_us
        return [nothing_advanced(state)] * len(steps)
    work = Work(state, steps)
    if publish in (Publish.NEWEST, Publish.ALL):
        chunks = iter([(len(work.event_order), len(work.request_order), until_us)])
    else:
        chunks = work.chunks(until_us)
    values, nulls = _empty_answers(state.plan, work.n_requests)
    before = replace(state.counters)
    overflows, expired = np.zeros(len(steps), np.int64), np.zeros(len(steps), np.int64)
    published: list[pa.RecordBatch] = []
    published_by: list[Int64Array] = []
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
            overflows,
            expired,
        )
        asked = queries[:, Q_REQUEST] >= 0
        values[queries[asked, Q_REQUEST]] = chunk_values[asked]
        nulls[queries[asked, Q_REQUEST]] = chunk_nulls[asked]
        if not asked.all():
            published.append(
                _publications(state, queries[~asked], chunk_values[~asked], chunk_nulls[~asked])
            )
            if len(steps) > 1:
                published_by.append(work.step_of(queries[~asked]))
        first_event, first_request, since = last_event, last_request, until
    state.frontier_us = until_us
    state.counters.events += work.n_events
    state.counters.late += int(work.late.sum())
    state.counters.expired += int(expired.sum())
    state.counters.overflows += int(overflows.sum())
    answers = pa.RecordBatch.from_arrays(
        [
            work.ordinals,
            pa.array(work.request_as_of, pa.int64()),
            fixed_binary(values),
            fixed_binary(nulls),
        ],
        schema=answers_schema(state.plan),
    )
    publications = _one_batch(published, publications_schema(state.plan))
    if len(steps) == 1:
        return [Advance(answers, publications, replace(state.counters))]
    by_step = _by_step(publications, published_by, len(steps))
    return [
        Advance(
            answers.slice(*work.requests_of(number)),
            by_step[number],
            Counters(
                events=before.events + work.events_before(number + 1),
                late=before.late + int(work.late[: number + 1].sum()),
                expired=before.expired + int(expired[: number + 1].sum()),
                overflows=before.overflows + int(overflows[: number + 1].sum()),
            ),
        )
        for number in range(len(steps))
    ]


def _by_step(
    publications: pa.RecordBatch, published_by: Sequence[Int64Array], steps: int
) -> list[pa.RecordBatch]:
    """Separate the publications of a run's steps."""
    if not published_by:
        return [publications] * steps
    by = np.concatenate(published_by)
    ordered = publications.take(pa.array(np.argsort(by, kind="stable")))
    ends = np.cumsum(np.bincount(by, minlength=steps))
    return [
        ordered.slice(start, end - start) for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def _nothing_happens(state: State, steps: Sequence[Step]) -> bool:
    """Tell whether no row comes, and no window ends: boundaries are multiples of the hop."""
    is_empty = all(not step.events and not step.requests for step in steps)
    return is_empty and state.wheel_hop == steps[-1].until_us // state.plan.hop_us


def nothing_advanced(state: State) -> Advance:
    """Return the result of an advance without rows to an unchanged frontier."""
    return Advance(
        _one_batch([], answers_schema(state.plan)),
        _one_batch([], publications_schema(state.plan)),
        replace(state.counters),
    )


def _one_batch(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.concat_batches(batches) if batches else _no_rows(schema)


@functools.lru_cache(maxsize=256)
def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)


def _empty_answers(plan: Plan, rows: int) -> tuple[Int64Array, npt.NDArray[np.uint8]]:
    empty, null = plan.empty_values
    return (
        np.broadcast_to(empty, (rows, len(empty))).copy(),
        np.broadcast_to(null.astype(np.uint8), (rows, len(empty))).copy(),
    )


def _advance_chunk(
    state: State,
    work: Work,
    event_order: Int64Array,
    request_order: Int64Array,
    since: int,
    until: int,
    publish: Publish,
    overflows: Int64Array,
    expired: Int64Array,
) -> tuple[Int64Array, Int64Array, npt.NDArray[np.uint8]]:
    """Handle the rows of one chunk; return the queries with their values and nulls.

    The overflows of each step are added to ``overflows``, its expired events to ``expired``.
    """
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
    if not (len(due) or len(event_order) or len(request_order)):
        state.wheel_hop = until_hop
        queries = np.empty((0, Q_TAILS + len(plan.windows_us)), np.int64)
        return queries, *_empty_answers(plan, 0)
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
    if work.may_expire:
        expired += work.steps_of_events(step_row[(step_at == -1) & (step_row >= 0)])
    layout.mark_presence(step_row, step_at, queries, state.tiles, plan.hop_us, plan.window_hops)
    answers = _fold_all(state, work, step_row, step_at, queries)
    values, nulls = _finish(state, answers, queries, work, overflows)
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
    work: Work,
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
    filled = np.zeros(2, np.int64)
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
    return (step_row[: filled[0]], step_at[: filled[0]]), queries[: filled[1]]


def _fold_all(
    state: State, work: Work, step_row: Int64Array, step_at: Int64Array, queries: Int64Array
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
    work: Work,
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
    state: State,
    answers: Sequence[Int64Array],
    queries: Int64Array,
    work: Work,
    overflows: Int64Array,
) -> tuple[Int64Array, npt.NDArray[np.uint8]]:
    """Turn merged answers into values, and free the answers; count overflows by step."""
    plan = state.plan
    values, nulls, total = _values(state, answers, queries)
    if total and work.n_steps == 1:
        overflows[0] += total
    elif total:
        step_of = work.step_of(queries)
        for step in np.unique(step_of):
            mine = step_of == step
            some = [
                out.reshape(len(queries), -1)[mine].reshape(-1, out.shape[1]) for out in answers
            ]
            overflows[step] += _values(state, some, queries[mine])[2]
    for partial_, out in zip(plan.partials, answers, strict=True):
        if partial_.fold.owns in (OWNS_WIDE_SUM, OWNS_WIDE_SQUARE):
            wide = WIDE_SUM if partial_.fold.owns == OWNS_WIDE_SUM else WIDE_SQUARE
            release_answers(out, wide, state.arena, state.arena_meta)
    return values, nulls


def _values(
    state: State, answers: Sequence[Int64Array], queries: Int64Array
) -> tuple[Int64Array, npt.NDArray[np.uint8], int]:
    """Return the values and nulls of queries, and the number of overflows among them."""
    plan = state.plan
    values = np.empty((len(queries), len(plan.columns)), np.int64)
    nulls = np.empty((len(queries), len(plan.columns)), np.uint8)
    overflows = 0
    if len(queries):
        for feature in plan.features:
            taken: list[object] = []
            for index in range(3):
                if index < len(feature.takes):
                    partial, ask = feature.takes[index]
                    taken += [answers[partial], ask, len(plan.partials[partial].asks)]
                else:
                    taken += [_NO_ANSWERS, 0, 0]
            overflows += feature.finish.run(
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
    return values, nulls, overflows


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
