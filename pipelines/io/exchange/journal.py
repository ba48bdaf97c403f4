"""Journals: what one process tells another, in order, as numbered objects in a folder.

A journal has one writer. What is told while an object is being written goes into the next one
together, so the storage's latency bounds how soon something arrives, and not how much. A writer
that has nothing to tell says so every few seconds: whoever reads it knows that it lives.

The promise: what was told arrives whole, once and in order, or the writer ends with an error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

import pyarrow as pa

from tidemill.features.errors import DamagedState, ExchangeUnreachable
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.io.framing import (
    HEADER_BYTES,
    Bytes,
    Document,
    Kind,
    decode_document,
    encode_document,
    size_of,
)

BEAT_S: Final = 2.0
"""A writer tells something at least so often."""
PATIENCE_S: Final = 600.0
"""So long a storage may be away before whoever needs it gives up."""
SILENT_S: Final = 150.0
"""A process that has told nothing for so long, while the storage was there, has ended."""
BLOCK: Final = 64
"""So many objects are in a folder, which is removed when all of them were read."""
_AGAIN_S: Final = 1.0
_OBJECT_BYTES: Final = 64 << 20
_MOST_BYTES: Final = 256 << 20
_REMEDY: Final = "run `tidemill stream --resume`"

T = TypeVar("T")

_log: Final = logging.getLogger(__name__)


def told(kind: str, fields: Mapping[str, Any], blobs: Iterable[Bytes] = ()) -> bytes:
    """Encode something to tell.

    Args:
        kind: What it is.
        fields: JSON values by name.
        blobs: Binary parts.
    """
    return encode_document(Kind.EXCHANGED, kind, fields, blobs)


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
    """

    def __init__(self, objects: Objects, folder: str, beat: Callable[[], bytes]) -> None:
        self._objects, self._folder, self._beat = objects, folder, beat
        self._queue: deque[bytes] = deque()
        self._bytes, self._is_writing, self._ended = 0, False, False
        self._changed = threading.Condition()
        self._failed: ExchangeUnreachable | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"tell-{folder}")
        self._thread.start()

    def tell(self, *entries: bytes) -> None:
        """Tell things (`told`), soon; wait while too much is on its way.

        Raises:
            ExchangeUnreachable: What was told before could not be written.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failed or self._bytes < _MOST_BYTES)
            self._check()
            self._queue.extend(entries)
            self._bytes += sum(map(len, entries))
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all that was told is written; errors as for `tell`."""
        with self._changed:
            self._changed.wait_for(lambda: self._failed or not (self._queue or self._is_writing))
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
                self._changed.wait_for(lambda: self._ended or self._queue, BEAT_S)
                if self._ended:
                    return
                entries = list(self._taken())
                self._is_writing = True
            entries.append(self._beat())
            try:
                self._write(f"{self._folder}/{name_of(number)}", b"".join(entries))
                number += 1
            except ExchangeUnreachable as error:
                self._failed = error
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                if self._failed is not None:
                    return

    def _taken(self) -> Iterator[bytes]:
        size = 0
        while self._queue and size < _OBJECT_BYTES:
            entry = self._queue.popleft()
            size += len(entry)
            yield entry
        self._bytes -= size

    def _write(self, name: str, data: bytes) -> None:
        patiently(lambda: self._objects.put(name, data), lambda: self._ended)


def patiently(ask: Callable[[], T], is_over: Callable[[], bool] = lambda: False) -> T:
    """Ask a storage again and again while it is away.

    Args:
        ask: Asks it.
        is_over: Whether the answer matters no more.

    Raises:
        ExchangeUnreachable: It was away for too long.
    """
    deadline_s, was_away = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            return ask()
        except ExchangeUnreachable as error:
            if time.monotonic() > deadline_s or is_over():
                raise
            if not was_away:
                _log.warning("%s; it is tried again for %.0f s", error, PATIENCE_S)
            was_away = True
            time.sleep(_AGAIN_S)


def read_told(data: pa.Buffer, where: str) -> Iterator[Document]:
    """Yield what an object tells; the key of each is what it is.

    Raises:
        DamagedState: It is not what a journal holds.
    """
    at = 0
    while at < data.size:
        size = size_of(data.slice(at, min(HEADER_BYTES, data.size - at)).to_pybytes())
        if size is None:
            raise DamagedState(f"{where}, byte {at:,}: was not written by Tidemill; {_REMEDY}")
        yield decode_document(data.slice(at, size), Kind.EXCHANGED, where, _REMEDY)
        at += size


class JournalReader:
    """Reads what a process tells.

    Args:
        objects: The storage.
        folder: The folder.
    """

    def __init__(self, objects: Objects, folder: str) -> None:
        self._objects, self._folder = objects, folder
        self.number = 0

    def read(self) -> list[Document] | None:
        """Return what the next object tells; None if it is not there yet.

        Raises:
            DamagedState: It was not written by a journal.
            ExchangeUnreachable: The storage is away.
        """
        name = f"{self._folder}/{name_of(self.number)}"
        data = self._objects.get(name)
        if data is None:
            return None
        self.number += 1
        return list(read_told(data, f"{self._objects.shown}: {name}"))
