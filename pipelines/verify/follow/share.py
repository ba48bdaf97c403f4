"""The share of the entities whose values are recomputed, chosen by a hash of the key."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import BoolArray
from tidemill.features.kernel import hashing

_SEED: Final = 0x70726F6F
"""Other than that of shards, so that a share takes some entities of each shard."""


def key_hashes(keys: pa.Array) -> hashing.UInt64Array:
    """Return the hash of each entity key, uint64 ``(rows,)``; keys are string or int64."""
    return hashing.hash_column(hashing.key_bytes(keys), seed=_SEED)


def is_chosen(keys: pa.Array, share: float) -> BoolArray:
    """Tell which entities are chosen: bool, ``(rows,)``.

    An entity that a share chooses is chosen by every larger share too. A null key, which has no
    events, is always chosen.

    Args:
        keys: Entity keys, string or int64, ``(rows,)``.
        share: From 0 to 1.
    """
    if share >= 1.0:
        return np.ones(len(keys), np.bool_)
    upper = key_hashes(keys) >> np.uint64(32)
    chosen: BoolArray = (upper < np.uint64(share * 2**32)) | ~hashing.validity(keys)
    return chosen
