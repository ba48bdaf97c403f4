"""The rows that an advance takes: steps, runs of steps, and their order in time.

Steps are released together but answer as if each had been released alone. Those that can be
computed at once form a run, whose rows are concatenated.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MIN, BoolArray, Int64Array
from tidemill.features.errors import InputError
from tidemill.features.kernel import hashing
from tidemill.features.kernel.columns import concat
from tidemill.features.kernel.compiled import read_only
from tidemill.features.kernel.plan import Plan
from tidemill.features.kernel.prepare import CELLS, COUNTS_FROM, ID, KEY, ORDINAL, TIME, matrix_of
from tidemill.features.kernel.tiles import layout
from tidemill.features.kernel.tiles.layout import Q_CHANGED, Q_REQUEST
from tidemill.features.kernel.tiles.state import State, resolve

CHUNK_ROWS: Final = 262_144
"""Rows handled at once: enough to make calls cheap, few enough that the tiles of a long history are
not in memory at the same time."""


class Publish(enum.Enum):
    """What an advance publishes."""

    NOTHING = layout.PUBLISH_NOTHING
    NEWEST = layout.PUBLISH_NEWEST
    EVERY = layout.PUBLISH_EVERY
    ALL = layout.PUBLISH_ALL


@dataclass(frozen=True)
class Step:
    """The rows that one frontier releases.

    Attributes:
        events: Prepared events of the view (`prepare.events_schema`), without duplicates, in any
            order, all before ``until_us``. Events before the frontier of the step before are late:
            they count for every later answer. A column ``counts_from`` (int64) gives the change
            point of each event, after its time, not before that frontier, and not after
            ``until_us``; without it an event counts as early as it can.
        requests: Prepared requests (`prepare.REQUESTS_SCHEMA`), in any order, none after
            ``until_us``. Requests before the frontier of the step before are answered as of it.
        until_us: The new frontier, not before the old one.
    """

    events: pa.RecordBatch | None
    requests: pa.RecordBatch | None
    until_us: int


def runs_of(state: State, steps: Sequence[Step], publish: Publish) -> Iterator[list[Step]]:
    """Cut steps into runs that can be computed at once, as if their rows had come together.

    A late event may count from the frontier before its step, which is the instant that the step
    before it has reached; so its step is the first of a run. The newest values of a step are those
    as of its end, so each step is then a run.
    """
    together = publish in (Publish.NOTHING, Publish.EVERY)
    run: list[Step] = []
    frontier = state.frontier_us
    for step in steps:
        if step.until_us < frontier:
            raise InputError(
                f"view {state.plan.view!r}: the frontier cannot go back from {frontier} "
                f"to {step.until_us}"
            )
        if run and not (together and is_in_time(step.events, frontier)):
            yield run
            run = []
        run.append(step)
        frontier = step.until_us
    if run:
        yield run


def is_in_time(events: pa.RecordBatch | None, frontier: int) -> bool:
    """Tell whether no event counts from a frontier already."""
    if events is None or events.num_rows == 0:
        return True
    if COUNTS_FROM in events.schema.names:
        return bool(hashing.bits(events.column(COUNTS_FROM)).min() > frontier)
    return bool(hashing.bits(events.column(TIME)).min() >= frontier)


class Work:
    """The rows of a run of steps, with their entities and their order in time."""

    def __init__(self, state: State, steps: Sequence[Step]) -> None:
        plan = state.plan
        frontiers = [state.frontier_us, *(step.until_us for step in steps)]
        self._untils = np.array(frontiers[1:], np.int64)
        self._event_ends = np.cumsum([_rows(step.events) for step in steps])
        self._request_ends = np.cumsum([_rows(step.requests) for step in steps])
        self._given_changes = False
        events = concat([step.events for step in steps if step.events is not None])
        self.n_events = _rows(events)
        if events is None or self.n_events == 0:
            event_time = np.zeros(0, np.int64)
            self.event_change = np.zeros(0, np.int64)
            self.event_entity = np.zeros(0, np.int64)
            cells = np.zeros((0, plan.row_words), np.int64)
            id_offsets, id_data = np.zeros(1, np.int32), np.zeros(0, np.uint8)
        else:
            event_time = hashing.bits(events.column(TIME))
            before: Int64Array | int = state.frontier_us
            if len(steps) > 1:
                before = np.repeat(frontiers[:-1], np.diff(self._event_ends, prepend=0))
            self.event_change = np.maximum(event_time + 1, before)
            if COUNTS_FROM in events.schema.names:
                earliest = self.event_change
                self.event_change = hashing.bits(events.column(COUNTS_FROM))
                _check_changes(self.event_change, earliest, self._event_ends, self._untils, plan)
                self._given_changes = True
            self.event_entity = _resolve(state, events.column(KEY), insert=True)
            cells = matrix_of(events.column(CELLS))
            id_offsets, id_data = hashing.text_buffers(events.column(ID))
            _check_before(event_time, self._event_ends, self._untils, plan.view, "event")
        self.event_time, self.cells = read_only(event_time), read_only(cells)
        self.id_offsets, self.id_data = read_only(id_offsets), read_only(id_data)
        self.late = np.zeros(len(steps), np.int64)
        if self.n_events and (late := (event_time < before) & (before > TIME_MIN)).any():
            self.late = self._by_step(late)
        requests = concat([step.requests for step in steps if step.requests is not None])
        self.n_requests = _rows(requests)
        if requests is None or self.n_requests == 0:
            self.request_as_of = np.zeros(0, np.int64)
            self.request_entity = np.zeros(0, np.int64)
            self.ordinals = pa.array([], pa.int64())
        else:
            counts = np.diff(self._request_ends, prepend=0)
            self.request_as_of = np.maximum(
                hashing.bits(requests.column(TIME)), np.repeat(frontiers[:-1], counts)
            )
            self.request_entity = _resolve(state, requests.column(KEY), insert=False)
            self.ordinals = requests.column(ORDINAL)
            as_of, ends = self.request_as_of - 1, self._request_ends
            _check_before(as_of, ends, self._untils, plan.view, "request")
        self.event_order = _order(self.event_time)
        if self._given_changes:  # otherwise they are in the order of the times
            self.event_order = self.event_order[_order(self.event_change[self.event_order])]
        self.request_order = _order(self.request_as_of)

    def _by_step(self, events: BoolArray) -> Int64Array:
        """Count events by step: int64, ``(steps,)``."""
        total = np.concatenate([[0], np.cumsum(events)])
        return np.diff(total[np.concatenate([[0], self._event_ends])])

    def steps_of_events(self, events: Int64Array) -> Int64Array:
        """Count some events, given by their indices, by step: int64, ``(steps,)``."""
        steps = np.searchsorted(self._event_ends, events, "right")
        return np.bincount(steps, minlength=len(self._untils))

    @property
    def may_expire(self) -> bool:
        """Whether an event may have left all windows before it counts."""
        return self._given_changes or bool(self.late.any())

    @property
    def n_steps(self) -> int:
        """The number of steps."""
        return len(self._untils)

    def events_before(self, step: int) -> int:
        """Return the number of events of the steps before one."""
        return int(self._event_ends[step - 1]) if step else 0

    def requests_of(self, step: int) -> tuple[int, int]:
        """Return the place of a step's first request, and their number."""
        start = int(self._request_ends[step - 1]) if step else 0
        return start, int(self._request_ends[step]) - start

    def step_of(self, queries: Int64Array) -> Int64Array:
        """Return the step of each query: a publication's is the first that ends at its instant."""
        request = queries[:, Q_REQUEST]
        return np.where(
            request >= 0,
            np.searchsorted(self._request_ends, request, "right"),
            np.searchsorted(self._untils, queries[:, Q_CHANGED], "left"),
        )

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


def _rows(batch: pa.RecordBatch | None) -> int:
    return 0 if batch is None else int(batch.num_rows)


def _check_before(
    times: Int64Array, ends: Int64Array, untils: Int64Array, view: str, what: str
) -> None:
    for start, end, until in zip([0, *ends[:-1]], ends, untils, strict=True):
        if end > start and int(times[start:end].max()) >= until:
            raise InputError(
                f"view {view!r}: an {what} at {int(times[start:end].max())} is not before the "
                f"frontier {until} it is released with"
            )


def _check_changes(
    changes: Int64Array, earliest: Int64Array, ends: Int64Array, untils: Int64Array, plan: Plan
) -> None:
    latest = np.repeat(untils, np.diff(ends, prepend=0))
    wrong = np.flatnonzero((changes < earliest) | (changes > latest))
    if wrong.size:
        row = int(wrong[0])
        raise InputError(
            f"view {plan.view!r}: an event counts from {int(changes[row])}, which is not between "
            f"{int(earliest[row])} and the frontier {int(latest[row])} it is released with"
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
