"""A producer in a process of its own: payments and checks of now, at a rate.

    python -m benchmarks.live_load BOOTSTRAP PAYMENTS CHECKS ROWS_PER_SECOND AMOUNT [ROWS FORMAT]

Every fourth message has requests. A row's time is when it is sent, so a reader of the predictions
knows how long each took. AMOUNT is seconds; without a rate (0) it is rows, which are all sent at
once. A message has so many ROWS (1), in a FORMAT (json or arrow).
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from kafka import KafkaProducer

CARDS: Final = 1_000
PARTITIONS: Final = 2
REQUEST_EVERY: Final = 4
_REST_S: Final = 0.002

Make = Callable[[bool, int, Sequence[int]], bytes]
"""Makes the message of some rows: whether they are requests, the number of the first, cards."""


def one_object(is_request: bool, number: int, cards: Sequence[int]) -> bytes:
    """Return a JSON object: the message of one row."""
    return json.dumps(row_of(is_request, str(number), cards[0], _now())).encode()


def array_of_objects(is_request: bool, number: int, cards: Sequence[int]) -> bytes:
    """Return a JSON array."""
    now = _now()
    rows = [row_of(is_request, str(number + n), card, now) for n, card in enumerate(cards)]
    return json.dumps(rows).encode()


def arrow_stream(is_request: bool, number: int, cards: Sequence[int]) -> bytes:
    """Return an Arrow IPC stream of one record batch."""
    rows = len(cards)
    kind, time_column = ("check", "asked_at") if is_request else ("payment", "paid_at")
    times = pa.array(np.full(rows, time.time_ns() // 1_000), pa.timestamp("us", "UTC"))
    batch = pa.RecordBatch.from_pydict(
        {
            kind: pa.array([f"{kind[0]}-{number + n}" for n in range(rows)]),
            time_column: times,
            "card": pa.array([f"c-{card}" for card in cards]),
            "wanted" if is_request else "amount": pa.array(np.full(rows, 2.25)),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _now() -> str:
    return f"{np.datetime64(time.time_ns() // 1_000, 'us')}Z"


def row_of(is_request: bool, name: str, card: int, at: str) -> dict[str, object]:
    """Return a row: its id ends with a name, and it is of an instant."""
    if is_request:
        return {"check": f"c-{name}", "asked_at": at, "card": f"c-{card}", "wanted": 1.5}
    return {"payment": f"p-{name}", "paid_at": at, "card": f"c-{card}", "amount": 2.25}


def maker(rows: int, form: str) -> Make:
    """Return what makes messages of so many rows."""
    if form == "arrow":
        return arrow_stream
    return one_object if rows == 1 else array_of_objects


def main(arguments: Sequence[str]) -> None:
    """Send."""
    bootstrap, payments, checks, rate, amount, *more = arguments
    rows, form = (int(more[0]), more[1]) if more else (1, "json")
    make, per_second, total = maker(rows, form), float(rate), float(amount)
    count = round(per_second * total) if per_second else round(total)
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=2)
    chance, began, sent = random.Random(1), time.monotonic(), 0
    while sent < count:
        due = count
        if per_second:
            due = min(count, round((time.monotonic() - began) * per_second))
        while sent < due:
            is_request = sent // rows % REQUEST_EVERY == 0
            cards = [chance.randrange(CARDS) for _ in range(rows)]
            topic = checks if is_request else payments
            place = (cards[0] if rows == 1 else sent // rows // REQUEST_EVERY) % PARTITIONS
            producer.send(topic, make(is_request, sent, cards), partition=place)
            sent += rows
        time.sleep(_REST_S)
    producer.flush()
    producer.close()


if __name__ == "__main__":
    main(sys.argv[1:])
