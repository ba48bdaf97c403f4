"""The records of fills in SQLite: begun, taken, switched, removed. All within a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tidemill.serving.online.damage import decoding
from tidemill.serving.online.fills import (
    LAYOUT,
    Fill,
    FillState,
    Holder,
    NewFill,
    PartState,
    Writer,
    first_behind,
    new_fill_id,
)
from tidemill.serving.online.refusals import (
    behind,
    held,
    lost_fill,
    no_key_space,
    other_layout,
    past_fill,
    superseded,
)
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.online.sqlite.scripts import (
    CREATE,
    FILL_COLUMNS,
    OLD_FRONTIERS,
    SET_PART,
    create_rows,
    rows_table,
)


def create_tables(sqlite: sqlite3.Connection, spaces: Sequence[KeySpace]) -> None:
    """Make the tables, and each key space that does not exist; bring layout 1 to the present."""
    for statement in CREATE:
        sqlite.execute(statement)
    for space in spaces:
        if current_id(sqlite, space) is not None:
            continue
        if has_table(sqlite, space.name):
            _bring_forward(sqlite, space)
            continue
        fill = begin(sqlite, NewFill(space, shards=0))
        _make_current(sqlite, fill)


def _bring_forward(sqlite: sqlite3.Connection, space: KeySpace) -> None:
    """Make a key space of layout 1 the current fill; it has frontiers, and no marks."""
    found = sqlite.execute(
        f"SELECT shard, shard_count, frontier FROM {OLD_FRONTIERS} WHERE space = ?", (space.name,)
    ).fetchall()
    fill = begin(sqlite, NewFill(space, shards=found[0][1] if found else 0))
    sqlite.execute(f'DROP TABLE "{rows_table(fill.id)}"')
    sqlite.execute(f'ALTER TABLE "{space.name}" RENAME TO "{rows_table(fill.id)}"')
    for shard, _, frontier in found:
        sqlite.execute(SET_PART, (fill.id, shard, frontier, None, 0, 0))
    sqlite.execute(f"DELETE FROM {OLD_FRONTIERS} WHERE space = ?", (space.name,))
    _make_current(sqlite, fill)


def has_table(sqlite: sqlite3.Connection, name: str) -> bool:
    """Tell whether there is a table."""
    of_name = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return sqlite.execute(of_name, (name,)).fetchone() is not None


def current_id(sqlite: sqlite3.Connection, space: KeySpace) -> str | None:
    """Return the id of the current fill of a key space; None if there is no such key space."""
    found = sqlite.execute(
        "SELECT fill FROM tidemill_current WHERE space = ?", (space.name,)
    ).fetchone()
    return None if found is None else str(found[0])


def begin(sqlite: sqlite3.Connection, new: NewFill) -> Fill:
    """Make an empty fill."""
    fill = new.begun(new_fill_id())
    insert(sqlite, fill)
    return fill


def insert(sqlite: sqlite3.Connection, fill: Fill) -> None:
    """Make the record and the table of a fill."""
    writer = fill.writer
    sqlite.execute(
        "INSERT INTO tidemill_fills VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            fill.id,
            LAYOUT,
            fill.space.name,
            fill.state.value,
            fill.shards,
            fill.slices,
            fill.generation,
            fill.cuts,
            fill.mode,
            b"" if writer is None else writer.key,
            "" if writer is None else writer.holder.root,
            "" if writer is None else writer.holder.to_json(),
        ),
    )
    sqlite.execute(create_rows(fill.space, fill.id))


def _make_current(sqlite: sqlite3.Connection, fill: Fill) -> None:
    sqlite.execute(
        "UPDATE tidemill_fills SET state = ? WHERE id = ?", (FillState.CURRENT.value, fill.id)
    )
    sqlite.execute(
        "INSERT OR REPLACE INTO tidemill_current VALUES (?, ?, ?, ?, ?)",
        (fill.space.name, fill.id, LAYOUT, fill.shards, fill.slices),
    )


def fills_of(sqlite: sqlite3.Connection, store: str, space: KeySpace) -> list[Fill]:
    """Return the fills of a key space, the current one first."""
    rows = sqlite.execute(
        f"SELECT {FILL_COLUMNS} FROM tidemill_fills WHERE space = ? ORDER BY id", (space.name,)
    )
    found = [_fill(store, space, row) for row in rows]
    return sorted(found, key=lambda fill: not fill.is_current)


def record_of(sqlite: sqlite3.Connection, store: str, fill: Fill) -> Fill:
    """Return a fill as it is now."""
    row = sqlite.execute(
        f"SELECT {FILL_COLUMNS} FROM tidemill_fills WHERE id = ?", (fill.id,)
    ).fetchone()
    if row is None:
        raise lost_fill(store, fill, fill.writer, fills_of(sqlite, store, fill.space))
    return _fill(store, fill.space, row)


def _fill(store: str, space: KeySpace, row: Sequence[object]) -> Fill:
    id_, layout, _, state, shards, slices, generation, cuts, mode, token, holder = row
    with decoding(store, f"the record of fill {id_} of key space {space.name}"):
        if layout != LAYOUT:
            raise other_layout(store, space.name, int(str(layout)))
        if not isinstance(token, bytes):
            raise TypeError(f"the token is {token!r}")
        return Fill(
            id=str(id_),
            space=space,
            shards=int(str(shards)),
            slices=int(str(slices)),
            generation=str(generation),
            cuts=str(cuts),
            mode=str(mode),
            state=FillState(state),
            writer=Writer.from_key(token, str(holder)),
        )


def part_states(sqlite: sqlite3.Connection, fill: Fill) -> list[PartState]:
    """Return mark and frontier of each part of a fill."""
    found = {
        part: PartState(mark, frontier)
        for part, mark, frontier in sqlite.execute(
            "SELECT part, mark, frontier FROM tidemill_parts WHERE fill = ?", (fill.id,)
        )
    }
    nothing = PartState(None, None)
    return [found.get(part, nothing) for part in range(fill.parts)]


def take_token(
    sqlite: sqlite3.Connection,
    store: str,
    fills: Sequence[Fill],
    holder: Holder,
    take_over: bool,
) -> Writer:
    """Give the fills one token, higher than every other one of the store."""
    for fill in fills:
        now = record_of(sqlite, store, fill)
        if now.state is FillState.PAST:
            raise past_fill(store, now)
        if now.writer is not None and now.writer.holder.root != holder.root and not take_over:
            raise held(store, now, now.writer.holder)
    writer = Writer(highest_token(sqlite) + 1, holder)
    for fill in fills:
        _set_writer(sqlite, fill.id, writer)
        sqlite.execute(
            "UPDATE tidemill_fills SET generation = ?, mode = ? WHERE id = ?",
            (fill.generation, fill.mode, fill.id),
        )
    return writer


def highest_token(sqlite: sqlite3.Connection) -> int:
    """Return the highest token that any fill has; 0 if nobody has taken one."""
    (found,) = sqlite.execute("SELECT max(token) FROM tidemill_fills").fetchone()
    return int.from_bytes(found[:4], "big") if found else 0


def _set_writer(sqlite: sqlite3.Connection, fill: str, writer: Writer) -> None:
    sqlite.execute(
        "UPDATE tidemill_fills SET token = ?, root = ?, holder = ? WHERE id = ?",
        (writer.key, writer.holder.root, writer.holder.to_json(), fill),
    )


def check_writer(sqlite: sqlite3.Connection, store: str, fill: Fill, writer: Writer) -> Fill:
    """Check that a writer's token stands, and return the fill as it is now.

    A lower token stands only if the store lost the taking of this one; then it is set again.
    """
    now = record_of(sqlite, store, replace(fill, writer=writer))
    found = now.writer
    if found == writer:
        return now
    if now.state is FillState.PAST:
        raise past_fill(store, now)
    if found is not None and found.token >= writer.token:
        raise superseded(store, now, found)
    _set_writer(sqlite, fill.id, writer)
    return now


def restore(sqlite: sqlite3.Connection, fills: Sequence[Fill], writer: Writer) -> None:
    """Make lost records again, and raise lost tokens."""
    create_tables(sqlite, ())
    for fill in fills:
        row = sqlite.execute(
            "SELECT token, state FROM tidemill_fills WHERE id = ?", (fill.id,)
        ).fetchone()
        if row is None:
            insert(sqlite, _lost(fill, writer))
            if current_id(sqlite, fill.space) is None:
                _make_current(sqlite, fill)
        elif int.from_bytes(row[0][:4], "big") < writer.token and row[1] != FillState.PAST.value:
            _set_writer(sqlite, fill.id, writer)


def _lost(fill: Fill, writer: Writer) -> Fill:
    return Fill(**{**vars(fill), "state": FillState.FILLING, "writer": writer})


def switch(
    sqlite: sqlite3.Connection,
    store: str,
    fills: Sequence[Fill],
    writer: Writer,
    take_over: bool,
) -> list[Fill]:
    """Make fills current, after all checks."""
    replaced: list[tuple[Fill, str]] = []
    for fill in fills:
        now = check_writer(sqlite, store, fill, writer)
        current = current_id(sqlite, fill.space)
        if current is None:
            raise no_key_space(store, fill.space)
        if current == fill.id:
            continue
        (shown,) = [one for one in fills_of(sqlite, store, fill.space) if one.id == current]
        other = shown.writer
        if other is not None and other.holder.root != writer.holder.root and not take_over:
            raise held(store, shown, other.holder)
        late = first_behind(now, part_states(sqlite, now), shown, part_states(sqlite, shown))
        if late is not None:
            raise behind(store, now, *late)
        replaced.append((fill, current))
    # The old writers get a token that nobody has: every write of theirs is refused.
    nobody = Writer(highest_token(sqlite) + 1, writer.holder)
    for fill, current in replaced:
        _set_writer(sqlite, current, nobody)
        sqlite.execute(
            "UPDATE tidemill_fills SET state = ? WHERE id = ?", (FillState.PAST.value, current)
        )
        _make_current(sqlite, fill)
    kept = {current for _, current in replaced}
    for fill, _ in replaced:
        drop(
            sqlite,
            [
                one.id
                for one in fills_of(sqlite, store, fill.space)
                if one.state is FillState.PAST and one.id not in kept
            ],
        )
    return [record_of(sqlite, store, fill) for fill in fills]


def drop(sqlite: sqlite3.Connection, fills: Sequence[str]) -> None:
    """Remove fills with their rows."""
    for fill in fills:
        sqlite.execute(f'DROP TABLE IF EXISTS "{rows_table(fill)}"')
        sqlite.execute("DELETE FROM tidemill_parts WHERE fill = ?", (fill,))
        sqlite.execute("DELETE FROM tidemill_fills WHERE id = ?", (fill,))


def drop_space(sqlite: sqlite3.Connection, space: KeySpace) -> None:
    """Remove a key space of any layout with all its fills."""
    sqlite.execute("DELETE FROM tidemill_current WHERE space = ?", (space.name,))
    found = sqlite.execute("SELECT id FROM tidemill_fills WHERE space = ?", (space.name,))
    drop(sqlite, [fill for (fill,) in found.fetchall()])
    if has_table(sqlite, space.name):
        sqlite.execute(f'DROP TABLE "{space.name}"')
        sqlite.execute(f"DELETE FROM {OLD_FRONTIERS} WHERE space = ?", (space.name,))


def space_names(sqlite: sqlite3.Connection) -> Iterator[str]:
    """Yield the names of the key spaces of any layout."""
    if has_table(sqlite, "tidemill_current") or not has_table(sqlite, OLD_FRONTIERS):
        for (name,) in sqlite.execute("SELECT space FROM tidemill_current"):
            yield name
    for (name,) in sqlite.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
        if name.count("__") >= 2:
            yield name
