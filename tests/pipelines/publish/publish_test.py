"""Publish: the kernel's publications reach the online store and the offline log."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.driver import values_of
from tests.support.streaming_project import (
    ENGINES,
    PARTITIONS,
    PROJECT,
    START,
    PlainStream,
    arrivals,
    newest_publications,
    pipeline_on,
    random_polls,
    random_rows,
)
from tidemill.features.contract import MINUTE
from tidemill.features.errors import ConflictingPublication, LostPublications
from tidemill.features.kernel.prepare import KEY
from tidemill.pipelines.engines.choosing import run
from tidemill.pipelines.publish import publish as module
from tidemill.pipelines.publish.newest_rows import joined_releases, newest_per_entity
from tidemill.pipelines.publish.publish import Publish
from tidemill.pipelines.stream.operator import Release
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream.publications import named_publications
from tidemill.pipelines.stream.wire_format import Published, pack_publications
from tidemill.serving import publications
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.cells import decode_cells
from tidemill.serving.online.database import Parcel
from tidemill.serving.online.rows import KeySpace, online_keys
from tidemill.serving.online.sqlite.database import SqliteDatabase
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.online_places import default_place
from tidemill.serving.stores.places import OFFLINE, StorePlaces

Releases = list[tuple[int, int, Release]]


def releases(seed: int, mode: Mode = Mode.EXACT, polls: int = 10) -> Releases:
    chance = random.Random(seed)
    arrived = arrivals(PROJECT, random_rows(seed), PARTITIONS, chance)
    stream = PlainStream(PROJECT, 2, PARTITIONS, mode=mode)
    stream.run(random_polls(PROJECT, arrived, START + 11 * MINUTE, polls, chance))
    return stream.releases


def publish(engine: str, root: Path, published: Releases) -> None:
    open_store(PROJECT, StorePlaces.below(root), clock="replay")
    elements = [pack_publications(*one) for one in published]
    pipeline, choice = pipeline_on(engine, streaming=False)
    _ = (
        pipeline
        | beam.Create(elements)
        | beam.ParDo(Publish(PROJECT, root, root / OFFLINE, default_place(root), 2))
    )
    run(pipeline, choice)


def log_of(root: Path, view: str) -> list[dict[str, Any]]:
    paths = sorted((root / "publications" / view).glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_online_store_holds_each_entitys_newest_publication(
    engine: str, tmp_path: Path
) -> None:
    """In whatever order and however often bundles come."""
    published = releases(1)
    shuffled = published + published[::3]
    random.Random(1).shuffle(shuffled)
    publish(engine, tmp_path, shuffled)
    expected = newest_publications(published)
    database = open_database(default_place(tmp_path))
    found = 0
    for index, view in enumerate(PROJECT.views):
        keys = sorted(key for v, key in expected if v == index)
        typed = pa.array(keys).cast(pa.int64() if view.entity.dtype == "int64" else pa.string())
        raw = online_keys(view.entity.join_key, typed)
        (snapshot,) = database.read([(KeySpace.of(PROJECT.name, view), raw)])
        rows = {row.key: row for row in snapshot.rows if row is not None}
        assert len(rows) == len(keys)
        for key, name in zip(raw, keys, strict=True):
            at, revision, until, values, nulls = expected[index, name]
            assert (rows[key].event_timestamp, rows[key].revision) == (at, revision)
            assert rows[key].valid_until == until
            dtypes = [column.dtype for column in view.columns]
            cells = [array[0].as_py() for array in decode_cells(dtypes, [rows[key].cells])]
            words = struct.unpack(
                "<" + "".join("d" if dtype == "float64" else "q" for dtype in dtypes), values
            )
            assert cells == [
                None if null else word for word, null in zip(words, nulls, strict=True)
            ]
            found += 1
    assert found == len(expected) == 9
    database.close()


def test_named_publications_have_the_views_columns_and_values() -> None:
    published = [r for v, _, r in releases(2) if v == 0 and r.publications.num_rows]
    view = PROJECT.views[0]
    for release in published:
        named = named_publications(view, release.publications)
        assert named.schema.equals(publications.schema(view))
        keys = [key.decode() for key in named.column("entity_key").to_pylist()]
        assert keys == release.publications.column(KEY).to_pylist()
        columns = [column.name for column in view.columns]
        plain = PlainStream(PROJECT, 2, PARTITIONS).operator(0, 0).plan
        assert named.select(columns).to_pylist() == values_of(plain, release.publications)


def test_of_many_publications_of_an_entity_the_newest_is_kept() -> None:
    rows = pa.record_batch(
        {
            KEY: ["b", "a", "a", "b", "a", "c"],
            "event_timestamp": pa.array([5, 7, 9, 6, 9, 1], pa.int64()),
            "revision": pa.array([1, 9, 2, 2, 3, 1], pa.int64()),
        }
    )
    assert newest_per_entity(rows).to_pylist() == [
        {KEY: "a", "event_timestamp": 9, "revision": 3},
        {KEY: "b", "event_timestamp": 6, "revision": 2},
        {KEY: "c", "event_timestamp": 1, "revision": 1},
    ]
    assert newest_per_entity(rows.take([2, 4, 4, 1])).column("revision").to_pylist() == [3, 3]
    assert newest_per_entity(rows.slice(0, 1)).num_rows == 1
    assert newest_per_entity(rows.slice(0, 0)).num_rows == 0


def test_a_bundle_is_one_write_with_each_entity_once_a_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = releases(1)
    bundles: list[int] = []
    writes: list[list[Parcel]] = []
    finish_bundle = module.Publish.finish_bundle

    write = SqliteDatabase.publish

    def written(self: SqliteDatabase, parcels: Sequence[Parcel]) -> list[int]:
        writes.append(list(parcels))
        return write(self, parcels)

    def counted(self: Any) -> None:
        if self._bundle:
            bundles.append(len(self._bundle))
        finish_bundle(self)

    monkeypatch.setattr(SqliteDatabase, "publish", written)
    monkeypatch.setattr(module.Publish, "finish_bundle", counted)
    publish("fnapi", tmp_path, published)
    assert sum(bundles) == len(published)
    assert max(bundles) > len(PROJECT.views) * 2, "several releases of a shard in one bundle"
    assert len(writes) == len(bundles)
    for parcels in writes:
        shards = [(parcel.space.view, parcel.shard) for parcel in parcels]
        assert len(set(shards)) == len(shards)
        for parcel in parcels:
            assert len(set(parcel.rows.keys)) == len(parcel.rows)
    rows = sum(len(parcel.rows) for parcels in writes for parcel in parcels)
    assert 0 < rows < sum(release.publications.num_rows for _, _, release in published)


def _published(since: int | None, frontier: int) -> Published:
    rows = pa.record_batch({"frontier": pa.array([frontier], pa.int64())})
    return Published(0, 0, since, frontier, rows)


def _runs(*releases: Published) -> list[tuple[int | None, int, list[int]]]:
    runs = joined_releases(releases)
    return [(run.since_us, run.frontier_us, run.rows.column(0).to_pylist()) for run in runs]


@given(
    steps=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    first=st.sampled_from([None, 5]),
    data=st.data(),
)
def test_successive_releases_are_one_run_in_any_order(
    steps: list[int], first: int | None, data: st.DataObject
) -> None:
    """A step of 0 is a release that only answers (eager mode): it may keep the frontier."""
    frontiers = [5 + 1, *(5 + 1 + step for step in itertools.accumulate(steps))]
    chain = [
        _published(since, frontier)
        for since, frontier in zip([first, *frontiers], frontiers, strict=False)
    ]
    again = data.draw(st.lists(st.sampled_from(chain), max_size=3))
    ((since, frontier, rows),) = _runs(*data.draw(st.permutations(chain + again)))
    assert (since, frontier) == (first, frontiers[-1])
    assert rows == sorted([*frontiers, *(one.frontier_us for one in again)])


def test_missing_release_ends_a_run() -> None:
    third, fifth = _published(20, 30), _published(40, 50)
    assert _runs(fifth, third) == [(20, 30, [30]), (40, 50, [50])]


def test_release_of_the_whole_shard_needs_nothing_before_it() -> None:
    third, whole, after, later = (
        _published(20, 30),
        _published(None, 50),
        _published(50, 60),
        _published(70, 80),
    )
    first = _published(0, 10)
    assert _runs(later, whole, third, after, first) == [
        (None, 60, [10, 30, 50, 60]),
        (70, 80, [80]),
    ]
    assert _runs(third, _published(None, 30)) == [(None, 30, [30, 30])]


def test_two_publications_of_a_bundle_that_contradict_each_other_are_an_error(
    tmp_path: Path,
) -> None:
    (published,) = [p for p in releases(4, polls=1) if p[:2] == (0, 0)]
    view, shard, release = published
    rows = release.publications
    place = rows.schema.get_field_index("valid_until")
    other = rows.set_column(place, rows.schema.field(place), pc.add(rows.column(place), 1))
    with pytest.raises(ConflictingPublication, match="two publications at event_timestamp"):
        publish("fnapi", tmp_path, [published, (view, shard, replace(release, publications=other))])


def test_a_store_that_has_lost_earlier_writes_is_not_written_to(tmp_path: Path) -> None:
    view, shard = 0, 0
    published = [one for one in releases(6) if one[:2] == (view, shard)]
    assert len(published) > 2
    publish("fnapi", tmp_path, published[:2])
    database = open_database(default_place(tmp_path))
    database.drop([KeySpace.of(PROJECT.name, each) for each in PROJECT.views])
    database.close()
    with pytest.raises(LostPublications, match=r"from frontier .* the store has no frontier"):
        publish("fnapi", tmp_path, published[2:])
    database = open_database(default_place(tmp_path))
    (snapshot,) = database.read([(KeySpace.of(PROJECT.name, PROJECT.views[view]), [])])
    assert snapshot.frontiers.by_shard == {}
    database.close()


@pytest.mark.parametrize("mode", Mode)
def test_every_release_that_publishes_moves_the_frontier(mode: Mode) -> None:
    """In eager mode too, with late events only: so the store detects a lost release."""
    before: dict[tuple[int, int], int] = {}
    late = 0
    for view, shard, release in releases(3, mode):
        since = before.get((view, shard))
        assert release.since_us == since
        if release.publications.num_rows:
            assert since is None or since < release.frontier_us
            late += since is not None and release.frontier_us == since + 1
        before[view, shard] = release.frontier_us
    assert (late > 0) == (mode is Mode.EAGER)


@pytest.mark.parametrize("mode", Mode)
def test_the_offline_log_holds_every_publication(mode: Mode, tmp_path: Path) -> None:
    """In eager mode a release may have the frontier of another one: no file is replaced."""
    published = releases(3, mode)
    frontiers = {(view, shard, release.frontier_us) for view, shard, release in published}
    assert (len(frontiers) < len(published)) == (mode is Mode.EAGER)
    for one in published:
        publish("fnapi", tmp_path, [one])
    for index, view in enumerate(PROJECT.views):
        expected = sorted(
            (row[KEY], row["event_timestamp"], row["revision"])
            for v, _, release in published
            if v == index
            for row in release.publications.to_pylist()
        )
        found = [
            (row["entity_key"].decode(), row["event_timestamp"], row["revision"])
            for row in log_of(tmp_path, view.name)
        ]
        assert sorted(found) == expected
        assert expected


def test_a_bundle_that_is_repeated_replaces_itself_in_the_log(tmp_path: Path) -> None:
    published = releases(4, polls=1)
    publish("fnapi", tmp_path, published)
    once = [log_of(tmp_path, view.name) for view in PROJECT.views]
    publish("fnapi", tmp_path, published)
    assert [log_of(tmp_path, view.name) for view in PROJECT.views] == once


def test_a_repeat_whose_entities_come_in_another_order_replaces_itself_too(tmp_path: Path) -> None:
    """As after a restart from a snapshot, which renumbers the entities."""
    (published,) = [p for p in releases(4, polls=1) if p[:2] == (0, 0)]
    view, shard, release = published
    backwards = release.publications.take(pa.array(range(release.publications.num_rows))[::-1])
    assert backwards.num_rows > 1
    publish("fnapi", tmp_path, [published])
    once = log_of(tmp_path, "cab")
    publish("fnapi", tmp_path, [(view, shard, replace(release, publications=backwards))])
    assert log_of(tmp_path, "cab") == once[::-1]
