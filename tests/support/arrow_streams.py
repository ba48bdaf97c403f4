"""Arrow IPC streams, whole and damaged.

As a program it decodes damaged streams with little memory to spare and prints what came of them:
a crash of the process, or its want of memory, is then the test's to see.
"""

from __future__ import annotations

import datetime
import io
import json
import random
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.support.payloads import checked, messages
from tidemill.features.definitions import BOOL, FLOAT64, INT64, STRING, TIMESTAMP, EventStream
from tidemill.pipelines.io.files.judged_rows import Judge
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.payloads.arrow_rows import ArrowDecoder

SPARE_BYTES = 1 << 30
STREAM = EventStream(
    "orders",
    schema={
        "at": TIMESTAMP,
        "id": STRING,
        "n": INT64,
        "x": FLOAT64,
        "ok": BOOL,
        "kind": STRING,
        "seen": STRING,
    },
    event_time="at",
    event_id="id",
)


def stream(*batches: pa.RecordBatch, **options: Any) -> bytes:
    """Return batches of one schema as a stream."""
    sink = io.BytesIO()
    written = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_stream(sink, batches[0].schema, options=written) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()


def typed_rows(count: int, first: int = 0) -> pa.RecordBatch:
    """Rows of `STREAM`, and columns of further types."""
    numbers = list(range(first, first + count))
    at = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    times = [at + datetime.timedelta(seconds=n) for n in numbers]
    return pa.record_batch(
        {
            "at": pa.array(times, pa.timestamp("us", "UTC")),
            "id": [f"order {n}" for n in numbers],
            "n": [None if n % 5 == 0 else n for n in numbers],
            "x": [n / 7 for n in numbers],
            "ok": [n % 2 == 0 for n in numbers],
            "kind": pa.array(["red", "green", None] * count).slice(0, count).dictionary_encode(),
            "seen": pa.array(
                [f"a text of more than twelve {n}" for n in numbers], pa.string_view()
            ),
            "list": [[n] * (n % 3) for n in numbers],
            "struct": [{"a": n, "b": str(n)} for n in numbers],
            "nothing": pa.nulls(count),
            "money": pa.array([Decimal(n) for n in numbers], pa.decimal128(20, 2)),
            "day": pa.array(numbers, pa.int32()).cast(pa.date32()),
            "large": pa.array([f"{n}" for n in numbers], pa.large_string()),
            "bytes": pa.array([b"\xff" * n for n in numbers], pa.binary()),
        }
    )


def whole_streams() -> list[bytes]:
    """Streams of many types, of several batches, in every compression."""
    batches = [typed_rows(9), typed_rows(7, first=9)]
    return [stream(*batches, compression=kind) for kind in (None, "lz4", "zstd")]


def damaged(whole: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield copies with some bytes changed, cut off or doubled."""
    chance = random.Random(seed)
    for number in range(count):
        changed = bytearray(whole)
        if number % 10 == 9:
            cut = chance.randrange(len(whole))
            yield whole[:cut] + (whole[cut // 2 :] if number % 20 == 19 else b"")
            continue
        for _ in range(chance.choice([1, 1, 2, 5])):
            place = chance.randrange(len(changed))
            changed[place] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        if number % 4 == 3:
            place = 8 * chance.randrange(len(changed) // 8)
            changed[place : place + 8] = chance.choice(
                [b"\xff" * 8, b"\xff" * 7 + b"\x7f", (1 << 40).to_bytes(8, "little"), bytes(8)]
            )
        yield bytes(changed)


def outcome(value: bytes) -> str:
    """Decode and judge a message as a source does; return what came of it."""
    decoded = list(ArrowDecoder(Reader("orders", None)).decode(messages([value]), 0))
    checked(decoded, 0)
    if decoded and decoded[0].raw.batch.num_rows == 0 and len(decoded[0]) == 1:
        return str(decoded[0].raw.rejected["reason"][0])
    for part in decoded:
        everything = np.arange(part.raw.batch.num_rows)
        assert all(part.raw.payloads(everything))
        Judge(STREAM, []).judge(part.raw)
    return "decoded"


def _memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _peak() -> int:
    """Return the most memory that this program has had, in KiB.

    ``ru_maxrss`` begins with the size of the process that has started it.
    """
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1])


def main(count: int) -> None:
    streams = whole_streams()
    assert [outcome(one) for one in streams] == ["decoded"] * len(streams)
    limit = _memory() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = _peak()
    found: Counter[str] = Counter()
    for seed, whole in enumerate(streams):
        for changed in damaged(whole, count, seed):
            found[outcome(changed)] += 1
    grown = _peak() - before
    print(json.dumps({"outcomes": found, "grown_bytes": grown * 1024}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
