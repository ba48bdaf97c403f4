"""Backfill: point-in-time features for every request, beside the same in polars and in duckdb.

All sides start from the same Arrow rows in memory and end with Arrow columns. Ours is: shard,
prepare (digests included), advance. Duplicates are dropped by none of them. Answers are compared
before anything is timed: counts, extremes and last values are equal, floats that were summed are
within 1e-9 (the peers' sums are rounded at each step, ours once), quantiles within the sketch's
1/256.

Each size and number of cores is measured in a process of its own, which the engines are told to
use that many threads in, and which is pinned to as many cores. The peak of memory is that of one
run in a fresh process, over what it held before.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from benchmarks.backfill_kernel import KernelBackfill, load, save
from benchmarks.measure import (
    AnswersDiffer,
    Effort,
    Figure,
    Side,
    alternate,
    rates,
    ratios,
)
from benchmarks.workload import make_workload

SIDES: Final = ("kernel", "polars", "duckdb")
SIZES: Final = (100_000, 1_000_000, 10_000_000)
_SUMMED: Final = re.compile("sum_|mean_|variance_|rate_")
_RELATIVE: Final = 1e-9
_SKETCH: Final = 1 / 256


def make_side(name: str, variant: str, cores: int, directory: Path) -> Callable[[], pa.Table]:
    """Return a side's backfill of the workload that stands in a directory."""
    workload = load(directory)
    if name == "kernel":
        return KernelBackfill(workload, variant, cores, directory).run
    events = pa.Table.from_batches([workload.events])
    requests = pa.Table.from_batches([workload.requests])
    if name == "polars":
        from benchmarks.backfill_polars import PolarsBackfill

        polars = PolarsBackfill(events, requests)
        return polars.five if variant == "five" else polars.twelve
    from benchmarks.backfill_duckdb import DuckdbBackfill

    duckdb = DuckdbBackfill(events, requests, cores)
    return duckdb.five if variant == "five" else duckdb.twelve


def check_equal(ours: pa.Table, theirs: pa.Table, peer: str) -> int:
    """Check that a peer's features are ours, each to its tolerance.

    Returns:
        How many values were compared.

    Raises:
        AnswersDiffer: A feature or request is missing, or values differ.
    """
    names = [name for name in ours.column_names if name != "request"]
    if set(ours.column_names) != set(theirs.column_names) or len(ours) != len(theirs):
        raise AnswersDiffer(
            f"{peer} answered {len(theirs)} requests with {sorted(theirs.column_names)}, expected "
            f"{len(ours)} with {sorted(ours.column_names)}"
        )
    theirs = theirs.sort_by("request")
    if not np.array_equal(ours["request"].to_numpy(), theirs["request"].to_numpy()):
        raise AnswersDiffer(f"{peer} answered other requests than it was asked")
    # A variance is small beside the squares whose difference it is.
    scale = 0.0
    if "mean_1d" in names:
        scale = float(np.nanmax(np.abs(_floats(ours, "mean_1d")), initial=0.0))
    for name in names:
        a, b = _floats(ours, name), _floats(theirs, name)
        absent = np.isnan(a)
        same = absent == np.isnan(b)
        if name.startswith("quantile_"):
            near = np.abs(a - b) <= _SKETCH * np.abs(b)
        elif _SUMMED.match(name):
            floor = _RELATIVE * scale if name.startswith("variance_") else 0.0
            near = np.abs(a - b) <= _RELATIVE * np.maximum(np.abs(a), np.abs(b)) + floor
        else:
            near = a == b
        wrong = np.flatnonzero(~(same & (absent | near)))
        if len(wrong):
            first = wrong[0]
            raise AnswersDiffer(
                f"{peer}: {len(wrong)} of {len(a)} values of {name} differ; request {first} has "
                f"{b[first]!r}, expected {a[first]!r}"
            )
    return len(names) * len(ours)


def _floats(table: pa.Table, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return a column as float64 with NaN for null (counts are far below 2**53)."""
    column = table[name].cast(pa.float64()).combine_chunks()
    return np.asarray(column.fill_null(float("nan")).to_numpy(zero_copy_only=False))


def measure_sides(variant: str, cores: int, directory: Path, effort: Effort) -> list[Figure]:
    """Check the sides against each other, then time them in turn (in this process)."""
    rows = load(directory).rows
    backfills = {name: make_side(name, variant, cores, directory) for name in SIDES}
    label = f"{variant}, {rows:,} rows, {cores} core{'s' if cores > 1 else ''}"
    ours = backfills["kernel"]()
    out = []
    for peer in SIDES[1:]:
        compared = check_equal(ours, backfills[peer](), peer)
        out.append(Figure(f"{label}: values equal to {peer}'s", compared, "values"))
    del ours

    def side(name: str) -> Side:
        def work() -> int:
            backfills[name]()
            return rows

        return Side(work)

    runs = alternate({name: side(name) for name in SIDES}, effort)
    for name in SIDES:
        out += rates(f"{label}: {name}", runs[name], "rows/s")
    for peer in SIDES[1:]:
        out += ratios(f"{label}: kernel / {peer}", runs["kernel"], runs[peer])
    return out


def measure_memory(variant: str, name: str, directory: Path) -> Figure:
    """Measure the peak of memory of one side's backfill on one core (in this process)."""
    backfill = make_side(name, variant, 1, directory)
    # Writing 5 makes the peak start again from what is held now (proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kib("VmRSS")
    table = backfill()
    peak = (_status_kib("VmHWM") - before) / 1024
    rows = load(directory).rows
    return Figure(
        f"{variant}, {rows:,} rows, 1 core: {name} memory",
        peak,
        "MiB",
        note=(f"over {before / 1024:.0f} MiB held before; {table.num_columns} columns out"),
    )


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}: this needs Linux")


def _in_a_process(directory: Path, cores: int, *arguments: str) -> list[Figure]:
    """Run this module with arguments in a process of its own; returns the figures it prints."""
    threads = str(cores)
    environment = dict(
        os.environ, POLARS_MAX_THREADS=threads, OMP_NUM_THREADS=threads, NUMBA_NUM_THREADS="1"
    )
    command = [sys.executable, "-m", "benchmarks.backfill_peers", str(directory), str(cores)]
    done = subprocess.run(
        [*command, *arguments],
        cwd=Path(__file__).parents[1],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [Figure(**figure) for figure in json.loads(done.stdout)]


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    if quick:
        return _measure_size(20_000, (("five", 2), ("twelve", 1)), SIDES[:1], effort)
    out = []
    for rows in SIZES:
        views = [("five", 1), ("five", 2)]
        if rows == 1_000_000:
            views.append(("twelve", 1))
        out += _measure_size(rows, views, SIDES, effort)
    return out


def _measure_size(
    rows: int, views: Sequence[tuple[str, int]], remembered: Sequence[str], effort: Effort
) -> list[Figure]:
    """Measure times (by variant and cores) and memory (by side), each in a process of its own."""
    out = []
    with tempfile.TemporaryDirectory(prefix="tidemill-backfill-") as name:
        directory = Path(name)
        save(make_workload(rows), directory)
        for variant, cores in views:
            times = ("time", str(effort.pairs), str(effort.seconds))
            out += _in_a_process(directory, cores, variant, *times)
        for side in remembered:
            out += _in_a_process(directory, 1, "five", "memory", side)
    return out


def _measure_here() -> None:
    parser = argparse.ArgumentParser(description="Measure one size in this process.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("cores", type=int)
    parser.add_argument("variant", choices=("five", "twelve"))
    parser.add_argument("what", choices=("time", "memory"))
    parser.add_argument("rest", nargs="+", help="pairs and seconds, or the side")
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[-given.cores :]
    os.sched_setaffinity(0, cores)
    pa.set_cpu_count(given.cores)
    if given.what == "memory":
        figures = [measure_memory(given.variant, given.rest[0], given.directory)]
    else:
        effort = Effort(int(given.rest[0]), float(given.rest[1]))
        figures = measure_sides(given.variant, given.cores, given.directory, effort)
    print(json.dumps([asdict(figure) for figure in figures]))


if __name__ == "__main__":
    _measure_here()
