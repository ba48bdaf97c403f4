"""Rows that wait for the frontier, and how they are written to the engine's state.

Where some partitions are far ahead of others, many rows wait, and every poll brings more. So the
promises:

* Releasing rows, and writing the others to the state, costs as much as rows were added or released,
  whatever the number of those that go on waiting.
* Rows keep the order in which they came.

A few rows are written with the head, again with each bundle. More than `MOST_IN_HEAD` are in a
*log*, a bag of entries in the state: a bundle adds an entry with its own rows that wait. An entry
names the last poll that was taken before it, so what the frontier has released since is known when
it is read (`WaitingLog.restore`), and need not be removed. A log that has grown to more than twice
the rows that wait is written anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.kernel import hashing
from tidemill.features.kernel.columns import keep
from tidemill.features.kernel.prepare import TIME
from tidemill.pipelines.stream.sequence import SequencedBatch, decode_batches, encode_batches

MOST_IN_HEAD: Final = 128
"""With more rows than this that wait, they are written to the log."""
_PIECES: Final = 64
_PIECE_ROWS: Final = 8_192
"""Beyond `_PIECES` pieces, those next to each other are joined, up to so many rows."""


@dataclass(slots=True, eq=False)
class _Piece:
    """Rows that came together.

    Attributes:
        rows: The rows, ``(rows,)``; at least one.
        times: int64, ``(rows,)``: their times.
        earliest: The earliest of these.
        is_logged: Whether the log has them.
    """

    rows: pa.RecordBatch
    times: Int64Array
    earliest: int
    is_logged: bool = False

    @staticmethod
    def of(rows: pa.RecordBatch, is_logged: bool = False) -> _Piece:
        times = hashing.bits(rows.column(TIME))
        return _Piece(rows, times, int(times.min()), is_logged)


class WaitingRows:
    """Events, or requests, that wait for the frontier; in the order in which they came.

    Args:
        rows: Those that wait; None for none.
    """

    def __init__(self, rows: pa.RecordBatch | None = None) -> None:
        self._pieces: list[_Piece] = []
        self.num_rows = 0
        if rows is not None:
            self.add(rows)

    def __len__(self) -> int:
        return self.num_rows

    @property
    def rows(self) -> pa.RecordBatch | None:
        """All rows; None if there are none."""
        return _copied([piece.rows for piece in self._pieces])

    def add(self, rows: pa.RecordBatch, is_logged: bool = False) -> None:
        """Add rows; ``is_logged`` says whether the log has them."""
        if rows.num_rows:
            self._pieces.append(_Piece.of(rows, is_logged))
            self.num_rows += rows.num_rows

    def release(self, frontier_us: int | None = None) -> pa.RecordBatch | None:
        """Take out the rows before a frontier, or all of them; return None for no rows."""
        pieces, self._pieces, ready = self._pieces, [], []
        for piece in pieces:
            if frontier_us is not None and piece.earliest >= frontier_us:
                self._pieces.append(piece)
                continue
            if frontier_us is None:
                ready.append(piece.rows)
                continue
            before = piece.times < frontier_us
            count, rows = int(np.count_nonzero(before)), piece.rows
            if count == len(before):
                ready.append(rows)
                continue
            if before[:count].all():  # most often: the rows of a partition come in their order
                ready.append(rows.slice(0, count))
                left = rows.slice(count)
            else:
                ready.append(keep(rows, before))
                left = keep(rows, ~before)
            self._pieces.append(_Piece.of(left, piece.is_logged))
        if len(self._pieces) > _PIECES:
            self._join()
        released = _copied(ready)
        self.num_rows -= 0 if released is None else released.num_rows
        return released

    def _join(self) -> None:
        """Join pieces that are next to each other, and alike."""
        joined: list[list[_Piece]] = []
        rows = 0
        for piece in self._pieces:
            more = rows + len(piece.times)
            if joined and more <= _PIECE_ROWS and joined[-1][0].is_logged == piece.is_logged:
                joined[-1].append(piece)
                rows = more
            else:
                joined.append([piece])
                rows = len(piece.times)
        self._pieces = [
            _Piece.of(pa.concat_batches([piece.rows for piece in pieces]), pieces[0].is_logged)
            if len(pieces) > 1
            else pieces[0]
            for pieces in joined
        ]

    def unlogged(self) -> pa.RecordBatch | None:
        """Return the rows that the log has not, and note that it has them now; None for none."""
        new = [piece for piece in self._pieces if not piece.is_logged]
        for piece in new:
            piece.is_logged = True
        return _copied([piece.rows for piece in new])

    def forget_log(self) -> None:
        """Note that the log has no rows any more."""
        for piece in self._pieces:
            piece.is_logged = False


def _copied(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch | None:
    """Concatenate batches; None if there are none.

    One alone is copied, too: the bytes of a slice, encoded, have bytes of its neighbours, and equal
    rows must have equal bytes.
    """
    return pa.concat_batches(batches) if batches else None


class LogChange(NamedTuple):
    """What a bundle does to the log.

    Attributes:
        clears: Whether everything in it is removed first.
        entry: The entry that is added then; None for none.
    """

    clears: bool
    entry: bytes | None


class WaitingLog:
    """Decides what is written of an operator's waiting rows.

    Attributes:
        is_used: Whether the rows are in the log, and not in the head.
    """

    def __init__(self) -> None:
        self.is_used = False
        self._rows = 0

    def change(self, events: WaitingRows, requests: WaitingRows, number: int) -> LogChange:
        """Return what a bundle writes; the rows count as logged then.

        Args:
            events: The events that wait.
            requests: The requests that wait.
            number: The number of the last poll that was taken.
        """
        waiting, used = events.num_rows + requests.num_rows, self.is_used
        self.is_used = waiting > (MOST_IN_HEAD // 2 if used else MOST_IN_HEAD)
        clears = used and (not self.is_used or self._rows > 2 * waiting + MOST_IN_HEAD)
        if clears:
            self._rows = 0
            events.forget_log()
            requests.forget_log()
        if not self.is_used:
            return LogChange(clears, None)
        new = []
        for is_request, some in ((False, events), (True, requests)):
            if (rows := some.unlogged()) is not None:
                self._rows += rows.num_rows
                new.append(SequencedBatch(number, is_request, 0, 0, 0, 0, 0, rows))
        return LogChange(clears, encode_batches(new) or None)

    def restore(
        self,
        entries: Iterable[bytes],
        schema: pa.Schema,
        moved: int,
        frontier_us: int,
    ) -> tuple[WaitingRows, WaitingRows]:
        """Read the rows that wait from a log.

        Args:
            entries: The log, in any order.
            schema: The schema of event rows.
            moved: The number of the last poll that moved the frontier.
            frontier_us: The frontier.

        Returns:
            The events and the requests.

        Raises:
            StateVersionError: The version of an entry is not supported.
            DamagedState: An entry is damaged.
        """
        self.is_used, self._rows = True, 0
        events, requests = WaitingRows(), WaitingRows()
        for batch in sorted(_logged(entries, schema), key=lambda one: one.poll):
            assert batch.rows is not None
            self._rows += batch.rows.num_rows
            some = requests if batch.is_request else events
            rows = batch.rows
            if batch.poll < moved:
                rows = keep(rows, hashing.bits(rows.column(TIME)) >= frontier_us)
            some.add(rows, is_logged=True)
        return events, requests


def _logged(entries: Iterable[bytes], schema: pa.Schema) -> Iterator[SequencedBatch]:
    for entry in entries:
        yield from decode_batches(entry, schema)
