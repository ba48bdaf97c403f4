"""The SQL: the tables, and the statement that decides about a row and writes it."""

from __future__ import annotations

from typing import Final

from tidemill.serving.online.cells import cells_width, has_tail
from tidemill.serving.online.rows import KeySpace

CREATE_FRONTIERS: Final = """
CREATE TABLE IF NOT EXISTS tidemill_frontiers (
    space TEXT NOT NULL,
    shard INTEGER NOT NULL,
    shard_count INTEGER NOT NULL,
    frontier INTEGER NOT NULL,
    PRIMARY KEY (space, shard)
) WITHOUT ROWID
"""

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
"""Write a row if it is newer than the stored one (``{name}``: the key space)."""


def create_space(space: KeySpace) -> str:
    """Return the statement that makes a key space's table if it does not exist yet."""
    return (
        f'CREATE TABLE IF NOT EXISTS "{space.name}" ('
        "entity_key BLOB NOT NULL PRIMARY KEY, "
        "event_timestamp INTEGER NOT NULL, "
        "revision INTEGER NOT NULL, "
        "valid_until INTEGER NOT NULL, "
        "shard INTEGER, "
        "cells BLOB NOT NULL CHECK (length(cells) "
        f"{'>=' if has_tail(space.dtypes) else '='} {cells_width(len(space.columns))})"
        ") WITHOUT ROWID"
    )
