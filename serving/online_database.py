"""What an online database is: the newest publication of every entity, and the frontiers beside it.

Every implementation promises, whatever the order of writes and the number of writing processes:

* An older publication never overwrites a newer one: per key, the greatest (event_timestamp,
  revision) stands. So a higher revision at the same event timestamp is a correction that wins.
* The same publication again (equal times, revision and bytes) changes nothing. Another one with
  the (event_timestamp, revision) of the one that stands is a `ConflictingPublication`.
* The decision is one atomic step for each row in the store itself.
* A frontier never goes back, and never becomes visible before the rows that it covers.
* A reader sees rows and frontiers of one instant.

No Feast is imported here, so that a worker of the stream need not import it either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from features.contract import TIME_MAX, TIME_MIN
from features.errors import ConflictingPublication, InputError
from serving.online_cells import decode_row
from serving.online_rows import Frontiers, KeySpace, Row, readable_key


class Snapshot(NamedTuple):
    """What one read of a key space saw: its frontiers, and a row or None for each key."""

    frontiers: Frontiers
    rows: list[Row | None]


class OnlineDatabase(Protocol):
    """An online database. Nothing is opened before it is used, so it can be pickled."""

    @property
    def name(self) -> str:
        """What error messages call it: kind and place, without secrets."""

    def create(self, spaces: Sequence[KeySpace]) -> None:
        """Make key spaces, and the database itself, where they don't exist yet.

        Raises:
            StoreError: The database cannot be written.
        """

    def drop(self, spaces: Sequence[KeySpace]) -> None:
        """Remove key spaces with their rows and frontiers.

        Raises:
            StoreError: The database cannot be written.
        """

    def write(self, space: KeySpace, rows: Sequence[Row]) -> int:
        """Write publications whose frontier is not known here (a stock client's).

        Args:
            space: Their key space.
            rows: The publications, in any order.

        Returns:
            How many of them stand now; the others were older than, or equal to, what stood.

        Raises:
            ConflictingPublication: One contradicts the one that stands.
            StoreError: The database cannot be written.
        """

    def publish(
        self,
        space: KeySpace,
        rows: Sequence[Row],
        *,
        shard: int,
        shard_count: int,
        frontier_us: int,
    ) -> int:
        """Write the publications of one advance of a shard, and then the frontier it reached.

        Args:
            space: Their key space.
            rows: The publications, in any order.
            shard: The shard they are of.
            shard_count: How many shards the view has.
            frontier_us: The instant as of which the shard's rows are now the value.

        Returns:
            How many of the publications stand now.

        Raises:
            ConflictingPublication: One contradicts the one that stands; the frontier stays.
            StoreError: The database cannot be written, or the shard count is another one.
            InputError: The frontier is past every time.
        """

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
            StoreError: The database cannot be written, or the shard count is another one.
            InputError: The frontier is past every time.
        """

    def read(self, wanted: Sequence[tuple[KeySpace, Sequence[bytes]]]) -> list[Snapshot]:
        """Read keys of several key spaces, all as of one instant, in one round trip.

        Args:
            wanted: Key spaces, each with the keys to look up.

        Returns:
            A snapshot for each, its rows in the order of the keys.

        Raises:
            StoreError: The database or a key space does not exist, or cannot be read.
        """

    def close(self) -> None:
        """Close what this process (SQLite: this thread) holds open; a later use opens it again."""


def check_frontier(space: KeySpace, shard: int, shard_count: int, frontier_us: int) -> None:
    """Check what every implementation asks of a frontier before it is written.

    Raises:
        InputError: There is no such shard, or the frontier is no instant to read as of.
    """
    if not 0 <= shard < shard_count:
        raise InputError(f"view {space.view!r}: there is no shard {shard} of {shard_count}")
    if not TIME_MIN <= frontier_us < TIME_MAX:
        raise InputError(
            f"view {space.view!r}, shard {shard}: a published frontier is an instant as of "
            f"which rows are read, found {frontier_us}; at the end of a bounded stream "
            "publish the end that was declared for it"
        )


def other_shard_count(store: str, space: KeySpace, stored: int, offered: int) -> str:
    """Say that a view was published with another number of shards."""
    return (
        f"{store}: view {space.view!r} was published with {stored} shards, and now with "
        f"{offered}; the shard count of a view is fixed: set it back, or publish into an empty "
        "store"
    )


def conflict(store: str, space: KeySpace, stored: Row, offered: Row) -> ConflictingPublication:
    """Return the error of a publication that contradicts the one that stands.

    Args:
        store: The database's name.
        space: The key space.
        stored: What stands.
        offered: What was to be written.
    """
    names = [name for name, _ in space.columns]

    def show(row: Row) -> str:
        values = dict(zip(names, decode_row(space.dtypes, row.cells), strict=True))
        return f"{values} until {row.valid_until}"

    return ConflictingPublication(
        f"{store}, view {space.view!r}, {readable_key(stored.key)}: two publications at "
        f"event_timestamp {stored.event_timestamp}, revision {stored.revision} differ: stored "
        f"{show(stored)}, offered {show(offered)}; a revision counts the events applied, so one "
        "of the two was computed from other events: find its writer, then fill an empty store "
        "again"
    )
