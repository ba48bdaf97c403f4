"""The laws of every online database: the stored rows depend on the publications only."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import random
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fills import HOLDER, Target, mark_of, opened
from tests.support.parcels import DEPOT_SPACE
from tests.support.redis_server import running
from tidemill.features.contract import (
    EARLIEST_EVENT,
    LATEST_EVENT,
    TIME_MAX,
    TIME_MIN,
    write_instant,
)
from tidemill.features.errors import (
    ConflictingPublication,
    InputError,
    LostPublications,
    NoKeySpace,
    StoreError,
)
from tidemill.serving.online.cells import encode_row
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.fills import NewFill, PartState
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


def _target(database: OnlineDatabase, shards: int = 1, slices: int = 1) -> Target:
    """A fill of a key space of its own for each test and example."""
    space = dataclasses.replace(DEPOT_SPACE, definition=f"{next(_numbers):016x}")
    return opened(database, [space], shards, slices)[0]


@pytest.fixture
def target(database: OnlineDatabase) -> Target:
    return _target(database)


@pytest.fixture
def space(target: Target) -> KeySpace:
    return target.space


def _key(depot: int) -> bytes:
    return online_keys("depot", pa.array([depot]))[0]


def _row(
    key: int, time: int, revision: int, value: int | None = 7, until: int = 10**15, shard: int = 0
) -> Row:
    return Row(_key(key), time, revision, until, shard, encode_row(DEPOT_SPACE.dtypes, [value]))


def _write(database: OnlineDatabase, space: KeySpace, *rows: Row) -> int:
    return database.write(space, RowBatch.of(rows, 0))


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
    target = _target(database)
    space = target.space
    again = data.draw(st.lists(st.sampled_from(rows), max_size=10)) if rows else []
    order = data.draw(st.permutations(rows + again))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=4)))
    pieces = [order[a:b] for a, b in itertools.pairwise([0, *cuts, len(order)])]
    times = sorted(data.draw(st.sets(st.sampled_from(_TIMES), min_size=5, max_size=5)))
    parcels = [
        target.parcel(*piece, frontier_us=time) for piece, time in zip(pieces, times, strict=False)
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
    target = _target(database)
    space = target.space
    chain = [
        target.parcel(*rows, since_us=10 * at if at else None, frontier_us=10 * at + 10)
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
            mark = mark_of(10 * at).hex()
            with pytest.raises(LostPublications, match=f"shard 0: .* on mark {mark}, "):
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
    database: OnlineDatabase, target: Target, space: KeySpace
) -> None:
    """For example, a stock client, which knows no shard, writes what the stream has published."""
    database.publish([target.parcel(_row(1, 10, 2), frontier_us=20)])
    assert database.write(space, RowBatch.of([_row(1, 10, 2)._replace(shard=None)], None)) == 0
    assert _standing(database, space, 1) == [_row(1, 10, 2)]


@pytest.mark.parametrize("other", [_row(2, 10, 2, 8), _row(2, 10, 2, 7, until=5)])
@pytest.mark.parametrize("within", ["the store", "the batch"])
def test_conflict_is_reported_with_both_values_and_nothing_is_written(
    database: OnlineDatabase, target: Target, space: KeySpace, other: Row, within: str
) -> None:
    rows = [_row(2, 10, 2, 7), _row(1, 99, 9, 9), other]
    if within == "the store":
        database.publish([target.parcel(rows.pop(0), frontier_us=20)])
    else:
        database.publish([target.parcel(frontier_us=20)])
    with pytest.raises(ConflictingPublication) as caught:
        database.publish([target.parcel(*rows, frontier_us=30, since_us=20)])
    message = str(caught.value)
    for part in (
        database.name,
        "'by_depot'",
        "depot=2",
        "event_timestamp 1970-01-01T00:00:00.000010Z",
        "revision 2",
    ):
        assert part in message
    assert f"stored {{'scans_1d': 7}} until {write_instant(10**15)}" in message
    offered = 7 if other.valid_until == 5 else 8
    assert f"offered {{'scans_1d': {offered}}} until {write_instant(other.valid_until)}" in message
    assert _standing(database, space, 1) == [None]
    assert _frontiers(database, space) == {0: 20}
    assert _write(database, space, _row(1, 99, 9, 9)) == 1


def test_long_parcel_is_written_whole_and_counted(
    database: OnlineDatabase, target: Target, space: KeySpace
) -> None:
    count = 2 * CHUNK_ROWS + 7
    rows = [_row(key, 10, 1, key) for key in range(count)]
    newer = [_row(key, 11, 1, key) for key in range(0, count, 2)]
    first = target.parcel(*rows, frontier_us=20)
    second = target.parcel(*newer, *rows[1::2], since_us=20, frontier_us=30)
    assert database.publish([first, second]) == [count, len(newer)]
    keys = [*range(count), 10**6, 3]
    random.Random(1).shuffle(keys)
    wanted = [
        None if key == 10**6 else newer[key // 2] if key % 2 == 0 else rows[key] for key in keys
    ]
    assert _standing(database, space, *keys) == wanted
    assert _frontiers(database, space) == {0: 30}


def test_frontier_of_a_long_parcel_stays_where_one_row_conflicts(
    database: OnlineDatabase,
) -> None:
    """Wherever the row is in the parcel, before the chunk with the frontier or in it."""
    for at in (0, CHUNK_ROWS, 2 * CHUNK_ROWS):
        rows = [_row(key, 10, 1) for key in range(2 * CHUNK_ROWS + 1)]
        target = _target(database)
        space = target.space
        database.publish([target.parcel(rows[at]._replace(valid_until=5), frontier_us=20)])
        with pytest.raises(ConflictingPublication):
            database.publish([target.parcel(*rows, since_us=20, frontier_us=30)])
        assert _frontiers(database, space) == {0: 20}


def test_a_call_may_hold_parcels_of_several_views_and_shards(database: OnlineDatabase) -> None:
    one, other = _target(database, 2), _target(database, 3)
    parcels = [
        one.parcel(_row(1, 10, 1), _row(2, 10, 1), shard=0, frontier_us=20),
        one.parcel(_row(3, 10, 1), shard=1, frontier_us=30),
        other.parcel(shard=0, frontier_us=40),
        other.parcel(_row(1, 10, 1), shard=2, frontier_us=50),
    ]
    assert database.publish(parcels) == [2, 1, 0, 1]
    wanted = [(one.space, [_key(1), _key(3)]), (other.space, [_key(1), _key(2)])]
    first, second = database.read(wanted)
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
    database: OnlineDatabase, target: Target, space: KeySpace
) -> None:
    wanted = f"build on mark {mark_of(20).hex()}, but the store"
    with pytest.raises(LostPublications, match=f"{wanted} has no mark, with no frontier"):
        database.publish([target.parcel(_row(1, 10, 1), since_us=20, frontier_us=30)])
    database.publish([target.parcel(frontier_us=19)])
    at = write_instant(19)
    stands = f"stands at mark {mark_of(19).hex()}, with frontier {at}: .* `tidemill republish`"
    with pytest.raises(LostPublications, match=f"{wanted} {stands}"):
        database.publish([target.parcel(_row(1, 10, 1), since_us=20, frontier_us=30)])
    assert _standing(database, space, 1) == [None]
    assert _frontiers(database, space) == {0: 19}
    database.publish([target.parcel(_row(1, 10, 1), since_us=None, frontier_us=30)])
    assert _standing(database, space, 1) == [_row(1, 10, 1)]


def test_frontier_never_goes_back(database: OnlineDatabase) -> None:
    target = _target(database, 2)
    for frontier in (100, 50, 100, TIME_MIN):
        database.publish([target.parcel(_row(1, frontier, 1), shard=1, frontier_us=frontier)])
    (snapshot,) = database.read([(target.space, [_key(1)])])
    assert snapshot.frontiers.by_shard == {1: 100}
    assert snapshot.frontiers.shard_count == 2
    assert snapshot.rows == [_row(1, 100, 1, shard=1)]
    going_back = target.parcel(_row(1, 300, 1), shard=1, since_us=100, frontier_us=99)
    with pytest.raises(StoreError, match=r"at frontier \S+99Z builds on one at frontier \S+100Z"):
        database.publish([going_back])


def test_frontier_past_every_time_is_refused(database: OnlineDatabase) -> None:
    target = _target(database, 2, 3)
    with pytest.raises(InputError, match="end that was declared"):
        target.parcel(frontier_us=TIME_MAX)
    with pytest.raises(InputError, match="no shard 2 of 2"):
        target.parcel(shard=2, frontier_us=1)
    with pytest.raises(InputError, match="no shard 1 of 2 with a slice 3 of 3"):
        target.parcel(shard=1, slice=3, frontier_us=1)
    parcel = target.parcel(shard=1, frontier_us=1)
    with pytest.raises(InputError, match="of shard 1 in a parcel of shard 0"):
        dataclasses.replace(parcel, shard=0)
    for mark in (b"short", bytes(16)):
        with pytest.raises(InputError, match=f"found mark {mark.hex()}, expected 16 bytes"):
            dataclasses.replace(parcel, mark=mark)


def test_other_shard_count_is_refused(database: OnlineDatabase, target: Target) -> None:
    other = Target(dataclasses.replace(target.fill, shards=3), target.writer)
    with pytest.raises(StoreError, match=r"1 shards of 1 slices, and .* cut for 3 of 1"):
        database.publish([other.parcel(_row(1, 1, 1), frontier_us=1)])
    assert _standing(database, target.space, 1) == [None]


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
    with pytest.raises(NoKeySpace, match=wanted):
        database.begin_fills([NewFill(absent, 1)])
    with pytest.raises(NoKeySpace, match=wanted):
        _write(database, absent, _row(1, 1, 1))
    with pytest.raises(NoKeySpace, match=wanted):
        database.read([(absent, [_key(1)])])
    assert absent.name not in database.spaces()


def test_fill_that_was_removed_is_named(database: OnlineDatabase, target: Target) -> None:
    fill = dataclasses.replace(target.fill, id="f" * 16)
    absent = Target(fill, target.writer)
    wanted = f"there is no key space {fill.space.name}, fill {fill.id}: .*`tidemill republish`"
    parcel = absent.parcel(frontier_us=1)
    calls: list[Callable[[], object]] = [
        lambda: database.publish([parcel]),
        lambda: database.publish([absent.parcel(_row(1, 1, 1), frontier_us=1)]),
        lambda: database.take_token([fill], HOLDER),
        lambda: database.part_states([fill]),
        lambda: database.withdraw(parcel, PartState(None, None)),
        lambda: database.switch([fill], target.writer),
    ]
    for call in calls:
        with pytest.raises(NoKeySpace, match=wanted):
            call()


def test_key_spaces_are_listed_and_removed_by_name(database: OnlineDatabase) -> None:
    one, other = _target(database), _target(database)
    for target in (one, other):
        rows = [_row(key, 10, 1) for key in range(3_000)]
        database.publish([target.parcel(*rows, frontier_us=20)])
    assert {one.space.name, other.space.name} <= set(database.spaces())
    named = KeySpace(one.space.project, one.space.view, one.space.definition)
    database.drop([named])
    database.drop([named])
    assert one.space.name not in database.spaces()
    assert database.fills([one.space]) == []
    assert other.space.name in database.spaces()
    database.create([one.space, other.space])
    (snapshot,) = database.read([(one.space, [_key(key) for key in range(3_000)])])
    assert snapshot.rows == [None] * 3_000
    assert snapshot.frontiers.by_shard == {}
    assert None not in _standing(database, other.space, *range(3_000))
    assert _frontiers(database, other.space) == {0: 20}


def test_key_space_of_a_view_whose_name_holds_two_underscores(database: OnlineDatabase) -> None:
    space = dataclasses.replace(DEPOT_SPACE, view="a__b", definition=f"{next(_numbers):016x}")
    database.create([space])
    assert space.name in database.spaces()
    database.drop([KeySpace("parcels", "a__b", space.definition)])
    assert space.name not in database.spaces()


def test_making_a_key_space_again_keeps_its_rows(database: OnlineDatabase) -> None:
    target = _target(database, 4)
    database.publish([target.parcel(_row(1, 10, 1), frontier_us=20)])
    database.create([target.space])
    (snapshot,) = database.read([(target.space, [_key(1)])])
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


def test_a_key_is_forgotten_and_begins_afresh(database: OnlineDatabase, target: Target) -> None:
    space = target.space
    database.publish([target.parcel(_row(1, 50, 9), _row(2, 60, 4), frontier_us=100)])
    fill, *_ = database.fills([space])
    before = database.part_states([fill])
    assert database.forget([fill], [_key(1), _key(7)]) == 1
    assert database.forget([fill], [_key(1)]) == 0
    assert _standing(database, space, 1, 2) == [None, _row(2, 60, 4)]
    assert database.part_states([fill]) == before
    # Without a row, nothing says any more that a later one would be older.
    _write(database, space, _row(1, 40, 1))
    assert _standing(database, space, 1) == [_row(1, 40, 1)]
    assert database.forget([fill], []) == 0


def test_the_cuts_of_a_fill_can_be_recorded_anew(database: OnlineDatabase, target: Target) -> None:
    fill, *_ = database.fills([target.space])
    database.record_cuts([dataclasses.replace(fill, cuts='{"digest": "other"}')])
    found, *_ = database.fills([target.space])
    assert found == dataclasses.replace(fill, cuts='{"digest": "other"}')
