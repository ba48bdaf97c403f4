"""The lines of a mended file: read them, and refuse those that cannot be used."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidemill.features.errors import InputError, nearest
from tidemill.pipelines.ingest.rejected_records import as_text
from tidemill.serving.files.read_files import reading

_KEYS: Final = ("record", "stream", "payload")


@dataclass(frozen=True)
class MendedLine:
    """A line of a mended file: the record's id, its stream, the line's place, the new payload."""

    record: str
    stream: str
    origin: str
    payload: bytes


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
    if not isinstance(line, dict) or not all(isinstance(line.get(key), str) for key in _KEYS):
        raise InputError(
            f"{where}: expected an object with the texts {', '.join(_KEYS)}, as it was exported"
        )
    if line["stream"] not in sources:
        raise InputError(
            f"{where}: no source {line['stream']!r}; {nearest(line['stream'], sources)}"
        )
    return MendedLine(line["record"], line["stream"], where, _payload(line, where))


def _payload(line: Mapping[str, Any], where: str) -> bytes:
    text: str = line["payload"]
    try:
        untouched = base64.b64decode(line.get("payload_base64", ""), validate=True)
        # The text of bytes that are not UTF-8 is lossy: if it is unedited, take the bytes.
        if untouched and text == as_text(untouched):
            return untouched
        return text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: the payload cannot be used ({error}); expected a text, and payload_base64 "
            "as it was exported or not at all"
        ) from error
