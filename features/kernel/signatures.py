"""Every entry of the kernel, once, with the types of its arguments.

The tests of `kernel.compilation` fail if an entry is missing here or is called with other types.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from numba import types

from tidemill.features.kernel import dedupe, encoding, folds, hashing
from tidemill.features.kernel.registry import FINISHES, FOLDS
from tidemill.features.kernel.tiles import layout, state, wheel

Signature = tuple[Any, ...]
Entry = tuple[Callable[..., Any], Signature]

_INT: Final = types.int64
_FLOAT: Final = types.float64
_BOOL: Final = types.boolean


def _array(dtype: Any, axes: int = 1, *, read_only: bool = False) -> Any:
    return types.Array(dtype, axes, "C", readonly=read_only)


_INTS: Final = _array(types.int64)
_GIVEN_INTS: Final = _array(types.int64, read_only=True)
_GIVEN_OFFSETS: Final = _array(types.int32, read_only=True)
_BYTES: Final = _array(types.uint8)
_GIVEN_BYTES: Final = _array(types.uint8, read_only=True)
_BOOLS: Final = _array(types.boolean)
_GIVEN_BOOLS: Final = _array(types.boolean, read_only=True)
_HASHES: Final = _array(types.uint64)
_GIVEN_HASHES: Final = _array(types.uint64, read_only=True)
_INT_ROWS: Final = _array(types.int64, 2)
_GIVEN_INT_ROWS: Final = _array(types.int64, 2, read_only=True)
_DIGESTS: Final = _array(types.uint64, 2)
_GIVEN_DIGESTS: Final = _array(types.uint64, 2, read_only=True)
_FLAGS: Final = _array(types.uint8, 2)

FOLD: Final[Signature] = (
    _INT,  # variant
    _INT,  # first
    _INTS,  # step_row
    _INTS,  # step_at
    _INT_ROWS,  # queries
    _INT_ROWS,  # tiles
    _INT,  # base
    _INT,  # size
    _GIVEN_INT_ROWS,  # cells
    _INT,  # value_cell
    _INT,  # mask_word
    _INT,  # mask_bit
    _GIVEN_INTS,  # event_time
    _GIVEN_OFFSETS,  # id_offsets
    _GIVEN_BYTES,  # id_data
    _INTS,  # blocks
    _INTS,  # block_meta
    _INTS,  # ask_windows
    _array(types.float64),  # ask_params
    _INTS,  # scratch
    _INT_ROWS,  # out
)
"""The arguments of every fold (`kernel.folds.counts_and_extremes`)."""

FINISH: Final[Signature] = (
    _INT,  # variant
    *(_INT_ROWS, _INT, _INT) * 3,  # a, b and c, each with its ask and its asks
    _INT_ROWS,  # queries
    _INTS,  # blocks
    _FLOAT,  # param
    _INT,  # width
    _BOOL,  # is_float
    _INT,  # column
    _INT_ROWS,  # values
    _FLAGS,  # nulls
)
"""The arguments of every finish (`kernel.folds.finish`)."""

ENCODING: Final[tuple[Entry, ...]] = (
    (encoding._index, (_INTS, _INT, _INT_ROWS, *(_INTS,) * 4)),
    (
        encoding._write,
        (_INT, _INT, _INTS, _INTS, *(_INT_ROWS,) * 2, _INTS, *(_INT_ROWS,) * 2, _INTS),
    ),
    (encoding._read, (_INTS, _INTS, _INT_ROWS, _INT_ROWS, *(_INTS,) * 3, _INT_ROWS, _INTS)),
)
"""The entries that write and read states."""

LAYOUT: Final[tuple[Entry, ...]] = (
    (
        layout.lay_out,
        (
            _INT,  # group
            _INTS,  # group_entity
            _INTS,  # group_start
            _INTS,  # codes
            _GIVEN_INTS,  # event_time
            _INTS,  # event_change
            _INTS,  # request_as_of
            _INT_ROWS,  # entities
            _INT_ROWS,  # tiles
            _INTS,  # tile_meta
            _INTS,  # template
            _INT,  # hop_us
            _INTS,  # window_hops
            _INT,  # publish
            _BOOL,  # tracks
            _INT,  # since
            _INT,  # until
            _INTS,  # step_row
            _INTS,  # step_at
            _INT_ROWS,  # queries
            _INTS,  # filled
        ),
    ),
    (layout.group_rows, (*(_INTS,) * 8, _INT)),
    (layout.mark_presence, (_INTS, _INTS, _INT_ROWS, _INT_ROWS, _INT, _INTS)),
    (wheel.due_entities, (_INT_ROWS, _INTS, _INT_ROWS, _INTS, _INT, _INT)),
    (
        wheel.settle,
        (
            _INTS,  # group_entity
            _INT_ROWS,  # entities
            _INT_ROWS,  # tiles
            _INTS,  # tile_meta
            _INTS,  # blocks
            _INTS,  # block_meta
            _INT_ROWS,  # references
            _INTS,  # wheel
            _INT_ROWS,  # nodes
            _INTS,  # node_meta
            _INT,  # hop_us
            _INTS,  # watched_hops
            _INT,  # until
        ),
    ),
    (folds.finish.release_answers, (_INT_ROWS, _INT, _INTS, _INTS)),
)
"""The entries that decide the layout of a batch, and drop tiles."""

KEYS: Final[tuple[Entry, ...]] = (
    (
        state.resolve,
        (
            _HASHES,  # hashes
            _GIVEN_OFFSETS,  # offsets
            _GIVEN_BYTES,  # data
            _GIVEN_BOOLS,  # valid
            _BOOL,  # insert
            _INT_ROWS,  # table
            _INT_ROWS,  # entities
            _INTS,  # key_offsets
            _BYTES,  # key_data
            _INT,  # n_entities
            _INTS,  # out
        ),
    ),
    (state._gather_keys, (_INTS, _BYTES, _INTS)),
    (state._rehash, (_INT_ROWS, _INT_ROWS)),
    (hashing._hash_texts, (_GIVEN_OFFSETS, _GIVEN_BYTES, types.uint64)),
    (hashing._hash_words, (_GIVEN_HASHES,)),
    (hashing._chain, (_DIGESTS, _HASHES, _GIVEN_BOOLS)),
    (dedupe._first_rows, (_GIVEN_DIGESTS, _INTS, _INTS)),
    (dedupe._insert_all, (_DIGESTS, _INTS, _GIVEN_DIGESTS, _GIVEN_INTS, _BOOLS)),
)
"""The entries that hash keys, find entities and drop duplicates."""


def entries() -> list[Entry]:
    """Return every entry with its signature."""
    return [entry for share in shares() for entry in share]


def shares() -> tuple[list[Entry], list[Entry]]:
    """Return the entries in two shares that take about the same time to compile.

    Entries that call the same inner functions are in the same share, so that few of these are
    compiled twice.
    """
    exact = FOLDS["sum_float"].run
    folds = dict.fromkeys(fold.run for fold in FOLDS.values() if fold.run is not exact)
    finishes = dict.fromkeys(finish.run for finish in FINISHES.values())
    return (
        [(exact, FOLD), *((run, FINISH) for run in finishes), *ENCODING, *KEYS],
        [*((run, FOLD) for run in folds), *LAYOUT],
    )
