"""The pool of tiles: an entity's tiles are adjacent rows, in order of time.

Each entity with tiles has a block of ``2**c`` rows; free blocks of a class are linked through their
first word, as in the arena. A new tile after the newest one is appended; a new tile before it (of a
late event) moves the entity to a new block.
"""

from __future__ import annotations

from tidemill.features.contract import TIME_MIN, Int64Array
from tidemill.features.kernel.compiled import inner
from tidemill.features.kernel.tiles import arena
from tidemill.features.kernel.tiles.state import BASE, CLASS, HOP, LENGTH, NO_ROWS, START


@inner(forceinline=True)
def lower_bound(tiles: Int64Array, low: int, high: int, hop: int) -> int:
    """Return the first row in ``[low, high)`` whose hop is at least ``hop``, else ``high``."""
    while low < high:
        middle = (low + high) >> 1
        if tiles[middle, HOP] < hop:
            low = middle + 1
        else:
            high = middle
    return low


@inner
def _copy_tile(tiles: Int64Array, source: int, target: int) -> None:
    for k in range(tiles.shape[1]):
        tiles[target, k] = tiles[source, k]


@inner
def _empty_tile(tiles: Int64Array, row: int, template: Int64Array, hop: int) -> None:
    for k in range(tiles.shape[1]):
        tiles[row, k] = template[k]
    tiles[row, HOP] = hop


@inner
def _allocate_rows(tiles: Int64Array, meta: Int64Array, c: int) -> int:
    """Take a block of ``2**c`` rows from the pool, or -1 (`arena.allocate`, over rows)."""
    block = meta[1 + c]
    if block != -1:
        meta[1 + c] = tiles[block, 0]
    else:
        block = meta[0]
        if block + (1 << c) > tiles.shape[0]:
            return -1
        meta[0] = block + (1 << c)
    meta[meta.shape[0] - 1] += 1 << c
    return block


@inner
def release_rows(tiles: Int64Array, meta: Int64Array, block: int, c: int) -> None:
    """Release a block of ``2**c`` rows."""
    tiles[block, 0] = meta[1 + c]
    meta[1 + c] = block
    meta[meta.shape[0] - 1] -= 1 << c


@inner
def make_tiles(
    entities: Int64Array,
    entity: int,
    tiles: Int64Array,
    meta: Int64Array,
    template: Int64Array,
    hops: Int64Array,
    n_hops: int,
) -> bool:
    """Make the missing tiles of an entity for ``hops[:n_hops]`` (distinct, ascending).

    Returns:
        False, with nothing changed, if the pool has no room.
    """
    start, length = entities[entity, START], entities[entity, LENGTH]
    end = start + length
    newest = tiles[end - 1, HOP] if length else TIME_MIN
    missing = 0
    appends = True
    for k in range(n_hops):
        hop = hops[k]
        if hop <= newest:
            at = lower_bound(tiles, start, end, hop)
            if tiles[at, HOP] == hop:
                continue
            appends = False
        missing += 1
    if missing == 0:
        return True
    base, c = entities[entity, BASE], entities[entity, CLASS]
    total = length + missing
    if c == NO_ROWS or not appends or end + missing > base + (1 << c):
        if c != NO_ROWS and appends and total <= start - base:
            # The rows before the oldest tile are free: move to the start of the block.
            for k in range(length):
                _copy_tile(tiles, start + k, base + k)
            start = base
            entities[entity, START] = start
            end = start + length
        else:
            wanted = arena.class_of(total)
            fresh = _allocate_rows(tiles, meta, wanted)
            if fresh == -1:
                return False
            at = start
            row = fresh
            for k in range(n_hops):
                hop = hops[k]
                while at < end and tiles[at, HOP] < hop:
                    _copy_tile(tiles, at, row)
                    at += 1
                    row += 1
                if at < end and tiles[at, HOP] == hop:
                    continue
                _empty_tile(tiles, row, template, hop)
                row += 1
            while at < end:
                _copy_tile(tiles, at, row)
                at += 1
                row += 1
            if c != NO_ROWS:
                release_rows(tiles, meta, base, c)
            entities[entity, BASE] = fresh
            entities[entity, CLASS] = wanted
            entities[entity, START] = fresh
            entities[entity, LENGTH] = total
            return True
    for k in range(n_hops):
        hop = hops[k]
        if hop > newest:
            _empty_tile(tiles, end, template, hop)
            end += 1
    entities[entity, LENGTH] = total
    return True
