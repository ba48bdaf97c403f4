"""A cache of decoded state, valid only while the engine's state has the same token.

The token protocol: the state's head contains a random token. A stage *takes* an entry out of the
cache to use it; the entry is valid only if its token is the head's. The stage puts it back with a
new token, which it also writes to the head. In any other case (a retried bundle, another worker, a
restart) the stage decodes the state again.
"""

from __future__ import annotations

import collections
import os
import threading
from typing import Any, Final

TOKEN_BYTES: Final = 12


def new_token() -> bytes:
    """Return a random token."""
    return os.urandom(TOKEN_BYTES)


class TokenCache:
    """Decoded values by run and key; forgets the least recently used; thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[tuple[str, str], tuple[bytes, Any]] = (
            collections.OrderedDict()
        )

    def take(self, key: tuple[str, str], token: bytes) -> Any | None:
        """Take an entry out; return None if its token is not ``token``."""
        with self._lock:
            entry = self._entries.pop(key, None)
        return entry[1] if entry is not None and entry[0] == token else None

    def forget(self, run: str) -> None:
        """Forget the entries of a run."""
        with self._lock:
            for key in [key for key in self._entries if key[0] == run]:
                del self._entries[key]

    def put(self, key: tuple[str, str], token: bytes, value: Any) -> None:
        """Put an entry back."""
        with self._lock:
            self._entries[key] = (token, value)
            self._entries.move_to_end(key)
            while len(self._entries) > self._most:
                self._entries.popitem(last=False)
