"""JSON messages: one row a message, or many (`json_layout`), with the values of a JSON Lines file.

The promises beside those of `decoding`:

* A row's values and its faults are those that `pipelines.io.files.json_lines` finds in a line with
  the same text. That code reads every row which is not plain; a plain row is an object of texts,
  numbers, true, false and null without a repeated key, and most rows are. Tests show that both ways
  give the same.
* A column that is asked for and that a row lacks is null in that row: a topic has no end at which
  it could be known that no row has the column. Where every column is read, those of a batch are the
  keys that its rows have.
* A row has at most `json_lines.MOST_KEYS` keys where each is a column, and a batch of rows with
  very many different keys is divided, so that empty cells do not fill the memory.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from json.scanner import make_scanner
from operator import itemgetter
from typing import Any, Final, TypeAlias, cast

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files import json_lines
from tidemill.pipelines.io.files.json_lines import MOST_KEYS
from tidemill.pipelines.io.files.readers import Reader, nulled
from tidemill.pipelines.io.messages import Messages
from tidemill.pipelines.io.payloads.decoding import (
    IGNORE_TOMBSTONES,
    REJECT_TOMBSTONES,
    Decoded,
    Rows,
    no_value,
    put_together,
)
from tidemill.pipelines.io.payloads.json_layout import (
    Layout,
    layout_of,
    row_texts,
)
from tidemill.pipelines.io.payloads.metadata import Fault, Metadata

Pairs: TypeAlias = tuple[tuple[str, Any], ...]
"""The keys and values of an object; a number is its digits, a list a list."""

_DECODER: Final = json.JSONDecoder(
    parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=tuple
)
_scan: Final = make_scanner(cast(Any, _DECODER))
_KEY: Final = itemgetter(0)
_TEXT_TYPES: Final = {str, type(None)}
_BATCH_CELLS: Final = 1 << 22


@dataclass(frozen=True)
class JsonDecoder:
    """Makes rows of JSON messages.

    Attributes:
        reader: Who reads, and which columns; None for all keys.
        metadata: The columns that come from beside the payload.
        nulls: Texts that mean null.
        tombstones: What becomes of a message without a value (`decoding.TOMBSTONES`).
    """

    reader: Reader
    metadata: Metadata = field(default_factory=Metadata)
    nulls: Sequence[str] = ()
    tombstones: str = REJECT_TOMBSTONES

    def decode(self, messages: Messages, first_position: int) -> Iterator[Decoded]:
        """Make rows of messages; see `decoding.Decoder`."""
        found = _Found(messages)
        for message, value in enumerate(messages.values):
            if value is not None:
                found.add(message, value)
            elif self.tombstones != IGNORE_TOMBSTONES:
                found.add_tombstone(message)
        for rows in self._divided(found):
            yield put_together(self.reader.stream, messages, rows, self.metadata, first_position)
            first_position += len(rows.messages)

    def _divided(self, found: _Found) -> Iterator[Rows]:
        first, parts = 0, [len(found.values)]
        while parts:
            last = first + parts.pop()
            if first == last:
                continue
            names = self._names(found, first, last)
            half = (last - first) // 2
            if half and len(names) * (last - first) > _BATCH_CELLS:
                parts += [last - first - half, half]
                continue
            yield self._rows(found, first, last, names)
            first = last

    def _names(self, found: _Found, first: int, last: int) -> Collection[str]:
        if self.reader.columns is not None:
            return dict.fromkeys(self.reader.columns)
        # Most rows have the keys of others: each list of keys is looked at once.
        alike = dict.fromkeys(
            tuple(map(_KEY, pairs))
            for pairs in found.values[first:last]
            if pairs is not None and len(pairs) <= MOST_KEYS
        )
        return dict.fromkeys(chain.from_iterable(alike))

    def _rows(self, found: _Found, first: int, last: int, names: Collection[str]) -> Rows:
        refused = self.metadata.refused
        plain = plain_cells(
            found.values[first:last], dict.fromkeys([*names, *sorted(refused)]), refused
        )
        faults = {row - first: fault for row, fault in found.faults.items() if first <= row < last}
        for row in sorted(plain.odd - faults.keys()):
            texts = self._texts(found.text(first + row), refused)
            if isinstance(texts, tuple):
                faults[row] = texts
                continue
            for name, text in texts.items():
                if name in refused:
                    plain.refused.setdefault(row, name)
                plain.cells.setdefault(name, [None] * (last - first))[row] = text
        for row, name in plain.refused.items():
            faults.setdefault(row, self.metadata.conflict(name))
        nothing: list[Any] = [None] * (last - first)
        columns = {
            name: plain.cells.get(name, nothing)
            for name in dict.fromkeys([*names, *plain.cells])
            if name not in self.metadata.columns and _is_text(name)
        }
        kept = np.arange(last - first)
        if faults:
            kept = np.delete(kept, sorted(faults))
        return Rows(
            nulled(_batch(columns, kept), self.nulls),
            faults,
            np.array(found.messages[first:last], np.int64),
            np.array(found.numbers[first:last], np.int64),
            found.sizes,
            lambda row: found.payload(first + row),
        )

    def _texts(self, line: bytes, refused: Collection[str]) -> dict[str, str | None] | Fault:
        columns = self.reader.columns
        wanted = None if columns is None else frozenset([*columns, *refused])
        row = json_lines.read_line(line, wanted)
        if isinstance(row, dict) and columns is None and len(row) > MOST_KEYS:
            key = list(row)[MOST_KEYS]
            detail = (
                f"found the key {key!r} past {MOST_KEYS:,} keys of the row, expected as many at "
                "most, since each is a column"
            )
            return Reason.TOO_MANY_KEYS, detail
        return row


class _Found:
    """The rows that messages have: which, and their values where they are plainly objects."""

    def __init__(self, messages: Messages) -> None:
        self.messages: list[int] = []
        self.numbers: list[int] = []
        self.values: list[Pairs | None] = []
        self.faults: dict[int, Fault] = {}
        self._of = messages
        self._layouts: dict[int, Layout] = {}
        self._split: tuple[int, list[bytes]] = (-1, [])

    @cached_property
    def sizes(self) -> Int64Array:
        """int64, ``(messages,)``: the number of rows of each message, when all are added."""
        return np.bincount(np.array(self.messages, np.int64), minlength=len(self._of))

    def add_tombstone(self, message: int) -> None:
        self.faults[len(self.values)] = no_value(self._of, message)
        self._add(message, [None])

    def add(self, message: int, value: bytes) -> None:
        given: Any = None
        try:
            text = value.decode("utf-8")
            given, end = _scan(text, 0)
            whole = end == len(text) or not text[end:].strip(" \t\n\r")
        except (ValueError, RecursionError, StopIteration):
            whole = False
        if whole and type(given) is tuple:
            self.messages.append(message)
            self.numbers.append(0)
            self.values.append(given)
        elif whole and type(given) is list:
            self._layouts[message] = Layout.ARRAY
            self._add(message, [one if isinstance(one, tuple) else None for one in given])
        else:
            layout = self._layouts[message] = layout_of(value)
            self._split = message, row_texts(value, layout)
            self._add(message, [_pairs(text) for text in self._split[1]])

    def _add(self, message: int, values: Sequence[Pairs | None]) -> None:
        self.messages += [message] * len(values)
        self.numbers += range(len(values))
        self.values += values

    def text(self, row: int) -> bytes:
        """Return the bytes of a row."""
        message = self.messages[row]
        if self._split[0] != message:
            value = self._of.values[message] or b""
            self._split = message, row_texts(value, self._layouts.get(message, Layout.ONE))
        return self._split[1][self.numbers[row]]

    def payload(self, row: int) -> bytes:
        """Return the bytes of a row; those of its message where that has no other."""
        message = self.messages[row]
        alone = self.numbers[row] == 0 and self.messages[row + 1 : row + 2] != [message]
        return (self._of.values[message] or b"") if alone else self.text(row)


def _pairs(line: bytes) -> Pairs | None:
    try:
        text = line.decode("utf-8").strip(" \t\n\r")
        given, end = _scan(text, 0)
    except (ValueError, RecursionError, StopIteration):
        return None
    return given if isinstance(given, tuple) and end == len(text) else None


@dataclass(frozen=True, eq=False)
class Plain:
    """Rows as far as they are plain.

    Attributes:
        cells: By column, the text of each row, ``(rows,)``; None where it is null or missing.
        odd: The rows that are not plain; their cells mean nothing.
        refused: Of the other rows those that have a refused key: row to the key.
    """

    cells: dict[str, list[Any]]
    odd: set[int]
    refused: dict[int, str]


def plain_cells(
    values: Sequence[Pairs | None], asked: Collection[str], refused: Collection[str] = ()
) -> Plain:
    """Return the texts of rows that are objects of texts, numbers, true, false and null.

    Args:
        values: ``(rows,)``: the keys and values of each row; None of one that is not an object.
        asked: The keys to read; those that no row has may be left out.
        refused: Keys of these that no row may have.
    """
    if (alike := _columns(values)) is not None:
        cells = {key: column for key, column in alike.items() if key in asked}
        found = {row: key for key in cells if key in refused for row in range(len(values))}
        odd: set[int] = set()
    else:
        rows = [{} if pairs is None else dict(pairs) for pairs in values]
        odd = {
            row
            for row, pairs in enumerate(values)
            if pairs is None or not len(rows[row]) == len(pairs) <= MOST_KEYS
        }
        cells = {key: [row.get(key) for row in rows] for key in asked}
        found = {
            row: key
            for key in sorted(refused)
            for row in range(len(rows))
            if key in rows[row] and row not in odd
        }
    for key in [key for key in cells if not _is_text(key)]:
        odd |= {row for row, pairs in enumerate(values) if key in dict(pairs or ())}
        del cells[key]
    for column in cells.values():
        odd |= _made_plain(column)
    return Plain(cells, odd, found)


def _columns(values: Sequence[Pairs | None]) -> dict[str, list[Any]] | None:
    """Return the values by key if all rows have the same keys in one order, and none twice."""
    first = values[0]
    if not first or len(first) > MOST_KEYS or not all(values):
        return None
    keys = [key for key, _ in first]
    rows = cast(Sequence[Pairs], values)
    if len(set(keys)) < len(keys) or set(map(len, rows)) != {len(keys)}:
        return None
    flat = list(chain.from_iterable(chain.from_iterable(rows)))
    if flat[::2] != keys * len(rows):
        return None
    return {key: flat[2 * place + 1 :: 2 * len(keys)] for place, key in enumerate(keys)}


def _made_plain(column: list[Any]) -> set[int]:
    """Write true and false of a column as texts; return the rows with another value."""
    odd: set[int] = set()
    if not set(map(type, column)) <= _TEXT_TYPES:
        for row, value in enumerate(column):
            if isinstance(value, bool):
                column[row] = "true" if value else "false"
            elif isinstance(value, (tuple, list)):
                odd.add(row)
                column[row] = None
    if not _is_text("".join(filter(None, column))):
        for row, value in enumerate(column):
            if value is not None and not _is_text(value):
                odd.add(row)
                column[row] = None
    return odd


def _is_text(text: str) -> bool:
    r"""Tell whether UTF-8 can encode it: a \u escape can give half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _batch(columns: Mapping[str, list[Any]], kept: Int64Array) -> pa.RecordBatch:
    if not columns:
        # A batch that is made of arrays has no rows where it has no columns.
        return pa.RecordBatch.from_struct_array(pa.array([{}] * len(kept), pa.struct([])))
    arrays = [pa.array(column, pa.string()) for column in columns.values()]
    whole = pa.RecordBatch.from_arrays(arrays, names=list(columns))
    return whole if len(kept) == whole.num_rows else whole.take(pa.array(kept))
