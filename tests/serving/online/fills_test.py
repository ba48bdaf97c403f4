"""Fills of key spaces: marks, tokens, slices and switches, in every online database."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fills import (
    HOLDER,
    OTHER_HOLDER,
    Target,
    begun,
    mark_of,
    opened,
    replace_writer,
    taken,
)
from tests.support.parcels import COURIER_SPACE, DEPOT_SPACE
from tests.support.redis_server import running
from tidemill.features.contract import write_instant
from tidemill.features.errors import (
    BehindReaders,
    HeldByAnotherRoot,
    InputError,
    LostPublications,
    NoKeySpace,
    StoreError,
    StoreFull,
    SupersededWriter,
)
from tidemill.serving.online.cells import encode_row
from tidemill.serving.online.database import OnlineDatabase, Parcel
from tidemill.serving.online.fills import (
    Fill,
    FillState,
    NewFill,
    PartState,
    Writer,
    chunk_mark,
    first_behind,
    slice_of,
    slices_for,
)
from tidemill.serving.online.parcels import in_chunks, whole_parcels
from tidemill.serving.online.redis.database import RedisDatabase
from tidemill.serving.online.rows import Frontiers, KeySpace, Row, RowBatch, online_keys
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


def _space(of: KeySpace = DEPOT_SPACE) -> KeySpace:
    return dataclasses.replace(of, definition=f"{next(_numbers):016x}")


@pytest.fixture
def target(database: OnlineDatabase) -> Target:
    return opened(database, [_space()])[0]


def _row(key: int, time: int, revision: int = 1) -> Row:
    raw = online_keys("depot", pa.array([key]))[0]
    return Row(raw, time, revision, 10**15, 0, encode_row(DEPOT_SPACE.dtypes, [time]))


def _times(database: OnlineDatabase, space: KeySpace, keys: Sequence[int]) -> list[int | None]:
    (snapshot,) = database.read([(space, [_row(key, 0).key for key in keys])])
    return [None if row is None else row.event_timestamp for row in snapshot.rows]


def _frontiers(database: OnlineDatabase, space: KeySpace) -> Frontiers:
    return database.read([(space, [])])[0].frontiers


# Marks.


def test_releases_with_one_frontier_are_told_apart_by_their_marks(
    database: OnlineDatabase, target: Target
) -> None:
    """As in eager mode, when late events are applied."""
    first = replace(target.parcel(_row(1, 1), frontier_us=50), mark=mark_of(50, "first"))
    second = replace(
        target.parcel(_row(1, 2), frontier_us=50),
        mark_before=first.mark,
        mark=mark_of(50, "second"),
    )
    third = replace(
        target.parcel(_row(1, 3), frontier_us=50),
        mark_before=second.mark,
        mark=mark_of(50, "third"),
    )
    assert database.publish([first]) == [1]
    with pytest.raises(LostPublications):
        database.publish([third])
    assert _times(database, target.space, [1]) == [1]
    assert database.publish([second, third]) == [1, 1]
    assert database.publish([third]) == [0]
    assert _times(database, target.space, [1]) == [3]


def test_marks_and_frontiers_are_read_back(database: OnlineDatabase) -> None:
    (target,) = opened(database, [_space()], shards=2, slices=2)
    nothing = PartState(None, None)
    assert database.part_states([target.fill]) == [[nothing] * 4]
    database.publish([target.parcel(shard=1, slice=0, frontier_us=-7)])
    ((*others, found, last),) = database.part_states([target.fill])
    assert found == PartState(mark_of(-7), -7)
    assert [*others, last] == [nothing] * 3
    assert database.part_states([]) == []


def test_frontier_that_is_withdrawn_is_gone_until_all_of_the_part_comes(
    database: OnlineDatabase, target: Target
) -> None:
    database.publish([target.parcel(_row(1, 1), frontier_us=10)])
    parcel = target.parcel(_row(1, 5), since_us=20, frontier_us=30)
    database.withdraw(parcel, PartState(mark_of(9), 10))
    assert _frontiers(database, target.space).by_part == {0: 10}
    database.withdraw(parcel, PartState(mark_of(10), 10))
    assert _frontiers(database, target.space).by_part == {}
    assert database.part_states([target.fill]) == [[PartState(None, None)]]
    with pytest.raises(LostPublications, match="has no mark, with no frontier"):
        database.publish([target.parcel(_row(1, 2), since_us=10, frontier_us=20)])
    assert database.publish([target.parcel(_row(1, 5), frontier_us=30)]) == [1]
    assert _frontiers(database, target.space).by_part == {0: 30}
    other = taken(database, target)
    with pytest.raises(SupersededWriter):
        database.withdraw(parcel, PartState(mark_of(30), 30))
    assert other.writer.token > target.writer.token


def test_release_behind_what_stands_changes_nothing(
    database: OnlineDatabase, target: Target
) -> None:
    """A stream that resumes repeats releases that a killed run has published."""
    database.publish([target.parcel(_row(1, 30), _row(2, 35), frontier_us=40)])
    older = [
        target.parcel(_row(1, 10), frontier_us=20),
        target.parcel(_row(3, 25), since_us=20, frontier_us=30),
    ]
    assert database.publish(older) == [0, 0]
    assert _times(database, target.space, [1, 2, 3]) == [30, 35, None]
    assert database.part_states([target.fill]) == [[PartState(mark_of(40), 40)]]


# Slices.


def test_slices_of_a_shard_have_frontiers_of_their_own(database: OnlineDatabase) -> None:
    (target,) = opened(database, [_space()], shards=2, slices=3)
    rows = RowBatch.of([_row(key, 10)._replace(shard=1) for key in range(60)], 1)
    parcels = whole_parcels(
        target.fill,
        target.writer,
        rows,
        shard=1,
        mark_before=None,
        mark=mark_of(20),
        frontier_us=20,
    )
    assert [parcel.part for parcel in parcels] == [3, 4, 5]
    assert sum(len(parcel.rows) for parcel in parcels) == 60
    assert all(len(parcel.rows) for parcel in parcels)
    for parcel in parcels:
        assert {slice_of(key, 3) for key in parcel.rows.keys} == {parcel.slice}
    assert sum(database.publish(parcels[:2])) == sum(len(p.rows) for p in parcels[:2])
    frontiers = _frontiers(database, target.space)
    assert (frontiers.shard_count, frontiers.slices) == (2, 3)
    assert frontiers.by_part == {3: 20, 4: 20}
    assert frontiers.by_shard == {}
    for parcel in parcels:
        for key in parcel.rows.keys:
            assert frontiers.of(1, key) == (20 if parcel.slice < 2 else -(2**62))
    database.publish(parcels[2:])
    assert _frontiers(database, target.space).by_shard == {1: 20}
    assert _times(database, target.space, range(60)) == [10] * 60


def test_part_of_a_key_never_changes() -> None:
    """It is stored nowhere: another one would read other frontiers."""
    keys = online_keys("depot", pa.array(range(8)))
    assert [slice_of(key, 5) for key in keys] == [2, 2, 4, 2, 1, 1, 2, 4]
    assert [slice_of(key, 1) for key in keys] == [0] * 8
    assert [slices_for(entities) for entities in (0, 5_000, 5_001, 10_000, 62_500)] == [
        1, 1, 2, 2, 13,
    ]  # fmt: skip


# Chunks of a fill that nobody reads.


def test_long_part_is_filled_in_chunks_each_in_its_turn(
    database: OnlineDatabase, target: Target
) -> None:
    (filling,) = begun(database, [target.space])
    rows = RowBatch.of([_row(key, 10) for key in range(25)], 0)
    whole = filling.batch(rows, frontier_us=20)
    chunks = in_chunks(whole, 10)
    assert [len(chunk.rows) for chunk in chunks] == [10, 10, 5]
    assert [chunk.frontier_us for chunk in chunks] == [None, None, 20]
    assert database.publish(chunks[:1]) == [10]
    assert database.part_states([filling.fill]) == [[PartState(chunk_mark(whole.mark, 0), None)]]
    with pytest.raises(LostPublications, match="build on mark"):
        database.publish(chunks[2:])
    assert database.publish(chunks) == [0, 10, 5]
    assert database.publish(chunks[2:]) == [0]
    assert database.part_states([filling.fill]) == [[PartState(whole.mark, 20)]]
    assert in_chunks(filling.parcel(frontier_us=20), 10)[0].frontier_us == 20
    database.switch([filling.fill], filling.writer)
    assert _times(database, target.space, range(25)) == [10] * 25
    with pytest.raises(StoreError, match="would see rows of two releases"):
        database.publish(in_chunks(replace(whole, mark=mark_of(30), frontier_us=30), 10))


@pytest.mark.parametrize("stands", [10, 20, 30])
def test_a_parcel_of_several_releases_builds_on_any_of_them(
    database: OnlineDatabase, target: Target, stands: int
) -> None:
    """An engine repeats some releases in one bundle with the next ones."""
    database.publish([target.parcel(_row(1, stands), frontier_us=stands)])
    joined = replace(
        target.parcel(_row(1, 39), since_us=10, frontier_us=40),
        marks_between=(mark_of(20), mark_of(30)),
    )
    assert database.publish([joined]) == [1]
    assert database.publish([joined]) == [0]
    assert _times(database, target.space, [1]) == [39]


def test_a_parcel_of_several_releases_builds_on_no_other(
    database: OnlineDatabase, target: Target
) -> None:
    database.publish([target.parcel(_row(1, 5), frontier_us=5)])
    joined = replace(
        target.parcel(_row(1, 39), since_us=10, frontier_us=40),
        marks_between=(mark_of(20), mark_of(30)),
    )
    with pytest.raises(LostPublications):
        database.publish([joined])
    assert _times(database, target.space, [1]) == [5]


# Writers.


def test_elder_writer_is_refused_by_the_name_of_the_younger(
    database: OnlineDatabase, target: Target
) -> None:
    database.publish([target.parcel(_row(1, 1), frontier_us=10)])
    younger = taken(database, target, OTHER_HOLDER)
    assert younger.writer.token > target.writer.token
    for parcel in (
        target.parcel(_row(1, 9), since_us=10, frontier_us=20),
        target.parcel(_row(1, 9), frontier_us=20),
        target.parcel(_row(1, 1), frontier_us=10),  # a repeat
    ):
        with pytest.raises(
            SupersededWriter, match=r"taken over: .*process 2 on another-host.*--take-over"
        ):
            database.publish([parcel])
    assert _times(database, target.space, [1]) == [1]
    assert database.publish([younger.parcel(_row(1, 2), since_us=10, frontier_us=20)]) == [1]


def test_another_root_needs_to_be_told_to_take_over(
    database: OnlineDatabase, target: Target
) -> None:
    with pytest.raises(
        HeldByAnotherRoot,
        match=r"another root: .*on a-host, root a-root, since 1970-01-01T00:00:00Z.; .*--take",
    ):
        database.take_token([target.fill], OTHER_HOLDER)
    database.publish([target.parcel(_row(1, 1), frontier_us=10)])
    same = database.take_token([target.fill], replace(HOLDER, pid=77))
    other = database.take_token([target.fill], OTHER_HOLDER, take_over=True)
    assert target.writer.token < same.token < other.token
    (fill,) = database.fills([target.space])[:1]
    assert (fill.writer, fill.generation) == (other, "")
    of_another = replace(fill, generation="0123456789abcdef")
    database.take_token([of_another], OTHER_HOLDER)
    assert database.fills([target.space])[0].generation == of_another.generation
    with pytest.raises(HeldByAnotherRoot):
        database.take_token([fill], HOLDER)


def test_a_token_is_taken_for_all_fills_or_for_none(database: OnlineDatabase) -> None:
    mine, theirs = (opened(database, [_space()], holder=h)[0] for h in (HOLDER, OTHER_HOLDER))
    with pytest.raises(HeldByAnotherRoot, match=theirs.space.name):
        database.take_token([mine.fill, theirs.fill], HOLDER)
    assert database.publish([mine.parcel(frontier_us=10), theirs.parcel(frontier_us=10)]) == [0, 0]
    writer = database.take_token([mine.fill, theirs.fill], HOLDER, take_over=True)
    assert {fill.writer for fill in database.fills([mine.space, theirs.space])[::2]} == {writer}


def test_earlier_attempt_of_an_operator_is_refused(
    database: OnlineDatabase, target: Target
) -> None:
    first = target.parcel(_row(1, 1), frontier_us=10)
    database.publish([first])
    second = replace(target.parcel(_row(1, 2), since_us=10, frontier_us=20), attempt=1)
    # The repeat of a release is enough for the attempt to count.
    assert database.publish([replace(first, attempt=1)]) == [0]
    with pytest.raises(SupersededWriter, match=r"attempt 1 of this shard's operator .* attempt 0"):
        database.publish([replace(second, attempt=0)])
    assert database.publish([second]) == [1]
    beside = replace(target.parcel(_row(2, 1), frontier_us=20), attempt=None)
    assert database.publish([beside]) == [1]
    with pytest.raises(SupersededWriter, match=r"attempt 1 of this shard's operator .* attempt 0"):
        database.publish([replace(second, attempt=0)])
    later = taken(database, target)
    assert database.publish([later.parcel(_row(1, 3), since_us=20, frontier_us=30)]) == [1]


def test_token_that_the_store_lost_counts_again(database: OnlineDatabase, target: Target) -> None:
    """Another server with older data took over after the token was taken; marks tell the rest."""
    higher = Writer(target.writer.token + 5, OTHER_HOLDER)
    younger = replace_writer(target, higher)
    assert database.publish([younger.parcel(_row(1, 1), frontier_us=10)]) == [1]
    with pytest.raises(SupersededWriter, match="another-root"):
        database.publish([target.parcel(_row(1, 2), since_us=10, frontier_us=20)])
    twin = replace_writer(target, Writer(higher.token, HOLDER))
    with pytest.raises(SupersededWriter, match="another-root"):
        database.publish([twin.parcel(_row(1, 2), since_us=10, frontier_us=20)])
    assert _times(database, target.space, [1]) == [1]


def test_token_is_checked() -> None:
    with pytest.raises(InputError, match="found token 0"):
        Writer(0, HOLDER)
    assert Writer.from_key(b"", b"") is None
    writer = Writer(2**32 - 1, HOLDER)
    assert Writer.from_key(writer.key, HOLDER.to_json()) == writer


# Records.


def test_records_say_what_a_fill_was_made_of(database: OnlineDatabase, target: Target) -> None:
    new = NewFill(target.space, 3, 2, "a generation", '{"scans": [1, 2]}', "eager")
    (made,) = database.begin_fills([new])
    current, filling = (
        fill for fill in database.fills([target.space]) if fill.state is not FillState.PAST
    )
    assert (current.id, current.state) == (target.fill.id, FillState.CURRENT)
    assert filling == made
    assert (made.shards, made.slices, made.parts) == (3, 2, 6)
    assert (made.generation, made.cuts, made.mode) == (new.generation, new.cuts, new.mode)
    assert (made.state, made.writer) == (FillState.FILLING, None)
    database.drop_fills([made])
    assert database.fills([target.space])[0] == current
    assert made not in database.fills([target.space])
    with pytest.raises(StoreError, match="readers see this fill"):
        database.drop_fills([current])


def test_stock_client_writes_to_the_current_fill_and_a_switch_drops_it(
    database: OnlineDatabase, target: Target
) -> None:
    stock = RowBatch.of([_row(1, 5)._replace(shard=None)], None)
    database.publish([target.parcel(frontier_us=10)])
    assert database.write(target.space, stock) == 1
    assert _times(database, target.space, [1]) == [5]
    (other,) = begun(database, [target.space])
    database.publish([other.parcel(frontier_us=10)])
    database.switch([other.fill], other.writer)
    assert _times(database, target.space, [1]) == [None]
    assert database.write(target.space, stock) == 1
    assert _times(database, target.space, [1]) == [5]
    assert _frontiers(database, target.space).by_part == {0: 10}


# Room.


def test_a_fill_for_which_there_is_no_room_is_not_begun(
    database: OnlineDatabase, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that readers see are worth more than a fill that would take their room."""
    where = "the disk of"
    if isinstance(database, RedisDatabase):
        client = redis.Redis(host=database.place.host, port=database.place.port)
        client.config_set("maxmemory", client.info()["used_memory"] + 2_000_000)
        where = "its maxmemory of"
    else:
        usage = shutil.disk_usage("/")._replace(free=2_000_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    database.publish([target.parcel(_row(1, 5), frontier_us=10)])
    new = [NewFill(target.space, 1, 1), NewFill(target.space, 2, 1, expected_rows=1_000_000)]
    with pytest.raises(StoreFull, match=rf"another fill of {target.space.name} .* and {where}"):
        database.begin_fills(new)
    assert [fill.id for fill in database.fills([target.space]) if fill.is_current] == [
        target.fill.id
    ]
    assert not [f for f in database.fills([target.space]) if f.state is FillState.FILLING]
    assert _times(database, target.space, [1]) == [5]
    assert database.begin_fills([NewFill(target.space, 1, 1, expected_rows=1_000)])
    if isinstance(database, RedisDatabase):
        client.config_set("maxmemory", 0)
        client.close()


# Switches.


def test_readers_see_another_fill_after_a_switch_and_the_last_one_stays(
    database: OnlineDatabase, target: Target
) -> None:
    database.publish([target.parcel(_row(1, 1), _row(2, 1), frontier_us=10)])
    (other,) = begun(database, [target.space], shards=2)
    for shard in range(2):
        database.publish([other.parcel(_row(1 + 2 * shard, 2), shard=shard, frontier_us=10)])
    assert _times(database, target.space, [1, 2, 3]) == [1, 1, None]
    (now,) = database.switch([other.fill], other.writer)
    assert now.is_current
    assert _times(database, target.space, [1, 2, 3]) == [2, None, 2]
    assert _frontiers(database, target.space).by_part == {0: 10, 1: 10}
    assert [fill.id for fill in database.fills([target.space])] == [other.fill.id, target.fill.id]
    assert database.switch([other.fill], other.writer) == [now]
    with pytest.raises(SupersededWriter, match=r"readers were switched by .* to another fill"):
        database.publish([target.parcel(_row(1, 9), since_us=10, frontier_us=20)])
    for call in (
        lambda: database.take_token([target.fill], HOLDER),
        lambda: database.switch([target.fill], target.writer),
    ):
        with pytest.raises(SupersededWriter):
            call()
    (third,) = begun(database, [target.space])
    database.publish([third.parcel(frontier_us=10)])
    database.switch([third.fill], third.writer)
    found = [fill.id for fill in database.fills([target.space])]
    assert found == [third.fill.id, other.fill.id]


def test_switch_is_refused_while_a_fill_is_behind_what_readers_see(
    database: OnlineDatabase,
) -> None:
    one, two = opened(database, [_space(), _space()], shards=2)
    for target in (one, two):
        for shard, frontier in enumerate((10, 30)):
            database.publish([target.parcel(shard=shard, frontier_us=frontier)])
    new_one, new_two = begun(database, [one.space, two.space], shards=2)
    fills, writer = [new_one.fill, new_two.fill], new_one.writer
    database.publish([new_one.parcel(shard=s, frontier_us=f) for s, f in enumerate((10, 30))])
    database.publish([new_two.parcel(shard=0, frontier_us=99)])
    with pytest.raises(
        BehindReaders, match=f"{two.space.name}.*shard 1: it is at no frontier.*frontier .*30Z of"
    ):
        database.switch(fills, writer)
    database.publish([new_two.parcel(shard=1, frontier_us=29)])
    with pytest.raises(BehindReaders, match=r"shard 1: it is at frontier \S+000029Z"):
        database.switch(fills, writer)
    assert [fill.id for fill in database.fills([one.space, two.space]) if fill.is_current] == [
        one.fill.id,
        two.fill.id,
    ]
    database.publish([new_two.parcel(shard=1, since_us=29, frontier_us=30)])
    assert all(fill.is_current for fill in database.switch(fills, writer))


def test_switch_away_from_another_root_needs_to_be_told(
    database: OnlineDatabase, target: Target
) -> None:
    (other,) = begun(database, [target.space], holder=OTHER_HOLDER)
    with pytest.raises(HeldByAnotherRoot, match="root a-root"):
        database.switch([other.fill], other.writer)
    (now,) = database.switch([other.fill], other.writer, take_over=True)
    assert now.writer == other.writer
    with pytest.raises(SupersededWriter):
        database.publish([target.parcel(frontier_us=10)])


def test_superseded_writer_does_not_switch(database: OnlineDatabase, target: Target) -> None:
    (other,) = begun(database, [target.space])
    younger = taken(database, other)
    with pytest.raises(SupersededWriter):
        database.switch([other.fill], other.writer)
    assert database.switch([other.fill], younger.writer)[0].is_current


def test_writer_whose_fill_a_later_one_removed_is_told_so(
    database: OnlineDatabase, target: Target
) -> None:
    """Whoever removes a fill has taken the token of the key space: the store has lost nothing."""
    (fill,) = begun(database, [target.space])
    calls: list[Callable[[], object]] = [
        lambda: database.publish([fill.parcel(frontier_us=1)]),
        lambda: database.publish([fill.parcel(_row(1, 1, 1), frontier_us=1)]),
        lambda: database.withdraw(fill.parcel(frontier_us=1), PartState(None, None)),
        lambda: database.switch([fill.fill], fill.writer),
        lambda: database.take_token([replace(fill.fill, writer=fill.writer)], HOLDER),
        lambda: database.part_states([replace(fill.fill, writer=fill.writer)]),
    ]
    database.drop_fills([fill.fill])
    for call in calls:
        with pytest.raises(NoKeySpace, match="removed, or the store was emptied"):
            call()
    taken(database, target)
    for call in calls:
        with pytest.raises(SupersededWriter, match=r"process 1 on a-host.*nothing was written"):
            call()


_frontier = st.none() | st.integers(0, 3)


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    old=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    new=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_both_stores_agree_on_what_is_behind(
    database: OnlineDatabase, data: st.DataObject, old: tuple[int, int], new: tuple[int, int]
) -> None:
    """The rule: `first_behind`, and for it the meaning of being behind, key by key."""
    (shown,) = opened(database, [_space()], *old)
    (filling,) = begun(database, [shown.space], *new)
    for target, (shards, slices) in ((shown, old), (filling, new)):
        for shard, number in itertools.product(range(shards), range(slices)):
            if (frontier := data.draw(_frontier)) is not None:
                database.publish([target.parcel(shard=shard, slice=number, frontier_us=frontier)])
    states, seen = database.part_states([filling.fill, shown.fill])
    expected = first_behind(filling.fill, states, shown.fill, seen)
    try:
        database.switch([filling.fill], filling.writer)
        found = None
    except BehindReaders as error:
        found = str(error)
    assert (expected is None) == (found is None)
    if expected is not None:
        shard, mine, theirs = expected
        assert found is not None
        at = "no frontier" if mine is None else f"frontier {write_instant(mine)}"
        assert (
            f"shard {shard}: it is at {at}, and readers see frontier {write_instant(theirs)} "
            in found
        )
        return
    # No key of any shard is seen as of an earlier instant than before, where shards are the same.
    if old[0] == new[0]:
        for shard, key in itertools.product(range(old[0]), range(20)):
            raw = _row(key, 0).key
            was = seen[shard * old[1] + slice_of(raw, old[1])].frontier_us
            now = states[shard * new[1] + slice_of(raw, new[1])].frontier_us
            assert was is None or (now is not None and now >= was)


# Losses.


def test_records_that_the_store_lost_are_made_again(
    database: OnlineDatabase, target: Target
) -> None:
    (filling,) = begun(database, [target.space])
    writer = filling.writer
    mine = replace_writer(target, writer)
    database.drop([target.space])
    with pytest.raises(NoKeySpace):
        database.publish([mine.parcel(frontier_us=10)])
    database.restore([target.fill, filling.fill], writer)
    (current, other) = database.fills([target.space])
    assert (current.id, other.id) == (target.fill.id, filling.fill.id)
    assert (other.state, other.writer, current.writer) == (FillState.FILLING, writer, writer)
    database.restore([target.fill, filling.fill], writer)
    database.publish([mine.parcel(_row(1, 1), frontier_us=10)])
    database.publish([filling.parcel(_row(1, 2), frontier_us=10)])
    assert _times(database, target.space, [1]) == [1]


def test_switch_that_the_store_lost_is_noticed(database: OnlineDatabase, target: Target) -> None:
    (other,) = begun(database, [target.space])
    knows_it_as_current = Target(replace(other.fill, state=FillState.CURRENT), other.writer)
    with pytest.raises(LostPublications, match=r"readers were switched to this fill, and .*forgot"):
        database.publish([knows_it_as_current.parcel(frontier_us=10)])
    database.publish([other.parcel(frontier_us=10)])
    database.switch([other.fill], other.writer)
    # A writer that does not know of the switch yet may go on.
    database.publish([other.parcel(since_us=10, frontier_us=20)])
    database.publish([knows_it_as_current.parcel(since_us=20, frontier_us=30)])


# Several views at once, while they are switched.


def test_views_of_one_read_are_of_one_instant_while_fills_are_switched(
    database: OnlineDatabase,
) -> None:
    """Reads of another thread see no mixture of fills, no gap, and no step back."""
    spaces = [_space(), _space(COURIER_SPACE)]
    targets = opened(database, spaces)
    _fill_both(database, targets, 0)
    over = threading.Event()
    found: list[Any] = []
    errors: list[Exception] = []

    def read() -> None:
        keys = [_row(1, 0).key]
        try:
            while not over.is_set():
                found.append(database.read([(space, keys) for space in spaces]))
        except StoreError as error:
            errors.append(error)
        finally:
            database.close()

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(1, 25):
        new = begun(database, spaces)
        _fill_both(database, new, number)
        database.switch([target.fill for target in new], new[0].writer)
    over.set()
    for reader in readers:
        reader.join()
    assert errors == []
    for snapshots in found:
        times = {snapshot.rows[0].event_timestamp for snapshot in snapshots}
        frontiers = {snapshot.frontiers.by_part[0] for snapshot in snapshots}
        assert len(times) == len(frontiers) == 1
        assert frontiers == {times.pop() + 1}


def _fill_both(database: OnlineDatabase, targets: Sequence[Target], number: int) -> None:
    for target in targets:
        width = len(target.space.columns)
        cells = encode_row(target.space.dtypes, [None] * width)
        row = _row(1, number)._replace(cells=cells)
        database.publish([target.parcel(row, frontier_us=number + 1)])


def test_a_fill_knows_its_parts(target: Target) -> None:
    fill: Fill = replace(target.fill, shards=3, slices=4)
    assert fill.parts == 12
    assert fill.name == f"{fill.space.name}, fill {fill.id}"
    with pytest.raises(InputError, match="found 1 shards of 0 slices"):
        NewFill(target.space, 1, 0)
    parcel: Parcel = Target(fill, target.writer).parcel(shard=2, slice=1, frontier_us=1)
    assert parcel.part == 9
