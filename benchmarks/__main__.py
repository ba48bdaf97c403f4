"""Run the benchmarks: ``python -m benchmarks [NAME ...] [--quick] [--results DIRECTORY]``.

Each runs in a process of its own, so that none measures what another left behind (threads, caches,
memory), and writes ``NAME.json``; at the end stands one table of all.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.measure import FULL, QUICK, Effort, Figure, Report, table

NAMES: Final = (
    "kernel",
    "backfill_peers",
    "backfill_end_to_end",
    "row_wise_beam",
    "streaming",
    "live",
    "live_flights",
    "live_flink",
    "exchange",
    "scaling",
    "inference",
    "online_writes",
    "online_reads",
    "second_fill",
    "oracle",
)
RESULTS: Final = Path(__file__).parent / "results"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"out of: {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="small sizes; times mean nothing")
    parser.add_argument(
        "--results", type=Path, default=None, help="where to write (needed with --quick)"
    )
    parser.add_argument("--pairs", type=int, help=f"runs of each side ({FULL.pairs})")
    parser.add_argument("--seconds", type=float, help=f"least length of a run ({FULL.seconds:g})")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}: there are {', '.join(NAMES)}")
    if given.results is None:
        if given.quick:
            parser.error("--quick measures nothing: name a directory for it with --results")
        given.results = RESULTS
    default = QUICK if given.quick else FULL
    given.pairs = default.pairs if given.pairs is None else given.pairs
    given.seconds = default.seconds if given.seconds is None else given.seconds
    return given


def _measure_here(name: str, quick: bool, effort: Effort, results: Path) -> None:
    figures = importlib.import_module(f"benchmarks.{name}").run(quick, effort)
    write(name, quick, effort, figures, results)


def write(name: str, quick: bool, effort: Effort, figures: Sequence[Figure], results: Path) -> None:
    """Write the report of a benchmark.

    Args:
        name: The benchmark.
        quick: Whether the times mean nothing.
        effort: How hard it measured.
        figures: What it found.
        results: The folder of the report.
    """
    command = f"python -m benchmarks {name}" + (" --quick" if quick else "")
    command += f" --pairs {effort.pairs} --seconds {effort.seconds:g}"
    Report(name, command, quick, figures=figures).write(results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks, or all; returns the exit status."""
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    names = given.names or NAMES
    if given.here:
        for name in names:
            _measure_here(name, given.quick, Effort(given.pairs, given.seconds), given.results)
        return 0
    failed = []
    for name in names:
        print(f"benchmark {name} ...", flush=True)
        command = [sys.executable, "-m", "benchmarks", name, "--here"]
        command += ["--results", str(given.results), *(["--quick"] if given.quick else [])]
        command += ["--pairs", str(given.pairs), "--seconds", str(given.seconds)]
        root = Path(__file__).parents[1]
        done = subprocess.run(command, cwd=root, env=os.environ, check=False)
        if done.returncode:
            failed.append(name)
    reports = [
        json.loads((given.results / f"{name}.json").read_text(encoding="utf-8"))
        for name in names
        if name not in failed
    ]
    if reports:
        machine = reports[0]["machine"]
        print(
            f"\n{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, ", end=""
        )
        print(f"{machine['system']}, Python {machine['python']}")
        print(", ".join(f"{name} {version}" for name, version in machine["libraries"].items()))
        print(table(reports))
    if failed:
        print(f"failed: {', '.join(failed)} (see above)", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
