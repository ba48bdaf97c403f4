"""Where an online store is: what the configuration says, the database and the Feast section of it.

An `OnlinePlace` is plain data: it can be compared, pickled and printed, and it holds no secret
(a password is named by the environment variable that has it).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from serving.online_database import OnlineDatabase
from serving.online_rows import Clock
from serving.sqlite_database import SqliteDatabase


@dataclass(frozen=True)
class SqlitePlace:
    """An SQLite file.

    Attributes:
        path: The database's file, absolute.
    """

    path: Path


OnlinePlace = SqlitePlace
"""Any of the places."""

ONLINE: Final = "online.db"
"""The SQLite file below a run's root, where no other place is named."""


def default_place(root: Path | str) -> SqlitePlace:
    """Return the place of the online store where none is named: a file below the root."""
    return SqlitePlace(Path(root).absolute() / ONLINE)


def open_database(place: OnlinePlace) -> OnlineDatabase:
    """Return the online database at a place; `serving.registration.open_store` makes it."""
    return SqliteDatabase(str(place.path))


def feast_section(place: OnlinePlace, clock: Clock) -> dict[str, Any]:
    """Return the ``online_store`` section of the Feast configuration for a place.

    Args:
        place: Where the store is.
        clock: What online reads judge age by.
    """
    return {
        "type": "serving.online_store.OrderedSqliteOnlineStore",
        "path": str(place.path),
        "clock": clock,
    }


def remove(place: OnlinePlace) -> None:
    """Remove the online store of a run that starts again from nothing."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{place.path}{suffix}").unlink(missing_ok=True)
