"""The contract of an online database: the newest publication of every entity, and the frontiers.

Every implementation promises, whatever the order of writes and the number of writing processes:

* An older publication never overwrites a newer one: the greatest (event_timestamp, revision) of a
  key wins. So a higher revision at the same event timestamp is a correction that wins.
* Writing the same publication again (equal times, revision and bytes) changes nothing. Another one
  with the stored (event_timestamp, revision) is a `ConflictingPublication`.
* What moves a frontier is one atomic step: a `Parcel`. It checks the writer's token, the operator's
  attempt and the mark that the rows build on, and writes rows, mark and frontier, or nothing. So no
  reader finds a row that is newer than its frontier.
* The mark that stands is one that a parcel builds on: the parcel is written. It is its own:
  a repeat, which changes nothing. Any other mark is `LostPublications`: the store lost writes (it
  was restarted from an old dump, say, or another server took over), or the parcel overtook its
  predecessor. A parcel with all rows of its part builds on nothing and is written whatever mark
  stands, also its own, so that missing rows come back.
* A parcel whose frontier is behind the one that stands changes nothing: the store has a later
  release already.
* A frontier never goes back, unless the store loses writes or a writer withdraws it.
* A writer whose token was taken by another one is refused (`SupersededWriter`).
* A reader sees rows and frontiers of one instant and of one fill of each key space, also while it
  is switched to another fill.
* After any error the same call may be repeated; rows that it wrote before do no harm.

This module does not import Feast, so the stream's workers need not either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tidemill.features.contract import TIME_MAX, TIME_MIN, write_instant
from tidemill.features.errors import InputError
from tidemill.serving.online.fills import MARK_BYTES, Fill, Holder, NewFill, PartState, Writer
from tidemill.serving.online.rows import Frontiers, KeySpace, Row, RowBatch


class Snapshot(NamedTuple):
    """The result of one read of a key space: its frontiers, and a row or None for each key."""

    frontiers: Frontiers
    rows: list[Row | None]


@dataclass(frozen=True, eq=False)
class Parcel:
    """The publications of one or more successive releases of a part of a fill.

    Attributes:
        fill: The fill, as its writer knows it: if it `Fill.is_current`, the store must agree.
        writer: Who writes.
        rows: The publications, in any order; ``rows.shard`` is `shard`.
        shard: The shard.
        mark_before: The mark that they build on; None if they are all rows of the part.
        mark: Their own mark, `MARK_BYTES` bytes, not all zero.
        frontier_us: The instant as of which the part is complete once they are written. None if
            more chunks of the release follow; such a chunk is refused for a fill that readers see.
        slice: The slice of the shard.
        attempt: When the shard's operator was made in its process, in seconds since 1970. None for
            a publication beside the stream, which is not compared with the stream's operators.
        marks_between: The marks of the releases between the two. It may build on each of these too:
            what it repeats from before changes nothing.
    """

    fill: Fill
    writer: Writer
    rows: RowBatch
    shard: int
    mark_before: bytes | None
    mark: bytes
    frontier_us: int | None
    slice: int = 0
    attempt: int | None = 0
    marks_between: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        fill = self.fill
        view = f"view {fill.space.view!r}"
        if not (0 <= self.shard < fill.shards and 0 <= self.slice < fill.slices):
            raise InputError(
                f"{view}: there is no shard {self.shard} of {fill.shards} with a slice "
                f"{self.slice} of {fill.slices}"
            )
        if self.rows.shard != self.shard:
            raise InputError(
                f"{view}: publications of shard {self.rows.shard} in a parcel of shard {self.shard}"
            )
        for mark in (self.mark, self.mark_before, *self.marks_between):
            if mark is not None and (len(mark) != MARK_BYTES or not any(mark)):
                raise InputError(
                    f"{view}: found mark {mark.hex()}, expected {MARK_BYTES} bytes that are not "
                    "all zero"
                )
        if self.frontier_us is not None and not TIME_MIN <= self.frontier_us < TIME_MAX:
            raise InputError(
                f"{view}, shard {self.shard}: a published frontier is an instant as of which rows "
                f"are read, found {write_instant(self.frontier_us)}; at the end of a bounded "
                "stream publish the end that was declared for it"
            )

    @property
    def space(self) -> KeySpace:
        """The key space."""
        return self.fill.space

    @property
    def part(self) -> int:
        """The number of the part."""
        return self.shard * self.fill.slices + self.slice


class OnlineDatabase(Protocol):
    """An online database. It connects on first use, so instances can be pickled."""

    @property
    def name(self) -> str:
        """Its name in error messages: kind and place, without secrets."""

    def create(self, spaces: Sequence[KeySpace]) -> None:
        """Make key spaces, and the database itself, if they don't exist yet.

        A new key space has an empty fill without shards. One of layout 1 is brought to the present
        layout with its rows and frontiers.

        Raises:
            StoreError: The database cannot be written.
        """

    def drop(self, spaces: Sequence[KeySpace]) -> None:
        """Remove key spaces with all their fills.

        Raises:
            StoreError: The database cannot be written.
        """

    def spaces(self) -> list[str]:
        """Return the names of the key spaces that exist (`KeySpace.name`), in order.

        Raises:
            StoreError: The database does not exist, or cannot be read.
        """

    def fills(self, spaces: Sequence[KeySpace]) -> list[Fill]:
        """Return the fills of key spaces: key space by key space, the current one first.

        Raises:
            NoKeySpace: The database does not exist.
            OtherLayout: A key space has records of another version.
            StoreError: The database cannot be read.
        """

    def begin_fills(self, fills: Sequence[NewFill]) -> list[Fill]:
        """Make empty fills that nobody reads, of key spaces that exist.

        Raises:
            StoreFull: There is no room for their `NewFill.expected_rows`.
            NoKeySpace: A key space does not exist.
            StoreError: The database cannot be written.
        """

    def drop_fills(self, fills: Sequence[Fill]) -> None:
        """Remove fills with their rows.

        Raises:
            StoreError: One of them is read, or the database cannot be written.
        """

    def take_token(
        self, fills: Sequence[Fill], holder: Holder, *, take_over: bool = False
    ) -> Writer:
        """Take the writer's token of fills, of all in one step, by the highest number plus one.

        From then on their earlier writers are refused. Read marks (`part_states`) afterwards.

        Args:
            fills: The fills; each current or being filled. Their records get the generations and
                modes that these have.
            holder: Who takes it.
            take_over: Whether to take it from another root.

        Raises:
            HeldByAnotherRoot: Another root holds one of them.
            SupersededWriter: Readers were switched away from one of them.
            NoKeySpace: One of them does not exist.
            StoreError: The database cannot be written.
        """

    def restore(self, fills: Sequence[Fill], writer: Writer) -> None:
        """Make the records again that the store lost of a writer's fills, and its token.

        A fill whose key space has no current one becomes current. Records and tokens that are not
        lower stay.

        Raises:
            StoreError: The database cannot be written.
        """

    def part_states(self, fills: Sequence[Fill]) -> list[list[PartState]]:
        """Return mark and frontier of every part of fills, all as of one instant.

        Raises:
            NoKeySpace: One of them does not exist.
            StoreError: The database cannot be read.
        """

    def withdraw(self, parcel: Parcel, found: PartState) -> None:
        """Take mark and frontier from a parcel's part, if they are still those that were found.

        Readers then see that the age of its rows is unknown, until all of it is published.

        Raises:
            SupersededWriter: The parcel's writer was superseded.
            StoreError: The database cannot be written.
        """

    def switch(
        self, fills: Sequence[Fill], writer: Writer, *, take_over: bool = False
    ) -> list[Fill]:
        """Let readers see these fills, of all key spaces in one step; repeating it does nothing.

        The writers of the fills that were read are superseded in the same step. These fills stay
        for readers that have begun; older ones are removed.

        Args:
            fills: The fills.
            writer: Their writer.
            take_over: Whether to switch readers away from a fill that another root writes.

        Returns:
            The fills, as they are now.

        Raises:
            BehindReaders: A part is behind what readers see of it. Nothing is switched. Where the
                numbers of shards and slices are equal, parts are compared one by one; where only
                the shards are, shard by shard; else the least frontier with the highest.
            HeldByAnotherRoot: Another root writes a fill that is read.
            SupersededWriter: The writer was superseded.
            NoKeySpace: One of the fills does not exist.
            StoreError: The database cannot be written.
        """

    def write(self, space: KeySpace, rows: RowBatch) -> int:
        """Write publications to the current fill, without moving a frontier (a stock client's).

        A switch drops them.

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
        """Write parcels, of any parts and fills, each in one atomic step, in their order.

        Args:
            parcels: The parcels.

        Returns:
            How many publications of each parcel were stored; 0 for a repeat.

        Raises:
            LostPublications: Another mark stands than the one that a parcel builds on, or the
                store forgot a switch; nothing of that parcel is written.
            SupersededWriter: Another writer has taken the fill, or a later attempt the shard.
            ConflictingPublication: A publication contradicts the stored one.
            StoreUnavailable: The database cannot be reached, or cannot be written for now.
            NoKeySpace: A fill does not exist, or the database itself.
            StoreError: A fill has other shards or slices, or a chunk is for a fill that is read.
        """

    def read(self, wanted: Sequence[tuple[KeySpace, Sequence[bytes]]]) -> list[Snapshot]:
        """Read keys of the current fills of several key spaces, all as of one instant.

        It takes one round trip, and one more after a key space was switched to another fill.

        Args:
            wanted: Key spaces, each with the keys to look up.

        Returns:
            A snapshot for each, its rows in the order of the keys.

        Raises:
            OtherLayout: A key space has records of another version.
            StoreError: The database or a key space does not exist, or cannot be read.
        """

    def scan(self, fill: Fill) -> Iterator[list[Row]]:
        """Read every row of a fill, some at a time, in any order.

        A row that is written meanwhile is read before or after that.

        Raises:
            StoreError: The database does not exist, or cannot be read.
        """

    def record_cuts(self, fills: Sequence[Fill]) -> None:
        """Replace the cuts in the records of fills by those that these have.

        Raises:
            StoreError: The database cannot be written.
        """

    def forget(self, fills: Sequence[Fill], keys: Sequence[bytes]) -> int | None:
        """Remove the rows of some keys from fills, as if they had never been written.

        Marks and frontiers stay: readers find that the entities have no row. Nothing of the rows is
        left in files that the database writes itself; a server keeps its own journals.

        Args:
            fills: The fills.
            keys: The keys.

        Returns:
            How many rows were removed; None if the database cannot remove rows by key.

        Raises:
            StoreError: The database cannot be written.
        """

    def close(self) -> None:
        """Close the connections of this thread; a later use connects again."""
