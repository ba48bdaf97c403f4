"""Fills for the tests of online databases, with marks that are made of frontiers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tidemill.serving.online.database import OnlineDatabase, Parcel
from tidemill.serving.online.fills import Fill, Holder, NewFill, Writer
from tidemill.serving.online.rows import KeySpace, Row, RowBatch

HOLDER = Holder("a-root", "a-host", 1, "tidemill stream", 0)
OTHER_HOLDER = Holder("another-root", "another-host", 2, "tidemill stream", 0)


def mark_of(frontier_us: int, release: str = "") -> bytes:
    """A mark for a frontier, and for a release if several have this frontier."""
    return hashlib.sha256(f"{frontier_us} {release}".encode()).digest()[:16]


@dataclass
class Target:
    """A fill that a test writes.

    Attributes:
        fill: The fill.
        writer: Its writer.
    """

    fill: Fill
    writer: Writer
    space: KeySpace = field(init=False)

    def __post_init__(self) -> None:
        self.space = self.fill.space

    def parcel(
        self,
        *rows: Row,
        frontier_us: int,
        since_us: int | None = None,
        shard: int = 0,
        slice: int = 0,
    ) -> Parcel:
        """A parcel that builds on the release with frontier ``since_us``; None on nothing."""
        return self.batch(
            RowBatch.of([row._replace(shard=shard) for row in rows], shard),
            frontier_us=frontier_us,
            since_us=since_us,
            slice=slice,
        )

    def batch(
        self, rows: RowBatch, *, frontier_us: int, since_us: int | None = None, slice: int = 0
    ) -> Parcel:
        """A parcel of a batch."""
        assert rows.shard is not None
        return Parcel(
            fill=self.fill,
            writer=self.writer,
            rows=rows,
            shard=rows.shard,
            mark_before=None if since_us is None else mark_of(since_us),
            mark=mark_of(frontier_us),
            frontier_us=frontier_us,
            slice=slice,
        )


def begun(
    database: OnlineDatabase,
    spaces: Sequence[KeySpace],
    shards: int = 1,
    slices: int = 1,
    holder: Holder = HOLDER,
    generation: str = "",
) -> list[Target]:
    """Begin a fill of each key space, which one writer holds; nobody reads it."""
    fills = database.begin_fills(
        [NewFill(space, shards, slices, generation=generation) for space in spaces]
    )
    writer = database.take_token(fills, holder)
    return [Target(fill, writer) for fill in fills]


def opened(
    database: OnlineDatabase,
    spaces: Sequence[KeySpace],
    shards: int = 1,
    slices: int = 1,
    holder: Holder = HOLDER,
) -> list[Target]:
    """Make key spaces whose current, empty fill is one that a writer holds."""
    database.create(spaces)
    targets = begun(database, spaces, shards, slices, holder)
    writer = targets[0].writer
    switched = database.switch([target.fill for target in targets], writer, take_over=True)
    return [Target(fill, writer) for fill in switched]


def current_target(database: OnlineDatabase, space: KeySpace, shards: int) -> Target:
    """The fill that readers see, with its writer; a new one if it has other shards."""
    fill = next((one for one in database.fills([space]) if one.is_current), None)
    if fill is None or fill.writer is None or fill.shards != shards:
        return opened(database, [space], shards)[0]
    return Target(fill, fill.writer)


def taken(database: OnlineDatabase, target: Target, holder: Holder = HOLDER) -> Target:
    """The same fill, whose token another writer has taken."""
    writer = database.take_token([target.fill], holder, take_over=True)
    return replace_writer(target, writer)


def replace_writer(target: Target, writer: Writer) -> Target:
    """The same fill with another writer."""
    return Target(replace(target.fill, writer=writer), writer)
