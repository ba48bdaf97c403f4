"""The database behind each place of an online store, and the guarantees that a place lacks."""

from __future__ import annotations

from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.feast_database import LOST_GUARANTEES, FeastDatabase
from tidemill.serving.online.sqlite.database import SqliteDatabase
from tidemill.serving.stores.online_places import FeastPlace, OnlinePlace
from tidemill.serving.stores.redis_place import RedisPlace


def open_database(place: OnlinePlace) -> OnlineDatabase:
    """Return the online database at a place; `registry.registration.open_store` creates it."""
    if isinstance(place, FeastPlace):
        return FeastDatabase(place)
    if isinstance(place, RedisPlace):
        from tidemill.serving.online.redis.database import RedisDatabase  # imports the client

        return RedisDatabase(place)
    return SqliteDatabase(str(place.path))


def missing_guarantees(place: OnlinePlace) -> str | None:
    """Return a line about the guarantees that a place lacks; None if it lacks none."""
    if not isinstance(place, FeastPlace):
        return None
    return (
        f"online store: Feast's own {place.type!r} through its generic write path; "
        "these guarantees fall away: " + "; ".join(LOST_GUARANTEES)
    )
