"""A producer in a process of its own: payments and requests of now, at one rate after the other.

    python -m benchmarks.peers.load BOOTSTRAP PAYMENTS REQUESTS FIRST FILE SECONDS RATE [RATE ...]

FIRST is the number of the first row. When all is sent, FILE says what (`rows.Rows.save`). In the
last two seconds a few more rows come, so that no request of before waits for another row.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from confluent_kafka import Producer

from benchmarks.peers.rows import Rows, make, messages

_SETTINGS: Final = {"linger.ms": 2, "enable.idempotence": True}
_REST_S: Final = 0.002
_LAST_S: Final = 2.0
_LAST_RATE: Final = 200.0


def fill(bootstrap: str, topics: Sequence[str], rows: Rows, form: str) -> None:
    """Send rows at once, as messages of when they are said to be sent."""
    producer = Producer({"bootstrap.servers": bootstrap, "queue.buffering.max.messages": 2_000_000})
    for one in messages(rows, form):
        producer.produce(
            topics[one.asks],
            one.value,
            key=one.key,
            partition=one.partition,
            timestamp=one.sent_ms,
        )
    if left := producer.flush(60):
        raise TimeoutError(f"{left} messages were not sent in a minute")


def main(arguments: Sequence[str]) -> None:
    """Send."""
    bootstrap, payments, requests, first, file, seconds, *rates = arguments
    topics = payments, requests
    producer = Producer({"bootstrap.servers": bootstrap, **_SETTINGS})
    parts: list[Rows] = []
    number = int(first)
    phases = [(float(rate), float(seconds)) for rate in rates] + [(_LAST_RATE, _LAST_S)]
    for rate, lasts in phases:
        began, sent = time.monotonic(), 0
        while sent < rate * lasts:
            due = min(round((time.monotonic() - began) * rate), round(rate * lasts)) - sent
            if due > 0:
                now = np.full(due, time.time_ns() // 1_000_000)
                rows = make(now, number, number)
                for one in messages(rows, "rows"):
                    producer.produce(
                        topics[one.asks],
                        one.value,
                        key=one.key,
                        partition=one.partition,
                    )
                producer.poll(0)
                parts.append(rows)
                number, sent = number + due, sent + due
            time.sleep(_REST_S)
    producer.flush(60)
    Rows(
        int(first),
        *(
            np.concatenate([getattr(part, column) for part in parts])
            for column in ("sent", "times", "cards", "cents")
        ),
    ).save(Path(file))


if __name__ == "__main__":
    main(sys.argv[1:])
