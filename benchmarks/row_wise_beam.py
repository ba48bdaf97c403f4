"""Row-at-a-time Beam: the twelve features as a keyed stateful DoFn, on FnApiRunner and on Prism.

The peer of the columnar stream. What is timed is the whole run of the pipeline, with its start,
which is a second or two on Prism. Each run happens in a process of its own with a time limit. The
answers are compared with the kernel's, and where the time goes is printed: a profile of the
threads that ran the bundles.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import pstats
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from benchmarks.backfill_kernel import kernel_answers
from benchmarks.backfill_peers import check_equal
from benchmarks.measure import Effort, Figure, cpu_seconds, spread
from benchmarks.row_wise_pipeline import run_row_wise
from benchmarks.workload import make_workload

ENGINES: Final = ("fnapi", "prism")
SIZES: Final = (100_000, 1_000_000)
LIMIT_S: Final = 1_200
PROFILED_ROWS: Final = 20_000
_PROFILE_LINES: Final = 25


def profile_row_wise(rows: int, engine: str) -> str:
    """Run the pipeline under a profile of every thread that it starts; returns the table."""
    profiles: list[cProfile.Profile] = []
    plain_run = threading.Thread.run

    def profiled_run(self: threading.Thread) -> None:
        profile = cProfile.Profile()
        profiles.append(profile)
        profile.runcall(plain_run, self)

    threading.Thread.run = profiled_run  # type: ignore[method-assign]
    main = cProfile.Profile()
    try:
        main.runcall(run_row_wise, make_workload(rows), engine)
    finally:
        threading.Thread.run = plain_run  # type: ignore[method-assign]
    text = io.StringIO()
    stats = pstats.Stats(main, stream=text)
    for profile in profiles:
        profile.create_stats()
        # A thread that never got to run has nothing to add.
        if profile.stats:
            stats.add(profile)
    stats.sort_stats("tottime").print_stats(_PROFILE_LINES)
    return text.getvalue()


def measure(rows: int, engine: str, effort: Effort) -> list[Figure]:
    """Run as often as the effort has pairs, and compare the answers (in this process)."""
    workload = make_workload(rows)
    expected = kernel_answers(workload, "twelve")
    walls, cpus = [], []
    compared = 0
    for _ in range(effort.pairs):
        before, cpu_before = time.perf_counter(), cpu_seconds()
        table = run_row_wise(workload, engine)
        walls.append(rows / (time.perf_counter() - before))
        cpus.append(rows / (cpu_seconds() - cpu_before))
        compared = check_equal(expected, table, f"row-wise Beam on {engine}")
    label = f"row-wise on {engine}, {rows:,} rows"
    return [
        spread(f"{label}, wall", walls, "rows/s"),
        spread(f"{label}, CPU", cpus, "rows/s"),
        Figure(f"{label}: values equal to the kernel's", compared, "values"),
    ]


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    out: list[Figure] = []
    sizes = (3_000,) if quick else SIZES
    for engine in ENGINES:
        for rows in sizes:
            # A run of a million rows takes minutes: it is measured once.
            pairs = effort.pairs if rows < 1_000_000 else 1
            out += _in_a_process(engine, rows, pairs)
    print(profile_row_wise(1_000 if quick else PROFILED_ROWS, "fnapi"))
    return out


def _in_a_process(engine: str, rows: int, pairs: int) -> list[Figure]:
    command = [sys.executable, "-m", "benchmarks.row_wise_beam", engine, str(rows), str(pairs)]
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=LIMIT_S * pairs,
        )
    except subprocess.TimeoutExpired:
        slowest = rows / LIMIT_S
        note = f"stopped after {LIMIT_S} s: it is slower than this"
        return [Figure(f"row-wise on {engine}, {rows:,} rows, wall", slowest, "rows/s", note=note)]
    return [Figure(**figure) for figure in json.loads(done.stdout.splitlines()[-1])]


def _measure_here() -> None:
    parser = argparse.ArgumentParser(description="Measure one engine and size in this process.")
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("rows", type=int)
    parser.add_argument("pairs", type=int)
    given = parser.parse_args()
    figures = measure(given.rows, given.engine, Effort(given.pairs, 0.0))
    print(json.dumps([asdict(figure) for figure in figures]))


if __name__ == "__main__":
    _measure_here()
