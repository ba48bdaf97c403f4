"""The rows of a JSON Lines file, batch by batch, with the lines that are not valid rows.

The promises:

* A line is one JSON object in UTF-8 (jsonlines.org). Any other line is refused; the lines beside it
  are not affected. Empty lines are skipped, and so is a byte order mark at the very start of the
  file.
* Every value is read as text, so that a row does not depend on the types in other rows: a string
  as it is, a number as its digits, true and false as these words, a list or an object as its JSON.
  null is null, and so is a key that a line lacks and another line of the file has.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files.csv_lines import BYTE_ORDER_MARK

BATCH_ROWS: Final = 16_384


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
    """A line that is not a valid row: the reason and the detail."""


def read_lines(
    file: BinaryIO, *, keys: Iterable[str] = (), batch_rows: int = BATCH_ROWS
) -> Iterator[Lines]:
    """Read a JSON Lines file batch by batch.

    Args:
        file: The file, at its beginning.
        keys: Keys that are columns of every batch (see `keys_in`). Another key is a column from the
            batch on in which it first occurs.
        batch_rows: The most rows of a batch.

    Yields:
        Batches with at least one row, in order.
    """
    names = dict.fromkeys(keys)
    filled = ((number, line) for number, line in _numbered(file) if line)
    while numbered := list(itertools.islice(filled, batch_rows)):
        rows: list[dict[str, str | None]] = []
        readable: list[int] = []
        faults: dict[int, tuple[Reason, str]] = {}
        for index, (_, line) in enumerate(numbered):
            try:
                rows.append(_texts(line))
            except _Refused as refused:
                faults[index] = refused.args[0], refused.args[1]
            else:
                readable.append(index)
                names.update(dict.fromkeys(rows[-1]))
        yield Lines(
            pa.RecordBatch.from_arrays(
                [pa.array([row.get(name) for row in rows], pa.string()) for name in names],
                schema=pa.schema([(name, pa.string()) for name in names]),
            ),
            np.array(readable, np.int64),
            faults,
            np.array([number for number, _ in numbered], np.int64),
            [line for _, line in numbered],
        )


def keys_in(file: BinaryIO, wanted: Iterable[str]) -> list[str]:
    """Return the wanted keys that occur in some line; stop reading when all have occurred."""
    wanted = list(wanted)
    missing = set(wanted)
    for _, line in _numbered(file):
        if not missing:
            break
        if line:
            try:
                missing -= _texts(line).keys()
            except _Refused:
                continue  # `read_lines` refuses this line with its reason
    return [key for key in wanted if key not in missing]


def _numbered(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _texts(line: bytes) -> dict[str, str | None]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"found byte 0x{line[error.start]:02x} at byte {error.start} of the line"
        raise _Refused(Reason.INVALID_UTF8, f"{found}, expected UTF-8") from None
    try:
        given = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
        row = _row(given, text)
    except (ValueError, RecursionError) as error:
        raise _Refused(Reason.BROKEN_JSON, f"{error}; expected one JSON object") from None
    if "\\u" in text:
        # A \u escape can give half of a surrogate pair, which UTF-8 cannot encode.
        for spelt in itertools.chain(row, row.values()):
            try:
                (spelt or "").encode("utf-8")
            except UnicodeEncodeError:
                detail = f"found half of a surrogate pair in {ascii(spelt)[:80]}, expected text"
                raise _Refused(Reason.INVALID_UTF8, detail) from None
    return row


def _row(given: Any, line: str) -> dict[str, str | None]:
    if not isinstance(given, dict):
        raise ValueError(f"found a JSON value that is no object ({line[:80]!r})")
    return {key: _text(value, key, line) for key, value in given.items()}


def _text(value: Any, key: str, line: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    # Parse again: the first time numbers were parsed as texts.
    return json.dumps(json.loads(line)[key], ensure_ascii=False, separators=(",", ":"))
