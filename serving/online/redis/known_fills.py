"""The current fills that this process knows, so that a read takes one round trip.

A reader sends the ids that it knows, and the store says which are not the present ones. So what
stands here may be old, but never leads to a wrong answer. All threads share it: entries are
immutable, and one is replaced in one step. A forked process goes on with a copy.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tidemill.serving.online.redis.rows import parts_key, row_prefix
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.stores.redis_place import RedisPlace


class KnownFill(NamedTuple):
    """What a reader needs of a fill.

    Attributes:
        id: Its id.
        shards: Number of shards.
        slices: Number of slices of each shard.
        parts_key: The key of its marks and frontiers.
        row_prefix: The start of the keys of its rows.
    """

    id: str
    shards: int
    slices: int
    parts_key: str
    row_prefix: bytes


_UNKNOWN: Final = KnownFill("", 0, 1, parts_key(""), row_prefix(""))
_known: Final[dict[tuple[RedisPlace, str], KnownFill]] = {}


def known_fill(place: RedisPlace, space: KeySpace) -> KnownFill:
    """Return the fill of a key space that was current when it was last read."""
    return _known.get((place, space.name), _UNKNOWN)


def remember(place: RedisPlace, space: KeySpace, fill: str, shards: int, slices: int) -> None:
    """Note the current fill of a key space."""
    _known[place, space.name] = KnownFill(fill, shards, slices, parts_key(fill), row_prefix(fill))
