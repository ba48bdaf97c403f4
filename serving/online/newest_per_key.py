"""The newest publication of each key of a batch."""

from __future__ import annotations

from tidemill.features.errors import InputError
from tidemill.serving.online.cells import cells_width, has_tail
from tidemill.serving.online.refusals import conflict
from tidemill.serving.online.rows import KeySpace, Row, RowBatch


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
