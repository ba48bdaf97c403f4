"""The change-point log of history and of the stream, against batch: bit for bit.

The values are read through Feast's own SDK (`FeatureStore.get_historical_features`).
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.offline_project import words
from tests.support.strategies import to_batch
from tests.support.streaming_project import (
    CAB,
    PARTITIONS,
    PROJECT,
    START,
    WEATHER,
    ZONE,
    Arrived,
    PlainStream,
    Row,
    arrivals,
    end_of,
    poll_part,
    random_rows,
    watermark_after,
    write_log,
)
from tidemill.features.contract import MINUTE, SECOND, TIME_MIN, Int64Array
from tidemill.features.definitions import FeatureView
from tidemill.features.errors import LostPublications
from tidemill.features.feast_objects import REVISION, VALID_UNTIL
from tidemill.features.kernel.advance import Publish
from tidemill.pipelines.history.point_in_time import columns_of, values_at
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.publish import offline_history
from tidemill.pipelines.publish.changes import append_changes
from tidemill.pipelines.publish.newest_rows import release_runs
from tidemill.pipelines.publish.offline_history import log_history
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.wire_format import (
    Published,
    pack_publications,
    unpack_publications,
)
from tidemill.serving.offline.log import OfflineLog, Span
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.places import OFFLINE, StorePlaces

SHARDS = 2
KEYS = {CAB: "cab", ZONE: "zone", WEATHER: "zone"}


def entity_rows(rows: Mapping[str, list[Row]], count: int, seed: int, end_us: int) -> pa.Table:
    """Return cabs and zones (unknown and null too) with instants at, near and between events."""
    chance = np.random.default_rng(seed)
    base = np.array([row["at"] for source in ("trips", "rain") for row in rows[source]])
    at = base[chance.integers(0, len(base), count)]
    hops = np.array([30 * SECOND, MINUTE])[chance.integers(0, 2, count)]
    windows = np.array([0, 2, 3, 4, 5])[chance.integers(0, 5, count)] * MINUTE
    beside = chance.integers(-1, 2, count)
    anywhere = chance.integers(START - 5 * MINUTE, end_us, count)
    kinds = chance.integers(0, 5, count)
    at = np.select(
        [kinds == 0, kinds == 1, kinds == 2, kinds == 3],
        [at, at + 1, (at // hops + 1) * hops + windows + beside, anywhere // hops * hops + beside],
        anywhere,
    )
    cabs, zones = ("a", "b", "ç", "", "unknown", None), (1, 2, -3, 9, None)
    return pa.table(
        {
            "cab": pa.array([cabs[i] for i in chance.integers(0, len(cabs), count)], pa.string()),
            "zone": pa.array([zones[i] for i in chance.integers(0, len(zones), count)], pa.int64()),
            "event_timestamp": pa.array(np.minimum(at, end_us), pa.timestamp("us", tz="UTC")),
        }
    )


def instants_of(rows: pa.Table) -> Int64Array:
    times: Int64Array = rows.column("event_timestamp").cast(pa.int64()).to_numpy()
    return times


def joined(root: Path, rows: pa.Table) -> pa.Table:
    store = open_store(PROJECT, StorePlaces.below(root), clock="replay")
    service = store.get_feature_service(PROJECT.name)
    return store.get_historical_features(rows, service, full_feature_names=True).to_arrow()


def batch(view: FeatureView, events: Iterable[Row], rows: pa.Table) -> dict[str, pa.Array]:
    """Return the batch values of entity rows, from the given events."""
    values = values_at(
        view,
        to_batch(view.stream.schema, list(events)),
        rows.column(KEYS[view]).combine_chunks(),
        instants_of(rows),
    )
    return columns_of(view, *values)


def differing(found: Mapping[str, Any] | pa.Table, expected: Mapping[str, pa.Array]) -> Any:
    """Return which rows differ in any column, bit for bit: bool, ``(rows,)``."""
    wrong = np.zeros(len(next(iter(expected.values()))), np.bool_)
    for name, column in expected.items():
        mine = found.column(name) if isinstance(found, pa.Table) else found[name]
        for one, other in zip(words(mine), words(column), strict=True):
            wrong |= one != other
    return wrong


def log_rows(root: Path) -> dict[str, list[Row]]:
    """Return all rows of every view's log, the highest revision at each instant, in order."""
    out = {}
    for view in PROJECT.views:
        log = OfflineLog.of(root / OFFLINE, view)
        found: dict[Any, Row] = {}
        for file in log.files(TIME_MIN, -TIME_MIN):
            for row in pa.parquet.read_table(file, partitioning=None).to_pylist():
                place = (str(row[view.entity.join_key]), row["event_timestamp"])
                if place not in found or found[place][REVISION] < row[REVISION]:
                    found[place] = row
        out[view.name] = [found[place] for place in sorted(found)]
    return out


def write_history(root: Path, rows: Mapping[str, list[Row]], seed: int, end_us: int) -> None:
    write_log(root / "build", PROJECT, arrivals(PROJECT, rows, PARTITIONS, random.Random(seed)))
    until = {view.name: end_us for view in PROJECT.views}
    log_history(PROJECT.views, Log(root / "build"), root / OFFLINE, shards=SHARDS, until_us=until)


def test_100_000_pairs_of_history_are_what_batch_computes(tmp_path: Path) -> None:
    rows = random_rows(11, trips=800, hails=1)
    end = end_of(rows) + 20 * MINUTE
    write_history(tmp_path, rows, 11, end)
    asked = entity_rows(rows, 100_000, 12, end)
    found = joined(tmp_path, asked)
    for view in PROJECT.views:
        wrong = differing(found, batch(view, rows[view.stream.name], asked))
        assert int(wrong.sum()) == 0


@pytest.mark.parametrize("seed", range(3))
def test_log_is_the_same_however_history_is_sliced(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows(seed)
    # All events have the same time: a slice cannot be smaller.
    rows["trips"] += [{**row, "trip": f"x{i}", "at": START} for i, row in enumerate(rows["trips"])]
    end = end_of(rows) + 20 * MINUTE
    whole = {}
    for events in (65_536, 100, 7, 1):
        monkeypatch.setattr(offline_history, "SLICE_EVENTS", events)
        root = tmp_path / str(events)
        write_history(root, rows, seed, end)
        whole[events] = log_rows(root)
    assert len(whole[65_536]["cab"]) > 100
    assert all(found == whole[65_536] for found in whole.values())


def test_history_ends_at_positions_and_an_instant(tmp_path: Path) -> None:
    rows = random_rows(4)
    arrived = arrivals(PROJECT, rows, PARTITIONS, random.Random(4))
    write_log(tmp_path / "build", PROJECT, arrived)
    positions = {**{name: [9] * count for name, count in PARTITIONS.items()}, "trips": [30, 5]}
    seen = [
        row
        for part in arrived
        if part.source == "trips"
        for row in part.rows[: positions["trips"][part.partition]]
    ]
    until = sorted(row["at"] for row in seen)[-2] + 1
    log_history(
        PROJECT.views,
        Log(tmp_path / "build"),
        tmp_path / OFFLINE,
        shards=SHARDS,
        until_us={view.name: until for view in PROJECT.views},
        positions=positions,
    )
    asked = entity_rows(rows, 5_000, 5, until)
    found = joined(tmp_path, asked)
    assert not differing(found, batch(CAB, seen, asked)).any()
    assert differing(found, batch(CAB, rows["trips"], asked)).any()


# The stream's releases, with every change point.


class EveryChange(PlainStream):
    """The stream's operators, publishing every change point."""

    def operator(self, view: int, shard: int) -> ShardOperator:
        operator = super().operator(view, shard)
        operator.publish = Publish.EVERY
        return operator


@dataclass(frozen=True)
class Streamed:
    """The record of a stream that has run.

    Attributes:
        arrived: Its log.
        polls: The position of each partition after each poll.
        runs: The publications of its operators, release by release.
    """

    arrived: list[Arrived]
    polls: list[list[int]]
    runs: list[Published]


def stream(
    rows: Mapping[str, list[Row]], arrived: list[Arrived], polls: int, seed: int
) -> Streamed:
    """Run a stream over a log; each poll reads the rows that have arrived by some instant."""
    chance = random.Random(seed)
    end = end_of(rows) + 20 * MINUTE
    first, last = START, max(part.received_us[-1] for part in arrived)
    cuts = sorted(chance.randint(first, last) for _ in range(polls - 1))
    ends = [[bisect.bisect(part.received_us, cut) for part in arrived] for cut in [*cuts, last]]
    plain = EveryChange(PROJECT, SHARDS, PARTITIONS)
    before = [0] * len(arrived)
    for number, stops in enumerate(ends):
        final = number == polls - 1
        parts = tuple(
            poll_part(
                PROJECT, part, start, stop, end if final else watermark_after(PROJECT, part, stop)
            )
            for part, start, stop in zip(arrived, before, stops, strict=True)
        )
        plain.run([Poll(number + 1, number, parts)])
        before = stops
    runs = [
        unpack_publications(pack_publications(plain.operator(view, shard), release))
        for view, shard, release in plain.releases
    ]
    return Streamed(arrived, ends, runs)


def late_arrivals(rows: Mapping[str, list[Row]], seed: int) -> list[Arrived]:
    """Deal rows to partitions; some trips come after their partition's watermark, none too late."""
    chance = random.Random(seed)
    out = []
    for part in arrivals(PROJECT, rows, PARTITIONS, chance):
        if part.source != "trips":
            out.append(part)
            continue
        held = [
            (at + chance.randint(11, 29) * SECOND if chance.random() < 0.25 else at, number, row)
            for number, (at, row) in enumerate(zip(part.received_us, part.rows, strict=True))
        ]
        held.sort(key=lambda one: one[:2])
        out.append(Arrived("trips", part.partition, [r for *_, r in held], [a for a, *_ in held]))
    return out


def visible_from(streamed: Streamed, view: FeatureView, end_us: int) -> dict[int, int]:
    """Return the instant from which each event counts, by row, from the log and its watermarks.

    An event is applied by the first poll after which it is read and below every watermark; it
    counts from a microsecond past its time, or from the frontier before that poll.
    """
    mine = [
        index
        for index, part in enumerate(streamed.arrived)
        if part.source in (view.stream.name, PROJECT.request.name)
    ]
    frontier = TIME_MIN
    out: dict[int, int] = {}
    for number, stops in enumerate(streamed.polls):
        final = number == len(streamed.polls) - 1
        reached = min(
            end_us
            if final
            else max(
                watermark_after(PROJECT, streamed.arrived[i], polled[i])
                for polled in streamed.polls[: number + 1]
            )
            for i in mine
        )
        for index in mine:
            part = streamed.arrived[index]
            for row in part.rows[: stops[index]] if part.source == view.stream.name else ():
                time = row[PROJECT.definition(part.source).time_column]
                if id(row) not in out and time < reached:
                    out[id(row)] = max(time + 1, frontier)
        frontier = max(frontier, reached)
    return out


def append_all(root: Path, runs: Iterable[Published]) -> None:
    """Append releases one by one."""
    for run in runs:
        append_changes(PROJECT, root / OFFLINE, SHARDS, [run])


def append_bundle(root: Path, releases: list[Published]) -> None:
    """Append the releases of a bundle of one shard."""
    for run in release_runs(releases):
        append_changes(PROJECT, root / OFFLINE, SHARDS, run)


@pytest.mark.parametrize("seed", range(4))
def test_late_events_differ_from_their_time_to_the_frontier_and_nowhere_else(
    tmp_path: Path, seed: int
) -> None:
    rows = random_rows(seed + 20, trips=300, hails=300)
    # One row for each trip: an equal, earlier row would hide that the other is late.
    rows["trips"] = list({row["trip"]: row for row in rows["trips"]}.values())
    end = end_of(rows) + 20 * MINUTE
    streamed = stream(rows, late_arrivals(rows, seed), 80, seed)
    append_all(tmp_path, streamed.runs)
    asked = entity_rows(rows, 20_000, seed, end)
    found = joined(tmp_path, asked)
    times = instants_of(asked)
    for view in (CAB, ZONE):
        visible = visible_from(streamed, view, end)
        late = [row for row in rows["trips"] if visible[id(row)] > row["at"] + 1]
        assert 5 < len(late) < 150
        complete = batch(view, rows["trips"], asked)
        hidden = np.zeros((len(late), len(asked)), np.bool_)
        keys = np.array(asked.column(KEYS[view]).to_pylist(), dtype=object)
        for index, row in enumerate(late):
            within = (times > row["at"]) & (times < visible[id(row)])
            hidden[index] = within & (keys == row[KEYS[view]])
        wrong = differing(found, complete)
        # Values differ nowhere else, and there they are those without the hidden events.
        assert not (wrong & ~hidden.any(axis=0)).any()
        for pattern in np.unique(hidden.T, axis=0):
            those = np.flatnonzero((pattern == hidden.T).all(axis=1))
            gone = {id(row) for row, is_gone in zip(late, pattern, strict=True) if is_gone}
            seen = [row for row in rows["trips"] if id(row) not in gone]
            part = asked.take(pa.array(those))
            assert not differing(found.take(pa.array(those)), batch(view, seen, part)).any()
        if view is CAB:  # its count covers every late event, so it always differs
            assert (wrong == hidden.any(axis=0)).all()
            assert wrong.sum() > 100


def test_where_nothing_is_late_the_stream_logs_what_history_logs(tmp_path: Path) -> None:
    rows = random_rows(31)
    end = end_of(rows) + 20 * MINUTE
    arrived = arrivals(PROJECT, rows, PARTITIONS, random.Random(31))
    streamed = stream(rows, arrived, 25, 31)
    append_all(tmp_path / "stream", streamed.runs)
    write_log(tmp_path / "history" / "build", PROJECT, arrived)
    until = {view.name: end for view in PROJECT.views}
    root = tmp_path / "history"
    log_history(PROJECT.views, Log(root / "build"), root / OFFLINE, shards=SHARDS, until_us=until)
    assert log_rows(tmp_path / "stream") == log_rows(tmp_path / "history")
    for view in PROJECT.views:
        assert OfflineLog.of(tmp_path / "stream" / OFFLINE, view).reached() == Span(TIME_MIN, end)


def test_repeated_and_joined_bundles_change_nothing(tmp_path: Path) -> None:
    rows = random_rows(32)
    arrived = arrivals(PROJECT, rows, PARTITIONS, random.Random(32))
    streamed = stream(rows, arrived, 12, 32)
    append_all(tmp_path / "once", streamed.runs)
    chance = random.Random(32)
    for view in PROJECT.views:
        for shard in range(SHARDS):
            mine = [run for run in streamed.runs if (run.view, run.shard) == (view.name, shard)]
            for first in range(0, len(mine), 3):
                for _ in range(chance.randint(1, 2)):
                    append_bundle(tmp_path / "again", mine[first : first + 3])
                again = mine[max(first - 2, 0) : first + 1]
                append_bundle(tmp_path / "again", again)
    assert log_rows(tmp_path / "again") == log_rows(tmp_path / "once")


def test_release_that_overtook_another_is_refused(tmp_path: Path) -> None:
    rows = random_rows(33)
    arrived = arrivals(PROJECT, rows, PARTITIONS, random.Random(33))
    mine = [r for r in stream(rows, arrived, 12, 33).runs if (r.view, r.shard) == ("cab", 0)]
    first, *rest = [run for run in mine if run.since_us != run.frontier_us]
    append_all(tmp_path, [first])
    with pytest.raises(LostPublications, match="those between are missing"):
        append_all(tmp_path, rest[1:])
    append_all(tmp_path, rest)


def test_stream_goes_on_where_history_ends(tmp_path: Path) -> None:
    rows = random_rows(34)
    end = end_of(rows) + 20 * MINUTE
    arrived = arrivals(PROJECT, rows, PARTITIONS, random.Random(34))
    streamed = stream(rows, arrived, 25, 34)
    write_log(tmp_path / "build", PROJECT, arrived)
    # History up to the frontier of each view's seventh release, then the stream.
    until, rest = {}, []
    for view in PROJECT.views:
        mine = [run for run in streamed.runs if run.view == view.name and run.since_us is not None]
        until[view.name] = sorted({run.frontier_us for run in mine})[7]
        rest += [run for run in mine if run.frontier_us > until[view.name]]
    log_history(
        PROJECT.views, Log(tmp_path / "build"), tmp_path / OFFLINE, shards=SHARDS, until_us=until
    )
    append_all(tmp_path, rest)
    asked = entity_rows(rows, 10_000, 34, end)
    found = joined(tmp_path, asked)
    for view in PROJECT.views:
        assert not differing(found, batch(view, rows[view.stream.name], asked)).any()


def test_no_publication_is_overrun(tmp_path: Path) -> None:
    rows = random_rows(35)
    end = end_of(rows) + 20 * MINUTE
    write_history(tmp_path, rows, 35, end)
    for view in PROJECT.views:
        by_entity: dict[Any, list[Row]] = {}
        for row in log_rows(tmp_path)[view.name]:
            by_entity.setdefault(row[view.entity.join_key], []).append(row)
        for mine in by_entity.values():
            times = [int(row["event_timestamp"].timestamp() * 1e6 + 0.5) for row in mine]
            untils = [row[VALID_UNTIL] for row in mine]
            assert all(t < u for t, u in zip(times, untils, strict=True))
            assert all(n <= u for n, u in zip(times[1:], untils, strict=False))
            assert untils[-1] == -TIME_MIN, "in the end an entity is empty, for ever"
