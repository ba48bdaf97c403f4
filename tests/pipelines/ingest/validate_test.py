"""Validating a poll: the rows of all partitions together have the outcome that each has alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.support.streaming_project import (
    PARTITIONS,
    PROJECT,
    TRIPS,
    arrivals,
    poll_part,
    random_rows,
)
from tidemill.pipelines.ingest.validate import validated_poll
from tidemill.pipelines.io.log import POSITION
from tidemill.pipelines.io.poll import Poll, PollPart

Change = Callable[[pa.RecordBatch], pa.RecordBatch]


def poll() -> Poll:
    arrived = arrivals(PROJECT, random_rows(1), PARTITIONS, random.Random(1))
    return Poll(3, 99, tuple(poll_part(PROJECT, part, 2, 12, 1_000) for part in arrived))


def with_column(name: str, change: Callable[[pa.Array], pa.Array]) -> Change:
    def changed(rows: pa.RecordBatch) -> pa.RecordBatch:
        place = rows.schema.names.index(name)
        return rows.set_column(place, name, change(rows.column(name)))

    return changed


def first_is(value: object) -> Callable[[pa.Array], pa.Array]:
    def changed(column: pa.Array) -> pa.Array:
        first = pa.array(np.arange(len(column)) == 0)
        return pc.if_else(first, pa.scalar(value, column.type), column)

    return changed


CHANGES: dict[str, Change] = {
    "good": lambda rows: rows,
    "a time without a value": with_column("at", first_is(None)),
    "an infinite number": with_column("fare", first_is(float("inf"))),
    "minus zero": with_column("fare", first_is(-0.0)),
    "forgotten": with_column("trip", first_is(None)),
    "texts": with_column("fare", lambda column: column.cast(pa.string())),
    "other columns": lambda rows: rows.append_column("more", pa.nulls(rows.num_rows)),
}


def alone(one: Poll, part: PollPart) -> tuple[PollPart, list[pa.RecordBatch]]:
    found, refused = validated_poll(PROJECT, replace(one, parts=(part,)))
    return found.parts[0], refused


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_each_part_has_the_outcome_that_it_has_alone(change: str, *, everywhere: bool) -> None:
    made = poll()
    parts = list(made.parts)
    trips = [at for at, part in enumerate(parts) if part.source == TRIPS.name and part.rows]
    assert len(trips) > 1
    for at in trips if everywhere else trips[:1]:
        parts[at] = replace(parts[at], rows=CHANGES[change](parts[at].rows))
    made = replace(made, parts=tuple(parts))
    found, refused = validated_poll(PROJECT, made)
    expected = [alone(made, part) for part in made.parts]
    assert len(found.parts) == len(expected)
    for part, (one, _) in zip(found.parts, expected, strict=True):
        assert replace(part, rows=None) == replace(one, rows=None)
        assert (part.rows is None) == (one.rows is None)
        if part.rows is not None:
            assert part.rows.schema == one.rows.schema
            assert part.rows.equals(one.rows)
    assert [rows.to_pylist() for rows in refused] == [
        rows.to_pylist() for _, refusals in expected for rows in refusals
    ]
    assert bool(refused) == (change in {"a time without a value", "an infinite number"})


def test_rejected_rows_leave_no_gap_in_the_positions() -> None:
    made = poll()
    place = next(at for at, part in enumerate(made.parts) if part.source == TRIPS.name)
    part = made.parts[place]
    assert part.rows is not None
    bad = replace(part, rows=CHANGES["an infinite number"](part.rows))
    found, (refused,) = validated_poll(
        PROJECT, replace(made, parts=(*made.parts[:place], bad, *made.parts[place + 1 :]))
    )
    again = found.parts[place]
    assert (again.start, again.stop) == (part.start, part.stop)
    assert again.rows is not None
    positions = part.rows.column(POSITION).to_pylist()
    assert again.rows.column(POSITION).to_pylist() == positions[1:]
    assert refused.column("position").to_pylist() == positions[:1]
