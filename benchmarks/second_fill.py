"""A second fill beside the one that readers see: room, rate, what readers notice, and the switch.

A history was corrected, so every entity gets a new row in a fill that nobody reads, in chunks, as a
backfill that publishes writes it; then readers are switched. A reader reads 10 random cards of all
views, one read after the other: before, while the second fill is written, and across the switch.
After the switch every card is read and compared.

* Room: bytes a card of the first fill and of the second, as in `benchmarks.online_writes`.
* Rate: rows of the second fill a second, from Arrow to the acknowledged write, while reads go on.
* Reads: p50 and p99 before, and during.
* Switch: how long the call takes, which also removes the fill before the last one (in Redis a scan
  of all keys, 1,000 a step, beside which others are served); and the longest read that overlaps it.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.measure import Effort, Figure
from benchmarks.online_routes import STORES, Route, our_route, server_of
from benchmarks.online_workload import SHAPES, Shape, card_keys, publications
from benchmarks.online_writes import stored_bytes
from tidemill.pipelines.recovery.republish import CHUNK_ROWS
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.fills import MARK_BYTES, Fill, Holder, NewFill, Writer, slices_for
from tidemill.serving.online.parcels import in_chunks, parcels_of
from tidemill.serving.online.reader import OnlineReader
from tidemill.serving.online.rows import KeySpace

_CARDS_A_READ: Final = 10
_LEAST_S: Final = 0.2
_MS: Final = 1_000.0


def measure(store: str, shape: Shape, cards: int, effort: Effort) -> list[Figure]:
    """Measure a second fill in one store, for one shape.

    Raises:
        AnswersDiffer: After the switch a value is not that of the second fill.
    """
    label = f"{store}, {shape.name}, {cards:,} cards"
    with tempfile.TemporaryDirectory() as folder, server_of(store, Path(folder)) as server:
        route = our_route(shape, cards, Path(folder), server)
        empty = stored_bytes(route, server, effort)
        route.fill()
        first = stored_bytes(route, server, effort)
        database = open_database(route.sdk.config.online_store.place(route.sdk.config.repo_path))
        before = _Reads(database, shape, cards)
        with before.going_on():
            time.sleep(max(effort.seconds, _LEAST_S))
        during = _Reads(database, shape, cards)
        with during.going_on():
            began = time.perf_counter()
            fills, writer = _filled(database, route)
            seconds = time.perf_counter() - began
            switched = time.perf_counter()
            database.switch(fills, writer)
            switch_s = time.perf_counter() - switched
            time.sleep(_LEAST_S)
        second = stored_bytes(route, server, effort)
        across = [
            one for at, one in during.taken if at + one >= switched and at < switched + switch_s
        ]
        compared = route.check()
        database.close()
    rows = cards * len(shape.views)
    out = [
        Figure(f"{label}: first fill", (first - empty) / cards, "bytes/card"),
        Figure(f"{label}: second fill beside it", (second - first) / cards, "bytes/card"),
        Figure(
            f"{label}: second fill", rows / seconds, "rows/s", note="wall, one writer, reads on"
        ),
        Figure(f"{label}: switch, the fill before the last removed", _MS * switch_s, "ms"),
        Figure(f"{label}: longest read across the switch", _MS * max(across, default=0.0), "ms"),
    ]
    for name, reads in (("before", before), ("during", during)):
        for percent in (50, 99):
            found = float(np.percentile([one for _, one in reads.taken], percent))
            out.append(Figure(f"{label}: read {name}, p{percent}", _MS * found, "ms"))
    return [*out, Figure(f"{label}: values read back as written", compared, "values")]


def _filled(database: OnlineDatabase, route: Route) -> tuple[list[Fill], Writer]:
    """Write a new row of every card into a new fill of every view."""
    shape, deck = route.shape, route.deck
    spaces = [KeySpace.of("ours", view) for view in shape.views]
    fills = database.begin_fills(
        [NewFill(space, shards=1, slices=slices_for(deck.cards)) for space in spaces]
    )
    writer = database.take_token(fills, Holder("benchmark", "localhost", 0, "benchmarks", 0))
    deal = deck.deal(deck.cards)
    for fill, view, rows in zip(fills, shape.views, publications(shape, deal), strict=True):
        parcels = parcels_of(
            fill,
            writer,
            view,
            rows,
            shard=0,
            mark_before=None,
            mark=deal.number.to_bytes(MARK_BYTES, "big"),
            frontier_us=deal.time_us,
        )
        for parcel in parcels:
            database.publish(in_chunks(parcel, CHUNK_ROWS))
    return fills, writer


class _Reads:
    """Reads random cards in a thread.

    Attributes:
        taken: When each read began (`time.perf_counter`), and how many seconds it took.
    """

    def __init__(self, database: OnlineDatabase, shape: Shape, cards: int) -> None:
        self.taken: list[tuple[float, float]] = []
        self._database = database
        self._reader = OnlineReader(database, shape.project("ours"), "replay")
        self._views = [view.name for view in shape.views]
        self._cards = cards
        self._over = threading.Event()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Read while the block runs."""
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(self._run)
            try:
                yield
            finally:
                self._over.set()
            reading.result()

    def _run(self) -> None:
        chance = np.random.default_rng(3)
        while not self._over.is_set():
            keys = card_keys(chance.integers(0, self._cards, _CARDS_A_READ))
            began = time.perf_counter()
            self._reader.read(dict.fromkeys(self._views, keys))
            self.taken.append((began, time.perf_counter() - began))
        self._database.close()  # this thread's connection


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    cards = 1_000 if quick else 100_000
    return [
        figure
        for store in STORES
        for shape in SHAPES
        for figure in measure(store, shape, cards, effort)
    ]
