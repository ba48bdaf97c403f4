"""The online database in one SQLite file; `serving.online.database` states the promises.

In addition:

* One upsert with a condition decides about a row and writes it. All parcels of a call, and their
  frontiers, become visible together or not at all: after an error nothing of the call is written.
* Written rows survive the death of any process. A power cut may lose the last transactions (WAL
  with ``synchronous=NORMAL``): then publish again from state.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Final

from tidemill.serving.online.database import (
    Parcel,
    Snapshot,
    conflict,
    lost,
    newest_per_key,
    other_shard_count,
)
from tidemill.serving.online.rows import Frontiers, KeySpace, Row, RowBatch
from tidemill.serving.online.sqlite.connections import close, create_file, transaction
from tidemill.serving.online.sqlite.errors import named_errors
from tidemill.serving.online.sqlite.scripts import CREATE_FRONTIERS, UPSERT, create_space

_KEYS_A_QUERY: Final = 10_000
"""SQLite takes 32,766 parameters in one statement; this is well below."""


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
            sqlite.execute(CREATE_FRONTIERS)
            for space in spaces:
                sqlite.execute(create_space(space))

    def drop(self, spaces: Sequence[KeySpace]) -> None:
        """Remove key spaces with their rows and frontiers; without a file, do nothing."""
        if not Path(self.path).exists():
            return
        with self._transaction(write=True) as sqlite:
            for space in spaces:
                sqlite.execute(f'DROP TABLE IF EXISTS "{space.name}"')
                sqlite.execute("DELETE FROM tidemill_frontiers WHERE space = ?", (space.name,))

    def spaces(self) -> list[str]:
        """Return the names of the key spaces that exist, in order."""
        with self._transaction(write=False) as sqlite:
            tables = sqlite.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return sorted(name for (name,) in tables if name.count("__") >= 2)

    def write(self, space: KeySpace, rows: RowBatch) -> int:
        """Write publications of unknown frontier, all or none of them."""
        with self._transaction([space], write=True) as sqlite:
            return self._upsert(sqlite, space, rows)

    def publish(self, parcels: Sequence[Parcel]) -> list[int]:
        """Write parcels and their frontiers in one transaction."""
        spaces = [parcel.space for parcel in parcels]
        with self._transaction(spaces, write=True) as sqlite:
            return [self._publish(sqlite, parcel) for parcel in parcels]

    def read(self, wanted: Sequence[tuple[KeySpace, Sequence[bytes]]]) -> list[Snapshot]:
        """Read keys of several key spaces in one transaction."""
        with self._transaction([space for space, _ in wanted], write=False) as sqlite:
            return [
                Snapshot(self._frontiers(sqlite, space), self._rows(sqlite, space, keys))
                for space, keys in wanted
            ]

    def close(self) -> None:
        """Close this thread's connection."""
        close(self.path)

    def _publish(self, sqlite: sqlite3.Connection, parcel: Parcel) -> int:
        space = parcel.space
        frontiers = self._frontiers(sqlite, space)
        if frontiers.shard_count not in (0, parcel.shard_count):
            raise other_shard_count(self.name, space, frontiers.shard_count, parcel.shard_count)
        reached = frontiers.by_shard.get(parcel.shard)
        if parcel.since_us is not None and (reached is None or reached < parcel.since_us):
            raise lost(self.name, parcel, reached)
        written = self._upsert(sqlite, space, parcel.rows)
        if reached is None or reached < parcel.frontier_us:
            sqlite.execute(
                "INSERT OR REPLACE INTO tidemill_frontiers VALUES (?, ?, ?, ?)",
                (space.name, parcel.shard, parcel.shard_count, parcel.frontier_us),
            )
        return written

    def _upsert(self, sqlite: sqlite3.Connection, space: KeySpace, batch: RowBatch) -> int:
        batch = newest_per_key(self.name, space, batch)
        conflicts: list[tuple[bytes, int, bytes]] = []

        def note(key: bytes, valid_until: int, cells: bytes) -> int:
            conflicts.append((key, valid_until, cells))
            return 0

        sqlite.create_function("tidemill_conflict", 3, note)
        # Sorted by key, because neighbours share pages. EXPLAIN checks that the key space exists.
        upsert = UPSERT.format(name=space.name)
        if not len(batch):
            sqlite.execute(f"EXPLAIN {upsert}", (b"", 0, 0, 0, None, b""))
            return 0
        written = sqlite.executemany(upsert, sorted(batch.tuples(), key=itemgetter(0))).rowcount
        if conflicts:
            key, valid_until, cells = conflicts[0]
            stored = self._rows(sqlite, space, [key])[0]
            # The row still exists in the transaction that found the conflict.
            assert stored is not None
            raise conflict(
                self.name, space, stored, stored._replace(valid_until=valid_until, cells=cells)
            )
        return written

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
    def _transaction(
        self, spaces: Sequence[KeySpace] = (), *, write: bool
    ) -> Iterator[sqlite3.Connection]:
        with named_errors(self.path, spaces), transaction(self.path, write=write) as sqlite:
            yield sqlite
