"""The twelve features in plain Python, a row at a time: what a Beam user writes without a kernel.

A card's history is a deque of tiles, one per hop in which something was paid; a payment goes into
the newest tile, a request merges the tiles of each window, from the newest to the oldest, in one
pass. It relies on a card's rows coming in order of time, requests before payments at one instant:
the benchmark's source gives them so. (A pipeline whose runner does not keep order would have to
hold every row back until a timer; that costs more than anything here.)

It answers what the kernel answers, sums to the last few bits: they are rounded at each step.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa

from benchmarks.workload import HOP_US, LARGE, QUANTILE, Workload
from tidemill.features.contract import DAY, HOUR

Row = dict[str, Any]

NAMES: Final = (
    "count_1h",
    "count_1d",
    "sum_6h",
    "mean_1h",
    "mean_1d",
    "variance_1d",
    "min_6h",
    "max_1d",
    "last_1d",
    "quantile_1d",
    "distinct_1d",
    "rate_6h",
)
"""The features, in the order of the answers."""

_BITS: Final = struct.Struct("<d")
_WORD: Final = struct.Struct("<q")
_BUCKET_SHIFT: Final = 45


class Tile:
    """What was paid with one card within one hop; merged, what was paid within a window."""

    __slots__ = (
        "buckets",
        "greatest",
        "hop",
        "large",
        "last",
        "least",
        "mean",
        "rows",
        "shops",
        "squares",
        "total",
        "values",
    )

    def __init__(self, hop: int) -> None:
        self.hop = hop
        self.rows = 0
        self.values = 0
        self.total = 0.0
        self.mean = 0.0
        self.squares = 0.0
        self.least = math.inf
        self.greatest = -math.inf
        self.last: tuple[int, str, float] | None = None
        self.buckets: dict[int, int] = {}
        self.shops: set[str] = set()
        self.large = 0

    def add(self, row: Row) -> None:
        """Add a payment."""
        self.rows += 1
        self.shops.add(row["shop"])
        amount = row["amount"]
        if amount is None:
            return
        self.values += 1
        self.total += amount
        # Welford (1962): squares of differences from the mean, without cancellation.
        delta = amount - self.mean
        self.mean += delta / self.values
        self.squares += delta * (amount - self.mean)
        self.least = min(self.least, amount)
        self.greatest = max(self.greatest, amount)
        last = (row["paid_at"], row["payment_id"], amount)
        if self.last is None or last > self.last:
            self.last = last
        bucket = _WORD.unpack(_BITS.pack(amount))[0] >> _BUCKET_SHIFT
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.large += amount > LARGE

    def merge(self, older: Tile) -> None:
        """Add what an older tile holds."""
        self.rows += older.rows
        self.shops |= older.shops
        if not older.values:
            return
        # Chan, Golub and LeVeque (1979).
        values = self.values + older.values
        delta = older.mean - self.mean
        self.squares += older.squares + delta * delta * self.values * older.values / values
        self.mean += delta * older.values / values
        self.values = values
        self.total += older.total
        self.least = min(self.least, older.least)
        self.greatest = max(self.greatest, older.greatest)
        if self.last is None:
            self.last = older.last
        for bucket, n in older.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + n
        self.large += older.large

    def quantile(self) -> float | None:
        """Return the middle of the bucket that holds the value of rank ``floor(q (n - 1))``."""
        rank = math.floor(QUANTILE * (self.values - 1))
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank < 0:
                low, high = (
                    _BITS.unpack(_WORD.pack(edge << _BUCKET_SHIFT))[0]
                    for edge in (bucket, bucket + 1)
                )
                return float(low + (high - low) / 2)
        return None


History = deque[Tile]


def pay(history: History, row: Row) -> None:
    """Add a payment to a card's history, and drop the tiles that no window covers any more."""
    hop = row["paid_at"] // HOP_US
    if not history or history[-1].hop != hop:
        history.append(Tile(hop))
        while history[0].hop < hop - DAY // HOP_US:
            history.popleft()
    history[-1].add(row)


def answer(history: History, asked_at: int) -> tuple[Any, ...]:
    """Return the twelve features of a card as of an instant, in the order of `NAMES`."""
    merged = Tile(0)
    tiles = reversed(history)
    tile = next(tiles, None)
    out: dict[str, Any] = {}
    for over, window_us in (("1h", HOUR), ("6h", 6 * HOUR), ("1d", DAY)):
        tail = (asked_at - window_us) // HOP_US
        while tile is not None and tile.hop >= tail:
            merged.merge(tile)
            tile = next(tiles, None)
        n = merged.values
        if over == "6h":
            out["sum_6h"] = merged.total
            out["min_6h"] = merged.least if n else None
            out["rate_6h"] = merged.large / n if n else None
            continue
        out[f"count_{over}"] = merged.rows
        out[f"mean_{over}"] = merged.total / n if n else None
        if over == "1d":
            out["variance_1d"] = merged.squares / (n - 1) if n > 1 else None
            out["max_1d"] = merged.greatest if n else None
            out["last_1d"] = merged.last[2] if merged.last else None
            out["quantile_1d"] = merged.quantile()
            out["distinct_1d"] = len(merged.shops)
    return tuple(out[name] for name in NAMES)


def rows_of(workload: Workload) -> Iterator[Row]:
    """Yield payments and requests as dicts, in order of time, requests first at one instant."""
    events = _dicts(workload.events, "paid_at")
    requests = _dicts(workload.requests, "asked_at")
    event = next(events, None)
    for number, request in enumerate(requests):
        while event is not None and event["paid_at"] < request["asked_at"]:
            yield event
            event = next(events, None)
        request["ordinal"] = number
        yield request
    while event is not None:
        yield event
        event = next(events, None)


def _dicts(batch: pa.RecordBatch, time: str, at_once: int = 10_000) -> Iterator[Row]:
    place = batch.schema.get_field_index(time)
    batch = batch.set_column(place, time, batch.column(time).cast(pa.int64()))
    for first in range(0, batch.num_rows, at_once):
        yield from batch.slice(first, at_once).to_pylist()
