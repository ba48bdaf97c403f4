"""The polls of a live stream, written down whole before they are sent.

A replayed log can be read again, so a poll is known by its end (`pipelines.io.cuts`). A topic may
not give the same messages again: retention and compaction delete some. So a live reader appends
each poll, with its rows, to this log *before* it sends it, and a reader that recovers repeats the
logged polls before it makes new ones. The promises:

* A poll whose `append` has returned is read back byte for byte, also after a crash of the machine.
* A poll that was being appended during a crash was not sent: it is ignored, and overwritten by the
  next one. Any other damage is an error, and never taken for that.
* Polls are numbered without a gap. A number is never given to another poll.
* `remove_before` removes whole files, the oldest first, so what is left begins anywhere but has no
  holes.

One process writes at a time (the stream's lock); others may read meanwhile.

A file holds up to `FILE_BYTES` or one poll, and is named by its first poll. Each poll has a header
of 32 bytes (magic, the poll's number, the length of the frame, a CRC-32 of these; little-endian),
a frame (`pipelines.io.framing`), and zeros up to a multiple of 32 bytes. After a crash a file
system may have kept the length of a file without all of its bytes; the missing ones are zeros in
whole sectors, and no header is in two sectors.
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, NamedTuple

import pyarrow as pa

from tidemill.features.errors import BatchConflict, DamagedState
from tidemill.pipelines.io.batch_bytes import batch_bytes, batch_of
from tidemill.pipelines.io.framing import Kind, decode_document, encode_document
from tidemill.pipelines.io.poll import Poll
from tidemill.serving.files.atomic_write import wait_for_disk
from tidemill.serving.files.file_errors import named_for
from tidemill.serving.files.read_files import reading

FILE_BYTES: Final = 64 << 20
"""A file that has so many bytes is followed by another one."""

_MAGIC: Final = b"\x89POLLS\r\n"
_FIELDS: Final = struct.Struct("<8sQQ")
_HEADER: Final = struct.Struct("<8sQQQ")
_SECTOR: Final = 512
_SUFFIX: Final = ".polls"
_REMEDY: Final = (
    "restore the file from a copy, or run `tidemill stream` without --resume to start over"
)


@dataclass(frozen=True, eq=False)
class LoggedPoll:
    """A poll as it is logged.

    Attributes:
        number: Its number.
        offsets: The position of the next message of each partition of each source's topic
            (`pipelines.io.live.lost`).
        highest_us: The highest accepted time so far of each of these partitions.
        poll: The encoded poll (`pipelines.io.poll.Poll`).
        rejected: The records that were rejected while it was read
            (`features.rows.rejected.SCHEMA`); None for none.
        newest_us: The newest timestamp of a message so far, of each source whose clock is that of
            its messages.
        carried: What the message of each rejected record carried beside its value
            (`pipelines.io.live.mended.CARRIED`); None for none.
        mended: What became of mended messages in this poll (`pipelines.io.live.mended.OUTCOMES`);
            None for none.
        lost: What topics have lost and a person has accepted, to which the positions of this poll
            go on (`pipelines.io.live.lost.RECORDS`); None for nothing.
        topic_ids: The id of each source's topic, whose offsets these are; none in a log of a
            version that did not record them.
    """

    number: int
    offsets: Mapping[str, tuple[int, ...]]
    highest_us: Mapping[str, tuple[int, ...]]
    poll: bytes | pa.Buffer
    rejected: pa.RecordBatch | None = None
    newest_us: Mapping[str, int] = field(default_factory=dict)
    carried: pa.RecordBatch | None = None
    mended: pa.RecordBatch | None = None
    lost: pa.RecordBatch | None = None
    topic_ids: Mapping[str, str] = field(default_factory=dict)

    def sent(self) -> Poll:
        """Return the poll; the checksum of the entry was that of its bytes, too.

        Raises:
            StateVersionError: Its version is not supported.
        """
        return Poll.decode(self.poll, is_checked=True)

    @property
    def set_aside(self) -> pa.RecordBatch | None:
        """The rejected records, with what their messages carried where that is known."""
        if self.rejected is None or self.carried is None:
            return self.rejected
        columns = [*self.rejected.columns, *self.carried.columns]
        names = [*self.rejected.schema.names, *self.carried.schema.names]
        return pa.RecordBatch.from_arrays(columns, names=names)

    def encode(self) -> bytes:
        """Encode the entry."""
        fields: dict[str, Any] = {
            "number": self.number,
            "offsets": {name: [*next_] for name, next_ in self.offsets.items()},
            "highest_us": {name: [*highest] for name, highest in self.highest_us.items()},
        }
        if self.newest_us:
            fields["newest_us"] = dict(self.newest_us)
        if self.topic_ids:
            fields["topic_ids"] = dict(self.topic_ids)
        blobs = [self.poll, batch_bytes(self.rejected)]
        if not (self.carried is None and self.mended is None and self.lost is None):
            blobs += [batch_bytes(self.carried), batch_bytes(self.mended)]
        if self.lost is not None:
            blobs.append(batch_bytes(self.lost))
        return encode_document(Kind.LOGGED_POLL, "", fields, blobs)

    @staticmethod
    def decode(data: bytes, where: str) -> LoggedPoll:
        """Decode an entry.

        Args:
            data: What `encode` gave.
            where: Where it is from, for errors.

        Raises:
            DamagedState: The bytes are not a whole entry.
            StateVersionError: The version is not supported.
        """
        found = decode_document(data, Kind.LOGGED_POLL, where, _REMEDY)
        offsets, highest_us = (
            {name: tuple(numbers) for name, numbers in found.fields[field].items()}
            for field in ("offsets", "highest_us")
        )
        poll, rejected, *more = found.blobs
        carried, mended, lost = (batch_of(blob) for blob in (*more, b"", b"", b"")[:3])
        return LoggedPoll(
            found.fields["number"],
            offsets,
            highest_us,
            poll,
            batch_of(rejected),
            found.fields.get("newest_us", {}),
            carried,
            mended,
            lost,
            found.fields.get("topic_ids", {}),
        )


class _Entry(NamedTuple):
    """A whole entry of a file: its poll's number, where its frame is, and where the entry ends."""

    number: int
    start: int
    stop: int
    end: int


class PollLog:
    """The logged polls of one stream.

    Args:
        folder: Where the files are; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: FileIO | None = None
        self._last: LoggedPoll | None = None
        self._size = 0

    def last(self) -> LoggedPoll | None:
        """Return the last logged poll; None if none was logged.

        Raises:
            DamagedState: A file is damaged.
        """
        for path in reversed(self._files()):
            with reading(path, _REMEDY), path.open("rb") as file:
                entries, _ = _scan(file, path, is_last=True)
                if entries:
                    return _decode(file, path, entries[-1])
        return None

    def first_number(self) -> int | None:
        """Return the number of the first poll that is still there; None if there is none."""
        files = self._files()
        if not files or self.last() is None:
            return None
        return _number_of(files[0])

    def read(self, after: int) -> Iterator[LoggedPoll]:
        """Yield the logged polls after a number, in order.

        Args:
            after: The number of the last poll that is not wanted; 0 for all.

        Raises:
            DamagedState: A file is damaged or missing, or the first of these polls was removed.
        """
        files, expected = self._files(), after + 1
        first = [_number_of(path) for path in files]
        # Files that end before the first wanted poll are not opened.
        skipped = sum(number <= expected for number in first[1:])
        for place, path in enumerate(files[skipped:], start=skipped):
            with reading(path, _REMEDY), path.open("rb") as file:
                entries, _ = _scan(file, path, is_last=place == len(files) - 1)
                for entry in entries:
                    if entry.number < expected:
                        continue
                    if entry.number > expected:
                        raise DamagedState(
                            f"{path}: poll {expected} is missing before poll {entry.number}; "
                            f"{_REMEDY}"
                        )
                    yield _decode(file, path, entry)
                    expected += 1

    def follow(self, after: int) -> Iterator[LoggedPoll | None]:
        """Yield the polls after a number in order, and None whenever the next is not there yet.

        Another process, or another thread, may be appending them.

        Args:
            after: The number of the last poll that is not wanted; 0 for all.

        Raises:
            DamagedState: A file is damaged or missing, or the first of these polls was removed.
        """
        expected = after + 1
        while True:
            path = self._file_with(expected)
            if path is None:
                yield None
                continue
            # What a buffer holds of an unfinished entry may not be what becomes of it.
            with reading(path, _REMEDY), path.open("rb", buffering=0) as file:
                at = 0
                while True:
                    entry = _entry_at(file, path, at)
                    if entry is None:
                        later = [_number_of(one) for one in self._files() if one > path]
                        if not later:
                            yield None
                            continue
                        # The file is full since there is a later one.
                        entry = _entry_at(file, path, at)
                        if entry is None and later[0] > expected:
                            raise DamagedState(
                                f"{path}: poll {expected} is missing before poll {later[0]}; "
                                f"{_REMEDY}"
                            )
                        if entry is None:
                            break
                    at = entry.end
                    if entry.number < expected:
                        continue
                    if entry.number > expected:
                        raise DamagedState(
                            f"{path}: poll {expected} is missing before poll {entry.number}; "
                            f"{_REMEDY}"
                        )
                    yield _decode(file, path, entry)
                    expected += 1

    def _file_with(self, number: int) -> Path | None:
        """Return the file that holds a poll, or will; None if there is none yet."""
        files = self._files()
        if files and _number_of(files[0]) > number:
            raise DamagedState(
                f"{self._folder}: poll {number} was removed, {_number_of(files[0])} is the first; "
                f"{_REMEDY}"
            )
        return next((path for path in reversed(files) if _number_of(path) <= number), None)

    def append(self, entry: LoggedPoll) -> None:
        """Log the next poll; when this returns, it survives a crash of the machine.

        Logging the last poll again changes nothing.

        Raises:
            BatchConflict: The number is not the next one, or is that of a poll with other bytes.
            DamagedState: A file is damaged.
            FileError: The disk is full, ...; the poll is not logged, and may be logged again.
        """
        data = entry.encode()
        if self._file is None:
            self._open(entry.number)
        if self._last is not None:
            if entry.number == self._last.number and data == self._last.encode():
                return
            if entry.number != self._last.number + 1:
                raise BatchConflict(
                    f"{self._folder}: poll {entry.number} was to be logged after poll "
                    f"{self._last.number}; {_REMEDY}"
                )
        if self._size >= FILE_BYTES:
            self.close()
            self._begin(entry.number)
        pieces = _header(entry.number, len(data)), data, bytes(-len(data) % _HEADER.size)
        try:
            self._write(pieces)
        except BaseException:
            self.close()  # the next append removes what was written
            raise
        self._size += sum(map(len, pieces))
        self._last = entry

    def _write(self, pieces: Iterable[bytes]) -> None:
        assert self._file is not None
        with named_for(Path(self._file.name)):
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    # A disk that is nearly full takes a part.
                    rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())

    def _open(self, number: int) -> None:
        """Go on where the log ends; the remains of a poll that was not sent are cut off."""
        self._last = self.last()
        files = self._files()
        if not files:
            self._begin(number)
            return
        with reading(files[-1], _REMEDY), files[-1].open("r+b") as file:
            _, self._size = _scan(file, files[-1], is_last=True)
            file.truncate(self._size)
        if not self._size:
            # It was begun for a poll that may now have another number.
            files[-1].unlink()
            self._begin(number)
            return
        self._file = files[-1].open("ab", buffering=0)

    def _begin(self, number: int) -> None:
        path = self._folder / f"{number:012d}{_SUFFIX}"
        with named_for(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("xb", buffering=0)
            self._size = 0
            try:
                wait_for_disk(self._folder)
            except BaseException:
                self.close()  # the next append begins again
                raise

    def remove_before(self, number: int) -> None:
        """Remove the files that hold only polls before a number: no recovery needs them."""
        files = self._files()
        for path, following in itertools.pairwise(files):
            if _number_of(following) > number:
                break
            path.unlink()
        if files:
            wait_for_disk(self._folder)

    def close(self) -> None:
        """Close the file that is written; appending opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"*{_SUFFIX}"))


def _number_of(path: Path) -> int:
    return int(path.stem)


def _header(number: int, size: int) -> bytes:
    fields = _FIELDS.pack(_MAGIC, number, size)
    return fields + zlib.crc32(fields).to_bytes(8, "little")


def _scan(file: BinaryIO, path: Path, *, is_last: bool) -> tuple[list[_Entry], int]:
    """Find the entries of a file; return them, and where they end.

    Args:
        file: The file.
        path: Its path, for errors.
        is_last: Whether its last entry may have been cut short by a crash.
    """
    entries: list[_Entry] = []
    size, at = os.fstat(file.fileno()).st_size, 0
    while at < size:
        file.seek(at)
        header = file.read(_HEADER.size)
        magic, number, length, _ = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
        start, stop = at + _HEADER.size, at + _HEADER.size + length
        if header != _header(number, length) or magic != _MAGIC:
            if is_last and _begins_header(header) and not _goes_on(file, at, entries):
                break
            raise _damaged(path, at)
        end = stop + -length % _HEADER.size
        if end > size:
            if is_last:
                break
            raise _damaged(path, at)
        entries.append(_Entry(number, start, stop, end))
        at = end
    if is_last and entries and _is_torn(file, entries[-1]):
        at = entries.pop().start - _HEADER.size
    return entries, at


def _entry_at(file: IO[bytes], path: Path, at: int) -> _Entry | None:
    """Return the entry at a place; None if it is not whole yet."""
    file.seek(at)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    magic, number, length, _ = _HEADER.unpack(header)
    start = at + _HEADER.size
    stop = start + length
    end = stop + -length % _HEADER.size
    if magic != _MAGIC or header != _header(number, length):
        if not any(header):
            return None
        raise _damaged(path, at)
    return None if end > os.fstat(file.fileno()).st_size else _Entry(number, start, stop, end)


def _begins_header(found: bytes) -> bool:
    """Tell whether bytes are the beginning of a header, or were never written."""
    if not any(found):
        return True
    return len(found) < _HEADER.size and _MAGIC.startswith(found[: len(_MAGIC)])


def _goes_on(file: BinaryIO, at: int, before: Sequence[_Entry]) -> bool:
    """Tell whether the header of a later poll stands behind a place: then that place is damaged."""
    file.seek(at)
    rest = file.read()
    found = rest.find(_MAGIC)
    while found >= 0:
        header = rest[found : found + _HEADER.size]
        if len(header) == _HEADER.size:
            _, number, length, _ = _HEADER.unpack(header)
            later = not before or number > before[-1].number
            if later and header == _header(number, length):
                return True
        found = rest.find(_MAGIC, found + 1)
    return False


def _is_torn(file: BinaryIO, entry: _Entry) -> bool:
    """Tell whether sectors of an entry were never written, which its frame would not hold."""
    file.seek(entry.start)
    data = file.read(entry.stop - entry.start)
    first = -entry.start % _SECTOR
    sectors = range(first, len(data), _SECTOR)
    if not any(not any(data[at : at + _SECTOR]) for at in sectors):
        return False
    try:
        LoggedPoll.decode(data, "")
    except DamagedState:
        return True
    return False  # the poll itself has so many zeros


def _decode(file: IO[bytes], path: Path, entry: _Entry) -> LoggedPoll:
    file.seek(entry.start)
    found = LoggedPoll.decode(file.read(entry.stop - entry.start), f"{path}, poll {entry.number}")
    if found.number != entry.number or any(file.read(entry.end - entry.stop)):
        raise _damaged(path, entry.start - _HEADER.size)
    return found


def _damaged(path: Path, at: int) -> DamagedState:
    return DamagedState(
        f"{path}: what stands at byte {at:,} is no poll as it was written; {_REMEDY}"
    )
