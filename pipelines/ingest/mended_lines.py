"""The lines of a mended file: read them, and refuse those that cannot be used.

A line gives a record's new bytes as a text, ``payload``, or as they are, ``payload_base64``. An
export writes both where the bytes are not UTF-8; the text is lossy then, so the one of them that a
person has edited counts.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from tidemill.features.errors import InputError, nearest
from tidemill.pipelines.ingest.rejected_records import as_text
from tidemill.serving.files.read_files import reading

_KEYS: Final = ("record", "stream")
_PAYLOADS: Final = ("payload", "payload_base64")


class Given(NamedTuple):
    """The bytes that a line gives, and whether a person has written them as a text."""

    payload: bytes
    is_text: bool


@dataclass(frozen=True)
class MendedLine:
    """A line of a mended file.

    Attributes:
        record: The record's id.
        stream: The name of its source.
        origin: The line's place.
        text: The new payload as a text; None if it is given as bytes only.
        raw: The payload as bytes; None if it is given as a text only.
    """

    record: str
    stream: str
    origin: str
    text: str | None
    raw: bytes | None = None

    def given(self, rejected: bytes | None) -> Given:
        """Return the bytes that the line gives.

        Args:
            rejected: The record's bytes as they came; None if they are not known.

        Raises:
            InputError: Both the text and the bytes were edited.
        """
        text, raw = self.text, self.raw
        if text is None:
            assert raw is not None  # a line has one of them
            return Given(raw, is_text=False)
        if raw is None:
            return Given(text.encode("utf-8"), is_text=True)
        if text == as_text(raw):
            return Given(raw, is_text=False)
        if rejected is None or raw == rejected:
            return Given(text.encode("utf-8"), is_text=True)
        if text == as_text(rejected):
            return Given(raw, is_text=False)
        raise InputError(
            f"{self.origin}: both payload and payload_base64 of record {self.record} were edited; "
            "take one of them out of the line"
        )


def read_lines(path: Path, sources: Collection[str]) -> list[MendedLine]:
    """Read the lines of a mended file.

    Raises:
        InputError: A line is not an exported record, or repeats a record.
    """
    lines: dict[str, MendedLine] = {}
    with reading(path, "name the file that was exported and mended"):
        texts = path.read_bytes().splitlines()
    for number, text in enumerate(texts, start=1):
        where = f"{path.name}:{number}"
        if not text.strip():
            continue
        line = _read_line(text, where, sources)
        if line.record in lines:
            raise InputError(
                f"{where}: record {line.record} is also in {lines[line.record].origin}; keep one "
                "of the two lines"
            )
        lines[line.record] = line
    return list(lines.values())


def _read_line(text: bytes, where: str, sources: Collection[str]) -> MendedLine:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"{where}: is not JSON ({error}); expected one object a line, as it was exported. In a "
            'JSON text a quote is written as \\" and a backslash as \\\\'
        ) from error
    if not (
        isinstance(line, dict)
        and all(isinstance(line.get(key), str) for key in _KEYS)
        and any(isinstance(line.get(key), str) for key in _PAYLOADS)
    ):
        raise InputError(
            f"{where}: expected an object with the texts {', '.join(_KEYS)} and {_PAYLOADS[0]}, or "
            f"{_PAYLOADS[1]}, as it was exported"
        )
    if line["stream"] not in sources:
        raise InputError(
            f"{where}: no source {line['stream']!r}; {nearest(line['stream'], sources)}"
        )
    return MendedLine(line["record"], line["stream"], where, *_payloads(line, where))


def _payloads(line: Mapping[str, Any], where: str) -> tuple[str | None, bytes | None]:
    text, encoded = (line.get(key) for key in _PAYLOADS)
    try:
        if text is not None:
            text.encode("utf-8")
        raw = None if encoded is None else base64.b64decode(encoded, validate=True)
        # Whoever empties the bytes beside a text has edited the text.
        return text, raw if raw or text is None else None
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: the payload cannot be used ({error}); expected payload as a text, and "
            "payload_base64 as base64 or not at all"
        ) from error
