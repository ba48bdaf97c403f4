"""What an online database is: the newest publication of every entity, and the frontiers beside it.

Every implementation promises, whatever the order of writes and the number of writing processes:

* An older publication never overwrites a newer one: per key, the greatest (event_timestamp,
  revision) stands. So a higher revision at the same event timestamp is a correction that wins.
* The same publication again (equal times, revision and bytes) changes nothing. Another one with
  the (event_timestamp, revision) of the one that stands is a `ConflictingPublication`.
* The decision is one atomic step for each row in the store itself.
* A frontier never goes back, and never becomes visible before the rows that it covers.
* What a `Parcel` builds on must stand already: a store that lost writes (it was started again
  from an old dump, say) refuses the next parcel with `LostPublications` instead of advancing a
  frontier over the gap. The same holds for a parcel that overtook the one before it.
* A reader sees rows and frontiers of one instant.
* After any error the same call may be made again; what of it was written already does no harm.

No Feast is imported here, so that a worker of the stream need not import it either.
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
    """What one read of a key space saw: its frontiers, and a row or None for each key."""

    frontiers: Frontiers
    rows: list[Row | None]


@dataclass(frozen=True, eq=False)
class Parcel:
    """What one or more successive advances of a shard published.

    Attributes:
        space: The key space.
        rows: The publications, in any order; those of a shard, so ``rows.shard`` is `shard`.
        shard: The shard.
        shard_count: How many shards the view has; fixed for a key space.
        since_us: The frontier that the store must have reached already, since the rows are the
            changes after it; None where the rows are the whole shard.
        frontier_us: The instant as of which the shard's rows are now the value.
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

    def spaces(self) -> list[str]:
        """Return the names of the key spaces that exist (`KeySpace.name`), in order.

        Raises:
            StoreError: The database does not exist, or cannot be read.
        """

    def write(self, space: KeySpace, rows: RowBatch) -> int:
        """Write publications whose frontier is not known here (a stock client's).

        Args:
            space: Their key space.
            rows: The publications, in any order.

        Returns:
            How many of them stand now; the others were older than, or equal to, what stood.

        Raises:
            ConflictingPublication: One contradicts the one that stands.
            StoreUnavailable: The database cannot be reached, or cannot be written for now.
            NoKeySpace: The key space does not exist, or the database itself.
            StoreError: The database refuses.
        """

    def publish(self, parcels: Sequence[Parcel]) -> list[int]:
        """Write parcels, of any shards and views, in their order; each ends with its frontier.

        Args:
            parcels: What was published; each is written whole or, on an error, its frontier
                stays where it was.

        Returns:
            How many publications of each parcel stand now.

        Raises:
            LostPublications: The store stands behind what a parcel builds on; nothing of that
                parcel is written.
            ConflictingPublication: A publication contradicts the one that stands.
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
        """Close what this process (SQLite: this thread) holds open; a later use opens it again."""


def newest_per_key(store: str, space: KeySpace, rows: RowBatch) -> RowBatch:
    """Return what of publications, in any order, is to be written: each key's newest.

    Raises:
        InputError: The cells of a row are not those of the key space's columns.
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
    """Return the error of a store that stands at a frontier (None: at none) behind a parcel's."""
    stands = "has no frontier" if frontier_us is None else f"stands at frontier {frontier_us}"
    return LostPublications(
        f"{store}, key space {parcel.space.name}, shard {parcel.shard}: publications go on from "
        f"frontier {parcel.since_us}, but the store {stands}: it has lost what was published in "
        "between (it was emptied, or started again from an old dump or without the end of its "
        "log), or that was never published; publish everything again from state: "
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
    """Return the error of a publication that contradicts the one that stands."""
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
