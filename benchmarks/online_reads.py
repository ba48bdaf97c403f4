"""Reading online: how long a read takes, by Feast's SDK and by our direct reader.

A read asks for all features of all views of the shape, for 1, 10 or 100 cards out of 10,000, each
time others. All ways have the same in hand, the keys as Python texts, and end with values that can
be used:

* Feast's SDK over Feast's own store, and over the ordered store by our plug-in: ``to_dict()`` of
  ``get_online_features``. The SQLite file of Feast's store is as it comes.
* the direct reader (`serving.online.reader`): a batch of Arrow for each view, and for one card also
  plain Python values. Statuses and frontiers are among what it gives.

A run lasts as long as other benchmarks' runs. p50 and p99 are those of the reads of a run; a ratio
is formed between the p50 of runs of one pair. Before anything is timed, all ways read the same
cards, and their values must be those that were written.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from benchmarks.measure import Effort, Figure, spread
from benchmarks.online_routes import (
    AS_IT_COMES,
    STORES,
    WRITE,
    Route,
    check_values,
    feast_route,
    our_route,
    sdk_values,
    server_of,
)
from benchmarks.online_workload import SHAPES, Shape, card_keys, expected_values
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.reader import OnlineReader

CARDS_A_READ: Final = (1, 10, 100)

SDK_STOCK: Final = "SDK, Feast's store"
SDK_PLUG_IN: Final = "SDK, our plug-in"
DIRECT: Final = "direct reader"
PLAIN: Final = "direct reader, plain values"

_READS: Final = 1_000
"""How many different reads there are; they are read round and round."""
_LEAST_READS: Final = 20
"""Reads of a run at least, and before each run, untimed; and those whose values are compared."""
_FEW_READS: Final = 2
"""Reads of a run, and before it, where times mean nothing."""
_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True)
class Way:
    """One of the ways of reading.

    Attributes:
        read: Reads the cards of these keys.
        values: Makes ``view__feature`` to values, ``(cards,)``, of what it read: not timed.
    """

    read: Callable[[list[str]], Any]
    values: Callable[[Any], dict[str, list[Any]]]


def ways_of(ours: Route, stock: Route, cards: int) -> dict[str, Way]:
    """Return the ways to read so many cards, by name."""
    shape = ours.shape
    place = ours.sdk.config.online_store.place(ours.sdk.config.repo_path)
    reader = OnlineReader(open_database(place), shape.project("ours"), "replay")

    def by_sdk(route: Route) -> Way:
        return Way(lambda keys: sdk_values(route.sdk, shape, keys), lambda found: found)

    def read(keys: list[str]) -> dict[str, pa.RecordBatch]:
        column = pa.array(keys)
        return reader.read({view.name: column for view in shape.views})

    def columns(found: dict[str, pa.RecordBatch]) -> dict[str, list[Any]]:
        return {name: values for batch in found.values() for name, values in _columns(batch)}

    def read_one(keys: list[str]) -> Any:
        return reader.read_one({view.name: keys[0] for view in shape.views})

    def plain(found: Any) -> dict[str, list[Any]]:
        return {name: [value] for each in found.values() for name, value in each.values.items()}

    ways = {SDK_STOCK: by_sdk(stock), SDK_PLUG_IN: by_sdk(ours), DIRECT: Way(read, columns)}
    return {**ways, PLAIN: Way(read_one, plain)} if cards == 1 else ways


def _columns(batch: pa.RecordBatch) -> list[tuple[str, list[Any]]]:
    return [
        (name, batch.column(place).to_pylist()) for place, name in enumerate(batch.schema.names)
    ]


def measure_reads(
    store: str, ours: Route, stock: Route, cards: int, effort: Effort
) -> list[Figure]:
    """Measure all ways of reading so many cards at once.

    Args:
        store: What figures call it.
        ours: The route that filled the ordered store.
        stock: The route that filled Feast's.
        cards: How many cards a read asks for.
        effort: How hard to measure.

    Returns:
        p50 and p99 of each way; how many times the direct reader's p50 Feast's SDK takes, and the
        plug-in's p50 Feast's store; how many values were compared.

    Raises:
        AnswersDiffer: A way does not read what was written.
    """
    ways = ways_of(ours, stock, cards)
    chance = np.random.default_rng(2)
    drawn = [chance.choice(ours.deck.cards, cards, replace=False) for _ in range(_READS)]
    reads: list[list[str]] = [card_keys(numbers).to_pylist() for numbers in drawn]
    compared = 0
    for numbers, keys in zip(drawn[:_LEAST_READS], reads, strict=False):
        expected = expected_values(ours.shape, numbers, ours.deck.last_deal[numbers])
        for name, way in ways.items():
            compared += check_values(f"{store}, {name}", expected, way.values(way.read(keys)))
    runs: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    for _ in range(effort.pairs):
        for name, way in ways.items():
            runs[name].append(_latencies_ms(way.read, reads, effort.seconds))
    label = f"{store}, {ours.shape.name}, {cards} card{'s' if cards > 1 else ''}"
    out = []
    for name, of_way in runs.items():
        for percent in (50, 99):
            values = [float(np.percentile(run, percent)) for run in of_way]
            note = f"{sum(map(len, of_way)):,} reads"
            out.append(spread(f"{label}: {name}, p{percent}", values, "ms", note))
    pairs = [(SDK_STOCK, SDK_PLUG_IN)]
    pairs += [(sdk, way) for sdk in pairs[0] for way in ways if way in (DIRECT, PLAIN)]
    for slow, fast in pairs:
        values = _ratios(runs[slow], runs[fast])
        out.append(spread(f"{label}: {slow} / {fast}, p50", values, "x"))
    return [*out, Figure(f"{label}: values read as written", compared, "values")]


def _latencies_ms(
    read: Callable[[list[str]], Any], reads: Sequence[list[str]], seconds: float
) -> np.ndarray:
    """Read one after the other for so long, and return how long each took."""
    least = _LEAST_READS if seconds else _FEW_READS
    for keys in reads[:least]:
        read(keys)
    taken_ns = []
    end_ns = time.perf_counter_ns() + round(seconds * 1e9)
    number = 0
    while number < least or time.perf_counter_ns() < end_ns:
        keys = reads[number % len(reads)]
        before = time.perf_counter_ns()
        read(keys)
        taken_ns.append(time.perf_counter_ns() - before)
        number += 1
    return np.array(taken_ns) / _NS_PER_MS


def _ratios(above: Sequence[np.ndarray], below: Sequence[np.ndarray]) -> list[float]:
    return [float(np.median(a) / np.median(b)) for a, b in zip(above, below, strict=True)]


def measure_store(store: str, shape: Shape, cards: int, effort: Effort) -> list[Figure]:
    """Fill both stores with a row of each view for so many cards, and measure reads of them."""
    with tempfile.TemporaryDirectory() as folder, server_of(store, Path(folder)) as server:
        ours = our_route(shape, cards, Path(folder), server)
        stock = feast_route(WRITE + AS_IT_COMES, shape, cards, Path(folder), server)
        for route in (ours, stock):
            route.fill()
        return [
            figure
            for size in CARDS_A_READ
            for figure in measure_reads(store, ours, stock, size, effort)
        ]


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    cards = 200 if quick else 10_000
    return [
        figure
        for store in STORES
        for shape in SHAPES
        for figure in measure_store(store, shape, cards, effort)
    ]
