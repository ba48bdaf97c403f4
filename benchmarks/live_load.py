"""A producer in a process of its own: payments and checks of now, one row a message, at a rate.

    python -m benchmarks.live_load FOLDER BOOTSTRAP PAYMENTS CHECKS ROWS_PER_SECOND SECONDS

Every fourth row is a request. A row's time is when it is sent, so a reader of the predictions knows
how long each took. Without a rate (0) all rows are sent at once; their times are those of sending.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from typing import Final

import numpy as np
from kafka import KafkaProducer

CARDS: Final = 1_000
PARTITIONS: Final = 2
REQUEST_EVERY: Final = 4
_REST_S: Final = 0.002


def message(number: int, card: int) -> tuple[bool, bytes]:
    """Return whether a row is a request, and its message."""
    now = f"{np.datetime64(time.time_ns() // 1_000, 'us')}Z"
    is_request = number % REQUEST_EVERY == 0
    if is_request:
        row = {"check": f"c-{number}", "asked_at": now, "card": f"c-{card}", "wanted": 1.5}
    else:
        row = {"payment": f"p-{number}", "paid_at": now, "card": f"c-{card}", "amount": 2.25}
    return is_request, json.dumps(row).encode()


def main(arguments: Sequence[str]) -> None:
    """Send."""
    bootstrap, payments, checks, rate, amount = arguments
    per_second, total = float(rate), float(amount)
    count = round(per_second * total) if per_second else round(total)
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=2)
    chance, began, sent = random.Random(1), time.monotonic(), 0
    while sent < count:
        due = count
        if per_second:
            due = min(count, round((time.monotonic() - began) * per_second))
        while sent < due:
            card = chance.randrange(CARDS)
            is_request, value = message(sent, card)
            producer.send(checks if is_request else payments, value, partition=card % PARTITIONS)
            sent += 1
        time.sleep(_REST_S)
    producer.flush()
    producer.close()


if __name__ == "__main__":
    main(sys.argv[1:])
