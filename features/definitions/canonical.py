"""The canonical form of a definition, as JSON, and its hash.

State, bundles, predictions and key spaces carry the hash of their definition.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any, Final, Protocol

SPEC_VERSION: Final = 2
"""Version of the canonical form and of what values mean; part of every hash. In version 1 an event
without the key of any view of its stream was rejected, and no column was of transport."""


class Definition(Protocol):
    """A definition with a canonical form."""

    def spec(self) -> dict[str, Any]:
        """Return a canonical JSON value."""


# Cached, because every batch needs the hash and the canonical form of a view takes a millisecond.
# Not stored in the definition: a worker that unpickles it may have another version of tzdata.
@functools.lru_cache(maxsize=1_024)
def hash_of(definition: Definition) -> str:
    """Return the hash of a definition's canonical form."""
    return spec_hash(definition.spec())


def spec_hash(spec: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a canonical JSON value."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
