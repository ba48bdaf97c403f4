"""Send December's flights to the topics, in the order in which they happened, at a speed.

    python -m tidemill.examples.flights.live_producer FOLDER BROKER SPEED

Every message is a JSON object; its timestamp is the time of the event. It ends when all is sent, or
with SIGTERM.
"""

from __future__ import annotations

import datetime
import heapq
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kafka import KafkaProducer

from tidemill.examples.flights.live_data import live_rows
from tidemill.examples.flights.live_project import project


def messages(folder: Path) -> Iterator[tuple[datetime.datetime, str, dict[str, Any]]]:
    """Yield time, source and row of everything that is to be sent, by time."""
    names = [*(stream.name for stream in project.streams), project.request.name]

    def of(name: str) -> Iterator[tuple[datetime.datetime, str, dict[str, Any]]]:
        column = project.definition(name).time_column
        return ((row[column], name, row) for row in live_rows(folder, name))

    return heapq.merge(*(of(name) for name in names), key=lambda one: one[:2])


def send(folder: Path, broker: str, speed: float) -> int:
    """Send everything; return how many messages it were.

    Args:
        folder: What `live_data.prepare` has written.
        broker: ``HOST:PORT``.
        speed: How many times faster than it happened.
    """
    producer = KafkaProducer(bootstrap_servers=broker, linger_ms=5)
    first: datetime.datetime | None = None
    began, count = time.monotonic(), 0
    for at, name, row in messages(folder):
        first = first or at
        wait_s = (at - first).total_seconds() / speed - (time.monotonic() - began)
        if wait_s > 0.001:
            time.sleep(wait_s)
        key = str(next(iter(row.values()))).encode()
        value = json.dumps(row, default=_written).encode()
        producer.send(name, value, key=key, timestamp_ms=round(at.timestamp() * 1_000))
        count += 1
    producer.flush()
    producer.close()
    return count


def _written(value: datetime.datetime) -> str:
    return value.isoformat()


if __name__ == "__main__":
    print(f"{send(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])):,} messages sent")
