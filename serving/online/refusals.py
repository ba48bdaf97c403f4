"""The errors of an online database, which say what was found, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.features.contract import write_instant
from tidemill.features.errors import (
    BehindReaders,
    ConflictingPublication,
    HeldByAnotherRoot,
    LostPublications,
    NoKeySpace,
    OtherLayout,
    StoreError,
    StoreFull,
    SupersededWriter,
)
from tidemill.serving.online.cells import decode_row
from tidemill.serving.online.database import Parcel
from tidemill.serving.online.fills import (
    LAYOUT,
    Fill,
    FillState,
    Holder,
    NewFill,
    PartState,
    Writer,
)
from tidemill.serving.online.rows import KeySpace, Row, readable_key

_REPUBLISH = "publish everything again from state: `tidemill republish`"


def _part_of(store: str, parcel: Parcel) -> str:
    of = f", slice {parcel.slice}" if parcel.fill.slices > 1 else ""
    return f"{store}, key space {parcel.fill.name}, shard {parcel.shard}{of}"


def _at(frontier_us: int | None) -> str:
    return "no frontier" if frontier_us is None else f"frontier {write_instant(frontier_us)}"


def lost(store: str, parcel: Parcel, found: PartState) -> LostPublications:
    """Return the error of a store that has another mark than the one that a parcel builds on."""
    before = "nothing" if parcel.mark_before is None else parcel.mark_before.hex()
    mark = "has no mark" if found.mark is None else f"stands at mark {found.mark.hex()}"
    return LostPublications(
        f"{_part_of(store, parcel)}: publications build on mark {before}, but the store {mark}, "
        f"with {_at(found.frontier_us)}: it has lost the publications between them (it was "
        "emptied, or restarted from an old dump or without the end of its log, or another server "
        f"with older data took over), or they were never written; {_REPUBLISH}"
    )


def lost_switch(store: str, fill: Fill) -> LostPublications:
    """Return the error of a store that has forgotten that readers were switched to a fill."""
    return LostPublications(
        f"{store}, key space {fill.name}: readers were switched to this fill, and the store has "
        f"forgotten it: it lost its last writes; {_REPUBLISH}"
    )


def lost_fill(
    store: str, fill: Fill, writer: Writer | None, others: Sequence[Fill]
) -> NoKeySpace | SupersededWriter:
    """Return the error of a fill without a record: a later writer removed it, or it was lost.

    Args:
        store: The name of the store.
        fill: The fill, as its writer knows it.
        writer: That writer.
        others: The fills of the key space that are there.
    """
    # A past fill has the token that the switch away from it took, perhaps to this very fill.
    for now in (other.writer for other in others if other.state is not FillState.PAST):
        # As for a fill that is there: an equal token of another holder supersedes too.
        if writer and now and now != writer and now.token >= writer.token:
            return SupersededWriter(
                f"{store}, key space {fill.name}: another writer has taken over and removed this "
                f"fill: {now.holder}; nothing was written. End this writer; start the stream over: "
                "`tidemill stream`"
            )
    return NoKeySpace(
        f"{store}: there is no key space {fill.name}: the fill was removed, or the store was "
        f"emptied or lost its last writes; {_REPUBLISH}"
    )


def no_key_space(store: str, space: KeySpace) -> NoKeySpace:
    """Return the error of a key space that was never made, or was lost with its store."""
    return NoKeySpace(
        f"{store}: there is no key space {space.name}: the project's present definition of view "
        f"{space.view!r} was never registered there, or the store was emptied; register the "
        f"project (`tidemill apply`), then {_REPUBLISH}"
    )


def other_layout(store: str, name: str, found: int) -> OtherLayout:
    """Return the error of records of another version."""
    remedy = (
        "bring them to the present layout, with all rows: `tidemill apply`"
        if found == 1
        else "use the version of Tidemill that wrote them, or fill an empty store: "
        "`tidemill backfill --publish`"
    )
    return OtherLayout(
        f"{store}: {name}: another version of Tidemill wrote these records, in layout {found}; "
        f"this one reads layout {LAYOUT}; {remedy}"
    )


def superseded(store: str, fill: Fill, found: Writer | None) -> SupersededWriter:
    """Return the error of a writer whose token does not stand any more."""
    by = "nobody now" if found is None else f"{found.holder}"
    return SupersededWriter(
        f"{store}, key space {fill.name}: another writer has taken over: {by}; nothing was "
        "written. End this writer; to give the key space back to its root, run there "
        "`tidemill stream --resume --take-over`"
    )


def later_attempt(store: str, parcel: Parcel, found: int) -> SupersededWriter:
    """Return the error of an operator that was decoded again elsewhere."""
    return SupersededWriter(
        f"{_part_of(store, parcel)}: attempt {found} of this shard's operator writes it, this is "
        f"attempt {parcel.attempt}, which the engine must have given up; nothing was written"
    )


def held(store: str, fill: Fill, holder: Holder) -> HeldByAnotherRoot:
    """Return the error of a token that another root holds."""
    return HeldByAnotherRoot(
        f"{store}, key space {fill.space.name}: it is written by another root: {holder}; end that "
        "program, then take the key space with `tidemill stream --take-over`: its writes are "
        "refused from then on"
    )


def behind(
    store: str, fill: Fill, shard: int, found_us: int | None, shown_us: int
) -> BehindReaders:
    """Return the error of a switch that would take readers back in time."""
    return BehindReaders(
        f"{store}, key space {fill.name}, shard {shard}: it is at {_at(found_us)}, and readers "
        f"see {_at(shown_us)} of another fill; they are switched when it has caught up: let the "
        "stream run on to there (`tidemill stream`)",
        shown_us,
    )


def past_fill(store: str, fill: Fill) -> SupersededWriter:
    """Return the error of a fill that readers were switched away from."""
    by = "" if fill.writer is None else f" by {fill.writer.holder}"
    return SupersededWriter(
        f"{store}, key space {fill.name}: readers were switched{by} to another fill; this one "
        "takes no more writes: start the stream over, `tidemill stream`"
    )


def no_room(store: str, fills: Sequence[NewFill], needed: int, free: int, where: str) -> StoreFull:
    """Return the error of a store that cannot hold another fill beside the one that is read."""
    names = ", ".join(sorted({fill.space.name for fill in fills}))
    return StoreFull(
        f"{store}: another fill of {names} needs about {needed:,} bytes beside the rows that are "
        f"read, and {where} has {max(free, 0):,} left; make room (`tidemill clean-store` removes "
        "what is no longer read)"
    )


def other_parts(store: str, parcel: Parcel, found: tuple[int, int]) -> StoreError:
    """Return the error of a parcel that was cut for other shards or slices."""
    fill = parcel.fill
    return StoreError(
        f"{store}, key space {fill.name}: it has {found[0]} shards of {found[1]} slices, and the "
        f"publications are cut for {fill.shards} of {fill.slices}; another number of shards is "
        "another fill: `tidemill backfill --publish`"
    )


def read_fill(store: str, parcel: Parcel) -> StoreError:
    """Return the error of a part of a release for a fill that readers see."""
    return StoreError(
        f"{_part_of(store, parcel)}: a part of a release was to be written without its frontier, "
        "but readers see this fill: they would see rows of two releases. Write the release in one "
        "step, or another fill"
    )


def backwards(store: str, parcel: Parcel, stands_us: int) -> StoreError:
    """Return the error of a release that comes after another one and has a lower frontier."""
    return StoreError(
        f"{_part_of(store, parcel)}: a release at {_at(parcel.frontier_us)} builds on one at "
        f"{_at(stands_us)}, but a frontier never goes back: this is an error of the writer"
    )


def conflict(store: str, space: KeySpace, stored: Row, offered: Row) -> ConflictingPublication:
    """Return the error of a publication that contradicts the stored one."""
    names = [name for name, _ in space.columns]

    def show(row: Row) -> str:
        values = dict(zip(names, decode_row(space.dtypes, row.cells), strict=True))
        return f"{values} until {write_instant(row.valid_until)}"

    return ConflictingPublication(
        f"{store}, view {space.view!r}, {readable_key(stored.key)}: two publications at "
        f"event_timestamp {write_instant(stored.event_timestamp)}, revision {stored.revision} "
        f"differ: stored {show(stored)}, offered {show(offered)}; a revision counts the events "
        "applied, so one of the two was computed from other events: find its writer, then fill "
        "another key space: `tidemill backfill --publish`"
    )
