"""State as bytes: canonical and versioned; a state that does not fit is refused by name.

The canonical part of a state depends on the events alone, not on the order in which they came, on
how the log was cut, or on addresses in memory: entities are sorted by the bytes of their keys,
tiles by their hop; sums are in canonical form, sets and sketches are sorted. The other part is the
frontier, the last change point of each entity and the counters, which depend on when late events
came.

Layout: ``TIDEMILL-STATE``, the version as 2 bytes, the length of a JSON header as 8 bytes, the
header, then arrays of little-endian 64-bit words as the header lists them.
"""

# numba is Any to mypy, and so is what a compiled function returns to another.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import Int64Array
from tidemill.features.errors import StateError, StateMismatch, StateVersionError
from tidemill.features.kernel import hashing
from tidemill.features.kernel.compiled import entry, inner, read_only
from tidemill.features.kernel.exact.accumulators import (
    SQUARE_LIMBS,
    SUM_LIMBS,
    WIDE_SQUARE,
    WIDE_SUM,
    normalise,
    wide_to_compact,
)
from tidemill.features.kernel.plan import Plan
from tidemill.features.kernel.registry import (
    OWNS_ID,
    OWNS_LAST_K,
    OWNS_SKETCH,
    OWNS_WIDE_SQUARE,
    OWNS_WIDE_SUM,
)
from tidemill.features.kernel.tiles import arena
from tidemill.features.kernel.tiles.state import (
    BASE,
    CHANGED,
    CLASS,
    LENGTH,
    REVISION,
    START,
    Counters,
    State,
    resolve,
)
from tidemill.features.kernel.tiles.tile_blocks import REGISTER_CLASS, REGISTERS, SPILLED, id_class
from tidemill.features.kernel.tiles.wheel import settle

MAGIC: Final = b"TIDEMILL-STATE"
VERSION: Final = 1
_WORD: Final = np.dtype("<i8")

UInt8Array = npt.NDArray[np.uint8]


class EncodedEntities(NamedTuple):
    """The entities of a state, in order of their keys.

    Attributes:
        changed: int64, ``(entities,)``: the last change point of each.
        words: int64: what is known of each, one after the other.
        keys: uint8: their keys, one after the other.
    """

    changed: Int64Array
    words: Int64Array
    keys: UInt8Array


def encode(state: State) -> bytes:
    """Encode a state."""
    found = encode_entities(state)
    return encode_merged(
        state.plan, [found], state.frontier_us, state.counters, publishes=state.publishes
    )


def encode_entities(state: State) -> EncodedEntities:
    """Encode the entities of a state."""
    order, words, keys = _canonical_parts(state)
    return EncodedEntities(state.entities[order, CHANGED], words, np.frombuffer(keys, np.uint8))


def encode_merged(
    plan: Plan,
    parts: Sequence[EncodedEntities],
    frontier_us: int,
    counters: Counters,
    *,
    publishes: bool = True,
) -> bytes:
    """Encode the state whose entities are those of several states, none in two of them.

    Args:
        plan: The view's plan.
        parts: The entities of each state.
        frontier_us: The frontier of all of them.
        counters: What they have counted together.
        publishes: As for `State`.
    """
    changed, words, keys = _merged(plan, parts)
    header = {
        "view": plan.view,
        "hash": plan.hash,
        "frontier_us": frontier_us,
        "publishes": publishes,
        "counters": dataclasses.asdict(counters),
        "entities": len(changed),
        "words": len(words),
        "key_bytes": len(keys),
    }
    text = json.dumps(header, sort_keys=True).encode("ascii")
    return b"".join(
        [
            MAGIC,
            VERSION.to_bytes(2, "little"),
            len(text).to_bytes(8, "little"),
            text,
            np.ascontiguousarray(changed, _WORD).data,
            np.ascontiguousarray(words, _WORD).data,
            np.ascontiguousarray(keys).data,
        ]
    )


def _merged(plan: Plan, parts: Sequence[EncodedEntities]) -> EncodedEntities:
    """Put the entities of several states in the order of their keys."""
    if len(parts) == 1:
        return parts[0]
    keys, words = [], []
    for part in parts:
        count = len(part.changed)
        starts = np.empty(count + 1, np.int64)
        key_lengths, tiles = np.empty(count, np.int64), np.empty(count, np.int64)
        needed = np.zeros(2, np.int64)
        _index(part.words, plan.tile_words, plan.references, starts, key_lengths, tiles, needed)
        keys.append(_pieces(np.concatenate([[0], np.cumsum(key_lengths)]), part.keys))
        words.append(_pieces(8 * starts, part.words))
    names = pa.chunked_array(keys, pa.large_binary())
    order = pc.sort_indices(names)
    return EncodedEntities(
        np.concatenate([part.changed for part in parts])[order.to_numpy()],
        _content(pa.chunked_array(words, pa.large_binary()).take(order)).view(np.int64),
        _content(names.take(order)),
    )


def _pieces(offsets: Int64Array, data: npt.NDArray[Any]) -> pa.Array:
    """Return an Arrow array of runs of bytes, without a copy."""
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _content(pieces: pa.ChunkedArray) -> UInt8Array:
    """Return the bytes of all runs, one after the other."""
    found = []
    for chunk in pieces.chunks:
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int64, len(chunk) + 1, chunk.offset * 8)
        found.append(np.frombuffer(data or b"", np.uint8)[int(ends[0]) : int(ends[-1])])
    return found[0] if len(found) == 1 else np.concatenate([np.zeros(0, np.uint8), *found])


def canonical_bytes(state: State) -> bytes:
    """Return the canonical part of a state, which depends on the events alone."""
    _, words, keys = _canonical_parts(state)
    return state.plan.hash.encode("ascii") + words.astype(_WORD).tobytes() + keys


def decode(data: bytes, plan: Plan) -> State:
    """Decode a state.

    Raises:
        StateError: The bytes are not a state, or are cut short.
        StateVersionError: This code does not read the state's version.
        StateMismatch: The state belongs to another definition.
    """
    view = memoryview(data)
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise StateError(
            f"view {plan.view!r}: these {len(data)} bytes are not a state (they start with "
            f"{bytes(view[:14])!r}); restore the state from a handoff"
        )
    at = len(MAGIC)
    version = int.from_bytes(view[at : at + 2], "little")
    if version != VERSION:
        raise StateVersionError(
            f"view {plan.view!r}: the state has version {version}, this code reads {VERSION}; "
            "make a new state by a handoff"
        )
    length = int.from_bytes(view[at + 2 : at + 10], "little")
    at += 10
    try:
        header: dict[str, Any] = json.loads(bytes(view[at : at + length]))
    except ValueError as error:
        raise StateError(f"view {plan.view!r}: the state's header is broken: {error}") from None
    if header["hash"] != plan.hash:
        raise StateMismatch(
            f"view {plan.view!r}: the state was made for definition {header['hash']} of view "
            f"{header['view']!r}, this is definition {plan.hash}; make a new state by a handoff"
        )
    at += length
    entities, n_words = header["entities"], header["words"]
    expected = at + 8 * (entities + n_words) + header["key_bytes"]
    if len(data) != expected:
        raise StateError(
            f"view {plan.view!r}: the state has {len(data)} bytes, its header says {expected}; "
            "it is cut short or damaged"
        )
    changed = np.frombuffer(view, _WORD, entities, at).astype(np.int64)
    words = np.frombuffer(view, _WORD, n_words, at + 8 * entities).astype(np.int64)
    keys = np.frombuffer(view, np.uint8, header["key_bytes"], at + 8 * (entities + n_words))
    state = State(
        plan,
        publishes=header["publishes"],
        frontier_us=header["frontier_us"],
        counters=Counters(**header["counters"]),
    )
    _restore(state, changed, words, keys)
    return state


def _canonical_parts(state: State) -> tuple[Int64Array, Int64Array, bytes]:
    keys = state.keys(np.arange(state.n_entities))
    order = pc.array_sort_indices(keys.cast(pa.binary())).to_numpy().astype(np.int64)
    references = state.plan.references
    words = np.empty(64, np.int64)
    scratch = np.empty((1, state.plan.tile_words), np.int64)
    entity, filled = 0, 0
    while True:
        entity, filled = _write(
            entity,
            filled,
            order,
            state.key_offsets,
            state.entities,
            state.tiles,
            state.arena,
            references,
            scratch,
            words,
        )
        if entity >= len(order):
            break
        grown = np.empty(2 * len(words), np.int64)
        grown[:filled] = words[:filled]
        words = grown
    _, data = hashing.text_buffers(keys.take(pa.array(order)))
    return order, words[:filled], data.tobytes()


# Words before an entity's tiles: the length of its key, its revision, the number of tiles.
_ENTITY_HEADER: Final = 3


@entry
def _write(
    first: int,
    filled: int,
    order: Int64Array,
    key_offsets: Int64Array,
    entities: Int64Array,
    tiles: Int64Array,
    blocks: Int64Array,
    references: Int64Array,
    scratch: Int64Array,
    out: Int64Array,
) -> tuple[int, int]:
    """Write the entities from ``first`` on, up to one that does not fit.

    Returns:
        The next entity to write, and the number of words written.
    """
    width = tiles.shape[1]
    for k in range(first, order.shape[0]):
        entity = order[k]
        at = filled
        if at + _ENTITY_HEADER > out.shape[0]:
            return k, filled
        out[at] = key_offsets[entity + 1] - key_offsets[entity]
        out[at + 1] = entities[entity, REVISION]
        out[at + 2] = entities[entity, LENGTH]
        at += _ENTITY_HEADER
        start = entities[entity, START]
        for row in range(start, start + entities[entity, LENGTH]):
            if at + width > out.shape[0]:
                return k, filled
            for j in range(width):
                scratch[0, j] = tiles[row, j]
            tile = at
            at += width
            for r in range(references.shape[0]):
                at = _write_blocks(
                    references[r, 0], references[r, 1], tiles, row, blocks, scratch, out, at
                )
                if at < 0:
                    return k, filled
            for j in range(width):
                out[tile + j] = scratch[0, j]
        filled = at
    return order.shape[0], filled


@inner
def _copy(source: Int64Array, start: int, n: int, out: Int64Array, at: int) -> int:
    """Copy words; return their end, or -1 if there is no room."""
    if at < 0 or at + n > out.shape[0]:
        return -1
    arena.copy_words(source, start, n, out, at)
    return at + n


@inner
def _id_words(blocks: Int64Array, block: int) -> int:
    return 1 + ((blocks[block] + 7) >> 3)


@inner
def _write_blocks(
    kind: int,
    base: int,
    tiles: Int64Array,
    row: int,
    blocks: Int64Array,
    scratch: Int64Array,
    out: Int64Array,
    at: int,
) -> int:
    """Write a partial's blocks; references to them become 0 in the scratch tile."""
    ref = tiles[row, base + 1]
    if kind == OWNS_WIDE_SUM or kind == OWNS_WIDE_SQUARE:
        limbs, words = (
            (SUM_LIMBS, WIDE_SUM) if kind == OWNS_WIDE_SUM else (SQUARE_LIMBS, WIDE_SQUARE)
        )
        if tiles[row, base] != SPILLED:
            normalise(scratch, 0, base, limbs)
        elif not wide_to_compact(blocks, ref, scratch, 0, base, limbs):
            scratch[0, base + 1] = 0
            return _copy(blocks, ref, words, out, at)
    elif kind == OWNS_ID:
        if ref >= 0:
            scratch[0, base + 1] = 0
            return _copy(blocks, ref, _id_words(blocks, ref), out, at)
    elif kind == OWNS_LAST_K:
        scratch[0, base + 1] = 0
        for pick in range(tiles[row, base]):
            at = _copy(blocks, ref + 3 * pick, 1, out, at)
            at = _copy(blocks, ref + 3 * pick + 2, 1, out, at)
            block = blocks[ref + 3 * pick + 1]
            at = _copy(blocks, block, _id_words(blocks, block), out, at)
            if at < 0:
                return -1
    else:
        n = tiles[row, base]
        if n == REGISTERS:
            scratch[0, base + 1] = 0
            return _copy(blocks, ref, 1 << REGISTER_CLASS, out, at)
        if n > 1:
            scratch[0, base + 1] = 0
            return _copy(blocks, ref, n, out, at)
    return at


def _restore(
    state: State, changed: Int64Array, words: Int64Array, keys: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    plan = state.plan
    starts = np.empty(len(changed) + 1, np.int64)
    key_lengths = np.empty(len(changed), np.int64)
    tiles = np.empty(len(changed), np.int64)
    needed = np.array([0, 0], np.int64)
    _index(words, plan.tile_words, plan.references, starts, key_lengths, tiles, needed)
    offsets = np.concatenate([[0], np.cumsum(key_lengths)]).astype(np.int32)
    array = pa.Array.from_buffers(
        pa.string(), len(changed), [None, pa.py_buffer(offsets), pa.py_buffer(keys)]
    )
    state.reserve_entities(len(changed), len(keys))
    found = np.empty(len(changed), np.int64)
    state.n_entities = resolve(
        hashing.hash_column(array),
        read_only(offsets),
        read_only(keys),
        read_only(np.ones(len(changed), np.bool_)),
        True,
        state.table,
        state.entities,
        state.key_offsets,
        state.key_data,
        0,
        found,
    )
    state.grow_tiles(int(needed[0]))
    while len(state.arena) < int(needed[1]):
        state.grow_arena()
    _read(
        words,
        starts,
        state.entities,
        state.tiles,
        state.tile_meta,
        state.arena,
        state.arena_meta,
        plan.references,
        plan.template,
    )
    state.entities[: len(changed), CHANGED] = changed
    state.reserve_wheel(state.n_entities)
    settle(
        np.arange(state.n_entities),
        state.entities,
        state.tiles,
        state.tile_meta,
        state.arena,
        state.arena_meta,
        plan.references,
        state.wheel,
        state.wheel_nodes,
        state.wheel_meta,
        plan.hop_us,
        state.watched_hops,
        state.frontier_us,
    )
    state.wheel_hop = state.frontier_us // plan.hop_us


@inner
def _block_words(kind: int, words: Int64Array, tile: int, base: int, at: int) -> tuple[int, int]:
    """Return the end of a partial's blocks, and the arena words that they need at most."""
    n = words[tile + base]
    if kind == OWNS_WIDE_SUM or kind == OWNS_WIDE_SQUARE:
        if n != SPILLED:
            return at, 0
        wide = WIDE_SUM if kind == OWNS_WIDE_SUM else WIDE_SQUARE
        return at + wide, 1 << arena.class_of(wide)
    if kind == OWNS_ID:
        if words[tile + base + 1] == -1:
            return at, 0
        return at + 1 + ((words[at] + 7) >> 3), 1 << id_class(words[at])
    if kind == OWNS_LAST_K:
        room = 0
        for _ in range(n):
            room += 1 << id_class(words[at + 2])
            at += 3 + ((words[at + 2] + 7) >> 3)
        return at, room
    if n == REGISTERS:
        return at + (1 << REGISTER_CLASS), 1 << REGISTER_CLASS
    return (at + n, 1 << arena.class_of(n)) if n > 1 else (at, 0)


@entry
def _index(
    words: Int64Array,
    width: int,
    references: Int64Array,
    starts: Int64Array,
    key_lengths: Int64Array,
    tiles: Int64Array,
    needed: Int64Array,
) -> None:
    """Find the start of each entity's words, and the rows and arena words that all need."""
    at = 0
    for e in range(key_lengths.shape[0]):
        starts[e] = at
        key_lengths[e] = words[at]
        tiles[e] = words[at + 2]
        at += _ENTITY_HEADER
        needed[0] += 1 << arena.class_of(max(tiles[e], 1))
        for _ in range(tiles[e]):
            tile = at
            at += width
            for r in range(references.shape[0]):
                at, room = _block_words(references[r, 0], words, tile, references[r, 1], at)
                if references[r, 0] == OWNS_LAST_K:
                    room += 1 << arena.class_of(3 * references[r, 2])
                needed[1] += room
    starts[key_lengths.shape[0]] = at


@entry
def _read(
    words: Int64Array,
    starts: Int64Array,
    entities: Int64Array,
    tiles: Int64Array,
    tile_meta: Int64Array,
    blocks: Int64Array,
    block_meta: Int64Array,
    references: Int64Array,
    template: Int64Array,
) -> None:
    """Rebuild the tiles and blocks; there must be room for them."""
    width = template.shape[0]
    for e in range(starts.shape[0] - 1):
        at = starts[e]
        entities[e, REVISION] = words[at + 1]
        n = words[at + 2]
        at += _ENTITY_HEADER
        if n == 0:
            continue
        c = arena.class_of(n)
        base_row = tile_meta[0]
        tile_meta[0] += 1 << c
        tile_meta[tile_meta.shape[0] - 1] += 1 << c
        entities[e, BASE] = base_row
        entities[e, START] = base_row
        entities[e, CLASS] = c
        entities[e, LENGTH] = n
        for row in range(base_row, base_row + n):
            tile = at
            for j in range(width):
                tiles[row, j] = words[tile + j]
            at += width
            for r in range(references.shape[0]):
                at = _read_blocks(
                    references[r, 0],
                    references[r, 1],
                    references[r, 2],
                    words,
                    tile,
                    at,
                    tiles,
                    row,
                    blocks,
                    block_meta,
                )


@inner
def _take(
    words: Int64Array, at: int, n: int, c: int, blocks: Int64Array, block_meta: Int64Array
) -> int:
    """Copy words into a new block; return the block."""
    block = arena.allocate(blocks, block_meta, c)
    arena.copy_words(words, at, n, blocks, block)
    return block


@inner
def _read_blocks(
    kind: int,
    base: int,
    size: int,
    words: Int64Array,
    tile: int,
    at: int,
    tiles: Int64Array,
    row: int,
    blocks: Int64Array,
    block_meta: Int64Array,
) -> int:
    n = words[tile + base]
    end, _ = _block_words(kind, words, tile, base, at)
    if kind == OWNS_LAST_K:
        if n == 0:
            return at
        picks = arena.allocate(blocks, block_meta, arena.class_of(3 * size))
        for pick in range(n):
            length = 1 + ((words[at + 2] + 7) >> 3)
            blocks[picks + 3 * pick] = words[at]
            blocks[picks + 3 * pick + 2] = words[at + 1]
            blocks[picks + 3 * pick + 1] = _take(
                words, at + 2, length, id_class(words[at + 2]), blocks, block_meta
            )
            at += 2 + length
        tiles[row, base + 1] = picks
    elif end > at:
        if kind == OWNS_ID:
            c = id_class(words[at])
        elif kind == OWNS_SKETCH or n == REGISTERS or n > 1:
            c = REGISTER_CLASS if n == REGISTERS else arena.class_of(n)
        else:
            c = arena.class_of(end - at)
        tiles[row, base + 1] = _take(words, at, end - at, c, blocks, block_meta)
    return end
