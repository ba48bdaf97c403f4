"""How benchmarks measure: runs of a least length, in pairs A B A B, wall and CPU time, spread.

A ratio is formed within each pair, so that what changes slowly on a shared machine falls out of
it, and is stated as the median of the pairs with the least and the greatest. CPU time is that of
this process and of all its descendants: it is what a run costs where others use the machine too.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

_LIBRARIES: Final = (
    "apache-beam",
    "duckdb",
    "feast",
    "numba",
    "numpy",
    "polars",
    "pyarrow",
    "redis",
)


@contextmanager
def kept_on_failure(prefix: str) -> Iterator[Path]:
    """Yield a new folder, which is removed unless the block fails."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    except BaseException:
        print(f"all logs stay in {folder}", flush=True)
        raise
    shutil.rmtree(folder)


class AnswersDiffer(AssertionError):
    """Two sides of a benchmark gave different answers: their times mean nothing."""


@dataclass(frozen=True)
class Effort:
    """How hard to measure.

    Attributes:
        pairs: How many times all sides run, one after the other.
        seconds: The least length of a run.
    """

    pairs: int
    seconds: float


FULL: Final = Effort(pairs=3, seconds=10.0)
QUICK: Final = Effort(pairs=1, seconds=0.0)
"""For tests: everything runs once, and the times mean nothing."""


@dataclass(frozen=True)
class Figure:
    """One number of a benchmark.

    Attributes:
        name: What it is; stable, so that results can be compared.
        value: The number.
        unit: Its unit.
        low: The least of the runs or pairs, where there are several.
        high: The greatest.
        note: How it was measured, where the name does not say.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Run:
    """One run of one side.

    Attributes:
        amount: What was done, in the side's units (rows, events).
        repetitions: How often its work was called.
        wall_s: Wall time of the work, in seconds.
        cpu_s: CPU time of the work, of this process and its descendants, in seconds.
    """

    amount: int
    repetitions: int
    wall_s: float
    cpu_s: float

    @property
    def per_wall_s(self) -> float:
        """The amount done in a second."""
        return self.amount / max(self.wall_s, 1e-9)

    @property
    def per_cpu_s(self) -> float:
        """The amount done in a second of CPU time."""
        return self.amount / max(self.cpu_s, 1e-9)


@dataclass(frozen=True)
class Side:
    """One of the things that are compared.

    Attributes:
        work: Does some work and returns how much, in the side's units.
        setup: Called before each ``work``, not timed.
    """

    work: Callable[[], int]
    setup: Callable[[], None] | None = None


def cpu_seconds() -> float:
    """Return the CPU time of this process and all its descendants, in seconds."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            # It ended between the two calls, and stands among the ended ones the next time.
            continue
        total += times.user + times.system
    return total


def run_for(side: Side, seconds: float) -> Run:
    """Repeat a side's work until it has taken ``seconds``; at least once."""
    amount = repetitions = 0
    wall = cpu = 0.0
    while repetitions == 0 or wall < seconds:
        if side.setup is not None:
            side.setup()
        cpu_before, before = cpu_seconds(), time.perf_counter()
        amount += side.work()
        wall += time.perf_counter() - before
        cpu += cpu_seconds() - cpu_before
        repetitions += 1
    return Run(amount, repetitions, wall, cpu)


def alternate(sides: Mapping[str, Side], effort: Effort) -> dict[str, list[Run]]:
    """Run all sides in turn, as many times as the effort has pairs: A B A B A B.

    Returns:
        The runs of each side; those of one index belong to one pair.
    """
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for _ in range(effort.pairs):
        for name, side in sides.items():
            runs[name].append(run_for(side, effort.seconds))
    return runs


def rates(name: str, runs: Sequence[Run], unit: str, note: str = "") -> list[Figure]:
    """Return a side's rates by wall and by CPU time: the median of its runs, with the spread."""
    return [
        spread(f"{name}, wall", [run.per_wall_s for run in runs], unit, note),
        spread(f"{name}, CPU", [run.per_cpu_s for run in runs], unit, note),
    ]


def ratios(name: str, above: Sequence[Run], below: Sequence[Run], note: str = "") -> list[Figure]:
    """Return how many times faster ``above`` is than ``below``, pair by pair."""
    pairs = list(zip(above, below, strict=True))
    return [
        spread(f"{name}, wall", [a.per_wall_s / b.per_wall_s for a, b in pairs], "x", note),
        spread(f"{name}, CPU", [a.per_cpu_s / b.per_cpu_s for a, b in pairs], "x", note),
    ]


def spread(name: str, values: Sequence[float], unit: str, note: str = "") -> Figure:
    """Return the median of some values, with the least and the greatest."""
    low, high = min(values), max(values)
    return Figure(name, statistics.median(values), unit, low, high, note)


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    libraries: Mapping[str, str]


def machine() -> Machine:
    """Look at this machine."""
    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return Machine(
        cpu=models[0] if models else platform.machine(),
        cores=os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        libraries={name: importlib.metadata.version(name) for name in _LIBRARIES},
    )


@dataclass(frozen=True)
class Report:
    """What a benchmark found.

    Attributes:
        name: The benchmark.
        command: What repeats it.
        machine: Where it ran.
        quick: True where the times mean nothing.
        figures: The figures.
    """

    name: str
    command: str
    quick: bool
    machine: Machine = field(default_factory=machine)
    figures: Sequence[Figure] = ()

    def write(self, directory: Path) -> Path:
        """Write ``NAME.json`` and return its path."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.name}.json"
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path


def table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Return one table of all figures of reports (as read from their JSON)."""
    rows = [("benchmark", "figure", "value", "least .. greatest", "unit")]
    for report in reports:
        for figure in report["figures"]:
            span = ""
            if figure["low"] is not None:
                span = f"{number(figure['low'])} .. {number(figure['high'])}"
            rows.append(
                (report["name"], figure["name"], number(figure["value"]), span, figure["unit"])
            )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for row in rows:
        left = f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}"
        lines.append(
            f"{left}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[4]:<{widths[4]}}".rstrip()
        )
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def number(value: float) -> str:
    """Write a number for a person: whole above a thousand, three digits below."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def pin_to_one_core() -> None:
    """Run this process, and what it starts from now on, on one core: the last one."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
