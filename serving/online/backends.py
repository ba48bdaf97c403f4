"""The database behind each place of an online store, and what a place cannot promise."""

from __future__ import annotations

from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.feast_database import LOST_GUARANTEES, FeastDatabase
from tidemill.serving.online.sqlite.database import SqliteDatabase
from tidemill.serving.stores.online_places import FeastPlace, OnlinePlace
from tidemill.serving.stores.redis_place import RedisPlace


def open_database(place: OnlinePlace) -> OnlineDatabase:
    """Return the online database at a place; `registry.registration.open_store` makes it."""
    if isinstance(place, FeastPlace):
        return FeastDatabase(place)
    if isinstance(place, RedisPlace):
        from tidemill.serving.online.redis.database import RedisDatabase  # imports the client

        return RedisDatabase(place)
    return SqliteDatabase(str(place.path))


def missing_guarantees(place: OnlinePlace) -> str | None:
    """Say what a store at this place cannot promise, in one line; None where it promises all."""
    if not isinstance(place, FeastPlace):
        return None
    return (
        f"online store: Feast's own {place.type!r} through its generic write path; "
        "these guarantees fall away: " + "; ".join(LOST_GUARANTEES)
    )
