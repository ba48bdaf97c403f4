"""The rows of a JSON Lines file, batch by batch, with the lines that are not valid rows.

The promises:

* A line is one JSON object in UTF-8 (jsonlines.org). Any other line is refused; the lines beside it
  are not affected. Empty lines are skipped, and so is a byte order mark at the very start of the
  file.
* Every value is read as text, so that a row does not depend on the types in other rows: a string
  as it is, a number as its digits, true and false as these words, a list or an object as its JSON.
  null is null, and so is a key that a line lacks and another line of the file has.
* A line in which a wanted key occurs twice, also inside its value, is refused.
* Time and memory are linear in the bytes of the file. Keys that are not wanted cost no more than
  their bytes. Where every key is wanted, at most `MOST_KEYS` become columns, and a line with
  further ones is refused.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files.csv_lines import BYTE_ORDER_MARK

BATCH_ROWS: Final = 16_384
MOST_KEYS: Final = 10_000
"""Where every key is a column, a file has at most so many of them."""
_BATCH_CELLS: Final = 1 << 22
"""The most cells of a batch, so that the empty ones of many columns do not fill the memory."""


@dataclass(frozen=True, eq=False)
class Lines:
    """Successive rows of a JSON Lines file; every line that is not empty counts as a row.

    Attributes:
        batch: The readable rows: a string column for each key.
        readable: int64, ``(readable rows,)``: their indices among the rows.
        faults: The other rows: row to reason and detail.
        lines: int64, ``(rows,)``: each row's line number in the file, from 1.
        payloads: ``(rows,)``: each row's bytes, without the newline.
    """

    batch: pa.RecordBatch
    readable: Int64Array
    faults: dict[int, tuple[Reason, str]]
    lines: Int64Array
    payloads: list[bytes]


class _Refused(Exception):
    """A line that is not a valid row: its arguments are the reason and the detail."""


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of a JSON object, as they are in the line."""


_DECODER: Final = json.JSONDecoder(
    parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_Pairs
)


@dataclass(frozen=True)
class Keys:
    """The keys that somebody reads of a JSON Lines file.

    Attributes:
        wanted: The keys; None for all.
        present: Keys that are columns of every batch (see `keys_in`). Another wanted key is a
            column from the batch on in which it first occurs.
    """

    wanted: Collection[str] | None = None
    present: Sequence[str] = ()


def read_lines(
    file: BinaryIO, asked: Sequence[Keys], *, batch_rows: int = BATCH_ROWS
) -> Iterator[tuple[Lines, ...]]:
    """Read a JSON Lines file once for several readers, batch by batch.

    Args:
        file: The file, at its beginning.
        asked: What each reader reads.
        batch_rows: The most rows of a batch; it has fewer if it has very many columns.

    Yields:
        Batches of the same lines for each reader, with at least one row, in order.
    """
    batches = [_Batch(keys.wanted, dict.fromkeys(keys.present)) for keys in asked]
    for number, line in _numbered(file):
        if not line:
            continue
        parsed = _parsed(line)
        for batch in batches:
            batch.add(number, line, parsed)
        if any(batch.is_full(batch_rows) for batch in batches):
            yield tuple(batch.lines() for batch in batches)
            batches = [_Batch(batch.wanted, batch.names) for batch in batches]
    if batches[0].numbers:
        yield tuple(batch.lines() for batch in batches)


class _Batch:
    """Collects the rows of a batch; ``names`` grows with the keys of the file."""

    def __init__(self, wanted: Collection[str] | None, names: dict[str, None]) -> None:
        self.wanted = None if wanted is None else frozenset(wanted)
        self.names = names
        self.numbers: list[int] = []
        self._payloads: list[bytes] = []
        self._readable: list[int] = []
        self._faults: dict[int, tuple[Reason, str]] = {}
        # By key: the readable rows that have it, and their texts.
        self._cells: dict[str, tuple[list[int], list[str | None]]] = {}

    def add(self, number: int, line: bytes, parsed: _Parsed) -> None:
        try:
            row = _texts(parsed, self.wanted)
            fresh = row.keys() - self.names.keys()
            if self.wanted is None and fresh and len(self.names) + len(fresh) > MOST_KEYS:
                raise _Refused(Reason.TOO_MANY_KEYS, _too_many(row, fresh))
        except _Refused as refused:
            self._faults[len(self.numbers)] = refused.args[0], refused.args[1]
        else:
            place = len(self._readable)
            for key, text in row.items():
                rows, texts = self._cells.setdefault(key, ([], []))
                rows.append(place)
                texts.append(text)
            self.names.update(dict.fromkeys(row) if fresh else {})
            self._readable.append(len(self.numbers))
        self.numbers.append(number)
        self._payloads.append(line)

    def is_full(self, batch_rows: int) -> bool:
        rows = len(self.numbers)
        return rows >= batch_rows or rows * len(self.names) >= _BATCH_CELLS

    def lines(self) -> Lines:
        return Lines(
            # Unlike `from_arrays`, this keeps the number of rows where there are no columns.
            pa.RecordBatch.from_struct_array(self._columns()),
            np.array(self._readable, np.int64),
            self._faults,
            np.array(self.numbers, np.int64),
            self._payloads,
        )

    def _columns(self) -> pa.StructArray:
        if not self.names:
            return pa.array([{}] * len(self._readable), pa.struct([]))
        fields = [pa.field(name, pa.string()) for name in self.names]
        return pa.StructArray.from_arrays(
            [self._column(name) for name in self.names], fields=fields
        )

    def _column(self, name: str) -> pa.Array:
        rows, texts = self._cells.get(name, ([], []))
        column = pa.array(texts, pa.string())
        if len(rows) == len(self._readable):
            return column
        places = np.full(len(self._readable), -1)
        places[rows] = np.arange(len(rows))
        return column.take(pa.array(places, mask=places < 0))


def read_line(
    line: bytes, wanted: Collection[str] | None
) -> dict[str, str | None] | tuple[Reason, str]:
    """Return the wanted keys (None: all) of a line and their texts, or why it is not a row."""
    try:
        return _texts(_parsed(line), wanted)
    except _Refused as refused:
        return refused.args[0], refused.args[1]


def is_json(text: bytes) -> bool:
    """Tell whether bytes are one JSON value, of any kind."""
    return _parsed(text).refused is None


def keys_in(file: BinaryIO, wanted: Iterable[str]) -> list[str]:
    """Return the wanted keys that occur in some line; stop reading when all have occurred."""
    wanted = dict.fromkeys(wanted)
    missing = set(wanted)
    for _, line in _numbered(file):
        if not missing:
            break
        if line:
            try:
                missing -= _texts(_parsed(line), wanted).keys()
            except _Refused:
                continue  # `read_lines` refuses this line with its reason
    return [key for key in wanted if key not in missing]


def first_keys(file: BinaryIO, most: int) -> list[str]:
    """Return the first keys of the first line that is an object, ``most`` at most."""
    for _, line in _numbered(file):
        if line:
            try:
                return list(_texts(_parsed(line), None))[:most]
            except _Refused:
                continue
    return []


def _numbered(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


@dataclass(frozen=True)
class _Parsed:
    """A line: its text and the JSON value that it is, or why it is none."""

    text: str = ""
    value: Any = None
    refused: _Refused | None = None


def _parsed(line: bytes) -> _Parsed:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"found byte 0x{line[error.start]:02x} at byte {error.start} of the line"
        return _Parsed(refused=_Refused(Reason.INVALID_UTF8, f"{found}, expected UTF-8"))
    try:
        return _Parsed(text, _DECODER.decode(text))
    except (ValueError, RecursionError) as error:
        return _Parsed(refused=_broken(error))


def _broken(error: Exception) -> _Refused:
    return _Refused(Reason.BROKEN_JSON, f"{error}; expected one JSON object")


def _texts(parsed: _Parsed, wanted: Collection[str] | None) -> dict[str, str | None]:
    """Return a line's wanted keys (None: all) and their texts.

    Raises:
        _Refused: The line is not a valid row.
    """
    if parsed.refused is not None:
        raise parsed.refused
    text = parsed.text
    try:
        row = _row(parsed.value, text, wanted)
    except (ValueError, RecursionError) as error:
        raise _broken(error) from None
    if "\\u" in text:
        # A \u escape can give half of a surrogate pair, which UTF-8 cannot encode.
        for spelt in itertools.chain(row, row.values()):
            try:
                (spelt or "").encode("utf-8")
            except UnicodeEncodeError:
                detail = f"found half of a surrogate pair in {ascii(spelt)[:80]}, expected text"
                raise _Refused(Reason.INVALID_UTF8, detail) from None
    return row


def _row(given: Any, line: str, wanted: Collection[str] | None) -> dict[str, str | None]:
    if not isinstance(given, _Pairs):
        raise ValueError(f"found a JSON value that is no object ({line[:80]!r})")
    row: dict[str, str | None] = {}
    nested: dict[str, Any] | None = None
    for key, value in given:
        if wanted is not None and key not in wanted:
            continue
        if key in row:
            raise _Refused(
                Reason.DUPLICATE_KEY,
                f"column {key!r}: found the key twice in the line, expected it once",
            )
        if value is None or isinstance(value, str):
            row[key] = value
        elif isinstance(value, bool):
            row[key] = "true" if value else "false"
        else:
            if (repeated := _repeated(value)) is not None:
                raise _Refused(
                    Reason.DUPLICATE_KEY,
                    f"column {key!r}: found {repeated!r} twice in an object, expected it once",
                )
            # Parse again, once: the first time numbers were parsed as texts.
            nested = json.loads(line) if nested is None else nested
            row[key] = json.dumps(nested[key], ensure_ascii=False, separators=(",", ":"))
    return row


def _too_many(row: Iterable[str], fresh: Collection[str]) -> str:
    found = next(key for key in row if key in fresh)
    return (
        f"found the key {found!r} past {MOST_KEYS:,} keys of the file, expected as many at most, "
        "since each is a column"
    )


def _repeated(value: Any) -> str | None:
    """Return a key that an object inside a value has twice; None if there is none."""
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, _Pairs):
            keys: set[str] = set()
            for key, deeper in inner:
                if key in keys:
                    return key
                keys.add(key)
                left.append(deeper)
        elif isinstance(inner, list):
            left += inner
    return None
