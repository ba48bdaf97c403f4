"""Metadata: what a message carries beside its payload becomes columns of its rows.

The promises:

* All rows of a message have the same metadata. It is added before a transform and validation see
  the rows.
* A payload that has a column of the same name is rejected, whatever value it holds there, unless
  the metadata is declared to win; then the payload's column is not read.
* What a message lacks is null: no key, no header of the name, a header without a value, no
  timestamp (which brokers write as -1).
* Texts are UTF-8; a row whose key or header is not is rejected. A header that a message has twice
  rejects its rows, unless its column is declared as ``last_header:NAME``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.errors import ConfigurationError, nearest
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.messages import Headers, Messages

Fault: TypeAlias = tuple[Reason, str]
"""Why a row is rejected: the reason and the detail."""

_TYPES: Final = {
    "key": pa.string(),
    "timestamp": pa.timestamp("us", "UTC"),
    "offset": pa.int64(),
    "partition": pa.int64(),
}
_HEADER: Final = "header:"
_LAST_HEADER: Final = "last_header:"


@dataclass(frozen=True)
class Metadata:
    """The columns that come from what a message carries beside its payload.

    Attributes:
        columns: Column to what it holds: ``key`` (text), ``timestamp`` (a time), ``offset`` and
            ``partition`` (int64), ``header:NAME`` or ``last_header:NAME`` (text).
        wins: A payload's column of the same name is not read; otherwise its row is rejected.

    Raises:
        ConfigurationError: A column holds something else.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    wins: bool = False

    def __post_init__(self) -> None:
        for column, source in self.columns.items():
            named = source.startswith((_HEADER, _LAST_HEADER)) and source.partition(":")[2]
            if source not in _TYPES and not named:
                raise ConfigurationError(
                    f"metadata column {column!r}: {source!r} is not known; "
                    f"{nearest(source, [*_TYPES, _HEADER + 'NAME', _LAST_HEADER + 'NAME'])}"
                )

    @property
    def refused(self) -> frozenset[str]:
        """The columns that a payload must not have."""
        return frozenset() if self.wins else frozenset(self.columns)

    @staticmethod
    def conflict(column: str) -> Fault:
        """Say why a row is rejected whose payload has a metadata column."""
        detail = (
            f"column {column!r}: found it in the payload, expected it from the message's metadata "
            "alone; rename the metadata column, or declare that metadata wins"
        )
        return Reason.METADATA_CONFLICT, detail

    def read(self, messages: Messages) -> tuple[dict[str, pa.Array], dict[int, Fault]]:
        """Return the columns, ``(messages,)`` each, and the messages whose metadata is refused."""
        faults: dict[int, Fault] = {}
        columns = {
            column: _column(messages, column, source, faults)
            for column, source in self.columns.items()
        }
        return columns, faults


def _column(messages: Messages, column: str, source: str, faults: dict[int, Fault]) -> pa.Array:
    if source == "offset":
        return pa.array(messages.offsets, pa.int64())
    if source == "partition":
        return pa.array(np.full(len(messages), messages.partition, np.int64))
    if source == "timestamp":
        times: Int64Array = messages.timestamps_us
        return pa.array(times, mask=times < 0).cast(_TYPES[source])
    if source == "key":
        return _texts(list(messages.keys), column, "key", faults)
    kind, _, name = source.partition(":")
    values: list[bytes | None] = []
    for message, headers in enumerate(messages.headers):
        found = _values(headers, name)
        if len(found) > 1 and kind == "header":
            detail = (
                f"column {column!r}: found the header {name!r} {len(found)} times, expected it "
                f"once; declare last_header:{name} to take the last"
            )
            faults.setdefault(message, (Reason.REPEATED_HEADER, detail))
        values.append(found[-1] if found else None)
    return _texts(values, column, f"header {name!r}", faults)


def _values(headers: Headers, name: str) -> list[bytes | None]:
    return [value for key, value in headers if key == name]


def _texts(
    values: list[bytes | None], column: str, what: str, faults: dict[int, Fault]
) -> pa.Array:
    try:
        return pa.array(values, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        for message, value in enumerate(values):
            try:
                texts.append(None if value is None else value.decode("utf-8"))
            except UnicodeDecodeError as error:
                detail = (
                    f"column {column!r}: found byte 0x{error.object[error.start]:02x} at byte "
                    f"{error.start} of the message's {what}, expected UTF-8"
                )
                faults.setdefault(message, (Reason.INVALID_UTF8, detail))
                texts.append(None)
        return pa.array(texts, pa.string())
