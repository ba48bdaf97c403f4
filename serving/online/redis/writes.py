"""What one call of the script that writes is given, and which calls go out together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tidemill.serving.online.database import Parcel
from tidemill.serving.online.newest_per_key import newest_per_key
from tidemill.serving.online.redis.connections import Command
from tidemill.serving.online.redis.known_fills import KnownFill
from tidemill.serving.online.redis.rows import (
    current_key,
    encode_instant,
    encode_rows,
    fill_key,
    parts_key,
    row_prefix,
)
from tidemill.serving.online.redis.scripts import write_command
from tidemill.serving.online.rows import KeySpace

_ROWS_A_ROUND: Final = 64_000


@dataclass(frozen=True, eq=False)
class Write:
    """One run of the script that writes.

    Attributes:
        number: The number of its parcel, or 0.
        space: The key space.
        parcel: The parcel; None for a stock client's rows.
        keys: Entity keys.
        values: Their rows as Redis stores them.
        command: The call.
    """

    number: int
    space: KeySpace
    parcel: Parcel | None
    keys: list[bytes]
    values: list[bytes]
    command: Command


def parcel_write(store: str, number: int, parcel: Parcel) -> Write:
    """Return the write of a parcel of a call."""
    fill = parcel.fill
    rows = newest_per_key(store, fill.space, parcel.rows)
    keys, values = rows.keys, encode_rows(rows)
    prefix = row_prefix(fill.id)
    header = (
        parcel.writer.key,
        parcel.part,
        fill.shards,
        fill.slices,
        b"" if parcel.attempt is None else parcel.attempt,
        b""
        if parcel.mark_before is None
        else b"".join((parcel.mark_before, *parcel.marks_between)),
        parcel.mark,
        b"" if parcel.frontier_us is None else encode_instant(parcel.frontier_us),
        int(fill.is_current),
        fill.id,
    )
    names = [fill_key(fill.id), parts_key(fill.id), current_key(fill.space)]
    command = write_command([*names, *[prefix + key for key in keys]], [*header, *values])
    return Write(number, fill.space, parcel, keys, values, command)


def stock_write(space: KeySpace, known: KnownFill, keys: list[bytes], values: list[bytes]) -> Write:
    """Return the write of a stock client's rows to the current fill."""
    prefix = known.row_prefix
    names = [fill_key(known.id), known.parts_key, current_key(space)]
    header = ("", "", "", "", "", "", "", "", "", known.id)
    command = write_command([*names, *[prefix + key for key in keys]], [*header, *values])
    return Write(0, space, None, keys, values, command)


def waves(parcels: Sequence[Parcel]) -> list[list[int]]:
    """Put successive releases of one part into successive waves: each builds on the last.

    Chunks of a release go with the first of them, because a repeat of all of them starts it anew.
    """
    seen: dict[tuple[str, int], int] = {}
    waves: list[list[int]] = []
    for number, parcel in enumerate(parcels):
        key = (parcel.fill.id, parcel.part)
        wave = seen.get(key, 0)
        seen[key] = wave + (parcel.frontier_us is not None)
        if wave == len(waves):
            waves.append([])
        waves[wave].append(number)
    return waves


def rounds(parcels: Sequence[Parcel], numbers: Sequence[int]) -> Iterator[list[int]]:
    """Cut parcels into round trips of about `_ROWS_A_ROUND` rows."""
    some: list[int] = []
    rows = 0
    for number in numbers:
        some.append(number)
        rows += len(parcels[number].rows)
        if rows >= _ROWS_A_ROUND:
            yield some
            some, rows = [], 0
    if some:
        yield some
