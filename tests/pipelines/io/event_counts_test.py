"""Counts of duplicates, conflicts and events without a key, beside a row-by-row specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill import Entity, EventStream, FeatureView, count
from tidemill.pipelines.io import event_counts
from tidemill.pipelines.io.event_counts import EventCounter, EventCounts, count_logged
from tidemill.pipelines.io.log import Log

STREAM = EventStream(
    "taps",
    schema={"at": "timestamp", "id": "string", "got": "int64", "card": "string", "gate": "int64"},
    event_time="at",
    event_id="id",
    transport=["got"],
)
VIEWS = [
    FeatureView(name, entity, STREAM, hop="1h", features={"n": count(over="1d")})
    for name, entity in (
        ("by_card", Entity("card")),
        ("by_gate", Entity("gate", dtype="int64")),
    )
]
SCHEMA = pa.schema(
    [
        ("at", pa.timestamp("us", tz="UTC")),
        ("id", pa.string()),
        ("got", pa.int64()),
        ("card", pa.string()),
        ("gate", pa.int64()),
    ]
)


class Tap(NamedTuple):
    """An event: its columns, and when it arrived."""

    at: int
    id: str
    got: int
    card: str | None
    gate: int | None


TAPS = st.builds(
    Tap,
    at=st.integers(0, 1),
    id=st.sampled_from("ab"),
    got=st.integers(0, 5),
    card=st.sampled_from(["x", None]),
    gate=st.sampled_from([1, None]),
)
PARTITIONS = st.lists(st.lists(TAPS, max_size=8), min_size=1, max_size=3)


def table(taps: list[Tap]) -> pa.Table:
    return pa.Table.from_pylist([tap._asdict() for tap in taps], schema=SCHEMA)


def specified(partitions: list[list[Tap]], since: list[int], until: list[int]) -> EventCounts:
    """Count row by row, in the order of receipt, then of partition and position."""
    rows = [
        (tap.got, number, position, tap)
        for number, taps in enumerate(partitions)
        for position, tap in enumerate(taps[: until[number]])
    ]
    duplicates = conflicts = 0
    events: set[Any] = set()
    ids: set[str] = set()
    without = {"by_card": 0, "by_gate": 0}
    for _, number, position, tap in sorted(rows, key=lambda row: row[:3]):
        identity = tap._replace(got=0)
        if position >= since[number]:
            duplicates += identity in events
            conflicts += identity not in events and tap.id in ids
            without["by_card"] += tap.card is None
            without["by_gate"] += tap.gate is None
        events.add(identity)
        ids.add(tap.id)
    return EventCounts(duplicates, conflicts, without)


@pytest.mark.parametrize("held", [1_000, 0, 3])
@given(partitions=PARTITIONS, data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_counts_of_a_part_of_a_log_are_those_of_the_specification(
    partitions: list[list[Tap]],
    data: st.DataObject,
    held: int,
    tmp_path_factory: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many events are held in memory: the others are in files."""
    monkeypatch.setattr(event_counts, "HELD_ROWS", held)
    partitions = [sorted(taps, key=lambda tap: tap.got) for taps in partitions]
    folder = Path(tmp_path_factory.mktemp("build"))
    log = Log(folder)
    for number, taps in enumerate(partitions):
        received = np.array([tap.got for tap in taps], np.int64)
        log.write(STREAM, number, table(taps), received)
    until = [data.draw(st.integers(0, len(taps))) for taps in partitions]
    since = [data.draw(st.integers(0, stop)) for stop in until]
    found = count_logged(log, STREAM, VIEWS, since, until, folder / "counted")
    assert found == specified(partitions, since, until)


def test_no_events_have_no_counts(tmp_path: Path) -> None:
    counts = EventCounter(STREAM, VIEWS, tmp_path).counts(list)
    assert counts == EventCounts(0, 0, {"by_card": 0, "by_gate": 0})
    assert counts.as_figures() == {"duplicates": 0, "conflicts": 0, "without_key": {}}
