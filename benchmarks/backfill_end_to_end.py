"""`tidemill backfill` beside programs written by hand in polars and in duckdb: files in, files out.

All sides read the payments of `benchmarks.fraud` from one Parquet file and write the training table
of twelve features and a label. Each run is a process of its own, imports included; the sides run in
turn. Before anything is timed, all values of the three tables are compared: sums of floats within
1e-9, everything else equal. Ours also checks and logs every row, digests files and rows, and makes
the states from which a stream starts; `--publish` with its offline log is not part of it.

The peak of memory is that of all processes of a side together. *Resident* is the sum of their
resident sets, looked at every 20 ms, in which pages that forked processes share count once for each
of them. *Proportional* counts each page once (PSS, proc_pid_smaps(5)); telling it takes the kernel
long, so it is looked at every 200 ms, and only in the runs that are not timed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fraud import PROJECT, write_configuration, write_payments
from benchmarks.measure import (
    AnswersDiffer,
    Effort,
    Figure,
    Side,
    alternate,
    rates,
    ratios,
    spread,
)

SIDES: Final = ("tidemill", "polars", "duckdb")
SIZES: Final = (200_000, 1_750_000, 10_000_000)
_DUCKDB_ROWS: Final = 2_000_000
"""duckdb takes minutes and gigabytes for more."""
_RELATIVE: Final = 1e-9
_LOOK_EVERY_S: Final = 0.02
_LOOK_CLOSELY_EVERY_S: Final = 0.2
_BACKFILL: Final = "from tidemill.pipelines.commands.cli import main; main()"


@dataclass
class Program:
    """A side: a command that reads the payments of a folder.

    Attributes:
        command: The command.
        tables: Returns the files of the training table that it wrote.
        resident: The peak of memory of each timed run, in MiB.
        proportional: That of each other run, in which shared pages count once.
    """

    command: list[str]
    tables: Callable[[], list[Path]]
    resident: list[float] = field(default_factory=list)
    proportional: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Run it to its end, to be timed."""
        self.resident.append(self._run(_resident, _LOOK_EVERY_S))

    def run_closely(self) -> None:
        """Run it to its end; looking at its memory takes time."""
        self.proportional.append(self._run(_proportional, _LOOK_CLOSELY_EVERY_S))

    def _run(self, memory: Callable[[psutil.Process], int], look_every_s: float) -> float:
        process = subprocess.Popen(
            self.command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL
        )
        peak = 0
        ended = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(look_every_s):
                peak = max(peak, _of_all(process.pid, memory))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        status = process.wait()
        ended.set()
        thread.join()
        if status:
            raise subprocess.CalledProcessError(status, self.command)
        return peak / 2**20


def _of_all(pid: int, memory: Callable[[psutil.Process], int]) -> int:
    """Return the memory of a process and its descendants, in bytes."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += memory(process)
        except psutil.NoSuchProcess:
            continue
    return total


def _resident(process: psutil.Process) -> int:
    found: int = process.memory_info().rss
    return found


def _proportional(process: psutil.Process) -> int:
    found = process.memory_full_info()
    # Only Linux tells it.
    shared_once: int = getattr(found, "pss", found.rss)
    return shared_once


def make_programs(folder: Path, rows: int) -> dict[str, Program]:
    """Write the payments, and return the sides that compute their training table."""
    payments = folder / "payments.parquet"
    write_payments(payments, rows)
    configuration = write_configuration(folder, payments, folder / "run")
    programs = {
        "tidemill": Program(
            [
                sys.executable,
                "-c",
                _BACKFILL,
                "backfill",
                "--quiet",
                "--config",
                str(configuration),
            ],
            lambda: sorted(
                max((folder / "run").glob("generations/*/build-*")).glob("features/*.parquet")
            ),
        )
    }
    for peer in SIDES[1:] if rows < _DUCKDB_ROWS else SIDES[1:2]:
        target = folder / f"{peer}.parquet"
        command = [sys.executable, "-m", f"benchmarks.fraud_{peer}", str(payments), str(target)]
        programs[peer] = Program(command, lambda target=target: [target])  # type: ignore[misc]
    return programs


def check_equal(ours: pa.Table, theirs: pa.Table, peer: str) -> int:
    """Check that a peer's training table is ours.

    Returns:
        How many values were compared.

    Raises:
        AnswersDiffer: A request is missing, or values differ.
    """
    ids = np.array(ours["request_id"].cast(pa.int64()))
    if not np.array_equal(np.sort(ids), np.sort(theirs["payment"].to_numpy())):
        raise AnswersDiffer(f"{peer} has {len(theirs)} requests, expected these {len(ids)}")
    ours = ours.take(np.argsort(ids))
    theirs = theirs.take(np.argsort(theirs["payment"].to_numpy()))
    names = {column.name: column.feature for column in PROJECT.columns}
    for name, other in {**names, "label": "label", "label_time": "label_time"}.items():
        a, b = _floats(ours[name]), _floats(theirs[other])
        near = np.abs(a - b) <= _RELATIVE * np.abs(a)
        wrong = np.flatnonzero(~(near | (np.isnan(a) & np.isnan(b))))
        if len(wrong):
            raise AnswersDiffer(
                f"{peer}: {len(wrong)} of {len(a)} values of {name} differ; payment {wrong[0]} has "
                f"{b[wrong[0]]!r}, expected {a[wrong[0]]!r}"
            )
    return len(ours) * (len(names) + 2)


def _floats(column: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    whole = column.cast(pa.float64()).combine_chunks()
    return np.asarray(whole.fill_null(float("nan")).to_numpy(zero_copy_only=False))


def _read(program: Program) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in program.tables()])


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    out = []
    for rows in (3_000,) if quick else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            out += _measure_size(Path(folder), rows, effort)
    return out


def _measure_size(folder: Path, rows: int, effort: Effort) -> list[Figure]:
    programs = make_programs(folder, rows)
    out = []
    for program in programs.values():
        program.run_closely()
    ours = _read(programs["tidemill"])
    for peer in [name for name in programs if name != "tidemill"]:
        compared = check_equal(ours, _read(programs[peer]), peer)
        out.append(Figure(f"{rows:,} requests: values equal to {peer}'s", compared, "values"))
    del ours

    def side(program: Program) -> Side:
        def work() -> int:
            program.run()
            return rows

        return Side(work)

    # A run is long enough as it is.
    short = Effort(effort.pairs, 0.0)
    runs = alternate({name: side(program) for name, program in programs.items()}, short)
    for name, program in programs.items():
        label = f"{rows:,} requests: {name}"
        out += rates(label, runs[name], "requests/s")
        out.append(spread(f"{label}, CPU time", [one.cpu_s for one in runs[name]], "s"))
        out.append(spread(f"{label}, peak memory, resident", program.resident, "MiB"))
        label += ", peak memory, proportional"
        out.append(spread(label, program.proportional, "MiB"))
    for peer in [name for name in programs if name != "tidemill"]:
        out += ratios(f"{rows:,} requests: {peer} / tidemill", runs[peer], runs["tidemill"])
    return out
