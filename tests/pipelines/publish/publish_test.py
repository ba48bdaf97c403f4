"""Publish: the kernel's publications reach the online store and the offline log."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.driver import values_of
from tests.support.fills import current_target
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
from tidemill.features.errors import ConflictingPublication, OutputConflict
from tidemill.features.kernel.prepare import KEY
from tidemill.pipelines.engines.choosing import run
from tidemill.pipelines.publish.log_publications import LogPublications
from tidemill.pipelines.publish.newest_rows import joined_release, newest_per_entity, release_runs
from tidemill.pipelines.publish.publish import PublishToStore
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.recovery.republish import publish_shard
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream.output_folders import publications_of
from tidemill.pipelines.stream.publications import named_publications
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream.wire_format import (
    Published,
    everything,
    pack_publications,
    published,
    unpack_publications,
)
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
KEYS = [operator_key(PROJECT, view, shard, 2) for view in range(3) for shard in range(2)]
OPTIONS = FeaturizeOptions("run", 2, PARTITIONS)
OPERATORS = {(n // 2, n % 2): make_operator(PROJECT, key, OPTIONS) for n, key in enumerate(KEYS)}


def releases(seed: int, mode: Mode = Mode.EXACT, polls: int = 10) -> Releases:
    chance = random.Random(seed)
    arrived = arrivals(PROJECT, random_rows(seed), PARTITIONS, chance)
    stream = PlainStream(PROJECT, 2, PARTITIONS, mode=mode)
    stream.run(random_polls(PROJECT, arrived, START + 11 * MINUTE, polls, chance))
    return stream.releases


def run_fills(root: Path) -> RunFills:
    """The fills of the root's run: begun by the first call, and found by later ones.

    A stream begins with a store that has the marks of its states; these are empty.
    """
    database = open_database(default_place(root))
    found = {}
    for view in PROJECT.views:
        target = current_target(database, KeySpace.of(PROJECT.name, view), 2)
        found[view.name] = replace(target.fill, writer=target.writer)
    run = RunFills(found)
    for (view, shard), operator in OPERATORS.items():
        fill = found[PROJECT.views[view].name]
        (states,) = database.part_states([fill])
        if states[shard].mark is None:
            publish_shard(database, PROJECT.views[view], operator, run)
    database.close()
    return run


def publish(engine: str, root: Path, published: Releases) -> None:
    open_store(PROJECT, StorePlaces.below(root), clock="replay")
    elements = [
        pack_publications(OPERATORS[view, shard], release) for view, shard, release in published
    ]
    place = PublishToStore(PROJECT, default_place(root), run_fills(root))
    pipeline, choice = pipeline_on(engine, streaming=False)
    _ = (
        pipeline
        | beam.Create(elements)
        | beam.ParDo(Write(place)).with_output_types(bytes)
        | beam.ParDo(LogPublications(PROJECT, root, root / OFFLINE, 2))
    )
    run(pipeline, choice)


class Write(beam.DoFn):
    """Writes the releases of a bundle to the online store, as operators do, and passes them on."""

    def __init__(self, place: PublishToStore) -> None:
        self._place = place

    def setup(self) -> None:
        self._store = self._place.open()

    def teardown(self) -> None:
        self._store.close()

    def start_bundle(self) -> None:
        self._bundle: list[Published] = []

    def process(self, element: bytes) -> Iterator[bytes]:
        self._bundle.append(unpack_publications(element, PROJECT))
        yield element

    def finish_bundle(self) -> None:
        self._store.write(self._bundle, lambda *shard: pytest.fail(f"{shard} was lost"))


def log_of(root: Path, view: str) -> list[dict[str, Any]]:
    found = publications_of(root, view).read()
    return [] if found is None else found.to_pylist()


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
    finish_bundle = Write.finish_bundle

    write = SqliteDatabase.publish

    def written(self: SqliteDatabase, parcels: Sequence[Parcel]) -> list[int]:
        writes.append(list(parcels))
        return write(self, parcels)

    def counted(self: Any) -> None:
        if self._bundle:
            bundles.append(len(self._bundle))
        finish_bundle(self)

    monkeypatch.setattr(SqliteDatabase, "publish", written)
    monkeypatch.setattr(Write, "finish_bundle", counted)
    publish("fnapi", tmp_path, published)
    del writes[: len(OPERATORS)]  # those that give the fills their first marks
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


def _mark(number: int) -> bytes:
    return f"{number:016d}".encode()


def _published(number: int, frontier: int | None = None, since: int | None = 0) -> Published:
    """Return release ``number``; without a ``since``, it is the first of its operator."""
    rows = pa.record_batch({"number": pa.array([number], pa.int64())})
    return Published(
        view="cab", shard=0, number=number, mark_before=_mark(number - 1),
        mark=_mark(number), attempt=0, since_us=since,
        frontier_us=10 * number if frontier is None else frontier, rows=rows,
    )  # fmt: skip


def _runs(*releases: Published) -> list[tuple[int | None, int, list[int]]]:
    """Return each run: the release that it builds on, its last one, and the rows."""
    out = []
    for successive in release_runs(releases):
        joined = joined_release(successive)
        before = None if joined.mark_before is None else int(joined.mark_before)
        assert joined.mark == _mark(joined.number)
        out.append((before, joined.number, joined.rows.column(0).to_pylist()))
    return out


@given(first=st.integers(1, 9), count=st.integers(1, 6), data=st.data())
def test_successive_releases_are_one_run_in_any_order(
    first: int, count: int, data: st.DataObject
) -> None:
    """Whatever their frontiers: in eager mode many releases may have one."""
    chain = [
        _published(number, frontier=data.draw(st.integers(5, 7)))
        for number in range(first, first + count)
    ]
    again = data.draw(st.lists(st.sampled_from(chain), max_size=3))
    (found,) = _runs(*data.draw(st.permutations(chain + again)))
    numbers = [one.number for one in chain]
    assert found == (first - 1, numbers[-1], numbers)


def test_missing_release_ends_a_run() -> None:
    assert _runs(_published(5), _published(3)) == [(2, 3, [3]), (4, 5, [5])]


def test_a_run_is_the_whole_shard_if_a_release_of_it_is() -> None:
    (successive,) = release_runs([_published(5, since=None), _published(6)])
    assert joined_release(successive).since_us is None


def test_two_publications_of_a_bundle_that_contradict_each_other_are_an_error(
    tmp_path: Path,
) -> None:
    (published,) = [p for p in releases(4, polls=1) if p[:2] == (0, 0)]
    view, shard, release = published
    rows = release.publications
    place = rows.schema.get_field_index("valid_until")
    other = rows.set_column(place, rows.schema.field(place), pc.add(rows.column(place), 1))
    later = replace(release, number=2, publications=other)
    with pytest.raises(ConflictingPublication, match="two publications at event_timestamp"):
        publish("fnapi", tmp_path, [published, (view, shard, later)])


def test_a_store_that_has_lost_earlier_writes_gets_the_whole_shards_from_their_operators(
    tmp_path: Path,
) -> None:
    """In the bundle in which the store says so; the shards of which nothing was lost stay."""
    root, chance = tmp_path, random.Random(6)
    arrived = arrivals(PROJECT, random_rows(6), PARTITIONS, chance)
    open_store(PROJECT, StorePlaces.below(root), clock="replay")
    stream = PlainStream(PROJECT, 2, PARTITIONS)
    database = open_database(default_place(root))
    store = PublishToStore(PROJECT, default_place(root), run_fills(root)).open()
    asked: list[tuple[str, int]] = []

    def whole(view: str, shard: int) -> Published:
        asked.append((view, shard))
        index = [view.name for view in PROJECT.views].index(view)
        return everything(stream.operator(index, shard))

    lost_at, written = [3, 6], 0
    for number, poll in enumerate(random_polls(PROJECT, arrived, START + 11 * MINUTE, 10, chance)):
        asked.clear()
        stream.run([poll])
        bundle, written = stream.releases[written:], len(stream.releases)
        if number in lost_at:
            database.drop([KeySpace.of(PROJECT.name, each) for each in PROJECT.views[:2]])
        store.write(
            [published(stream.operator(view, shard), release) for view, shard, release in bundle],
            whole,
        )
        lost = [(view.name, shard) for view in PROJECT.views[:2] for shard in range(2)]
        assert sorted(asked) == (sorted(lost) if number in lost_at else [])
    store.close()
    expected = newest_publications(stream.releases)
    for index, view in enumerate(PROJECT.views):
        keys = sorted(key for v, key in expected if v == index)
        typed = pa.array(keys).cast(pa.int64() if view.entity.dtype == "int64" else pa.string())
        raw = online_keys(view.entity.join_key, typed)
        (snapshot,) = database.read([(KeySpace.of(PROJECT.name, view), raw)])
        for key, row in zip(keys, snapshot.rows, strict=True):
            assert row is not None
            assert (row.event_timestamp, row.revision) == expected[index, key][:2]
        ends = {stream.operator(index, shard).state.frontier_us for shard in range(2)}
        assert set(snapshot.frontiers.by_shard.values()) == ends
    database.close()


@pytest.mark.parametrize("mode", Mode)
def test_the_offline_log_holds_every_publication(mode: Mode, tmp_path: Path) -> None:
    """A release may have the frontier of another one: no file is replaced."""
    published = releases(3, mode)
    frontiers = {(view, shard, release.frontier_us) for view, shard, release in published}
    assert len(frontiers) < len(published)
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


def logged(root: Path) -> dict[str, list[dict[str, Any]]]:
    return {view.name: log_of(root, view.name) for view in PROJECT.views}


def test_the_log_is_the_same_however_bundles_group_and_repeat_releases(tmp_path: Path) -> None:
    published = releases(4)
    publish("fnapi", tmp_path / "at once", published)
    expected = logged(tmp_path / "at once")
    rows = sum(len(of_view) for of_view in expected.values())
    assert rows == sum(one.publications.num_rows for *_, one in published)
    for first in range(0, len(published), 7):
        # Each bundle repeats a part of the one before it.
        publish("fnapi", tmp_path / "in parts", published[max(first - 3, 0) : first + 7])
    assert logged(tmp_path / "in parts") == expected


def test_a_repeat_whose_entities_come_in_another_order_is_the_same(tmp_path: Path) -> None:
    """As after a restart from a snapshot, which renumbers the entities."""
    (published,) = [p for p in releases(4, polls=1) if p[:2] == (0, 0)]
    view, shard, release = published
    backwards = release.publications.take(pa.array(range(release.publications.num_rows))[::-1])
    assert backwards.num_rows > 1
    publish("fnapi", tmp_path, [published])
    once = logged(tmp_path)
    publish("fnapi", tmp_path, [(view, shard, replace(release, publications=backwards))])
    assert logged(tmp_path) == once


def test_a_repeat_with_other_rows_is_an_error(tmp_path: Path) -> None:
    (published,) = [p for p in releases(4, polls=1) if p[:2] == (0, 0)]
    view, shard, release = published
    publish("fnapi", tmp_path, [published])
    fewer = replace(release, publications=release.publications.slice(1))
    publish("fnapi", tmp_path, [(view, shard, fewer)])
    with pytest.raises(OutputConflict, match="written before with other content"):
        logged(tmp_path)
