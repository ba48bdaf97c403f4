"""The kernel's publications as rows and parcels of the online database."""

from __future__ import annotations

import functools
from dataclasses import replace

import pyarrow as pa

from tidemill.features.definitions import FeatureView
from tidemill.features.feast_objects import EVENT_TIMESTAMP
from tidemill.serving.online.cells import cell_matrix
from tidemill.serving.online.database import Parcel
from tidemill.serving.online.fills import Fill, Writer, chunk_mark, slices_of
from tidemill.serving.online.rows import RowBatch, online_keys
from tidemill.serving.publications import (
    REVISION_COLUMN,
    TECHNICAL_COLUMNS,
    VALID_UNTIL_COLUMN,
    checked_batch,
    entity_keys,
)


def online_rows(
    view: FeatureView, publications: pa.RecordBatch | pa.Table, shard: int | None
) -> RowBatch:
    """Convert publications (`serving.publications.schema`) to rows of the online database.

    Raises:
        InputError: The batch does not have the view's schema.
    """
    batch = checked_batch(view, publications)
    return RowBatch(
        keys=online_keys(view.entity.join_key, entity_keys(view, batch)),
        event_timestamps=batch.column(EVENT_TIMESTAMP).to_numpy(),
        revisions=batch.column(REVISION_COLUMN).to_numpy(),
        valid_until=batch.column(VALID_UNTIL_COLUMN).to_numpy(),
        shard=shard,
        cells=cell_matrix(_dtypes(view), batch.columns[TECHNICAL_COLUMNS:]),
    )


def parcels_of(
    fill: Fill,
    writer: Writer,
    view: FeatureView,
    publications: pa.RecordBatch | pa.Table,
    *,
    shard: int,
    mark_before: bytes | None,
    mark: bytes,
    frontier_us: int,
    attempt: int | None = 0,
    marks_between: tuple[bytes, ...] = (),
) -> list[Parcel]:
    """Make the parcels of a release of a shard: one for each slice of the fill, rows or not.

    Args:
        fill: The fill that is written.
        writer: Who writes it.
        view: The view.
        publications: Its publications (`serving.publications.schema`); may be empty.
        shard: The shard.
        mark_before: The mark that they build on; None if they are the whole shard.
        mark: The mark of the release.
        frontier_us: The frontier of the release.
        attempt: The attempt of the shard's operator; None beside a stream.
        marks_between: If they are of several releases, the marks of all but the last.

    Raises:
        InputError: The batch does not have the view's schema, or there is no such shard.
    """
    return whole_parcels(
        fill,
        writer,
        online_rows(view, publications, shard),
        shard=shard,
        mark_before=mark_before,
        mark=mark,
        frontier_us=frontier_us,
        attempt=attempt,
        marks_between=marks_between,
    )


def whole_parcels(
    fill: Fill,
    writer: Writer,
    rows: RowBatch,
    *,
    shard: int,
    mark_before: bytes | None,
    mark: bytes,
    frontier_us: int,
    attempt: int | None = 0,
    marks_between: tuple[bytes, ...] = (),
) -> list[Parcel]:
    """Make the parcels of rows of a shard; see `parcels_of`."""
    return [
        Parcel(
            fill=fill,
            writer=writer,
            rows=some,
            shard=shard,
            mark_before=mark_before,
            mark=mark,
            frontier_us=frontier_us,
            slice=number,
            attempt=attempt,
            marks_between=marks_between,
        )
        for number, some in enumerate(_slices(rows, fill.slices))
    ]


def in_chunks(parcel: Parcel, rows: int) -> list[Parcel]:
    """Cut a parcel with all rows of a part, for a fill that nobody reads, into chunks.

    Each chunk names the one before it (`chunk_mark`), so the store refuses one that comes out of
    turn, or after it lost its predecessor. The last chunk has the parcel's mark and frontier.

    Args:
        parcel: The parcel; it builds on nothing.
        rows: The most rows of a chunk.
    """
    starts = range(0, max(len(parcel.rows), 1), rows)
    last = len(starts) - 1
    return [
        replace(
            parcel,
            rows=parcel.rows.slice(start, start + rows),
            mark_before=chunk_mark(parcel.mark, number - 1) if number else None,
            mark=parcel.mark if number == last else chunk_mark(parcel.mark, number),
            frontier_us=parcel.frontier_us if number == last else None,
        )
        for number, start in enumerate(starts)
    ]


def _slices(rows: RowBatch, slices: int) -> list[RowBatch]:
    if slices == 1:
        return [rows]
    places: list[list[int]] = [[] for _ in range(slices)]
    for at, number in enumerate(slices_of(rows.keys, slices)):
        places[number].append(at)
    return [rows.take(some) for some in places]


@functools.lru_cache(maxsize=256)
def _dtypes(view: FeatureView) -> tuple[str, ...]:
    # Cached, because making a view's columns takes longer than writing a few rows. Definitions are
    # frozen and compared by identity.
    return tuple(column.dtype for column in view.columns)
