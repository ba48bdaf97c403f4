"""The state of one view in one shard: entities, their tiles, and the blocks of the tiles.

* **Entities** are in an open-addressing table by the hash of their key. Each has a matrix row: the
  place of its tiles, the number of events applied (the revision), the next boundary (the hop at
  which a tile leaves a window).
* **Tiles** of an entity are adjacent rows in order of time (`tile_pool`), so a window is a range of
  rows. Only non-empty tiles exist.
* A **timing wheel** over hops finds the entities of which a tile leaves a window (`wheel`).

Memory grows with the number of non-empty tiles, plus a fixed amount for every entity ever seen,
because its revision must not start again.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import TIME_MIN, Int64Array
from tidemill.features.kernel.compiled import entry
from tidemill.features.kernel.exact.wide_ints import prefetch, row_address, word_address
from tidemill.features.kernel.plan import Plan
from tidemill.features.kernel.registry import Fold
from tidemill.features.kernel.tiles import arena

# Columns of the entity matrix; a row is one cache line.
START: Final = 0  # row of the oldest tile
LENGTH: Final = 1  # number of tiles
BASE: Final = 2  # first row of its block of rows
CLASS: Final = 3  # the block has 2**CLASS rows; NO_ROWS without a block
REVISION: Final = 4  # accepted events applied
DUE: Final = 5  # hop index of the next boundary at which a tile leaves; NEVER without one
CHANGED: Final = 6  # the last change point (only kept in states that publish)
ENTITY_COLUMNS: Final = 8

NO_ROWS: Final = -1
NOBODY: Final = -1
NEVER: Final = TIME_MIN
_MOST_SLOTS: Final = 4_096
_GROWTH: Final = 8  # untouched memory costs nothing, but each copy costs time
_LARGE_BYTES: Final = 1 << 28  # larger arrays grow by doubling

# Words of a tile's header.
HOP: Final = 0
ROWS: Final = 1


@dataclass
class Counters:
    """What a state has counted since it was made.

    Attributes:
        events: Events applied.
        expired: Events among them that were older than every window when they came.
        late: Events among them that were before the frontier when they came.
        overflows: Values that are null because a total does not fit its dtype.
    """

    events: int = 0
    expired: int = 0
    late: int = 0
    overflows: int = 0


@dataclass
class State:
    """The state of one view in one shard.

    Attributes:
        plan: The view's plan.
        publishes: Whether advances publish. The wheel then tracks all windows, else the longest.
        frontier_us: All events before it have been applied.
    """

    plan: Plan
    publishes: bool = True
    frontier_us: int = TIME_MIN
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self.n_entities = 0
        self.table = np.full((64, 2), NOBODY, np.int64)
        self.entities = np.zeros((32, ENTITY_COLUMNS), np.int64)
        self.key_offsets = np.zeros(33, np.int64)
        self.key_data = np.zeros(1024, np.uint8)
        self.tiles = np.zeros((64, self.plan.tile_words), np.int64)
        self.tile_meta = arena.make_meta()
        self.arena = np.zeros(1024, np.int64)
        self.arena_meta = arena.make_meta()
        # Boundaries past the wheel's size share slots with nearer ones.
        hops = min(int(self.plan.window_hops[-1]), _MOST_SLOTS - 4)
        self.wheel = np.full(1 << (hops + 3).bit_length(), NOBODY, np.int64)
        self.wheel_hop = NEVER
        self.wheel_nodes = np.zeros((64, 3), np.int64)
        self.wheel_meta = np.array([0, NOBODY], np.int64)
        self.stamps = np.full(32, -1, np.int64)
        self.batch_number = 0
        self._scratch: dict[str, Int64Array] = {}

    def copy(self) -> State:
        """Return a copy; a change of one of the two does not change the other."""
        twin = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(twin, name, value.copy())
        twin.counters = copy.copy(self.counters)
        twin._scratch = {}
        return twin

    @property
    def n_tiles(self) -> int:
        """The number of tiles."""
        return int(self.entities[: self.n_entities, LENGTH].sum())

    @property
    def nbytes(self) -> int:
        """Bytes in use: tiles, their blocks, entities and their keys."""
        per_entity = 8 * ENTITY_COLUMNS + 2 * 2 * 8 + 8 + 8
        return (
            int(self.tile_meta[-1]) * self.tiles.itemsize * self.plan.tile_words
            + int(self.arena_meta[-1]) * self.arena.itemsize
            + self.n_entities * per_entity
            + int(self.key_offsets[self.n_entities])
            + self.wheel.nbytes
            + int(self.wheel_meta[0]) * 3 * 8
        )

    @property
    def watched_hops(self) -> Int64Array:
        """int64: the windows, in hops, that the wheel watches."""
        hops = self.plan.window_hops
        return hops if self.publishes else hops[-1:]

    def key(self, entity: int) -> str:
        """Return an entity's key."""
        start, end = self.key_offsets[entity], self.key_offsets[entity + 1]
        return bytes(self.key_data[start:end]).decode("utf-8")

    def keys(self, entities: Int64Array) -> pa.Array:
        """Return the keys of entities as texts: string, ``(entities,)``."""
        offsets, data = _gather_keys(
            self.key_offsets, self.key_data, np.ascontiguousarray(entities)
        )
        return pa.Array.from_buffers(
            pa.string(), len(entities), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        )

    def scratch(self, fold: Fold) -> Int64Array:
        """Return a fold's scratch words: zeroed once, then kept between calls."""
        found = self._scratch.get(fold.name)
        if found is None:
            found = self._scratch[fold.name] = np.zeros(fold.scratch_words, np.int64)
        return found

    def reserve_entities(self, more: int, key_bytes: int) -> None:
        """Make room for ``more`` entities whose keys have ``key_bytes`` bytes in all."""
        wanted = self.n_entities + more
        if wanted > len(self.entities):
            size = max(wanted, 2 * len(self.entities))
            self.entities = _grown(self.entities, size)
            self.key_offsets = _grown(self.key_offsets, size + 1)
            self.stamps = _grown(self.stamps, size, fill=-1)
        used = int(self.key_offsets[self.n_entities])
        if used + key_bytes > len(self.key_data):
            self.key_data = _grown(self.key_data, max(used + key_bytes, 2 * len(self.key_data)))
        if 2 * wanted > len(self.table):
            size = len(self.table)
            while 2 * wanted > size:
                size *= 2
            table = np.full((size, 2), NOBODY, np.int64)
            _rehash(self.table, table)
            self.table = table

    def reserve_wheel(self, more: int) -> None:
        """Make room for ``more`` entries in the wheel."""
        wanted = int(self.wheel_meta[0]) + more
        if wanted > len(self.wheel_nodes):
            self.wheel_nodes = _grown(self.wheel_nodes, max(wanted, 2 * len(self.wheel_nodes)))

    def grow_tiles(self, rows: int) -> None:
        """Make room for at least ``rows`` more rows of tiles."""
        size = max(len(self.tiles) + rows, _factor(self.tiles) * len(self.tiles))
        self.tiles = _extended(self.tiles, int(self.tile_meta[0]), size)

    def grow_arena(self) -> None:
        """Make the arena larger."""
        self.arena = _extended(
            self.arena, int(self.arena_meta[0]), _factor(self.arena) * len(self.arena)
        )


def _grown(array: Any, size: int, fill: int = 0) -> Any:
    grown = np.empty((size, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    grown[len(array) :] = fill
    return grown


def _factor(array: Int64Array) -> int:
    return _GROWTH if array.nbytes < _LARGE_BYTES else 2


def _extended(array: Int64Array, used: int, size: int) -> Int64Array:
    """Return a larger array; its rows after the used ones are undefined."""
    extended = np.empty((size, *array.shape[1:]), array.dtype)
    extended[:used] = array[:used]
    return extended


@entry
def _gather_keys(
    key_offsets: Int64Array, key_data: npt.NDArray[np.uint8], entities: Int64Array
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    offsets = np.zeros(entities.shape[0] + 1, np.int32)
    for i in range(entities.shape[0]):
        entity = entities[i]
        offsets[i + 1] = offsets[i] + key_offsets[entity + 1] - key_offsets[entity]
    data = np.empty(offsets[-1], np.uint8)
    for i in range(entities.shape[0]):
        start = key_offsets[entities[i]]
        for j in range(offsets[i + 1] - offsets[i]):
            data[offsets[i] + j] = key_data[start + j]
    return offsets, data


@entry
def _rehash(old: Int64Array, new: Int64Array) -> None:
    mask = new.shape[0] - 1
    for i in range(old.shape[0]):
        if old[i, 1] != NOBODY:
            slot = old[i, 0] & mask
            while new[slot, 1] != NOBODY:
                slot = (slot + 1) & mask
            new[slot, 0] = old[i, 0]
            new[slot, 1] = old[i, 1]


@entry
def resolve(
    hashes: npt.NDArray[np.uint64],
    offsets: npt.NDArray[np.int32],
    data: npt.NDArray[np.uint8],
    valid: npt.NDArray[np.bool_],
    insert: bool,
    table: Int64Array,
    entities: Int64Array,
    key_offsets: Int64Array,
    key_data: npt.NDArray[np.uint8],
    n_entities: int,
    out: Int64Array,
) -> int:
    """Find the entity of each key; with ``insert``, make the ones that are missing.

    Args:
        hashes: XXH64 of the keys, ``(rows,)``.
        offsets: Where each key's bytes begin and end.
        data: The bytes.
        valid: Which keys are not null.
        insert: Whether to make missing entities; there must be room (`State.reserve_entities`).
        table: The state's hash table.
        entities: The state's entities.
        key_offsets: The offsets of the bytes of the entities' keys.
        key_data: The bytes.
        n_entities: The number of entities so far.
        out: int64, ``(rows,)``: receives the entity of each row, or NOBODY.

    Returns:
        The number of entities now.
    """
    mask = table.shape[0] - 1
    rows = out.shape[0]
    for i in range(rows):
        # Prefetch for the next rows: first their slots, then their entities' keys.
        if i + 24 < rows:
            prefetch(row_address(table, np.int64(hashes[i + 24]) & mask, 0))
        if i + 12 < rows:
            ahead = table[np.int64(hashes[i + 12]) & mask, 1]
            if ahead != NOBODY:
                prefetch(word_address(key_offsets, ahead))
                prefetch(row_address(entities, ahead, 0))
        if not valid[i]:
            out[i] = NOBODY
            continue
        h = np.int64(hashes[i])
        slot = h & mask
        start, length = offsets[i], offsets[i + 1] - offsets[i]
        found = NOBODY
        while table[slot, 1] != NOBODY:
            if table[slot, 0] == h:
                entity = table[slot, 1]
                at = key_offsets[entity]
                same = key_offsets[entity + 1] - at == length
                if same:
                    for j in range(length):
                        if key_data[at + j] != data[start + j]:
                            same = False
                            break
                if same:
                    found = entity
                    break
            slot = (slot + 1) & mask
        if found == NOBODY and insert:
            found = n_entities
            n_entities += 1
            table[slot, 0] = h
            table[slot, 1] = found
            at = key_offsets[found]
            for j in range(length):
                key_data[at + j] = data[start + j]
            key_offsets[found + 1] = at + length
            entities[found, START] = 0
            entities[found, LENGTH] = 0
            entities[found, BASE] = 0
            entities[found, CLASS] = NO_ROWS
            entities[found, REVISION] = 0
            entities[found, DUE] = NEVER
            entities[found, CHANGED] = TIME_MIN
        out[i] = found
    return n_entities
