"""The timing wheel: finds the entities that have a tile about to leave a window, hop by hop.

Each entity with tiles is in the slot of its next boundary (Varghese and Lauck, "Hashed and
Hierarchical Timing Wheels", 1987). A slot is a list of (entity, hop, next). An entity whose
boundary changes gets a new entry; the old entry is skipped when its slot is reached. Boundaries
further ahead than the wheel has slots share slots with nearer ones, and stay until they are due.

``meta[0]`` is the first node never used, ``meta[1]`` the first free one.
"""

from __future__ import annotations

import numpy as np

from tidemill.features.contract import Int64Array
from tidemill.features.kernel.compiled import entry, inner
from tidemill.features.kernel.exact.wide_ints import prefetch, row_address
from tidemill.features.kernel.tiles.state import (
    BASE,
    CLASS,
    DUE,
    HOP,
    LENGTH,
    NEVER,
    NO_ROWS,
    NOBODY,
    START,
)
from tidemill.features.kernel.tiles.tile_blocks import release_tile
from tidemill.features.kernel.tiles.tile_pool import lower_bound, release_rows


@entry
def due_entities(
    entities: Int64Array,
    wheel: Int64Array,
    nodes: Int64Array,
    meta: Int64Array,
    wheel_hop: int,
    until_hop: int,
) -> Int64Array:
    """Remove and return the entities with a boundary at or before ``until_hop`` (may repeat)."""
    if wheel_hop == NEVER:
        return np.empty(0, np.int64)
    size = wheel.shape[0]
    last = min(until_hop, wheel_hop + size)
    most = 0
    for hop in range(wheel_hop + 1, last + 1):
        node = wheel[hop & (size - 1)]
        while node != NOBODY:
            most += 1
            node = nodes[node, 2]
    due = np.empty(most, np.int64)
    n = 0
    for hop in range(wheel_hop + 1, last + 1):
        slot = hop & (size - 1)
        node = wheel[slot]
        wheel[slot] = NOBODY
        while node != NOBODY:
            entity, boundary, after = nodes[node, 0], nodes[node, 1], nodes[node, 2]
            if boundary > until_hop:
                nodes[node, 2] = wheel[slot]
                wheel[slot] = node
            else:
                nodes[node, 2] = meta[1]
                meta[1] = node
                if entities[entity, DUE] == boundary:
                    entities[entity, DUE] = NEVER
                    due[n] = entity
                    n += 1
            node = after
    return due[:n]


@inner
def _enter(
    wheel: Int64Array, nodes: Int64Array, meta: Int64Array, entity: int, boundary: int
) -> None:
    """Put an entity into the slot of a boundary; there must be room."""
    node = meta[1]
    if node != NOBODY:
        meta[1] = nodes[node, 2]
    else:
        node = meta[0]
        meta[0] += 1
    slot = boundary & (wheel.shape[0] - 1)
    nodes[node, 0] = entity
    nodes[node, 1] = boundary
    nodes[node, 2] = wheel[slot]
    wheel[slot] = node


@entry
def settle(
    group_entity: Int64Array,
    entities: Int64Array,
    tiles: Int64Array,
    tile_meta: Int64Array,
    blocks: Int64Array,
    block_meta: Int64Array,
    references: Int64Array,
    wheel: Int64Array,
    nodes: Int64Array,
    node_meta: Int64Array,
    hop_us: int,
    watched_hops: Int64Array,
    until: int,
) -> None:
    """Drop the tiles that no window covers as of ``until``, and set the entities' next boundaries.

    The wheel must have room for one entry per entity (`State.reserve_wheel`).
    """
    until_hop = until // hop_us
    oldest = until_hop - watched_hops[-1]
    groups = group_entity.shape[0]
    for g in range(groups):
        if g + 16 < groups:
            prefetch(row_address(entities, group_entity[g + 16], 0))
        if g + 8 < groups:
            prefetch(row_address(tiles, entities[group_entity[g + 8], START], 0))
        entity = group_entity[g]
        start, length = entities[entity, START], entities[entity, LENGTH]
        if length and tiles[start, HOP] < oldest:
            drop = lower_bound(tiles, start, start + length, oldest) - start
            for row in range(start, start + drop):
                release_tile(tiles, row, blocks, block_meta, references)
            start += drop
            length -= drop
        if length == 0 and entities[entity, CLASS] != NO_ROWS:
            release_rows(tiles, tile_meta, entities[entity, BASE], entities[entity, CLASS])
            entities[entity, CLASS] = NO_ROWS
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
            entities[entity, DUE] = due
            if due != NEVER:
                _enter(wheel, nodes, node_meta, entity, due)
