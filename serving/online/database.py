"""The contract of an online database: the newest publication of every entity, and the frontiers.

Every implementation promises, whatever the order of writes and the number of writing processes:

* An older publication never overwrites a newer one: the greatest (event_timestamp, revision) of a
  key wins. So a higher revision at the same event timestamp is a correction that wins.
* Writing the same publication again (equal times, revision and bytes) changes nothing. Another one
  with the stored (event_timestamp, revision) is a `ConflictingPublication`.
* The store itself decides, in one atomic step for each row.
* A frontier never goes back, and never becomes visible before the rows that it covers.
* A `Parcel` names the frontier that its rows continue from, and the store must have reached it. A
  store that lost writes (it was restarted from an old dump, say) refuses the next parcel with
  `LostPublications` instead of advancing a frontier over the gap. So it refuses a parcel that
  overtook the one before it.
* A reader sees rows and frontiers of one instant.
* After any error the same call may be repeated; rows that it wrote before do no harm.

This module does not import Feast, so the stream's workers need not either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tidemill.features.contract import TIME_MAX, TIME_MIN
from tidemill.features.errors import (
    ConflictingPublication,
    InputError,
    LostPublications,
    NoKeySpace,
    StoreError,
)
from tidemill.serving.online.cells import cells_width, decode_row, has_tail
from tidemill.serving.online.rows import Frontiers, KeySpace, Row, RowBatch, readable_key


class Snapshot(NamedTuple):
    """The result of one read of a key space: its frontiers, and a row or None for each key."""

    frontiers: Frontiers
    rows: list[Row | None]


@dataclass(frozen=True, eq=False)
class Parcel:
    """The publications of one or more successive advances of a shard.

    Attributes:
        space: The key space.
        rows: The publications, in any order; ``rows.shard`` is `shard`.
        shard: The shard.
        shard_count: Number of shards of the view; fixed for a key space.
        since_us: Frontier that the store must have reached already, because the rows are the
            changes after it; None if the rows are the whole shard.
        frontier_us: The instant as of which the shard is complete once these rows are written.
    """

    space: KeySpace
    rows: RowBatch
    shard: int
    shard_count: int
    since_us: int | None
    frontier_us: int

    def __post_init__(self) -> None:
        view = f"view {self.space.view!r}"
        if not 0 <= self.shard < self.shard_count:
            raise InputError(f"{view}: there is no shard {self.shard} of {self.shard_count}")
        if self.rows.shard != self.shard:
            raise InputError(
                f"{view}: publications of shard {self.rows.shard} in a parcel of shard {self.shard}"
            )
        if not TIME_MIN <= self.frontier_us < TIME_MAX:
            raise InputError(
                f"{view}, shard {self.shard}: a published frontier is an instant as of which rows "
                f"are read, found {self.frontier_us}; at the end of a bounded stream publish the "
                "end that was declared for it"
            )


class OnlineDatabase(Protocol):
    """An online database. It connects on first use, so instances can be pickled."""

    @property
    def name(self) -> str:
        """Its name in error messages: kind and place, without secrets."""

    def create(self, spaces: Sequence[KeySpace]) -> None:
        """Make key spaces, and the database itself, if they don't exist yet.

        Raises:
            StoreError: The database cannot be written.
        """

    def drop(self, spaces: Sequence[KeySpace]) -> None:
        """Remove key spaces with their rows and frontiers.

        Raises:
            StoreError: The database cannot be written.
        """

    def spaces(self) -> list[str]:
        """Return the names of the key spaces that exist (`KeySpace.name`), in order.

        Raises:
            StoreError: The database does not exist, or cannot be read.
        """

    def write(self, space: KeySpace, rows: RowBatch) -> int:
        """Write publications of unknown frontier (a stock client's).

        Args:
            space: Their key space.
            rows: The publications, in any order.

        Returns:
            How many of them are stored now; the others were not newer than the stored ones.

        Raises:
            ConflictingPublication: One contradicts the stored one.
            StoreUnavailable: The database cannot be reached, or cannot be written for now.
            NoKeySpace: The key space does not exist, or the database itself.
            StoreError: The database refuses.
        """

    def publish(self, parcels: Sequence[Parcel]) -> list[int]:
        """Write parcels, of any shards and views, in their order; each ends with its frontier.

        Args:
            parcels: The parcels; after an error, the frontier of one that is not written
                completely is unchanged.

        Returns:
            How many publications of each parcel are stored now.

        Raises:
            LostPublications: The store has not reached a parcel's ``since_us``; nothing of that
                parcel is written.
            ConflictingPublication: A publication contradicts the stored one.
            StoreUnavailable: The database cannot be reached, or cannot be written for now.
            NoKeySpace: A key space does not exist, or the database itself.
            StoreError: A key space has another shard count.
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
        """Close the connections of this thread; a later use connects again."""


def newest_per_key(store: str, space: KeySpace, rows: RowBatch) -> RowBatch:
    """Return the newest publication of each key; the publications are in any order.

    Raises:
        InputError: The cells of a row do not fit the key space's columns.
        ConflictingPublication: Two of them contradict each other.
    """
    width = cells_width(len(space.columns))
    cells = rows.cells
    widths = set(map(len, cells)) if isinstance(cells, list) else {cells.shape[1]}
    if strange := {w for w in widths if w < width or (w > width and not has_tail(space.dtypes))}:
        raise InputError(
            f"{store}, key space {space.name}: the cells of a row are {min(strange)} bytes long, "
            f"expected {width} for {len(space.columns)} columns; they are of another definition"
        )
    if len(set(rows.keys)) == len(rows):
        return rows
    newest: dict[bytes, Row] = {}
    for row in rows.rows():
        known = newest.setdefault(row.key, row)
        order = (row.event_timestamp, row.revision), (known.event_timestamp, known.revision)
        if order[0] == order[1] and row != known:
            raise conflict(store, space, known, row)
        if order[0] > order[1]:
            newest[row.key] = row
    return RowBatch.of(list(newest.values()), rows.shard)


def lost(store: str, parcel: Parcel, frontier_us: int | None) -> LostPublications:
    """Return the error of a store whose frontier (None: it has none) is behind a parcel's."""
    found = "has no frontier" if frontier_us is None else f"is at frontier {frontier_us}"
    return LostPublications(
        f"{store}, key space {parcel.space.name}, shard {parcel.shard}: publications continue "
        f"from frontier {parcel.since_us}, but the store {found}: it has lost the publications "
        "between them (it was emptied, or restarted from an old dump or without the end of its "
        "log), or they were never written; publish everything again from state: "
        "`tidemill republish`"
    )


def no_key_space(store: str, space: KeySpace) -> NoKeySpace:
    """Return the error of a key space that was never made, or was lost with its store."""
    return NoKeySpace(
        f"{store}: there is no key space {space.name}: the project's present definition of view "
        f"{space.view!r} was never registered there, or the store was emptied; register the "
        "project (`tidemill apply`), then publish everything again from state: "
        "`tidemill republish`"
    )


def other_shard_count(store: str, space: KeySpace, stored: int, offered: int) -> StoreError:
    """Return the error of a view that was published with another number of shards."""
    return StoreError(
        f"{store}: view {space.view!r} was published with {stored} shards, and now with "
        f"{offered}; the shard count of a view is fixed: set it back, or publish into an empty "
        "store"
    )


def conflict(store: str, space: KeySpace, stored: Row, offered: Row) -> ConflictingPublication:
    """Return the error of a publication that contradicts the stored one."""
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
