"""Journals: what one process tells another, in order, as numbered objects in a folder.

A journal has one writer. What is told while an object is being written goes into the next one
together, so the storage's latency bounds how soon something arrives, and not how much. What nobody
waits for is kept for a moment, for each object is paid. A writer that has nothing to tell says so
every few seconds: whoever reads it knows that it lives.

The promise: what was told arrives whole, once and in order, or the writer ends with an error.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from tidemill.features.errors import ExchangeError, ExchangeUnreachable
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.io.exchange.sealed import Entry, sealed, size_of_entry

BEAT_S: Final = 2.0
"""A writer tells something at least so often."""
PATIENCE_S: Final = 600.0
"""So long a storage may be away before whoever needs it gives up."""
REFUSED_S: Final = 30.0
"""So long it may refuse, or lack the bucket: rights take a while to reach all of a storage."""
FIRST_S: Final = 60.0
"""So long a process that begins waits for the storage."""
SILENT_S: Final = 150.0
"""A process that has told nothing for so long, while the storage was there, has ended."""
BLOCK: Final = 64
"""So many objects are in a folder, which is removed when all of them were read."""
_AGAIN_S: Final = 1.0
_OBJECT_BYTES: Final = 64 << 20
_MOST_BYTES: Final = 256 << 20

T = TypeVar("T")

_log: Final = logging.getLogger(__name__)


def block_of(number: int) -> str:
    """Return the name of the folder, below that of a journal, of an object."""
    return f"{number // BLOCK:010d}"


def name_of(number: int) -> str:
    """Return the name of an object below the folder of its journal."""
    return f"{block_of(number)}/{number:012d}"


class JournalWriter:
    """Tells things to whoever reads the folder.

    Args:
        objects: The storage.
        folder: The folder; nobody else writes there.
        beat: Returns what to tell beside everything else, also when there is nothing else.
        is_wanted: Tells whether something is to be told when there is nothing else.
    """

    def __init__(
        self,
        objects: Objects,
        folder: str,
        beat: Callable[[], Entry],
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._is_wanted = is_wanted
        self._objects, self._folder, self._beat = objects, folder, beat
        self._queue: deque[Entry] = deque()
        self._bytes, self._is_writing, self._ended = 0, False, False
        self._due_s = math.inf
        self._changed = threading.Condition()
        self._failed: ExchangeError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"tell-{folder}")
        self._thread.start()

    def tell(self, *entries: Entry, within_s: float = 0.0) -> None:
        """Tell things (`sealed.told`), soon; wait while too much is on its way.

        Args:
            entries: The things.
            within_s: So long they may be kept, to go together with what comes meanwhile.

        Raises:
            ExchangeError: What was told before could not be written.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failed or self._bytes < _MOST_BYTES)
            self._check()
            self._queue.extend(entries)
            self._bytes += sum(map(size_of_entry, entries))
            self._due_s = min(self._due_s, time.monotonic() + within_s)
            self._changed.notify_all()

    def flush(self, within_s: float | None = None) -> None:
        """Wait until all that was told is written, or for so long; errors as for `tell`."""
        with self._changed:
            if self._queue:
                self._due_s = 0.0
                self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._failed or not (self._queue or self._is_writing), within_s
            )
            self._check()

    def close(self) -> None:
        """Tell nothing more; what was told and not written is not written."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def check(self) -> None:
        """Raise why nothing can be told any more, if nothing can."""
        with self._changed:
            self._check()

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        number = 0
        while True:
            with self._changed:
                self._await_due()
                if self._ended:
                    return
                entries = list(self._taken())
                self._is_writing = bool(entries)
            try:
                if not (entries or self._is_wanted()):
                    continue
                entries.append(self._beat())
                self._write(f"{self._folder}/{name_of(number)}", entries)
                number += 1
            except ExchangeError as error:
                self._failed = error
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                if self._failed is not None:
                    return

    def _await_due(self) -> None:
        """Wait until something is to be written, if only that the writer lives."""
        beat_s = time.monotonic() + BEAT_S
        while not self._ended:
            left_s = min(self._due_s if self._queue else beat_s, beat_s) - time.monotonic()
            if left_s <= 0 or self._bytes >= _OBJECT_BYTES:
                return
            self._changed.wait(left_s)

    def _taken(self) -> Iterator[Entry]:
        size = 0
        while self._queue and size < _OBJECT_BYTES:
            entry = self._queue.popleft()
            size += size_of_entry(entry)
            yield entry
        self._bytes -= size
        if not self._queue:
            self._due_s = math.inf

    def _write(self, name: str, entries: list[Entry]) -> None:
        pieces = list(sealed(self._objects.place(name), entries))
        patiently(lambda: self._objects.put(name, *pieces), lambda: self._ended)


def patiently(
    ask: Callable[[], T],
    is_over: Callable[[], bool] = lambda: False,
    *,
    at_first: bool = False,
) -> T:
    """Ask a storage again and again while it is away, or refuses.

    Args:
        ask: Asks it.
        is_over: Whether the answer matters no more.
        at_first: Whether it was never reached from here: then it is asked for a minute, and no more
            once it refuses.

    Raises:
        ExchangeError: It was away, or has refused, for too long.
    """
    began_s = since_s = time.monotonic()
    before: type[ExchangeError] | None = None
    while True:
        try:
            return ask()
        except ExchangeError as error:
            now_s, kind = time.monotonic(), type(error)
            patience_s = _patience_with(error, at_first=at_first)
            if kind is not before:
                before, since_s = kind, now_s
                _log.warning("%s; it is tried again for %.0f s", error, patience_s)
            if now_s - since_s > patience_s or now_s - began_s > PATIENCE_S or is_over():
                raise
            time.sleep(_AGAIN_S)


def _patience_with(error: ExchangeError, *, at_first: bool) -> float:
    if isinstance(error, ExchangeUnreachable):
        return FIRST_S if at_first else PATIENCE_S
    return 0.0 if at_first else REFUSED_S
