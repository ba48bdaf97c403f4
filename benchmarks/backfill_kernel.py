"""The backfill with the kernel: rows are sharded by card, prepared and advanced shard by shard.

On one core one process does all shards. On more, each process takes its share of the shards from
the same files and writes its answers into one shared matrix: nothing is sent between them but
where to start and that it is done.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.lib.format import open_memmap

from benchmarks.workload import FIVE, REQUEST, TWELVE, Workload, make_view
from tidemill.features.contract import Int64Array
from tidemill.features.kernel.advance import advance
from tidemill.features.kernel.plan import make_plan
from tidemill.features.kernel.prepare import matrix_of, prepare_events, prepare_requests
from tidemill.features.kernel.tiles.state import State

ROWS_PER_SHARD: Final = 1_000_000
VARIANTS: Final = {"five": FIVE, "twelve": TWELVE}


class Shards:
    """The backfill of some of the shards.

    Args:
        workload: All rows.
        variant: ``five`` or ``twelve``.
        first: The first shard to do.
        step: Which shards to do: every ``step``-th from ``first`` on.
    """

    def __init__(self, workload: Workload, variant: str, first: int = 0, step: int = 1) -> None:
        self.workload = workload
        self.view = make_view(VARIANTS[variant])
        self.plan = make_plan(self.view)
        per_core = -(-workload.rows // (ROWS_PER_SHARD * step))
        self._mine = range(first, per_core * step, step)
        self._shards = per_core * step

    def fill(self, values: Int64Array, nulls: npt.NDArray[np.uint8]) -> None:
        """Write the answers: ``values`` and ``nulls`` are ``(requests, columns)``."""
        if self._shards == 1:
            self._fill_shard(
                self.workload.events,
                self.workload.requests,
                np.arange(self.workload.requests.num_rows),
                values,
                nulls,
            )
            return
        rows = self.workload.shards(self._shards)
        for shard in self._mine:
            of_events, of_requests = rows[shard]
            self._fill_shard(
                self.workload.events.take(pa.array(of_events)),
                self.workload.requests.take(pa.array(of_requests)),
                of_requests,
                values,
                nulls,
            )

    def table(self, values: Int64Array, nulls: npt.NDArray[np.uint8]) -> pa.Table:
        """Return filled answers as columns by feature, and ``request``: the row of each."""
        columns = {"request": pa.array(np.arange(len(values)))}
        for index, column in enumerate(self.plan.columns):
            words = np.ascontiguousarray(values[:, index])
            floats = words.view(np.float64) if column.dtype == "float64" else words
            columns[column.feature] = pa.array(floats, mask=nulls[:, index].astype(bool))
        return pa.table(columns)

    def _fill_shard(
        self,
        events: pa.RecordBatch,
        requests: pa.RecordBatch,
        ordinals: Int64Array,
        values: Int64Array,
        nulls: npt.NDArray[np.uint8],
    ) -> None:
        state = State(self.plan, publishes=False)
        answers = advance(
            state,
            prepare_events(self.plan, self.view, events),
            prepare_requests(self.view, REQUEST, requests, ordinals),
            self.workload.until_us,
        ).answers
        values[ordinals] = matrix_of(answers.column("values"))
        width = len(self.plan.columns)
        flags = np.frombuffer(answers.column("nulls").buffers()[1], np.uint8)
        nulls[ordinals] = flags.reshape(-1, width)


class KernelBackfill:
    """The backfill of a workload on a number of cores; the files hold the workload too."""

    def __init__(self, workload: Workload, variant: str, cores: int, directory: Path) -> None:
        self._all = Shards(workload, variant)
        columns = len(self._all.plan.columns)
        shape = (workload.requests.num_rows, columns)
        self._cores = cores
        self._workers: list[Connection] = []
        if cores == 1:
            self._values = np.zeros(shape, np.int64)
            self._nulls = np.zeros(shape, np.uint8)
            return
        self._values = open_memmap(directory / "values.npy", "w+", np.int64, shape)
        self._nulls = open_memmap(directory / "nulls.npy", "w+", np.uint8, shape)
        context = multiprocessing.get_context("spawn")
        for core in range(cores):
            here, there = context.Pipe()
            context.Process(
                target=_work, args=(there, directory, variant, core, cores), daemon=True
            ).start()
            self._workers.append(here)
        for worker in self._workers:
            worker.recv()

    def run(self) -> pa.Table:
        """Return the features, and ``request``: the row of each."""
        if self._cores == 1:
            self._all.fill(self._values, self._nulls)
        for worker in self._workers:
            worker.send("go")
        for worker in self._workers:
            worker.recv()
        return self._table()

    def _table(self) -> pa.Table:
        return self._all.table(self._values, self._nulls)


def kernel_answers(workload: Workload, variant: str) -> pa.Table:
    """Return the kernel's answers to all requests, in their order: what peers are judged by."""
    shards = Shards(workload, variant)
    shape = (workload.requests.num_rows, len(shards.plan.columns))
    values, nulls = np.zeros(shape, np.int64), np.zeros(shape, np.uint8)
    shards.fill(values, nulls)
    return shards.table(values, nulls)


def save(workload: Workload, directory: Path) -> None:
    """Write a workload into files that `load` reads."""
    for name, batch in (("events", workload.events), ("requests", workload.requests)):
        with (
            pa.OSFile(str(directory / f"{name}.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, batch.schema) as writer,
        ):
            writer.write_batch(batch)
    (directory / "until").write_text(str(workload.until_us))


def load(directory: Path) -> Workload:
    """Read a workload that `save` wrote."""
    batches = []
    for name in ("events", "requests"):
        with pa.OSFile(str(directory / f"{name}.arrow"), "rb") as source:
            batches.append(pa.ipc.open_file(source).get_batch(0))
    return Workload(batches[0], batches[1], int((directory / "until").read_text()))


def _work(parent: Connection, directory: Path, variant: str, core: int, cores: int) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[core % len(allowed)]})
    pa.set_cpu_count(1)
    shards = Shards(load(directory), variant, core, cores)
    values = np.load(directory / "values.npy", mmap_mode="r+")
    nulls = np.load(directory / "nulls.npy", mmap_mode="r+")
    parent.send("ready")
    while True:
        try:
            parent.recv()
        except EOFError:
            return
        shards.fill(values, nulls)
        parent.send("done")
