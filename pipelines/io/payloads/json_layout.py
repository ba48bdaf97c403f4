"""The rows of a JSON message: which of three layouts it has, and the text of each row.

A message is one of

* JSON Lines: its first line that is not empty is a complete JSON value, and another such line
  follows. Every line is a row, as in a file; empty lines are skipped.
* one JSON array: its elements are rows, each with the text that it has in the message.
* anything else: one row. A message that is no JSON at all is therefore one row, which is refused.

A byte order mark at the start of a message is skipped.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from tidemill.pipelines.io.files.csv_lines import BYTE_ORDER_MARK
from tidemill.pipelines.io.files.json_lines import is_json

_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
_SPACE: Final = b" \t\n\r"


class Layout(enum.Enum):
    """How the rows of a message are written."""

    ONE = enum.auto()
    LINES = enum.auto()
    ARRAY = enum.auto()


def layout_of(value: bytes) -> Layout:
    """Return the layout of a message."""
    lines = (line for line in _lines(value) if line.strip(_SPACE))
    first, second = next(lines, None), next(lines, None)
    if first is not None and second is not None and is_json(first):
        return Layout.LINES
    text = value.removeprefix(BYTE_ORDER_MARK)
    if text.lstrip(_SPACE).startswith(b"[") and is_json(text):
        return Layout.ARRAY
    return Layout.ONE


def row_texts(value: bytes, layout: Layout) -> list[bytes]:
    """Return the bytes of each row of a message that has this layout."""
    match layout:
        case Layout.ONE:
            return [value.removeprefix(BYTE_ORDER_MARK)]
        case Layout.LINES:
            return [line for line in _lines(value) if line]
        case Layout.ARRAY:
            return _elements(value)


def _lines(value: bytes) -> list[bytes]:
    lines = value.removeprefix(BYTE_ORDER_MARK).split(b"\n")
    return [line.removesuffix(b"\r") for line in lines]


def _elements(value: bytes) -> list[bytes]:
    """Return the elements of an array that is well-formed: what commas at its depth divide."""
    elements, depth, start = [], 0, 0
    for token in _TOKEN.finditer(value):
        mark = token.group()
        if mark in b"[{":
            depth += 1
            start = token.end() if depth == 1 else start
        elif mark in b"]}":
            depth -= 1
        if (mark == b"," and depth == 1) or depth == 0:
            elements.append(value[start : token.start()].strip(_SPACE))
            start = token.end()
    return elements if elements != [b""] else []
