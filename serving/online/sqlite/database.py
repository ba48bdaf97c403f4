"""The online database in one SQLite file; `serving.online.database` states the promises.

In addition:

* One upsert with a condition decides about a row and writes it. All parcels of a call become
  visible together or not at all: after an error nothing of the call is written.
* Written rows survive the death of any process. A power cut may lose the last transactions (WAL
  with ``synchronous=NORMAL``): then publish again from state.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Final

from tidemill.features.errors import NoKeySpace, StoreError
from tidemill.serving.online.cells import cells_width
from tidemill.serving.online.database import Parcel, Snapshot
from tidemill.serving.online.fills import (
    LAYOUT,
    Fill,
    FillState,
    Holder,
    NewFill,
    PartState,
    Writer,
)
from tidemill.serving.online.newest_per_key import newest_per_key
from tidemill.serving.online.refusals import (
    backwards,
    conflict,
    later_attempt,
    lost,
    lost_switch,
    no_key_space,
    no_room,
    other_layout,
    other_parts,
    read_fill,
)
from tidemill.serving.online.rows import Frontiers, KeySpace, Row, RowBatch
from tidemill.serving.online.sqlite import fills as records
from tidemill.serving.online.sqlite.connections import (
    close,
    create_file,
    transaction,
    write_anew,
)
from tidemill.serving.online.sqlite.errors import named_errors
from tidemill.serving.online.sqlite.scripts import (
    OLD_FRONTIERS,
    READ_CURRENT,
    SET_PART,
    UPSERT,
    rows_table,
)

_KEYS_A_QUERY: Final = 10_000
"""SQLite takes 32,766 parameters in one statement; this is well below."""
_ROW_BYTES: Final = 100
"""About what a row takes beside its cells: key, times, and the space that pages leave empty."""
_COPIES: Final = 2
"""The write-ahead log holds the pages once more."""


@dataclass(frozen=True)
class SqliteDatabase:
    """The online database in a file (`serving.online.database.OnlineDatabase`).

    Attributes:
        path: Where the file is.
    """

    path: str

    @property
    def name(self) -> str:
        """Its name in error messages."""
        return f"online store {self.path}"

    def create(self, spaces: Sequence[KeySpace]) -> None:
        """Make key spaces, and the file itself, if they don't exist yet."""
        with named_errors(self.path):
            create_file(self.path)
        with self._transaction(write=True) as sqlite:
            records.create_tables(sqlite, spaces)

    def drop(self, spaces: Sequence[KeySpace]) -> None:
        """Remove key spaces with all their fills; without a file, do nothing."""
        if not Path(self.path).exists():
            return
        with self._transaction(write=True) as sqlite:
            for space in spaces:
                records.drop_space(sqlite, space)

    def spaces(self) -> list[str]:
        """Return the names of the key spaces that exist, in order."""
        with self._transaction(write=False) as sqlite:
            return sorted(set(records.space_names(sqlite)))

    def fills(self, spaces: Sequence[KeySpace]) -> list[Fill]:
        """Return the fills of key spaces, the current one first."""
        with self._transaction(write=False) as sqlite:
            for space in spaces:
                if records.has_table(sqlite, space.name):
                    raise other_layout(self.name, space.name, 1)
            return [fill for space in spaces for fill in records.fills_of(sqlite, self.name, space)]

    def begin_fills(self, fills: Sequence[NewFill]) -> list[Fill]:
        """Make empty fills that nobody reads."""
        needed = sum(
            _COPIES * new.expected_rows * (cells_width(len(new.space.columns)) + _ROW_BYTES)
            for new in fills
        )
        with self._transaction(write=True) as sqlite:
            for new in fills:
                if records.current_id(sqlite, new.space) is None:
                    raise self._absent(sqlite, new.space)
            folder = Path(self.path).absolute().parent
            free = shutil.disk_usage(folder).free
            if needed > free:
                raise no_room(self.name, fills, needed, free, f"the disk of {folder}")
            return [records.begin(sqlite, new) for new in fills]

    def drop_fills(self, fills: Sequence[Fill]) -> None:
        """Remove fills with their rows."""
        with self._transaction(write=True) as sqlite:
            for fill in fills:
                if records.current_id(sqlite, fill.space) == fill.id:
                    raise StoreError(
                        f"{self.name}, key space {fill.name}: readers see this fill; switch them "
                        "to another one first"
                    )
                records.drop(sqlite, [fill.id])

    def take_token(
        self, fills: Sequence[Fill], holder: Holder, *, take_over: bool = False
    ) -> Writer:
        """Take the writer's token of fills."""
        with self._transaction(write=True) as sqlite:
            return records.take_token(sqlite, self.name, fills, holder, take_over)

    def restore(self, fills: Sequence[Fill], writer: Writer) -> None:
        """Make the records again that the store lost."""
        with named_errors(self.path):
            create_file(self.path)
        with self._transaction(write=True) as sqlite:
            records.restore(sqlite, fills, writer)

    def part_states(self, fills: Sequence[Fill]) -> list[list[PartState]]:
        """Return mark and frontier of every part of fills."""
        with self._transaction(write=False) as sqlite:
            return [
                records.part_states(sqlite, records.record_of(sqlite, self.name, fill))
                for fill in fills
            ]

    def withdraw(self, parcel: Parcel, found: PartState) -> None:
        """Take mark and frontier from a parcel's part, if they are still those found."""
        with self._transaction(write=True) as sqlite:
            records.check_writer(sqlite, self.name, parcel.fill, parcel.writer)
            sqlite.execute(
                "UPDATE tidemill_parts SET frontier = NULL, mark = NULL "
                "WHERE fill = ? AND part = ? AND mark IS ? AND frontier IS ?",
                (parcel.fill.id, parcel.part, found.mark, found.frontier_us),
            )

    def switch(
        self, fills: Sequence[Fill], writer: Writer, *, take_over: bool = False
    ) -> list[Fill]:
        """Let readers see these fills."""
        with self._transaction(write=True) as sqlite:
            return records.switch(sqlite, self.name, fills, writer, take_over)

    def write(self, space: KeySpace, rows: RowBatch) -> int:
        """Write publications to the current fill, all or none of them."""
        with self._transaction(write=True) as sqlite:
            current = records.current_id(sqlite, space)
            if current is None:
                raise self._absent(sqlite, space)
            return self._upsert(sqlite, space, current, rows)

    def publish(self, parcels: Sequence[Parcel]) -> list[int]:
        """Write parcels in one transaction."""
        with self._transaction(write=True) as sqlite:
            return [self._publish(sqlite, parcel) for parcel in parcels]

    def read(self, wanted: Sequence[tuple[KeySpace, Sequence[bytes]]]) -> list[Snapshot]:
        """Read keys of several key spaces in one transaction."""
        with self._transaction(write=False) as sqlite:
            return [self._snapshot(sqlite, space, keys) for space, keys in wanted]

    def scan(self, fill: Fill) -> Iterator[list[Row]]:
        """Read every row of a fill, by key; each step is a transaction."""
        query = (
            "SELECT entity_key, event_timestamp, revision, valid_until, shard, cells "
            f'FROM "{rows_table(fill.id)}" WHERE entity_key > ? ORDER BY entity_key LIMIT ?'
        )
        after = b""
        while True:
            with self._transaction(write=False) as sqlite:
                found = sqlite.execute(query, (after, _KEYS_A_QUERY)).fetchall()
            if not found:
                return
            yield [Row(*row) for row in found]
            after = found[-1][0]

    def record_cuts(self, fills: Sequence[Fill]) -> None:
        """Replace the cuts in the records of fills."""
        with self._transaction(write=True) as sqlite:
            update = "UPDATE tidemill_fills SET cuts = ? WHERE id = ?"
            sqlite.executemany(update, [(fill.cuts, fill.id) for fill in fills])

    def forget(self, fills: Sequence[Fill], keys: Sequence[bytes]) -> int:
        """Remove the rows of some keys, and write the file anew: pages keep what was deleted."""
        removed = 0
        with self._transaction(write=True) as sqlite:
            for fill in fills:
                for key in keys:
                    delete = f'DELETE FROM "{rows_table(fill.id)}" WHERE entity_key = ?'
                    removed += sqlite.execute(delete, (key,)).rowcount
        with named_errors(self.path):
            write_anew(self.path)
        return removed

    def close(self) -> None:
        """Close this thread's connection."""
        close(self.path)

    def _publish(self, sqlite: sqlite3.Connection, parcel: Parcel) -> int:
        fill, writer = parcel.fill, parcel.writer
        row = sqlite.execute(
            "SELECT token, shards, slices, state FROM tidemill_fills WHERE id = ? AND layout = ?",
            (fill.id, LAYOUT),
        ).fetchone()
        if row is None or row[0] != writer.key:
            now = records.check_writer(sqlite, self.name, fill, writer)
            row = (writer.key, now.shards, now.slices, now.state.value)
        if row[1:3] != (fill.shards, fill.slices):
            raise other_parts(self.name, parcel, row[1:3])
        if fill.is_current and row[3] != FillState.CURRENT.value:
            raise lost_switch(self.name, fill)
        if parcel.frontier_us is None and row[3] != FillState.FILLING.value:
            raise read_fill(self.name, parcel)
        stored = sqlite.execute(
            "SELECT frontier, mark, token, attempt FROM tidemill_parts WHERE fill = ? AND part = ?",
            (fill.id, parcel.part),
        ).fetchone()
        frontier, mark, token, attempt = stored or (None, None, 0, 0)
        standing = attempt if token == writer.token else 0
        mine = standing if parcel.attempt is None else parcel.attempt
        if standing > mine:
            raise later_attempt(self.name, parcel, standing)
        header = (writer.token, mine)
        reached = parcel.frontier_us
        has_later = frontier is not None and reached is not None and reached < frontier
        is_whole = parcel.mark_before is None
        is_next = mark is not None and mark in (parcel.mark_before, *parcel.marks_between)
        is_repeat = mark == parcel.mark and not is_whole
        if is_repeat or (has_later and not is_next):
            if (token, attempt) != header:
                sqlite.execute(SET_PART, (fill.id, parcel.part, frontier, mark, *header))
            return 0
        if not is_whole:
            if not is_next:
                raise lost(self.name, parcel, PartState(mark, frontier))
            if has_later:
                assert frontier is not None
                raise backwards(self.name, parcel, frontier)
        written = self._upsert(sqlite, fill.space, fill.id, parcel.rows)
        sqlite.execute(SET_PART, (fill.id, parcel.part, reached, parcel.mark, *header))
        return written

    def _upsert(
        self, sqlite: sqlite3.Connection, space: KeySpace, fill: str, batch: RowBatch
    ) -> int:
        batch = newest_per_key(self.name, space, batch)
        if not len(batch):
            return 0
        conflicts: list[tuple[bytes, int, bytes]] = []

        def note(key: bytes, valid_until: int, cells: bytes) -> int:
            conflicts.append((key, valid_until, cells))
            return 0

        sqlite.create_function("tidemill_conflict", 3, note)
        upsert = UPSERT.format(name=rows_table(fill))
        # Sorted by key, because neighbours share pages.
        written = sqlite.executemany(upsert, sorted(batch.tuples(), key=itemgetter(0))).rowcount
        if conflicts:
            key, valid_until, cells = conflicts[0]
            stored = self._rows(sqlite, fill, [key])[0]
            # The row still exists in the transaction that found the conflict.
            assert stored is not None
            raise conflict(
                self.name, space, stored, stored._replace(valid_until=valid_until, cells=cells)
            )
        return written

    def _snapshot(
        self, sqlite: sqlite3.Connection, space: KeySpace, keys: Sequence[bytes]
    ) -> Snapshot:
        found = sqlite.execute(READ_CURRENT, (space.name,)).fetchall()
        if not found:
            raise self._absent(sqlite, space)
        fill, layout, shards, slices, first, _ = found[0]
        if layout != LAYOUT:
            raise other_layout(self.name, space.name, layout)
        by_part = {} if first is None else {row[4]: row[5] for row in found if row[5] is not None}
        return Snapshot(Frontiers(shards, by_part, slices), self._rows(sqlite, fill, keys))

    def _absent(self, sqlite: sqlite3.Connection, space: KeySpace) -> StoreError:
        """Return the error of a key space that has no current fill."""
        if records.has_table(sqlite, space.name):
            return other_layout(self.name, space.name, 1)
        return no_key_space(self.name, space)

    def _rows(
        self, sqlite: sqlite3.Connection, fill: str, keys: Sequence[bytes]
    ) -> list[Row | None]:
        found: dict[bytes, Row] = {}
        for start in range(0, len(keys), _KEYS_A_QUERY):
            some = keys[start : start + _KEYS_A_QUERY]
            cursor = sqlite.execute(
                "SELECT entity_key, event_timestamp, revision, valid_until, shard, cells "
                f'FROM "{rows_table(fill)}" WHERE entity_key IN ({",".join("?" * len(some))})',
                some,
            )
            found.update((row[0], Row(*row)) for row in cursor)
        return [found.get(key) for key in keys]

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        with named_errors(self.path), transaction(self.path, write=write) as sqlite:
            try:
                yield sqlite
            except sqlite3.OperationalError as error:
                if not str(error).startswith("no such table: tidemill_"):
                    raise
                raise self._without_tables(sqlite) from error

    def _without_tables(self, sqlite: sqlite3.Connection) -> StoreError:
        """Return the error of a file that has no tables of the present layout."""
        if records.has_table(sqlite, OLD_FRONTIERS):
            return other_layout(self.name, "all key spaces", 1)
        return NoKeySpace(f"{self.name}: there is no online store in it; register the project")
