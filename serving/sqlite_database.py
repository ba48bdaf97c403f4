"""The online database in one SQLite file; the promises stand in `serving.online_database`.

What it adds to them:

* The decision is one upsert with a condition. A batch, and the frontier that it reaches, become
  visible together or not at all; after a conflict nothing of its batch is written.
* What was written outlives the death of any process. A power cut may take the last transactions
  (WAL with ``synchronous=NORMAL``): then publish again from state.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

from features.errors import StoreError
from serving.online_cells import cells_width
from serving.online_database import Snapshot, check_frontier, conflict, other_shard_count
from serving.online_rows import Frontiers, KeySpace, Row
from serving.sqlite_connections import close, create_file, transaction

_FRONTIERS: Final = """
CREATE TABLE IF NOT EXISTS tidemill_frontiers (
    space TEXT NOT NULL,
    shard INTEGER NOT NULL,
    shard_count INTEGER NOT NULL,
    frontier INTEGER NOT NULL,
    PRIMARY KEY (space, shard)
) WITHOUT ROWID
"""

# CASE is lazy, so the function that notes a conflict is called for a conflict only.
_UPSERT: Final = """
INSERT INTO "{name}" AS old (entity_key, event_timestamp, revision, valid_until, shard, cells)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (entity_key) DO UPDATE SET
    event_timestamp = excluded.event_timestamp,
    revision = excluded.revision,
    valid_until = excluded.valid_until,
    shard = excluded.shard,
    cells = excluded.cells
WHERE CASE
    WHEN excluded.event_timestamp <> old.event_timestamp
        THEN excluded.event_timestamp > old.event_timestamp
    WHEN excluded.revision <> old.revision
        THEN excluded.revision > old.revision
    WHEN excluded.cells = old.cells AND excluded.valid_until = old.valid_until
        THEN 0
    ELSE tidemill_conflict(excluded.entity_key, excluded.valid_until, excluded.cells)
END
"""

_KEYS_A_QUERY: Final = 10_000
"""SQLite takes 32,766 parameters in one statement; this is well below."""


@dataclass(frozen=True)
class SqliteDatabase:
    """The online database in a file (`serving.online_database.OnlineDatabase`).

    Attributes:
        path: Where the file is.
    """

    path: str

    @property
    def name(self) -> str:
        """What error messages call it."""
        return f"online store {self.path}"

    def create(self, spaces: Sequence[KeySpace]) -> None:
        """Make key spaces, and the file itself, where they don't exist yet.

        Raises:
            StoreError: The file cannot be written.
        """
        with self._named_errors():
            create_file(self.path)
        with self._transaction(write=True) as sqlite:
            sqlite.execute(_FRONTIERS)
            for space in spaces:
                sqlite.execute(
                    f'CREATE TABLE IF NOT EXISTS "{space.name}" ('
                    "entity_key BLOB NOT NULL PRIMARY KEY, "
                    "event_timestamp INTEGER NOT NULL, "
                    "revision INTEGER NOT NULL, "
                    "valid_until INTEGER NOT NULL, "
                    "shard INTEGER, "
                    "cells BLOB NOT NULL "
                    f"CHECK (length(cells) = {cells_width(len(space.columns))})"
                    ") WITHOUT ROWID"
                )

    def drop(self, spaces: Sequence[KeySpace]) -> None:
        """Remove key spaces with their rows and frontiers.

        Raises:
            StoreError: The file cannot be written.
        """
        with self._transaction(write=True) as sqlite:
            for space in spaces:
                sqlite.execute(f'DROP TABLE IF EXISTS "{space.name}"')
                sqlite.execute("DELETE FROM tidemill_frontiers WHERE space = ?", (space.name,))

    def write(self, space: KeySpace, rows: Sequence[Row]) -> int:
        """Write publications whose frontier is not known here (a stock client's).

        Args:
            space: Their key space.
            rows: The publications, in any order.

        Returns:
            How many of them stand now; the others were older than, or equal to, what stood.

        Raises:
            ConflictingPublication: One contradicts the one that stands; nothing is written.
            StoreError: The file cannot be written.
        """
        with self._transaction(write=True) as sqlite:
            return self._upsert(sqlite, space, rows)

    def publish(
        self,
        space: KeySpace,
        rows: Sequence[Row],
        *,
        shard: int,
        shard_count: int,
        frontier_us: int,
    ) -> int:
        """Write the publications of one advance of a shard together with the frontier it reached.

        Args:
            space: Their key space.
            rows: The publications, in any order.
            shard: The shard they are of.
            shard_count: How many shards the view has.
            frontier_us: The instant as of which the shard's rows are now the value.

        Returns:
            How many of the publications stand now.

        Raises:
            ConflictingPublication: One contradicts the one that stands; nothing is written.
            StoreError: The file cannot be written, or the shard count is another one.
            InputError: The frontier is past every time.
        """
        with self._transaction(write=True) as sqlite:
            written = self._upsert(sqlite, space, rows)
            self._advance_frontier(sqlite, space, shard, shard_count, frontier_us)
            return written

    def write_frontier(
        self, space: KeySpace, *, shard: int, shard_count: int, frontier_us: int
    ) -> None:
        """Publish a shard's frontier; one behind what stands changes nothing.

        Args:
            space: The key space.
            shard: The shard.
            shard_count: How many shards the view has.
            frontier_us: The instant as of which the shard's rows are the value.

        Raises:
            StoreError: The file cannot be written, or the shard count is another one.
            InputError: The frontier is past every time.
        """
        with self._transaction(write=True) as sqlite:
            self._advance_frontier(sqlite, space, shard, shard_count, frontier_us)

    def read(self, wanted: Sequence[tuple[KeySpace, Sequence[bytes]]]) -> list[Snapshot]:
        """Read keys of several key spaces, all as of one instant.

        Args:
            wanted: Key spaces, each with the keys to look up.

        Returns:
            A snapshot for each, its rows in the order of the keys.

        Raises:
            StoreError: The file or a key space does not exist or cannot be read.
        """
        with self._transaction(write=False) as sqlite:
            return [
                Snapshot(self._frontiers(sqlite, space), self._rows(sqlite, space, keys))
                for space, keys in wanted
            ]

    def close(self) -> None:
        """Close this thread's connection."""
        close(self.path)

    def _upsert(self, sqlite: sqlite3.Connection, space: KeySpace, rows: Sequence[Row]) -> int:
        conflicts: list[tuple[bytes, int, bytes]] = []

        def note(key: bytes, valid_until: int, cells: bytes) -> int:
            conflicts.append((key, valid_until, cells))
            return 0

        sqlite.create_function("tidemill_conflict", 3, note)
        # In the order of keys, neighbours share pages; the order decides nothing else.
        written = sqlite.executemany(
            _UPSERT.format(name=space.name), sorted(rows, key=itemgetter(0))
        ).rowcount
        if conflicts:
            key, valid_until, cells = conflicts[0]
            stored = self._rows(sqlite, space, [key])[0]
            # Within the transaction that found the conflict the row cannot have gone.
            assert stored is not None
            raise conflict(
                self.name, space, stored, stored._replace(valid_until=valid_until, cells=cells)
            )
        return max(written, 0)

    def _advance_frontier(
        self,
        sqlite: sqlite3.Connection,
        space: KeySpace,
        shard: int,
        shard_count: int,
        frontier_us: int,
    ) -> None:
        check_frontier(space, shard, shard_count, frontier_us)
        other = sqlite.execute(
            "SELECT shard_count FROM tidemill_frontiers WHERE space = ? AND shard_count <> ?",
            (space.name, shard_count),
        ).fetchone()
        if other is not None:
            raise StoreError(other_shard_count(self.name, space, other[0], shard_count))
        sqlite.execute(
            "INSERT INTO tidemill_frontiers VALUES (?, ?, ?, ?) ON CONFLICT (space, shard) "
            "DO UPDATE SET frontier = excluded.frontier WHERE excluded.frontier > frontier",
            (space.name, shard, shard_count, frontier_us),
        )

    def _frontiers(self, sqlite: sqlite3.Connection, space: KeySpace) -> Frontiers:
        found = sqlite.execute(
            "SELECT shard, shard_count, frontier FROM tidemill_frontiers WHERE space = ?",
            (space.name,),
        ).fetchall()
        return Frontiers(
            shard_count=found[0][1] if found else 0,
            by_shard={shard: frontier for shard, _, frontier in found},
        )

    def _rows(
        self, sqlite: sqlite3.Connection, space: KeySpace, keys: Sequence[bytes]
    ) -> list[Row | None]:
        found: dict[bytes, Row] = {}
        for start in range(0, len(keys), _KEYS_A_QUERY):
            some = keys[start : start + _KEYS_A_QUERY]
            cursor = sqlite.execute(
                "SELECT entity_key, event_timestamp, revision, valid_until, shard, cells "
                f'FROM "{space.name}" WHERE entity_key IN ({",".join("?" * len(some))})',
                some,
            )
            found.update((row[0], Row(*row)) for row in cursor)
        return [found.get(key) for key in keys]

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        with self._named_errors(), transaction(self.path, write=write) as sqlite:
            yield sqlite

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(
                f"there is no online store at {self.path}; register the project to make it"
            ) from error
        except (OSError, sqlite3.Error) as error:
            hint = (
                "; the view's present definition is not registered there: register the project"
                if "no such table" in str(error)
                else ""
            )
            raise StoreError(f"{self.name}: {error}{hint}") from error
