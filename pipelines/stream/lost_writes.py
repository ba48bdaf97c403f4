"""A register of shards whose writes the online store has lost.

The publishing stage finds a loss; the stage of the operators has the state that repairs it. Every
engine used here fuses the two stages, so they share this register of their process: after a noted
loss, the next release publishes the whole shard. If the shard's operator does not run in this
process, nothing is noted and publishing fails (`pipelines.publish.store_writer`).

The register also keeps the error that ends a run, because an engine may replace it by its own.

A worker that dies loses its register. The loss is found again, since the store refuses the next
write.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tidemill.features.errors import StoreError


class LostWrites:
    """Shards with lost writes, by run, view and shard; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._operated: dict[str, set[tuple[str, int]]] = {}
        self._open: dict[str, set[tuple[str, int]]] = {}
        self._failed: dict[str, StoreError] = {}

    def operates(self, run: str, view: str, shard: int) -> bool:
        """Note that a shard's operator runs in this process.

        Returns:
            Whether the store has lost writes of the shard, so that all of it must be published.
        """
        with self._lock:
            self._operated.setdefault(run, set()).add((view, shard))
            return (view, shard) in self._open.get(run, ())

    def can_mend(self, run: str, view: str, shard: int) -> bool:
        """Tell whether a shard's operator runs in this process."""
        with self._lock:
            return (view, shard) in self._operated.get(run, ())

    def note(self, run: str, view: str, shard: int) -> None:
        """Note that the store has lost writes of a shard."""
        with self._lock:
            self._open.setdefault(run, set()).add((view, shard))

    def is_open(self, run: str, view: str, shard: int) -> bool:
        """Tell whether lost writes of a shard are noted."""
        with self._lock:
            return (view, shard) in self._open.get(run, ())

    def close(self, run: str, view: str, shard: int) -> bool:
        """Note that the store has all of a shard; return whether lost writes were noted."""
        with self._lock:
            mine = self._open.get(run, set())
            was_open = (view, shard) in mine
            mine.discard((view, shard))
            return was_open

    def fail(self, run: str, error: StoreError) -> None:
        """Note the error that a bundle of a run fails with."""
        with self._lock:
            self._failed.setdefault(run, error)

    @contextmanager
    def of(self, run: str) -> Iterator[None]:
        """Forget a run when the block ends.

        Raises:
            StoreError: The noted error, if the run failed.
        """
        try:
            yield
        except Exception as error:
            with self._lock:
                why = self._failed.get(run)
            if why is None:
                raise
            raise why from error
        finally:
            with self._lock:
                self._operated.pop(run, None)
                self._open.pop(run, None)
                self._failed.pop(run, None)


LOST_WRITES: Final = LostWrites()
"""This process's register."""
