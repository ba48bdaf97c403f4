"""Comparing what a topic has of a stream with the stream's files: each record once, and equal.

Keys, values and headers are compared byte by byte, but for the stamps of the wall clock
(`pipelines.stream.infer.STAMPS`). A message that a killed process had scored stays when the record
is scored again; if another bundle, device or TensorFlow did that, the scores may differ. Such
messages are counted apart, and all else of them must be equal.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.contract import SECOND
from tidemill.pipelines.config.sink_section import PREDICTIONS, REJECTED, KafkaSink
from tidemill.pipelines.delivery.outgoing import (
    BUNDLE,
    LEFT_OUT,
    MESSAGES,
    Outgoing,
    place_of,
    shortened,
)
from tidemill.pipelines.delivery.places import Group, Place
from tidemill.pipelines.delivery.read_back import TopicEnds, begins, read_back
from tidemill.pipelines.delivery.record import Delivered
from tidemill.pipelines.io.messages import Headers
from tidemill.pipelines.io.outputs import OutputFile, OutputFolder
from tidemill.pipelines.stream.output_folders import STAMPS, predictions_of, rejected_of

_RECORDS: Final = {PREDICTIONS: predictions_of, REJECTED: rejected_of}
"""Section of the configuration to the function that returns the folder of its records."""
_BEFORE: Final = 4
"""Messages of so many segments before the first one may stand where those of the first begin."""
LISTED: Final = 20
"""How many differences are kept; all are counted."""

_STAMPED: Final = b',"' + STAMPS[0].encode() + b'":'
"""Where the stamps begin in the value of a prediction: they are its last columns."""
_CALL: Final = ("bundle_version", "device", "tensorflow", "xla")
"""By what a prediction was scored."""
_SCORED: Final = ("score", "transform_hash", "spec_hash", "padded_rows", "call_row", *_CALL)
_OF_BUNDLE: Final = (BUNDLE, "features_hash")


class Difference(NamedTuple):
    """A difference between a message and the record in the files.

    Attributes:
        what: ``lost``, ``doubled``, ``changed`` or ``extra``.
        place: The place of the record.
        field: What of it; empty if all.
        seen: What the topic has.
        expected: What the files have.
    """

    what: str
    place: Place
    field: str = ""
    seen: str = ""
    expected: str = ""

    @property
    def shown(self) -> str:
        """The place as a text."""
        *group, position = (*self.place.group, self.place.position)
        return f"{'/'.join(map(str, group))} at position {position:,}"


@dataclass
class Compared:
    """What comparing a topic with files has found.

    Attributes:
        compared: Records that were compared.
        lost: Records without a message.
        doubled: Further messages of a record.
        changed: Messages that say something else than the files.
        extra: Messages without a record.
        not_comparable: Records without a message that the topic's retention may have removed.
        scored_otherwise: Equal but for scores, which another bundle or device has computed.
        shortened: Messages that lack what made them too large for the topic.
        differences: The first differences.
    """

    compared: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    extra: int = 0
    not_comparable: int = 0
    scored_otherwise: int = 0
    shortened: int = 0
    differences: list[Difference] = field(default_factory=list)

    def note(self, difference: Difference) -> None:
        """Count a difference, and keep it if it is among the first."""
        setattr(self, difference.what, getattr(self, difference.what) + 1)
        if len(self.differences) < LISTED:
            self.differences.append(difference)

    def figures(self) -> dict[str, int]:
        """Return all counts."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}


class _Record(NamedTuple):
    group: Group
    row: int


class _Expected:
    """The records of files: a digest of the message of each."""

    def __init__(self) -> None:
        self._positions: dict[Group, list[int]] = defaultdict(list)
        self._digests: dict[Group, list[bytes]] = defaultdict(list)
        self._places: dict[Group, list[int]] = defaultdict(list)
        self._files: list[OutputFile] = []
        self._of: dict[Group, tuple[Any, Any, Any, Any]] = {}

    def add(self, message: Outgoing, file: OutputFile, *, is_early: bool) -> None:
        """Add a record of a file; there may be no message of an early one."""
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        group, position = message.place
        self._positions[group].append(position)
        self._digests[group].append(_digest(message.key, message.value, message.headers))
        self._places[group].append(-len(self._files) if is_early else len(self._files))

    def close(self) -> None:
        """Sort what was added."""
        for group, positions in self._positions.items():
            numbers = np.array(positions, np.int64)
            order = np.argsort(numbers, kind="stable")
            self._of[group] = (
                numbers[order],
                np.array(self._digests[group], "S16")[order],
                np.array(self._places[group], np.int32)[order],
                np.zeros(len(numbers), np.uint16),
            )
        self._positions.clear()
        self._digests.clear()
        self._places.clear()

    def find(self, place: Place) -> _Record | None:
        if place.group not in self._of:
            return None
        numbers = self._of[place.group][0]
        row = int(np.searchsorted(numbers, place.position))
        there = row < len(numbers) and int(numbers[row]) == place.position
        return _Record(place.group, row) if there else None

    def seen(self, record: _Record) -> int:
        """Count a message of a record; return how many there were before."""
        counts = self._of[record.group][3]
        before = int(counts[record.row])
        counts[record.row] = min(before + 1, 60_000)
        return before

    def digest(self, record: _Record) -> bytes:
        return bytes(self._of[record.group][1][record.row])

    def file(self, record: _Record) -> OutputFile:
        return self._files[abs(int(self._of[record.group][2][record.row])) - 1]

    def unseen(self) -> Iterator[Place]:
        for group, (numbers, _, files, counts) in self._of.items():
            for position in numbers[(counts == 0) & (files > 0)].tolist():
                yield Place(group, position)

    def __len__(self) -> int:
        return sum(int((files > 0).sum()) for _, _, files, _ in self._of.values())


def compare(
    name: str,
    sink: KafkaSink,
    delivered: Delivered,
    folder: Path,
    stream: str,
    since: int | None = None,
    forgotten: Callable[[Place], bool] = lambda _: False,
) -> Compared:
    """Compare what a topic has of a stream with the stream's files.

    The segments from ``since`` on are compared, without one that has not ended: of that, files and
    messages may be there or not.

    Args:
        name: The section of the configuration.
        sink: The topic.
        delivered: What the record of the stream says of it.
        folder: The folder of the stream.
        stream: The id of the stream.
        since: The first segment; None for the first one that wrote to the topic.
        forgotten: Tells whether the record of a place was forgotten: its message may be there.

    Raises:
        BrokerError: The topic cannot be read.
    """
    first = delivered.first_segment if since is None else since
    last = delivered.begun if delivered.is_complete else delivered.begun - 1
    # A segment's last messages may stand behind the first ones of the next.
    before = max(first - _BEFORE, delivered.first_segment)
    records = _RECORDS[name](folder)
    expected = _Expected()
    for from_, to, is_early in ((before, first - 1, True), (first, last, False)):
        if from_ <= to:
            for file, table in records.tables(since=from_, until=to):
                for message in _messages(name, table, stream):
                    expected.add(message, file, is_early=is_early)
    expected.close()
    offsets = delivered.first if since is None else delivered.savepoints[since - 1]
    ends = TopicEnds(sink.connection, sink.topic)
    removed = any(
        there > offset for there, offset in zip(ends.firsts, begins(offsets, ends), strict=True)
    )
    found = Compared(compared=len(expected))
    patience_s = sink.give_up_after_us / SECOND
    for messages in read_back(sink.connection, sink.topic, offsets, ends, patience_s):
        for key, value, headers in zip(
            messages.keys, messages.values, messages.headers, strict=True
        ):
            place = place_of(headers, stream)
            if place is None:
                continue
            record = expected.find(place)
            if record is None:
                if delivered.is_complete and not forgotten(place):
                    found.note(Difference("extra", place, seen="a message", expected="none"))
                continue
            if expected.seen(record):
                found.note(Difference("doubled", place, seen="a further message", expected="one"))
            elif _digest(key, value, headers) != expected.digest(record):
                right = _by_place(name, records, expected.file(record), stream)[place]
                _look_closer(name, right, place, (key, value, headers), found)
    for place in expected.unseen():
        if removed:
            found.not_comparable += 1
        else:
            found.note(Difference("lost", place, seen="no message", expected="one"))
    found.compared -= found.not_comparable
    return found


def _messages(name: str, table: pa.Table, stream: str) -> Iterator[Outgoing]:
    table = table.combine_chunks()
    for batch in table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]:
        yield from MESSAGES[name](batch, stream)


@functools.lru_cache(maxsize=1)
def _by_place(
    name: str, records: OutputFolder, file: OutputFile, stream: str
) -> Mapping[Place, Outgoing]:
    return {
        message.place: message
        for _, table in records.tables(since=file.first, until=file.last)
        for message in _messages(name, table, stream)
    }


def _digest(key: bytes | None, value: bytes | None, headers: Headers) -> bytes:
    """Return a digest of a message without stamps, in hexadecimal digits."""
    found = hashlib.blake2b(digest_size=8)
    texts = [key or b"", _unstamped(value or b"")]
    texts += [part for name, text in headers for part in (name.encode(), text or b"")]
    for text in texts:
        found.update(len(text).to_bytes(8, "little"))
        found.update(text)
    return found.hexdigest().encode()


def _unstamped(value: bytes) -> bytes:
    at = value.rfind(_STAMPED)
    return value if at < 0 else value[:at]


def _look_closer(
    name: str,
    right: Outgoing,
    place: Place,
    seen: tuple[bytes | None, bytes | None, Headers],
    found: Compared,
) -> None:
    """Say what differs between a message and its record."""
    key, value, headers = seen
    texts = {label: text or b"" for label, text in headers}
    if LEFT_OUT in texts:
        right = shortened(name, right)
        found.shortened += 1
    one: dict[str, Any] = {"key": key, **texts}
    other: dict[str, Any] = {"key": right.key, **dict(right.headers)}
    if name == PREDICTIONS:
        one |= _columns(value or b"")
        other |= _columns(right.value)
    else:
        one["value"], other["value"] = value, right.value
    differing = [
        label
        for label in {**other, **one}
        if label not in STAMPS and not _same(one.get(label), other.get(label))
    ]
    if name == PREDICTIONS and any(label in _CALL for label in differing):
        differing = [label for label in differing if label not in (*_SCORED, *_OF_BUNDLE)]
        if not differing:
            found.scored_otherwise += 1
            return
    for label in differing[:1]:
        found.note(
            Difference("changed", place, label, _text(one.get(label)), _text(other.get(label)))
        )


def _columns(value: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(value)
    except ValueError:
        return {"value": value}
    return found if isinstance(found, dict) else {"value": value}


def _same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal, a float by its bits."""
    return type(one) is type(other) and repr(one) == repr(other)


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else repr(value)
