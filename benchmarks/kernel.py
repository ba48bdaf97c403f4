"""The kernel alone, on one core: rows per second, bytes per tile, cost per row by entities.

* **Rate.** A million rows of `workload`, twelve features over three windows, 20,000 cards. The rows
  come in one call, or in slices of 16,384 rows by time, as in a stream. Preparing (expressions,
  digests, the columns that the kernel takes) is measured alone and included.
* **Entities.** The same log (300,000 rows a day) with its keys drawn from 1,000 or from 1,000,000
  cards. All cards are known and two days of the log have passed before, so that as many tiles
  expire as are made. Only `advance` is timed; the next calls are prepared in between. The two
  states are measured in turn. With 1,024 rows a call most rows are of different cards in both
  states; with 16,384 a call has each of the 1,000 cards sixteen times, so the cost per card and
  call is shared. Payments make about the same number of tiles in both states, but a request merges
  some 180 tiles of one of the 1,000 cards, and at most one tile of one of the 1,000,000.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa

from benchmarks.measure import (
    AnswersDiffer,
    Effort,
    Figure,
    Side,
    alternate,
    pin_to_one_core,
    rates,
    ratios,
)
from benchmarks.workload import (
    REQUEST,
    START_US,
    THIRTY_SIX,
    TWELVE,
    Workload,
    make_events,
    make_view,
    make_workload,
    numbered,
)
from tidemill.features.contract import DAY
from tidemill.features.definitions import Aggregation
from tidemill.features.kernel.advance import Publish, advance
from tidemill.features.kernel.dedupe import first_occurrences
from tidemill.features.kernel.hashing import digest_rows
from tidemill.features.kernel.plan import Plan, make_plan
from tidemill.features.kernel.prepare import REQUESTS_SCHEMA, prepare_events, prepare_requests
from tidemill.features.kernel.tiles.state import State

SLICE_ROWS: Final = 16_384
ROWS_A_DAY: Final = 300_000


@dataclass(frozen=True)
class Slice:
    """The prepared rows of one call.

    Attributes:
        events: As `prepare.prepare_events` gives them.
        requests: As `prepare.prepare_requests` gives them.
        until_us: The frontier to advance to.
    """

    events: pa.RecordBatch
    requests: pa.RecordBatch
    until_us: int


class OneView:
    """A view, its plan, and the calls of the kernel."""

    def __init__(self, features: dict[str, Aggregation]) -> None:
        self.view = make_view(features)
        self.plan: Plan = make_plan(self.view)

    def prepare(self, workload: Workload) -> Slice:
        """Prepare all rows for one call."""
        return Slice(
            prepare_events(self.plan, self.view, workload.events),
            prepare_requests(
                self.view, REQUEST, workload.requests, np.arange(workload.requests.num_rows)
            ),
            workload.until_us,
        )

    def advance_over(
        self, slices: list[Slice], publish: Publish = Publish.NOTHING
    ) -> tuple[State, list[pa.RecordBatch]]:
        """Advance a new state; return it and the answers of each call."""
        state = State(self.plan, publishes=publish is not Publish.NOTHING)
        answers = [
            advance(state, part.events, part.requests, part.until_us, publish).answers
            for part in slices
        ]
        return state, answers


def cut(workload: Workload, rows: int) -> list[Workload]:
    """Cut a workload into slices of about ``rows`` rows in order of time."""
    events, requests = workload.event_times, workload.request_times
    instants = np.sort(np.concatenate([events, requests]), kind="stable")
    ends = [*np.unique(instants[rows::rows]), workload.until_us]
    slices = []
    first_event = first_request = 0
    for end in ends:
        last_event = int(np.searchsorted(events, end, "left"))
        last_request = int(np.searchsorted(requests, end, "left"))
        slices.append(
            Workload(
                workload.events.slice(first_event, last_event - first_event),
                workload.requests.slice(first_request, last_request - first_request),
                int(end),
            )
        )
        first_event, first_request = last_event, last_request
    return slices


def check_slicing(once: list[pa.RecordBatch], slices: list[pa.RecordBatch]) -> int:
    """Check that the answers of one call and of slices are equal, bit for bit.

    Returns:
        The number of values compared.

    Raises:
        AnswersDiffer: They differ.
    """
    whole = pa.Table.from_batches(once).select(["as_of", "values", "nulls"]).combine_chunks()
    parts = pa.Table.from_batches(slices).select(["as_of", "values", "nulls"]).combine_chunks()
    if not whole.equals(parts):
        raise AnswersDiffer(
            f"{whole.num_rows} answers at once, {parts.num_rows} in slices, and they differ: "
            "the second law (one by one equals all at once) does not hold"
        )
    return int(whole.num_rows * whole.schema.field("nulls").type.byte_width)


def measure_rate(rows: int, effort: Effort) -> list[Figure]:
    """Measure rows per second, with and without preparing, at once and in slices."""
    one = OneView(TWELVE)
    workload = make_workload(rows)
    pieces = cut(workload, SLICE_ROWS)
    prepared = [one.prepare(workload)]
    sliced = [one.prepare(piece) for piece in pieces]

    def at_once() -> int:
        one.advance_over(prepared)
        return rows

    def in_slices() -> int:
        one.advance_over(sliced)
        return rows

    def publishing() -> int:
        one.advance_over(sliced, Publish.NEWEST)
        return rows

    def prepared_at_once() -> int:
        one.advance_over([one.prepare(workload)])
        return rows

    def prepared_in_slices() -> int:
        state = State(one.plan, publishes=False)
        for piece in pieces:
            part = one.prepare(piece)
            advance(state, part.events, part.requests, part.until_us)
        return rows

    def preparing() -> int:
        one.prepare(workload)
        return rows

    def dedupe() -> int:
        first_occurrences(digest_rows(workload.events))
        return rows

    state, answers = one.advance_over(prepared)
    compared = check_slicing(answers, one.advance_over(sliced)[1])
    sides = {
        "advance, at once": at_once,
        "advance, in slices": in_slices,
        "prepare and advance, at once": prepared_at_once,
        "prepare and advance, in slices": prepared_in_slices,
        "advance, in slices, publishing the newest": publishing,
        "prepare alone": preparing,
        "digests and dropping duplicates alone": dedupe,
    }
    runs = alternate({name: Side(work) for name, work in sides.items()}, effort)
    out = [figure for name in sides for figure in rates(name, runs[name], "rows/s")]
    out += ratios("in slices / at once", runs["advance, in slices"], runs["advance, at once"])
    return [
        *out,
        Figure("values compared, at once and in slices", compared, "values"),
        Figure("tile in the table", 8 * one.plan.tile_words, "bytes"),
        Figure(
            "state per tile",
            state.nbytes / state.n_tiles,
            "bytes",
            note="tiles and their blocks, entities and keys, divided by the tiles at the end",
        ),
        Figure("rows per tile", float(state.counters.events) / state.n_tiles, "events"),
    ]


def measure_wide_view(rows: int, effort: Effort) -> list[Figure]:
    """Measure the twelve aggregations over each of the three windows: 36 columns."""
    one = OneView(THIRTY_SIX)
    workload = make_workload(rows)

    def prepared_at_once() -> int:
        one.advance_over([one.prepare(workload)])
        return rows

    name = "prepare and advance, at once, 36 columns"
    return rates(name, alternate({name: Side(prepared_at_once)}, effort)[name], "rows/s")


@dataclass
class SteadyLog:
    """An endless log over a number of cards, and a state that is advanced over it.

    Attributes:
        entities: The number of cards.
        request_share: The share of requests among the rows.
        rows: Rows a call.
        calls: The number of calls that are prepared and timed at a time.
        rows_a_day: How many rows the log has a day; it is timed after two days.
    """

    entities: int
    request_share: float
    rows: int
    calls: int
    rows_a_day: int = ROWS_A_DAY
    _next_us: int = START_US
    _next_id: int = 0
    _ready: list[Slice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.one = OneView(TWELVE)
        self.state = State(self.one.plan, publishes=False)
        self._chance = np.random.default_rng(self.entities)
        # Make all cards known, in random order; their first payments expire before timing.
        cards = self._chance.permutation(self.entities)
        times = np.full(self.entities, self._next_us)
        self._advance_seed(times, cards)
        for _ in range(2 * self._calls_a_day()):
            self._ready = [self._slice()]
            self.work()

    def _calls_a_day(self) -> int:
        return -(-self.rows_a_day // self.rows)

    def _advance_seed(self, times: np.ndarray, cards: np.ndarray) -> None:
        events = make_events(times, cards, self._chance)
        self._next_us += 1
        self._next_id = self.entities
        prepared = prepare_events(self.one.plan, self.one.view, events)
        advance(self.state, prepared, None, self._next_us)

    def _slice(self) -> Slice:
        start = self._next_us
        self._next_us += DAY * self.rows // self.rows_a_day
        n_requests = round(self.rows * self.request_share)
        n_events = self.rows - n_requests
        times = np.sort(self._chance.integers(start, self._next_us, n_events))
        asked = np.sort(self._chance.integers(start, self._next_us, n_requests))
        cards = self._chance.integers(0, self.entities, n_events)
        events = make_events(times, cards, self._chance, self._next_id % 10**8)
        self._next_id += n_events
        requests = pa.RecordBatch.from_arrays(
            [
                numbered("card", self._chance.integers(0, self.entities, n_requests)),
                pa.array(asked, pa.int64()),
                pa.array(np.arange(n_requests), pa.int64()),
            ],
            schema=REQUESTS_SCHEMA,
        )
        prepared = prepare_events(self.one.plan, self.one.view, events)
        return Slice(prepared, requests, self._next_us)

    def setup(self) -> None:
        """Prepare the next calls."""
        self._ready = [self._slice() for _ in range(self.calls)]

    def work(self) -> int:
        """Make the calls; return the number of their rows."""
        for part in self._ready:
            advance(self.state, part.events, part.requests, part.until_us)
        return len(self._ready) * self.rows


def measure_entities(
    few: int, many: int, rows: int, effort: Effort, rows_a_day: int = ROWS_A_DAY
) -> list[Figure]:
    """Measure the cost of a row with few and with many entities, in calls of ``rows`` rows."""
    out = []
    calls = max(4, min(65_536, rows_a_day) // rows)
    for what, share in (("events only", 0.0), ("events and requests", 0.4)):
        logs = {
            f"{entities:,} cards, {what}, {rows:,} a call": SteadyLog(
                entities, share, rows, calls, rows_a_day
            )
            for entities in (few, many)
        }
        runs = alternate({name: Side(log.work, log.setup) for name, log in logs.items()}, effort)
        for name, log in logs.items():
            out += rates(f"steady, {name}", runs[name], "rows/s")
            out.append(Figure(f"steady, {name}: tiles", log.state.n_tiles, "tiles"))
        cheap, dear = runs.values()
        # The ratio of the rates is the ratio of the costs of a row.
        label = f"cost of a row, {many:,} / {few:,} cards, {what}, {rows:,} a call"
        out += ratios(label, cheap, dear)
    return out


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark.

    Raises:
        AnswersDiffer: The answers of one call and of slices differ.
    """
    os.environ["NUMBA_NUM_THREADS"] = "1"
    pin_to_one_core()
    if quick:
        return [
            *measure_rate(40_000, effort),
            *measure_wide_view(10_000, effort),
            *measure_entities(100, 2_000, 2_048, effort, rows_a_day=20_000),
        ]
    return [
        *measure_rate(1_000_000, effort),
        *measure_wide_view(1_000_000, effort),
        *measure_entities(1_000, 1_000_000, 1_024, effort),
        *measure_entities(1_000, 1_000_000, SLICE_ROWS, effort),
    ]
