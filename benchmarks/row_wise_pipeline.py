"""The row-at-a-time pipeline: a key, and a stateful DoFn with one cell of state per card.

Written as Beam's guides write it, with dict rows. The source is one element that becomes all rows,
so that they keep their order; answers go into a list of this process (on Prism the worker is this
process too).

Beam's FnApiRunner comes with a cache of state whose bookkeeping costs such a pipeline about as much
as its own work; `pipelines.engines.choosing` turns it off. So there are two peers on that engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import PickleCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from benchmarks.row_wise_features import NAMES, Row, answer, pay, rows_of
from benchmarks.workload import Workload
from tidemill.pipelines.engines import choosing

# What the DoFns of this process read and write; the worker of either engine runs in it.
_SOURCE: dict[str, Workload] = {}
_ANSWERS: list[tuple[int, tuple[Any, ...]]] = []

_FNAPI_CACHE_MB: Final = 100
"""What Beam 2.77's FnApiRunner has; its worker on other engines has none unless asked to."""


def _read_rows(name: str) -> Iterator[Row]:
    yield from rows_of(_SOURCE[name])


def _by_card(row: Row) -> tuple[str, Row]:
    return row["card"], row


class FeaturesOfCard(beam.DoFn):
    """Answers requests from the tiles of their card, which are one cell of state."""

    TILES = ReadModifyWriteStateSpec("tiles", PickleCoder())

    def process(
        self, keyed: tuple[str, Row], tiles: Any = beam.DoFn.StateParam(TILES)
    ) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Take a payment into the state, or answer a request from it."""
        _, row = keyed
        history = tiles.read() or deque()
        if "paid_at" in row:
            pay(history, row)
            tiles.write(history)
        else:
            yield row["ordinal"], answer(history, row["asked_at"])


def _collect(answered: tuple[int, tuple[Any, ...]]) -> None:
    _ANSWERS.append(answered)


def run_row_wise(workload: Workload, engine: str) -> pa.Table:
    """Run the pipeline over a workload, with what Beam's engines come with.

    Args:
        workload: Events and requests.
        engine: ``fnapi`` or ``prism``.

    Returns:
        The twelve features, and ``request``: the row of each; in the order of the requests.
    """
    return _run(workload, engine, _FNAPI_CACHE_MB)


def run_row_wise_uncached(workload: Workload, engine: str) -> pa.Table:
    """Run it without the cache of state, as the project runs its own; as for `run_row_wise`."""
    return _run(workload, engine, 0)


def _run(workload: Workload, engine: str, fnapi_cache_mb: int) -> pa.Table:
    _SOURCE["rows"] = workload
    _ANSWERS.clear()
    choice = choosing.choose_engine(engine, streaming=False)
    runner = choosing.make_runner(choice)
    worker_handlers.STATE_CACHE_SIZE_MB = fnapi_cache_mb  # the next `make_runner` sets it anew
    pipeline = beam.Pipeline(
        runner=runner, options=PipelineOptions(choosing.engine_options(choice))
    )
    (
        pipeline
        | "Name" >> beam.Create(["rows"], reshuffle=False)
        | "Read" >> beam.FlatMap(_read_rows)
        | "Key" >> beam.Map(_by_card).with_output_types(tuple[str, dict[str, Any]])
        | "Features" >> beam.ParDo(FeaturesOfCard())
        | "Collect" >> beam.Map(_collect)
    )
    choosing.run(pipeline, choice)
    answered = sorted(_ANSWERS)
    columns = {"request": pa.array([ordinal for ordinal, _ in answered], pa.int64())}
    for index, name in enumerate(NAMES):
        columns[name] = pa.array([values[index] for _, values in answered])
    return pa.table(columns)
