"""The timing wheel: which entities have a tile that leaves a window, hop by hop.

Each entity with tiles stands in the slot of its next boundary (a doubly linked list per slot;
Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", 1987). Boundaries further ahead than
the wheel has slots share them; who looks there skips those that are not due.
"""

from __future__ import annotations

import numba as nb

from features.contract import Int64Array
from features.kernel.owned import release_tile
from features.kernel.segments import lower_bound, release_rows
from features.kernel.state import (
    BASE,
    CLASS,
    DUE,
    HOP,
    LENGTH,
    NEVER,
    NEXT,
    NO_SEGMENT,
    NOBODY,
    PREVIOUS,
    START,
)


@nb.njit(cache=True)
def due_entities(
    entities: Int64Array, wheel: Int64Array, wheel_hop: int, until_hop: int, out: Int64Array
) -> int:
    """Collect entities with a boundary at or before ``until_hop``; returns how many."""
    n = 0
    if wheel_hop == NEVER:
        return 0
    size = wheel.shape[0]
    for hop in range(wheel_hop + 1, min(until_hop, wheel_hop + size) + 1):
        entity = wheel[hop & (size - 1)]
        while entity != NOBODY:
            if entities[entity, DUE] <= until_hop:
                out[n] = entity
                n += 1
            entity = entities[entity, NEXT]
    return n


@nb.njit(cache=True)
def settle(
    group_entity: Int64Array,
    entities: Int64Array,
    tiles: Int64Array,
    tile_meta: Int64Array,
    blocks: Int64Array,
    block_meta: Int64Array,
    references: Int64Array,
    wheel: Int64Array,
    hop_us: int,
    watched_hops: Int64Array,
    until: int,
) -> None:
    """Drop the tiles that no window covers as of ``until``, and set the entities' next boundary."""
    until_hop = until // hop_us
    size = wheel.shape[0]
    for g in range(group_entity.shape[0]):
        entity = group_entity[g]
        start, length = entities[entity, START], entities[entity, LENGTH]
        oldest = until_hop - watched_hops[-1]
        drop = lower_bound(tiles, start, start + length, oldest) - start
        for row in range(start, start + drop):
            release_tile(tiles, row, blocks, block_meta, references)
        start += drop
        length -= drop
        if length == 0 and entities[entity, CLASS] != NO_SEGMENT:
            release_rows(tiles, tile_meta, entities[entity, BASE], entities[entity, CLASS])
            entities[entity, CLASS] = NO_SEGMENT
            start = 0
        entities[entity, START] = start
        entities[entity, LENGTH] = length
        due = NEVER
        for w in range(watched_hops.shape[0]):
            at = lower_bound(tiles, start, start + length, until_hop - watched_hops[w])
            if at < start + length:
                boundary = tiles[at, HOP] + 1 + watched_hops[w]
                if due == NEVER or boundary < due:
                    due = boundary
        if due != entities[entity, DUE]:
            _unlink(entities, entity, wheel, size)
            entities[entity, DUE] = due
            if due != NEVER:
                slot = due & (size - 1)
                first = wheel[slot]
                entities[entity, PREVIOUS] = NOBODY
                entities[entity, NEXT] = first
                if first != NOBODY:
                    entities[first, PREVIOUS] = entity
                wheel[slot] = entity


@nb.njit(cache=True)
def _unlink(entities: Int64Array, entity: int, wheel: Int64Array, size: int) -> None:
    if entities[entity, DUE] == NEVER:
        return
    before, after = entities[entity, PREVIOUS], entities[entity, NEXT]
    if before == NOBODY:
        wheel[entities[entity, DUE] & (size - 1)] = after
    else:
        entities[before, NEXT] = after
    if after != NOBODY:
        entities[after, PREVIOUS] = before
