"""Lost writes: shards whose online store has lost writes, and what else the driver is told of it.

The stage that publishes finds a hole, the one that runs the operators has the state that fills it.
They are fused on every engine used here, and so they meet in this register of their process: a
hole that is noted at one release makes the next one publish the whole shard. Where the operator of
a shard has not been seen in this process nothing is noted, and publishing fails
(`pipelines.publish.store_writer`).

The error that ends a run is told here too: an engine may put one of its own in place of it.

A worker that dies forgets its holes. They are found again: the store refuses what comes next.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tidemill.features.errors import StoreError


class LostWrites:
    """Lost writes by run, view and shard; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._operated: dict[str, set[tuple[str, int]]] = {}
        self._open: dict[str, set[tuple[str, int]]] = {}
        self._failed: dict[str, StoreError] = {}

    def operates(self, run: str, view: str, shard: int) -> bool:
        """Say that a shard's operator runs in this process.

        Returns:
            Whether its store has a hole, so that the whole shard is to be published.
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
        """Tell whether a hole is noted."""
        with self._lock:
            return (view, shard) in self._open.get(run, ())

    def close(self, run: str, view: str, shard: int) -> bool:
        """Say that the store has the shard; returns whether a hole had been noted."""
        with self._lock:
            mine = self._open.get(run, set())
            was_open = (view, shard) in mine
            mine.discard((view, shard))
            return was_open

    def fail(self, run: str, error: StoreError) -> None:
        """Say why a bundle of a run fails."""
        with self._lock:
            self._failed.setdefault(run, error)

    @contextmanager
    def of(self, run: str) -> Iterator[None]:
        """Forget all about a run when it has ended.

        Raises:
            StoreError: The run failed, and this is why.
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
