"""Cuts: where polls end, recorded before a poll is sent, and repeated after a recovery.

A release is a function of the polls, so a poll that was sent once must be sent again with the same
rows. A replayed log is cut at fixed places (`pipelines.io.replay`). A live log is cut by what has
come until then. An engine that recovers takes its own state back to a checkpoint, but stores and
files have seen the polls after it: so the reader records each cut in a `CutLog` *before* it sends
the poll, and a recovering reader repeats the recorded cuts before it makes new ones (`next_cut`).
A replay records only the cuts that its savepoints make.
"""

from __future__ import annotations

import bisect
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeAlias

from tidemill.features.errors import BatchConflict, DamagedState
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.read_files import reading

Positions: TypeAlias = tuple[int, ...]
"""The next position of each partition of all sources, in the order of the sources."""

_TORN: Final = b"0123456789abcdef \0"
"""The bytes of a line that was being written; a file system may have zeros in their place."""
_REMEDY: Final = "run `tidemill stream` without --resume to start over"


class Cut(NamedTuple):
    """Where a poll ends.

    Attributes:
        number: The poll's number.
        positions: The positions after the poll.
    """

    number: int
    positions: Positions


class CutLog(Protocol):
    """The recorded cuts of one stream, which has one reader at a time."""

    def recorded(self) -> list[Cut]:
        """Return the recorded cuts, by ascending number.

        Raises:
            DamagedState: A record is damaged.
        """

    def append(self, cut: Cut) -> None:
        """Record a cut; when this returns, the cut survives a crash of the machine.

        Recording the last cut again changes nothing.

        Raises:
            BatchConflict: The cut's number was recorded with other positions, or a later cut was
                recorded, or a position is before that of the cut before it.
        """


def next_cut(log: CutLog, after: Cut, propose: Callable[[], Positions]) -> Cut:
    """Return the cut of the next poll: the recorded one, or a new one that is recorded first.

    Args:
        log: The recorded cuts.
        after: The cut of the poll before it.
        propose: Gives the positions of a new cut.

    Raises:
        DamagedState: A record is damaged.
        BatchConflict: The recorded cuts do not continue ``after``.
    """
    number = after.number + 1
    recorded = log.recorded()
    place = bisect.bisect_left(recorded, number, key=lambda cut: cut.number)
    found = recorded[place : place + 1]
    cut = found[0] if found else Cut(number, propose())
    if cut.number != number:
        raise BatchConflict(
            f"the cut of poll {number} is not recorded, that of poll {cut.number} is; {_REMEDY}"
        )
    _check_order(after, cut)
    if not found:
        log.append(cut)
    return cut


def _check_order(before: Cut, cut: Cut) -> None:
    if len(before.positions) != len(cut.positions) or any(
        position < earlier
        for earlier, position in zip(before.positions, cut.positions, strict=True)
    ):
        raise BatchConflict(
            f"poll {cut.number} ends at positions {cut.positions}, before poll {before.number}, "
            f"which ends at {before.positions}; {_REMEDY}"
        )


class FileCutLog:
    """A `CutLog` in a file, one cut a line: number, positions and a CRC-32 of both.

    The file is read once; then this object must be its only writer. A line without its end was
    being written when the machine stopped. Its poll was not sent, so the line is ignored, and the
    next `append` removes it.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cuts: list[Cut] | None = None
        self._bytes = 0

    def recorded(self) -> list[Cut]:
        """See `CutLog.recorded`."""
        if self._cuts is None:
            data = b""
            if self._path.exists():
                with reading(self._path, _REMEDY):
                    data = self._path.read_bytes()
            self._bytes = data.rfind(b"\n") + 1
            if data[self._bytes :].translate(None, _TORN):
                raise self._damaged(data[self._bytes :])
            self._cuts = [self._parse(line) for line in data[: self._bytes].split(b"\n")[:-1]]
        return self._cuts

    def _parse(self, line: bytes) -> Cut:
        content, _, checksum = line.rpartition(b" ")
        if checksum != _checksum(content):
            raise self._damaged(line)
        number, *positions = map(int, content.split())
        return Cut(number, tuple(positions))

    def _damaged(self, line: bytes) -> DamagedState:
        return DamagedState(
            f"{self._path}: the line {line[:80]!r} was damaged: it is no cut with its checksum; "
            f"{_REMEDY}"
        )

    def append(self, cut: Cut) -> None:
        """See `CutLog.append`; the file's folder is created if it does not exist."""
        cuts = self.recorded()
        if cuts:
            if cuts[-1] == cut:
                return
            if cut.number <= cuts[-1].number:
                raise BatchConflict(
                    f"{self._path}: the cut of poll {cut.number} at {cut.positions} came after "
                    f"that of poll {cuts[-1].number} at {cuts[-1].positions}; {_REMEDY}"
                )
            _check_order(cuts[-1], cut)
        if not self._path.exists():
            self._write([])
        line = _line(cut)
        with self._path.open("r+b") as file:
            file.truncate(self._bytes)
            file.seek(self._bytes)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._bytes += len(line)
        cuts.append(cut)

    def keep_before(self, number: int) -> None:
        """Forget the cuts of this poll and later ones: they will not be repeated."""
        kept = [cut for cut in self.recorded() if cut.number < number]
        if kept != self.recorded():
            self._write(kept)
            self._cuts = kept

    def _write(self, cuts: list[Cut]) -> None:
        data = b"".join(map(_line, cuts))
        with atomic_write(self._path, durable=True) as unfinished:
            unfinished.write_bytes(data)
        self._bytes = len(data)


def _line(cut: Cut) -> bytes:
    content = " ".join(map(str, (cut.number, *cut.positions))).encode()
    return content + b" " + _checksum(content) + b"\n"


def _checksum(content: bytes) -> bytes:
    return f"{zlib.crc32(content):08x}".encode()
