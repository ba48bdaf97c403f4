"""The SQL: the tables, and the statement that decides about a row and writes it."""

from __future__ import annotations

from typing import Final

from tidemill.serving.online.cells import cells_width, has_tail
from tidemill.serving.online.rows import KeySpace

OLD_FRONTIERS: Final = "tidemill_frontiers"
"""The table of the frontiers in layout 1, whose tables of rows have the names of key spaces."""

CREATE: Final = (
    """
CREATE TABLE IF NOT EXISTS tidemill_fills (
    id TEXT NOT NULL PRIMARY KEY,
    layout INTEGER NOT NULL,
    space TEXT NOT NULL,
    state TEXT NOT NULL,
    shards INTEGER NOT NULL,
    slices INTEGER NOT NULL,
    generation TEXT NOT NULL,
    cuts TEXT NOT NULL,
    mode TEXT NOT NULL,
    token BLOB NOT NULL,
    root TEXT NOT NULL,
    holder TEXT NOT NULL
) WITHOUT ROWID
""",
    """
CREATE TABLE IF NOT EXISTS tidemill_current (
    space TEXT NOT NULL PRIMARY KEY,
    fill TEXT NOT NULL,
    layout INTEGER NOT NULL,
    shards INTEGER NOT NULL,
    slices INTEGER NOT NULL
) WITHOUT ROWID
""",
    """
CREATE TABLE IF NOT EXISTS tidemill_parts (
    fill TEXT NOT NULL,
    part INTEGER NOT NULL,
    frontier INTEGER,
    mark BLOB,
    token INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    PRIMARY KEY (fill, part)
) WITHOUT ROWID
""",
)

FILL_COLUMNS: Final = (
    "id, layout, space, state, shards, slices, generation, cuts, mode, token, holder"
)

READ_CURRENT: Final = """
SELECT c.fill, c.layout, c.shards, c.slices, p.part, p.frontier
FROM tidemill_current c LEFT JOIN tidemill_parts p ON p.fill = c.fill WHERE c.space = ?
"""
"""The current fill of a key space with its frontiers: one statement, so that a read is not longer
for it."""

SET_PART: Final = "INSERT OR REPLACE INTO tidemill_parts VALUES (?, ?, ?, ?, ?, ?)"

# CASE is lazy, so tidemill_conflict is called for a conflict only.
UPSERT: Final = """
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
"""Write a row if it is newer than the stored one (``{name}``: `rows_table`)."""


def rows_table(fill: str) -> str:
    """Return the name of the table of a fill's rows."""
    return f"tidemill_rows_{fill}"


def create_rows(space: KeySpace, fill: str) -> str:
    """Return the statement that makes the table of a fill's rows if it does not exist yet."""
    return (
        f'CREATE TABLE IF NOT EXISTS "{rows_table(fill)}" ('
        "entity_key BLOB NOT NULL PRIMARY KEY, "
        "event_timestamp INTEGER NOT NULL, "
        "revision INTEGER NOT NULL, "
        "valid_until INTEGER NOT NULL, "
        "shard INTEGER, "
        "cells BLOB NOT NULL CHECK (length(cells) "
        f"{'>=' if has_tail(space.dtypes) else '='} {cells_width(len(space.columns))})"
        ") WITHOUT ROWID"
    )
