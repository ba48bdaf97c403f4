"""Canonical forms: the JSON value of a definition, and the hash that names what was made from it.

A definition's hash is stamped on state, bundles, predictions and key spaces.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any, Final, Protocol

SPEC_VERSION: Final = 1
"""Version of the canonical form and of the values' meaning; part of every hash."""


class Definition(Protocol):
    """What has a canonical form."""

    def spec(self) -> dict[str, Any]:
        """Return a canonical JSON value."""


# Asked for with every batch, and the canonical form of a view takes a millisecond. Not kept in the
# definition: it would travel with it to a worker that may have another edition of the zones.
@functools.lru_cache(maxsize=1_024)
def hash_of(definition: Definition) -> str:
    """Return the hash of a definition's canonical form."""
    return spec_hash(definition.spec())


def spec_hash(spec: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a canonical JSON value."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
