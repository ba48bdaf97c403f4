"""Faults under a live stream, one after the other, and the proof of what comes out.

    make faults                              # 30 faults at random, at most 20 minutes, FnApiRunner
    make faults ARGS="--count 5 --seed 7"    # the faults of a seed again
    make faults ARGS="--rate 800 --predictions 200000"    # and more until there are so many
    make faults ARGS="--engine flink --parallelism 2 --each"    # each kind once, in turn
    make faults ARGS="--engine flink --exchange --each"    # workers elsewhere, over S3
    make faults ARGS="--engine flink --restores 20"    # kills, the last requests among them
    make faults ARGS="--kinds kill_broker pause_store"    # of these kinds only

The kinds are the functions of `tests/support/fault_kinds.py`; those that this machine, the engine
or the user cannot do are named and left out. After each fault all requests that were asked before
its end must be answered exactly once. The last lines are a table of how long that took, what
`verify` has proven, and what a reader of committed messages has seen. The exit status is 1 if a
value differs, a prediction was lost or doubled, a worker without its lock was not fenced, or the
stream ended by itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Figure, Report, kept_on_failure, spread
from tests.support.fault_kinds import KINDS, Fault, each_kind, kinds, random_faults
from tests.support.fault_run import ASKED, RATE, FaultRun, Recovery, Verdict
from tests.support.flink_cluster import TestCluster

_NAME: Final = "faults"
_HEAD: Final = ("fault", "times", "lasted (s)", "all answered (s)", "later ones (s)")
_RESTORED: Final = (
    "kill_workers",
    "kill_one_worker",
    "kill_joining_worker",
    "kill_taskmanager",
    "kill_jobmanager",
    "kill_program",
    "stop_and_resume",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the faults, and print what came of them."""
    given = parser().parse_args(arguments)
    if given.exchange and given.engine != "flink":
        raise SystemExit("--exchange: only workers of Flink are elsewhere; add --engine flink")
    print(f"seed {given.seed}", flush=True)
    began = time.monotonic()
    with ExitStack() as ended:
        folder = ended.enter_context(kept_on_failure("tidemill-faults-"))
        cluster = None
        if given.engine == "flink":
            cluster = TestCluster(folder / "cluster", supervised=True)
            ended.callback(cluster.close)
            cluster.start()
        run = FaultRun(
            folder,
            lambda text: print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True),
            given.rate,
            given.asked,
            cluster,
            given.parallelism,
            as_root=_can_be_root(),
            savepoint_every=given.savepoint_every,
            exchange=given.exchange,
        )
        names = _names(given, run)
        suffered: list[Recovery] = []
        loads = [os.getloadavg()[0]]
        with run.running():
            for fault in _faults(given, names, run):
                if given.minutes and time.monotonic() - began > given.minutes * 60:
                    print(f"{given.minutes:g} minutes are over", flush=True)
                    break
                suffered.append(run.suffer(fault, at_the_end=bool(given.restores)))
                loads.append(os.getloadavg()[0])
            minutes = (time.monotonic() - began) / 60
            verdict = run.finish()
    print(table(suffered))
    print(said(verdict, len(suffered), minutes, given.seed))
    print(f"load average (one minute): {min(loads):.0f} to {max(loads):.0f}")
    if given.results is not None:
        write(given, suffered, verdict, minutes, loads)
    return int(is_bad(verdict))


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--engine", default="fnapi", choices=("fnapi", "flink"))
    found.add_argument("--parallelism", type=int, default=1, help="how many workers (flink)")
    found.add_argument(
        "--exchange",
        action="store_true",
        help="the workers share no disk with the program, and meet it in S3 (flink)",
    )
    found.add_argument("--count", type=int, default=30, help="how many faults at random")
    found.add_argument("--each", action="store_true", help="each kind once, in turn, instead")
    found.add_argument(
        "--restores",
        type=int,
        default=0,
        help="so many kills in turn instead, each with nothing sent until all is answered",
    )
    found.add_argument("--kinds", nargs="+", choices=list(KINDS), help="only these")
    found.add_argument(
        "--minutes", type=float, default=0.0, help="after which no fault begins; 0: none"
    )
    found.add_argument("--longest", type=float, default=20.0, help="seconds of the longest pause")
    found.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    found.add_argument("--rate", type=float, default=RATE, help="messages a second")
    found.add_argument("--asked", type=float, default=ASKED, help="the share of requests in them")
    found.add_argument("--savepoint-every", default="5s")
    found.add_argument(
        "--predictions", type=int, default=0, help="faults go on until so many are asked for"
    )
    found.add_argument("--results", type=Path, help="folder in which to write the figures")
    return found


def _can_be_root() -> bool:
    return os.geteuid() == 0 and all(shutil.which(name) for name in ("ip", "mount", "umount"))


def _names(given: Any, run: FaultRun) -> list[str]:
    """Return the kinds to choose from; say which are left out."""
    wanted = given.kinds or (_RESTORED if given.restores else list(KINDS))
    possible = kinds(run.has)
    lacking: dict[str, list[str]] = {}
    for name in wanted:
        if name not in possible:
            needs = ", ".join(sorted(KINDS[name].needs - run.has))
            lacking.setdefault(needs, []).append(name.replace("_", " "))
    for needs, names in lacking.items():
        print(f"left out, without {needs}: {', '.join(names)}", flush=True)
    if not (found := [name for name in wanted if name in possible]):
        raise SystemExit("no kind of fault is left")
    return found


def _faults(given: Any, names: Sequence[str], run: FaultRun) -> Iterator[Fault]:
    if given.each:
        yield from each_kind(names, given.longest)
    elif given.restores:
        yield from (
            Fault(name, 0.0, 3.0)
            for name in itertools.islice(itertools.cycle(names), given.restores)
        )
    else:
        at_random = random_faults(given.seed, names, given.longest)
        for done, fault in enumerate(at_random):
            if done >= given.count and run.producer.requests >= given.predictions:
                return
            yield fault


def table(suffered: Sequence[Recovery]) -> str:
    """Return how long recoveries took, a line for each kind."""
    rows = [_HEAD]
    for kind in dict.fromkeys(one.fault.kind for one in suffered):
        of_kind = [one for one in suffered if one.fault.kind == kind]
        rows.append(
            (
                kind.replace("_", " "),
                str(len(of_kind)),
                _span([one.lasted_s for one in of_kind]),
                _span([one.whole_s for one in of_kind]),
                _span([one.later_s for one in of_kind]),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = []
    for row in rows:
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _span(seconds: Sequence[float]) -> str:
    low, high = f"{min(seconds):.1f}", f"{max(seconds):.1f}"
    return low if low == high else f"{low} to {high}"


def said(verdict: Verdict, faults: int, minutes: float, seed: int) -> str:
    """Return what was proven, as lines."""
    lines = [f"--- the stream ended by itself ---\n{log}" for log in verdict.ended_by_itself]
    if verdict.noticed_s:
        shown = ", ".join(f"{seconds:.2f}" for seconds in sorted(verdict.noticed_s))
        lines.append(f"a broker that came back was noticed after (seconds): {shown}")
    if verdict.fenced:
        lines.append(
            f"{sum(verdict.fenced)} of {len(verdict.fenced)} workers that no lock had stopped were "
            "refused by the store, or ended"
        )
    lines.append(
        f"{faults} faults in {minutes:.1f} minutes, seed {seed}: 0 mismatches in "
        f"{verdict.values:,} values; of {verdict.requests:,} requests {verdict.rejected:,} "
        f"rejected, {verdict.lost} lost, {verdict.doubled} doubled; the stream ended "
        f"{len(verdict.ended_by_itself)} times by itself"
    )
    return "\n".join(lines)


def is_bad(verdict: Verdict) -> bool:
    """Tell whether something was lost, doubled, not fenced, or ended."""
    return bool(
        verdict.lost or verdict.doubled or verdict.ended_by_itself or not all(verdict.fenced)
    )


def _told(given: Any) -> Iterator[str]:
    """Yield the arguments that are not the default ones, and the seed."""
    default = vars(parser().parse_args([]))
    for key, value in vars(given).items():
        if key == "results" or (value == default[key] and key != "seed"):
            continue
        yield f"--{key.replace('_', '-')}"
        if value is not True:
            yield " ".join(value) if isinstance(value, list) else str(value)


def write(
    given: Any,
    suffered: Sequence[Recovery],
    verdict: Verdict,
    minutes: float,
    loads: Sequence[float],
) -> None:
    """Write the figures beside those of other ways to run the faults of this engine."""
    how = "at random"
    if given.each or given.restores:
        how = "each kind" if given.each else "restores"
    part = f"{how}, parallelism {given.parallelism}"
    if given.exchange:
        part = f"exchange, {part}"
    figures = [
        Figure(f"{part}: requests", verdict.requests, "requests"),
        Figure(f"{part}: rate", given.rate, "messages/s"),
        Figure(f"{part}: rejected", verdict.rejected, "requests"),
        Figure(f"{part}: lost", verdict.lost, "requests"),
        Figure(f"{part}: doubled", verdict.doubled, "requests"),
        Figure(f"{part}: values compared, all equal", verdict.values, "values"),
        Figure(f"{part}: faults", len(suffered), "faults", note=f"seed {given.seed}"),
        Figure(f"{part}: minutes", minutes, "minutes"),
        spread(f"{part}: load average", loads, "processes", "of one minute"),
        Figure(f"{part}: ended by itself", len(verdict.ended_by_itself), "times"),
    ]
    if verdict.fenced:
        figures.append(
            Figure(f"{part}: fenced by the store, or ended", sum(verdict.fenced), "workers")
        )
    for kind in dict.fromkeys(one.fault.kind for one in suffered):
        took = [one.later_s for one in suffered if one.fault.kind == kind]
        note = f"{len(took)} times; the median"
        figures.append(spread(f"{part}: {kind.replace('_', ' ')}", took, "s", note))
    name = f"{given.engine}_{_NAME}"
    command = " ".join(["python -m benchmarks.faults", *_told(given)])
    path, before, commands = given.results / f"{name}.json", [], {}
    if path.exists():
        found = json.loads(path.read_text())
        before = [Figure(**one) for one in found["figures"] if not one["name"].startswith(part)]
        commands = dict(one.split(": ", 1) for one in found["command"].split("; "))
    commands[part] = command
    told = "; ".join(f"{key}: {value}" for key, value in commands.items())
    Report(name, told, quick=False, figures=[*before, *figures]).write(given.results)


if __name__ == "__main__":
    sys.exit(main())
