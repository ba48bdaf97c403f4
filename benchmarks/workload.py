"""What every benchmark runs on: payments by card, and the features asked of them.

Of all rows 60 % are events (payments) and 40 % requests. Both are spread evenly over 30 hours and
over the cards, so most tiles hold one event: that is the hard case for anything that keeps tiles.
Amounts are float64 in cents, 5 % of them null.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill import (
    Entity,
    EventStream,
    FeatureView,
    Request,
    col,
    count,
    distinct_count,
    last,
    max,
    mean,
    min,
    quantile,
    rate,
    sum,
    variance,
)
from tidemill.features.contract import DAY, HOUR, MINUTE, Int64Array
from tidemill.features.definitions import ARROW_TYPES, Aggregation, Schema
from tidemill.features.kernel.hashing import shard_of

HOP: Final = "5m"
HOP_US: Final = 5 * MINUTE
START_US: Final = 1_700_000_000_000_000 // DAY * DAY
SPAN_US: Final = 30 * HOUR
EVENT_SHARE: Final = 0.6
NULL_SHARE: Final = 0.05
ROWS_PER_CARD: Final = 50
"""20,000 cards in a million rows; a larger history has more cards, not busier ones."""

_EVENT_SCHEMA: Final[Schema] = {
    "payment_id": "string",
    "paid_at": "timestamp",
    "card": "string",
    "amount": "float64",
    "shop": "string",
}
_REQUEST_SCHEMA: Final[Schema] = {
    "request_id": "string",
    "asked_at": "timestamp",
    "card": "string",
}

PAYMENTS: Final = EventStream(
    "payments", schema=_EVENT_SCHEMA, event_time="paid_at", event_id="payment_id"
)
CARD: Final = Entity("card")
REQUEST: Final = Request(
    "authorisation", schema=_REQUEST_SCHEMA, request_time="asked_at", request_id="request_id"
)

LARGE: Final = 100.0
"""The rate is of payments above it."""
QUANTILE: Final = 0.9

TWELVE: Final[dict[str, Aggregation]] = {
    "count_1h": count(over="1h"),
    "count_1d": count(over="1d"),
    "sum_6h": sum(col("amount"), over="6h"),
    "mean_1h": mean(col("amount"), over="1h"),
    "mean_1d": mean(col("amount"), over="1d"),
    "variance_1d": variance(col("amount"), over="1d"),
    "min_6h": min(col("amount"), over="6h"),
    "max_1d": max(col("amount"), over="1d"),
    "last_1d": last(col("amount"), over="1d"),
    "quantile_1d": quantile(col("amount"), QUANTILE, over="1d"),
    "distinct_1d": distinct_count(col("shop"), over="1d"),
    "rate_6h": rate(col("amount") > LARGE, over="6h"),
}
"""The twelve features of the kernel's and the streaming benchmark."""

FIVE: Final[dict[str, Aggregation]] = {
    f"{name}_{over}": aggregation
    for over in ("1h", "1d")
    for name, aggregation in {
        "count": count(over=over),
        "sum": sum(col("amount"), over=over),
        "mean": mean(col("amount"), over=over),
        "max": max(col("amount"), over=over),
        "last": last(col("amount"), over=over),
    }.items()
}
"""Five aggregations, each over two windows: what every peer can do."""

THIRTY_SIX: Final[dict[str, Aggregation]] = {
    f"{name.rsplit('_', 1)[0]}_{index}_{over}": replace(aggregation, over=over)
    for index, (name, aggregation) in enumerate(TWELVE.items())
    for over in ("1h", "6h", "1d")
}
"""The twelve, each over every one of the three windows."""


def make_view(features: dict[str, Aggregation]) -> FeatureView:
    """Return the view of the payments with these features."""
    return FeatureView("card", entity=CARD, stream=PAYMENTS, hop=HOP, features=features)


@dataclass(frozen=True)
class Workload:
    """Events and requests, each sorted by time.

    Attributes:
        events: Validated rows of `PAYMENTS`, ``(events,)``.
        requests: Validated requests, ``(requests,)``.
        until_us: An instant after all of them.
    """

    events: pa.RecordBatch
    requests: pa.RecordBatch
    until_us: int

    @property
    def rows(self) -> int:
        """Events and requests."""
        return int(self.events.num_rows + self.requests.num_rows)

    @property
    def event_times(self) -> Int64Array:
        """int64, ``(events,)``: ascending."""
        return times_of(self.events, PAYMENTS.event_time)

    @property
    def request_times(self) -> Int64Array:
        """int64, ``(requests,)``: ascending."""
        return times_of(self.requests, REQUEST.request_time)

    def shards(self, number: int) -> list[tuple[Int64Array, Int64Array]]:
        """Return the rows of each shard: indices of events and of requests, ascending."""
        of_events = shard_of(self.events.column("card"), number)
        of_requests = shard_of(self.requests.column("card"), number)
        return [
            (np.flatnonzero(of_events == shard), np.flatnonzero(of_requests == shard))
            for shard in range(number)
        ]


def times_of(batch: pa.RecordBatch, column: str) -> Int64Array:
    """Return a timestamp column as int64 microseconds, ``(rows,)``."""
    times: Int64Array = batch.column(column).cast(pa.int64()).to_numpy()
    return times


def make_workload(rows: int, cards: int | None = None, seed: int = 1) -> Workload:
    """Make events and requests.

    Args:
        rows: Events and requests together.
        cards: How many cards there are; by default one for every `ROWS_PER_CARD` rows.
        seed: Of the random numbers.

    Returns:
        The same rows for the same arguments.
    """
    chance = np.random.default_rng(seed)
    n_events = round(rows * EVENT_SHARE)
    n_requests = rows - n_events
    cards = cards or -(-rows // ROWS_PER_CARD)
    times = START_US + np.sort(chance.integers(0, SPAN_US, n_events))
    asked = START_US + np.sort(chance.integers(0, SPAN_US, n_requests))
    events = make_events(times, chance.integers(0, cards, n_events), chance)
    requests = pa.RecordBatch.from_arrays(
        [
            numbered("r", np.arange(n_requests)),
            pa.array(asked, ARROW_TYPES["timestamp"]),
            numbered("card", chance.integers(0, cards, n_requests)),
        ],
        schema=_arrow_schema(_REQUEST_SCHEMA),
    )
    return Workload(events, requests, START_US + SPAN_US)


def make_events(
    times: Int64Array, cards: Int64Array, chance: np.random.Generator, first_id: int = 0
) -> pa.RecordBatch:
    """Make payments.

    Args:
        times: int64, ``(rows,)``: when, microseconds.
        cards: int64, ``(rows,)``: the number of the card of each.
        chance: Random numbers for amounts and shops.
        first_id: The number of the first payment.

    Returns:
        Validated rows of `PAYMENTS`, ``(rows,)``.
    """
    rows = len(times)
    amounts = np.round(chance.lognormal(3.5, 1.0, rows), 2)
    return pa.RecordBatch.from_arrays(
        [
            numbered("p", first_id + np.arange(rows)),
            pa.array(times, ARROW_TYPES["timestamp"]),
            numbered("card", cards),
            pa.array(amounts, pa.float64(), mask=chance.random(rows) < NULL_SHARE),
            numbered("shop", chance.integers(0, 200, rows)),
        ],
        schema=_arrow_schema(_EVENT_SCHEMA),
    )


def numbered(prefix: str, numbers: npt.NDArray[np.int64]) -> pa.Array:
    """Return texts such as ``card0000042``: string, ``(rows,)``."""
    width = len(prefix) + 8
    digits = numbers[:, None] // 10 ** np.arange(7, -1, -1) % 10 + ord("0")
    data = np.empty((len(numbers), width), np.uint8)
    data[:, : len(prefix)] = np.frombuffer(prefix.encode(), np.uint8)
    data[:, len(prefix) :] = digits
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * width
    return pa.Array.from_buffers(
        pa.string(), len(numbers), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )


def _arrow_schema(schema: Schema) -> pa.Schema:
    return pa.schema([(name, ARROW_TYPES[dtype]) for name, dtype in schema.items()])
