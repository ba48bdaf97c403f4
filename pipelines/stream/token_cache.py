"""A cache of what was decoded from an engine's state, right only while that state says so.

The token protocol: a random token stands in the state's head. An entry is *taken out* of the cache
to be used, is right only if its token is the head's, and goes back with a new token. Anything else
(a retried bundle, another worker, a restart) rebuilds from state.
"""

from __future__ import annotations

import collections
import os
import threading
from typing import Any, Final

TOKEN_BYTES: Final = 12


def new_token() -> bytes:
    """Return a token that no other head has."""
    return os.urandom(TOKEN_BYTES)


class TokenCache:
    """Decoded values by run and key, least recently used first; thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[tuple[str, str], tuple[bytes, Any]] = (
            collections.OrderedDict()
        )

    def take(self, key: tuple[str, str], token: bytes) -> Any | None:
        """Take an entry out; None unless its token is ``token``."""
        with self._lock:
            entry = self._entries.pop(key, None)
        return entry[1] if entry is not None and entry[0] == token else None

    def put(self, key: tuple[str, str], token: bytes, value: Any) -> None:
        """Put an entry back."""
        with self._lock:
            self._entries[key] = (token, value)
            self._entries.move_to_end(key)
            while len(self._entries) > self._most:
                self._entries.popitem(last=False)
