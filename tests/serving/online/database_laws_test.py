"""The laws of every online database: the stored rows depend on the publications only."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import random
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.parcels import DEPOT_SPACE
from tests.support.redis_server import running
from tidemill.features.contract import EARLIEST_EVENT, LATEST_EVENT, TIME_MAX, TIME_MIN
from tidemill.features.errors import (
    ConflictingPublication,
    InputError,
    LostPublications,
    StoreError,
)
from tidemill.serving.online.cells import encode_row
from tidemill.serving.online.database import OnlineDatabase, Parcel
from tidemill.serving.online.redis.database import CHUNK_ROWS, RedisDatabase
from tidemill.serving.online.rows import KeySpace, Row, RowBatch, online_keys
from tidemill.serving.online.sqlite.database import SqliteDatabase

_numbers = itertools.count()


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OnlineDatabase]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        yield SqliteDatabase(str(folder / "online.db"))
        return
    with running(folder) as server:
        yield RedisDatabase(server.place)


def _space(database: OnlineDatabase) -> KeySpace:
    """A key space of its own for each test and example."""
    space = dataclasses.replace(DEPOT_SPACE, definition=f"{next(_numbers):016x}")
    database.create([space])
    return space


@pytest.fixture
def space(database: OnlineDatabase) -> KeySpace:
    return _space(database)


def _key(depot: int) -> bytes:
    return online_keys("depot", pa.array([depot]))[0]


def _row(
    key: int, time: int, revision: int, value: int | None = 7, until: int = 10**15, shard: int = 0
) -> Row:
    return Row(_key(key), time, revision, until, shard, encode_row(DEPOT_SPACE.dtypes, [value]))


def _write(database: OnlineDatabase, space: KeySpace, *rows: Row) -> int:
    return database.write(space, RowBatch.of(rows, 0))


def _parcel(
    space: KeySpace,
    *rows: Row,
    frontier_us: int,
    since_us: int | None = None,
    shard: int = 0,
    of: int = 1,
) -> Parcel:
    batch = RowBatch.of([row._replace(shard=shard) for row in rows], shard)
    return Parcel(space, batch, shard, of, since_us, frontier_us)


def _standing(database: OnlineDatabase, space: KeySpace, *keys: int) -> list[Row | None]:
    return database.read([(space, [_key(key) for key in keys])])[0].rows


def _frontiers(database: OnlineDatabase, space: KeySpace) -> dict[int, int]:
    return dict(database.read([(space, [])])[0].frontiers.by_shard)


def _version(row: Row) -> tuple[int, int]:
    return row.event_timestamp, row.revision


# Times around the ends of the years 1 and 9999, around 1970 and around steps of 32 bits, where an
# order by bytes, by signed words or by floats would be wrong.
_TIMES = sorted(
    {EARLIEST_EVENT, EARLIEST_EVENT + 1, LATEST_EVENT - 1, LATEST_EVENT, -1, 0, 1}
    | {sign * 2**power + near for sign in (-1, 1) for power in (8, 31, 32, 53) for near in (-1, 0)}
)
_REVISIONS = [0, 1, 2, 255, 256, 2**31, 2**32 - 1, 2**32, 2**53, 2**53 + 1, 2**63 - 1]

_rows = st.builds(
    lambda key, time, revision: _row(key, time, revision, (time ^ revision) % 2**62),
    st.integers(0, 3),
    st.sampled_from(_TIMES) | st.integers(EARLIEST_EVENT, LATEST_EVENT),
    st.sampled_from(_REVISIONS) | st.integers(0, 2**63 - 1),
)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), rows=st.lists(_rows, max_size=25))
def test_newest_stands_whatever_the_order_the_repeats_and_the_parcels(
    database: OnlineDatabase, data: st.DataObject, rows: list[Row]
) -> None:
    space = _space(database)
    again = data.draw(st.lists(st.sampled_from(rows), max_size=10)) if rows else []
    order = data.draw(st.permutations(rows + again))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=4)))
    pieces = [order[a:b] for a, b in itertools.pairwise([0, *cuts, len(order)])]
    times = data.draw(st.lists(st.sampled_from(_TIMES), min_size=5, max_size=5))
    parcels = [
        _parcel(space, *piece, frontier_us=time) for piece, time in zip(pieces, times, strict=False)
    ]
    calls = data.draw(st.integers(0, len(parcels)))
    for together in (parcels[:calls], parcels[calls:]):
        database.publish(together)
    newest: list[Row | None] = [
        max((row for row in rows if row.key == _key(key)), key=_version, default=None)
        for key in range(4)
    ]
    assert _standing(database, space, *range(4)) == newest
    assert _frontiers(database, space) == {0: max(times[: len(parcels)])}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), steps=st.lists(st.lists(_rows, max_size=4), min_size=1, max_size=6))
def test_parcels_that_build_on_each_other_may_be_repeated_but_not_skipped(
    database: OnlineDatabase, data: st.DataObject, steps: list[list[Row]]
) -> None:
    space = _space(database)
    chain = [
        _parcel(space, *rows, since_us=10 * at if at else None, frontier_us=10 * at + 10)
        for at, rows in enumerate(steps)
    ]
    reached = 0
    seen: list[Row] = []
    for at in data.draw(st.lists(st.integers(0, len(chain) - 1), max_size=12)):
        if at <= reached:
            database.publish([chain[at]])
            reached = max(reached, at + 1)
            seen += steps[at]
        else:
            with pytest.raises(LostPublications, match=f"shard 0: .* from frontier {10 * at}, "):
                database.publish([chain[at]])
        assert _frontiers(database, space) == ({0: 10 * reached} if reached else {})
    newest: list[Row | None] = [
        max((row for row in seen if row.key == _key(key)), key=_version, default=None)
        for key in range(4)
    ]
    assert _standing(database, space, *range(4)) == newest


def test_equal_publication_changes_nothing(database: OnlineDatabase, space: KeySpace) -> None:
    assert _write(database, space, _row(1, 10, 2)) == 1
    assert _write(database, space, _row(1, 10, 2)) == 0
    assert _standing(database, space, 1) == [_row(1, 10, 2)]


def test_correction_with_a_higher_revision_wins(database: OnlineDatabase, space: KeySpace) -> None:
    _write(database, space, _row(1, 10, 2, 7))
    assert _write(database, space, _row(1, 10, 3, 8)) == 1
    assert _write(database, space, _row(1, 10, 2, 7)) == 0
    assert _standing(database, space, 1) == [_row(1, 10, 3, 8)]


def test_newer_time_wins_whatever_the_revision(database: OnlineDatabase, space: KeySpace) -> None:
    assert _write(database, space, _row(1, 10, 9, 7), _row(1, 11, 1, 8), _row(1, 10, 99, 9)) == 1
    assert _standing(database, space, 1) == [_row(1, 11, 1, 8)]


def test_equal_values_of_another_shard_are_the_same_publication(
    database: OnlineDatabase, space: KeySpace
) -> None:
    """For example, a stock client, which knows no shard, writes what the stream has published."""
    database.publish([_parcel(space, _row(1, 10, 2), frontier_us=20)])
    assert database.write(space, RowBatch.of([_row(1, 10, 2)._replace(shard=None)], None)) == 0
    assert _standing(database, space, 1) == [_row(1, 10, 2)]


@pytest.mark.parametrize("other", [_row(2, 10, 2, 8), _row(2, 10, 2, 7, until=5)])
@pytest.mark.parametrize("within", ["the store", "the batch"])
def test_conflict_is_reported_with_both_values_and_nothing_is_written(
    database: OnlineDatabase, space: KeySpace, other: Row, within: str
) -> None:
    rows = [_row(2, 10, 2, 7), _row(1, 99, 9, 9), other]
    if within == "the store":
        database.publish([_parcel(space, rows.pop(0), frontier_us=20)])
    else:
        database.publish([_parcel(space, frontier_us=20)])
    with pytest.raises(ConflictingPublication) as caught:
        database.publish([_parcel(space, *rows, frontier_us=30, since_us=20)])
    message = str(caught.value)
    for part in (database.name, "'by_depot'", "depot=2", "event_timestamp 10", "revision 2"):
        assert part in message
    assert f"stored {{'scans_1d': 7}} until {10**15}" in message
    offered = 7 if other.valid_until == 5 else 8
    assert f"offered {{'scans_1d': {offered}}} until {other.valid_until}" in message
    assert _standing(database, space, 1) == [None]
    assert _frontiers(database, space) == {0: 20}
    assert _write(database, space, _row(1, 99, 9, 9)) == 1


def test_long_parcel_is_written_whole_and_counted(
    database: OnlineDatabase, space: KeySpace
) -> None:
    count = 2 * CHUNK_ROWS + 7
    rows = [_row(key, 10, 1, key) for key in range(count)]
    newer = [_row(key, 11, 1, key) for key in range(0, count, 2)]
    first = _parcel(space, *rows, frontier_us=20)
    second = _parcel(space, *newer, *rows[1::2], since_us=20, frontier_us=30)
    assert database.publish([first, second]) == [count, len(newer)]
    keys = [*range(count), 10**6, 3]
    random.Random(1).shuffle(keys)
    wanted = [
        None if key == 10**6 else newer[key // 2] if key % 2 == 0 else rows[key] for key in keys
    ]
    assert _standing(database, space, *keys) == wanted
    assert _frontiers(database, space) == {0: 30}


def test_frontier_of_a_long_parcel_stays_where_one_row_conflicts(
    database: OnlineDatabase, space: KeySpace
) -> None:
    """Wherever the row is in the parcel, before the chunk with the frontier or in it."""
    for at in (0, CHUNK_ROWS, 2 * CHUNK_ROWS):
        rows = [_row(key, 10, 1) for key in range(2 * CHUNK_ROWS + 1)]
        space = _space(database)
        database.publish([_parcel(space, rows[at]._replace(valid_until=5), frontier_us=20)])
        with pytest.raises(ConflictingPublication):
            database.publish([_parcel(space, *rows, since_us=20, frontier_us=30)])
        assert _frontiers(database, space) == {0: 20}


def test_a_call_may_hold_parcels_of_several_views_and_shards(database: OnlineDatabase) -> None:
    one, other = _space(database), _space(database)
    parcels = [
        _parcel(one, _row(1, 10, 1), _row(2, 10, 1), shard=0, of=2, frontier_us=20),
        _parcel(one, _row(3, 10, 1), shard=1, of=2, frontier_us=30),
        _parcel(other, shard=0, of=3, frontier_us=40),
        _parcel(other, _row(1, 10, 1), shard=2, of=3, frontier_us=50),
    ]
    assert database.publish(parcels) == [2, 1, 0, 1]
    first, second = database.read([(one, [_key(1), _key(3)]), (other, [_key(1), _key(2)])])
    assert (first.frontiers.shard_count, first.frontiers.by_shard) == (2, {0: 20, 1: 30})
    assert (second.frontiers.shard_count, second.frontiers.by_shard) == (3, {0: 40, 2: 50})
    assert [None if row is None else row.shard for row in first.rows + second.rows] == [
        0,
        1,
        2,
        None,
    ]
    assert database.publish([]) == []


def test_lost_writes_are_said_and_nothing_is_written(
    database: OnlineDatabase, space: KeySpace
) -> None:
    with pytest.raises(LostPublications, match=r"from frontier 20, but the store has no frontier"):
        database.publish([_parcel(space, _row(1, 10, 1), since_us=20, frontier_us=30)])
    database.publish([_parcel(space, frontier_us=19)])
    with pytest.raises(LostPublications, match=r"is at frontier 19: .* `tidemill republish`"):
        database.publish([_parcel(space, _row(1, 10, 1), since_us=20, frontier_us=30)])
    assert _standing(database, space, 1) == [None]
    assert _frontiers(database, space) == {0: 19}
    database.publish([_parcel(space, _row(1, 10, 1), since_us=None, frontier_us=30)])
    assert _standing(database, space, 1) == [_row(1, 10, 1)]


def test_frontier_never_goes_back(database: OnlineDatabase, space: KeySpace) -> None:
    for frontier in (100, 50, 100, TIME_MIN):
        database.publish([_parcel(space, shard=1, of=2, frontier_us=frontier)])
    (snapshot,) = database.read([(space, [])])
    assert snapshot.frontiers.by_shard == {1: 100}
    assert snapshot.frontiers.shard_count == 2


def test_frontier_past_every_time_is_refused(space: KeySpace) -> None:
    with pytest.raises(InputError, match="end that was declared"):
        _parcel(space, frontier_us=TIME_MAX)
    with pytest.raises(InputError, match="no shard 2 of 2"):
        _parcel(space, shard=2, of=2, frontier_us=1)
    with pytest.raises(InputError, match="of shard 1 in a parcel of shard 0"):
        Parcel(space, RowBatch.of([], 1), 0, 2, None, 1)


def test_other_shard_count_is_refused(database: OnlineDatabase, space: KeySpace) -> None:
    database.publish([_parcel(space, of=2, frontier_us=1)])
    with pytest.raises(StoreError, match="published with 2 shards, and now with 3"):
        database.publish([_parcel(space, _row(1, 1, 1), of=3, frontier_us=1)])
    assert _standing(database, space, 1) == [None]


def test_cells_of_another_width_are_refused(database: OnlineDatabase, space: KeySpace) -> None:
    with pytest.raises(InputError, match="cells of a row are 5 bytes long, expected 9 for 1 col"):
        _write(database, space, _row(1, 10, 2)._replace(cells=b"short"))
    longer = RowBatch.of([_row(1, 10, 2)], 0)
    longer = dataclasses.replace(longer, cells=[b"more than nine"])
    with pytest.raises(InputError, match="cells of a row are 14 bytes long"):
        database.write(space, longer)


def test_key_space_that_was_never_made_is_named(database: OnlineDatabase) -> None:
    absent = dataclasses.replace(DEPOT_SPACE, definition="f" * 16)
    wanted = f"there is no key space {absent.name}: .*register.*republish"
    with pytest.raises(StoreError, match=wanted):
        database.publish([_parcel(absent, frontier_us=1)])
    with pytest.raises(StoreError, match=wanted):
        database.publish([_parcel(absent, _row(1, 1, 1), frontier_us=1)])
    with pytest.raises(StoreError, match=wanted):
        _write(database, absent, _row(1, 1, 1))
    with pytest.raises(StoreError, match=wanted):
        database.read([(absent, [_key(1)])])
    assert absent.name not in database.spaces()


def test_key_spaces_are_listed_and_removed_by_name(database: OnlineDatabase) -> None:
    one, other = _space(database), _space(database)
    for space in (one, other):
        rows = [_row(key, 10, 1) for key in range(3_000)]
        database.publish([_parcel(space, *rows, frontier_us=20)])
    assert {one.name, other.name} <= set(database.spaces())
    database.drop([KeySpace(one.project, one.view, one.definition)])
    database.drop([KeySpace(one.project, one.view, one.definition)])
    assert one.name not in database.spaces()
    assert other.name in database.spaces()
    database.create([one, other])
    (snapshot,) = database.read([(one, [_key(key) for key in range(3_000)])])
    assert snapshot.rows == [None] * 3_000
    assert snapshot.frontiers.by_shard == {}
    assert None not in _standing(database, other, *range(3_000))
    assert _frontiers(database, other) == {0: 20}


def test_key_space_of_a_view_whose_name_holds_two_underscores(database: OnlineDatabase) -> None:
    space = dataclasses.replace(DEPOT_SPACE, view="a__b", definition=f"{next(_numbers):016x}")
    database.create([space])
    assert space.name in database.spaces()
    database.drop([KeySpace("parcels", "a__b", space.definition)])
    assert space.name not in database.spaces()


def test_making_a_key_space_again_keeps_its_rows(database: OnlineDatabase, space: KeySpace) -> None:
    database.publish([_parcel(space, _row(1, 10, 1), of=4, frontier_us=20)])
    database.create([space])
    (snapshot,) = database.read([(space, [_key(1)])])
    assert snapshot.rows == [_row(1, 10, 1)]
    assert (snapshot.frontiers.shard_count, snapshot.frontiers.by_shard) == (4, {0: 20})


def test_database_travels_to_workers(database: OnlineDatabase, space: KeySpace) -> None:
    _write(database, space, _row(1, 10, 1))
    assert _standing(pickle.loads(pickle.dumps(database)), space, 1) == [_row(1, 10, 1)]


def _seen(rows: Sequence[Row | None]) -> int:
    return sum(row is not None for row in rows)


def test_a_closed_database_opens_again(database: OnlineDatabase, space: KeySpace) -> None:
    database.close()
    database.close()
    _write(database, space, _row(1, 10, 1))
    assert _seen(_standing(database, space, 1, 2)) == 1
