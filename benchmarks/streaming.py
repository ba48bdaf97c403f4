"""Streaming features: the kernel's transforms beside row-at-a-time Beam, engine by engine.

A side is one function, ``(workload, engine) -> features by request``, and stands in `SIDES`. Every
side's answers are compared with the kernel's before its times count; each run is a whole run of a
pipeline, with its start. Beside them stands the kernel alone, in the slices a stream calls it
with, preparing included: what the engine and the protocol add is the ratio to that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pyarrow as pa

from benchmarks.backfill_kernel import kernel_answers
from benchmarks.backfill_peers import check_equal
from benchmarks.columnar_streaming import run_columnar
from benchmarks.kernel import SLICE_ROWS, OneView, cut
from benchmarks.measure import Effort, Figure, Side, alternate, rates, ratios
from benchmarks.row_wise_pipeline import run_row_wise, run_row_wise_uncached
from benchmarks.workload import TWELVE, Workload, make_workload
from tidemill.features.kernel.advance import advance
from tidemill.features.kernel.tiles.state import State

StreamingSide = Callable[[Workload, str], pa.Table]
"""Runs the twelve features over a workload on an engine; returns them as `kernel_answers` does."""

ROW_WISE: Final = "row-wise"
UNCACHED: Final = "row-wise, no state cache"
KERNEL: Final = "kernel alone, in slices"
COLUMNAR: Final = "columnar"
_SIDES: Final[dict[str, StreamingSide]] = {COLUMNAR: run_columnar, ROW_WISE: run_row_wise}
SIDES: Final[dict[str, dict[str, StreamingSide]]] = {
    "fnapi": {**_SIDES, UNCACHED: run_row_wise_uncached},
    "prism": _SIDES,
}
"""The sides of each engine, in the order of a pair. Prism comes without a cache of state."""
_PEERS: Final = (ROW_WISE, UNCACHED)
"""The sides that the others are compared with."""


def measure_engine(
    engine: str, rows: int, sides: dict[str, StreamingSide], effort: Effort
) -> list[Figure]:
    """Check and measure all sides on one engine.

    Args:
        engine: ``fnapi`` or ``prism``.
        rows: Events and requests together.
        sides: By name.
        effort: How hard to measure.

    Returns:
        Rates of each side and of the kernel alone; how many times faster each side is than the
        row-wise ones, and what part of the kernel's rate it reaches.

    Raises:
        AnswersDiffer: A side's answers are not the kernel's.
    """
    workload = make_workload(rows)
    expected = kernel_answers(workload, "twelve")
    label = f"{engine}, {rows:,} rows"
    out = []
    for name, side in sides.items():
        compared = check_equal(expected, side(workload, engine), f"{name} on {engine}")
        out.append(Figure(f"{label}: {name}, values equal to the kernel's", compared, "values"))
    one = OneView(TWELVE)
    pieces = cut(workload, SLICE_ROWS)

    def alone() -> int:
        state = State(one.plan)
        for piece in pieces:
            part = one.prepare(piece)
            advance(state, part.events, part.requests, part.until_us)
        return rows

    def side_of(function: StreamingSide) -> Side:
        def work() -> int:
            function(workload, engine)
            return rows

        return Side(work)

    timed = {name: side_of(function) for name, function in sides.items()}
    runs = alternate({**timed, KERNEL: Side(alone)}, effort)
    for name, of_side in runs.items():
        out += rates(f"{label}: {name}", of_side, "rows/s")
    for name in sides:
        for peer in _PEERS:
            if peer in sides and name not in _PEERS:
                out += ratios(f"{label}: {name} / {peer}", runs[name], runs[peer])
        out += ratios(f"{label}: {name} / {KERNEL}", runs[name], runs[KERNEL])
    return out


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    rows = 3_000 if quick else 1_000_000
    return [
        figure
        for engine, sides in SIDES.items()
        for figure in measure_engine(engine, rows, sides, effort)
    ]
