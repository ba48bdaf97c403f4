"""Messages of a topic, decoded and judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tidemill.features.definitions import EventStream
from tidemill.features.rows import rejected
from tidemill.pipelines.io.files.judged_rows import Counts, Judge
from tidemill.pipelines.io.messages import Headers, Messages
from tidemill.pipelines.io.payloads.decoding import Decoded, Decoder


def messages(
    values: Sequence[bytes | None],
    *,
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Headers] | None = None,
    first: int = 100,
    step: int = 1,
) -> Messages:
    """Messages of partition 3 of a topic, at every ``step``-th offset."""
    count = len(values)
    return Messages(
        "orders",
        3,
        first + step * np.arange(count, dtype=np.int64),
        1_700_000_000_000_000 + 1000 * np.arange(count, dtype=np.int64),
        [None] * count if keys is None else keys,
        values,
        [()] * count if headers is None else headers,
    )


def rows_of(decoded: Sequence[Decoded]) -> list[dict[str, Any]]:
    """Return all readable rows."""
    return [row for part in decoded for row in part.raw.batch.to_pylist()]


def rejected_of(decoded: Sequence[Decoded]) -> list[dict[str, Any]]:
    """Return all rejected records."""
    return [row for part in decoded for row in part.raw.rejected.to_pylist()]


def faults_of(decoded: Sequence[Decoded]) -> list[tuple[int, str]]:
    """Return the position and the reason of every rejected record."""
    return [(row["position"], row["reason"]) for row in rejected_of(decoded)]


def judged(
    definition: EventStream, decoder: Decoder, given: Messages, **options: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Counts]:
    """Return the accepted rows, each with its position, the rejected records, and the counts."""
    judge, counts = Judge(definition, [], **options), Counts()
    rows: list[dict[str, Any]] = []
    refused: list[pa.RecordBatch] = []
    for part in decoder.decode(given, 0):
        batch = judge.judge(part.raw)
        counts += batch.counts
        for row, position in zip(batch.batch.to_pylist(), batch.positions.tolist(), strict=True):
            rows.append({**row, "position": position})
        refused.append(batch.rejected)
    return rows, rejected.concat(refused).to_pylist(), counts


def checked(decoded: Sequence[Decoded], first: int) -> None:
    """Check that every row has one position, one origin and one offset."""
    for part in decoded:
        raw = part.raw
        places = np.concatenate([raw.positions, raw.rejected["position"].to_numpy()])
        assert part.first_position == first
        assert sorted(places.tolist()) == list(range(first, first + len(part)))
        assert len(part.offsets) == len(part.numbers) == len(part) > 0
        assert (np.diff(part.offsets) >= 0).all()
        everything = np.arange(raw.batch.num_rows)
        assert raw.batch.num_rows == len(raw.positions)
        assert len(raw.origins(everything)) == len(raw.payloads(everything)) == len(everything)
        first += len(part)
