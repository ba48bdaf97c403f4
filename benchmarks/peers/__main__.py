"""Run the same job in Tidemill and in its peers, in turn, and write ``peers.json``.

    python -m benchmarks.peers                              # all, in some 40 minutes
    python -m benchmarks.peers --only pyflink tidemill-flink --cases rows steady

Each case of all systems runs before the next case, so that what changes slowly on a shared machine
meets all. A system that fails, or is too slow, is a row that says why.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from benchmarks.measure import machine
from benchmarks.peers.cases import Backlog, Limits, Outcome, make_backlog, steady, sustained
from benchmarks.peers.systems import PEERS, System, SystemFailed
from benchmarks.peers.tidemill import TIDEMILL
from tests.support.kafka_broker import TestBroker

SYSTEMS: Final = {one.name: one for one in (*TIDEMILL, *PEERS)}
CASES: Final = ("rows", "json", "arrow", "steady", "two")
"""Full topics of single rows, arrays, Arrow streams; steady streams; `rows` with two workers."""
RATES: Final = (500, 5_000)
RESULTS: Final = Path(__file__).parents[1] / "results"
_COLUMNS: Final = (
    "rows/s", "rows/s a core", "CPU s a million rows", "CPU s from start", "p50 ms", "p99 ms",
    "cores", "memory GiB", "answered", "checked", "wrong", "corrected",
)  # fmt: skip


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rows", type=int, default=1_000_000, help="of a full topic")
    parser.add_argument("--seconds", type=float, default=25.0, help="of a case, at most")
    parser.add_argument("--patience", type=float, default=150.0, help="seconds to first answers")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="a folder for logs and states, which are kept")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit status."""
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    # What was started ends, too, when this is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began, load_before = time.monotonic(), os.getloadavg()[0]
    limits = Limits(given.seconds, given.patience)
    out: list[Outcome] = []
    systems = [SYSTEMS[name] for name in given.only]
    for system in list(systems):
        try:
            system.prepare()
        except Exception as error:  # noqa: BLE001 - a row of the table says it
            systems.remove(system)
            out.append(Outcome(system.name, "prepare", 1, problem=str(error)))
            _print(out[-1])
    with contextlib.ExitStack() as stack:
        if given.keep is None:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="tidemill-peers-"))
            folder = Path(place)
        else:
            folder = given.keep
        broker = TestBroker(folder / "kafka")
        broker.start()
        stack.callback(broker.close)
        for case in given.cases:
            backlog = None
            if case != "steady":
                form = "rows" if case == "two" else case
                backlog = make_backlog(broker, form, given.rows * (1 if form == "rows" else 2))
            for system in systems:
                place = folder / f"{system.name}-{case}"
                found = _run(system, case, backlog, broker, place, limits)
                for one in found:
                    _print(one)
                out += found
            if backlog is not None:
                for topic in backlog.topics:
                    broker.delete_messages(topic)
    report = {
        "name": "peers",
        "command": " ".join(["python -m benchmarks.peers", *(arguments or sys.argv[1:])]),
        "machine": asdict(machine()),
        "load": {"before": load_before, "after": os.getloadavg()[0]},
        "minutes": round((time.monotonic() - began) / 60, 1),
        "outcomes": [asdict(one) for one in out],
    }
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / "peers.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(out))
    return 0


def _run(
    system: System,
    case: str,
    backlog: Backlog | None,
    broker: TestBroker,
    place: Path,
    limits: Limits,
) -> list[Outcome]:
    parallelism = 2 if case == "two" else 1
    do: Callable[[], list[Outcome]]
    if backlog is None:
        do = lambda: steady(system, broker, place, RATES, parallelism, limits)  # noqa: E731
    elif backlog.form not in system.forms:
        return []
    else:
        full = backlog
        do = lambda: [sustained(system, broker, place, full, parallelism, limits)]  # noqa: E731
    try:
        return do()
    except SystemFailed as error:
        problem = " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001 - one system must not end the others
        problem = f"{type(error).__name__}: {error}"
    return [Outcome(system.name, case, parallelism, problem=problem, promises=system.promises)]


def _print(one: Outcome) -> None:
    values = "; ".join(f"{name} {value:,.4g}" for name, value in one.values.items())
    print(f"{one.system}, {one.case} x {one.parallelism}: {values} {one.problem}", flush=True)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return one table of all outcomes."""
    rows = [("system", "case", "workers", *_COLUMNS)]
    for one in outcomes:
        values = [f"{one.values[n]:,.4g}" if n in one.values else "" for n in _COLUMNS]
        rows.append((one.system, one.case, str(one.parallelism), *values))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    problems = [
        f"{one.system}, {one.case} x {one.parallelism}: {one.problem}"
        for one in outcomes
        if one.problem
    ]
    return "\n".join([*lines, *problems])


if __name__ == "__main__":
    sys.exit(main())
