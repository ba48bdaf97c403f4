"""Records: small JSON files with format, version and a checksum, written atomically."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidemill.features.errors import DamagedState, StateVersionError
from tidemill.serving.files.atomic_write import atomic_write


@dataclass(frozen=True)
class RecordFormat:
    """A format of record: a JSON object with format, version and a checksum of the other fields.

    Attributes:
        name: The name of the format in the file.
        version: The version that is written and read.
        fields: The names of the other fields.
        remedy: What the user should do if a record cannot be read.
        older: By older versions that are read too: the fields that these lack, with their values.
    """

    name: str
    version: int
    fields: frozenset[str]
    remedy: str
    older: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


def write_record(
    path: Path, form: RecordFormat, content: Mapping[str, Any], *, durable: bool = False
) -> None:
    """Write a record with its header; ``durable`` as for `atomic_write`."""
    header = {"format": form.name, "version": form.version, "checksum": checksum_of(content)}
    with atomic_write(path, durable=durable) as unfinished:
        unfinished.write_bytes((json.dumps({**header, **content}, indent=2) + "\n").encode())


def checksum_of(content: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of a content's SHA-256, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_record(path: Path, form: RecordFormat) -> dict[str, Any]:
    """Read a record, without its header.

    Raises:
        StateVersionError: Its version is not supported.
        DamagedState: It is damaged, or of another format.
    """
    try:
        stored = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedState(f"{path} is not JSON ({error}); {form.remedy}") from None
    if not isinstance(stored, dict):
        raise DamagedState(f"{path} is not a JSON object; {form.remedy}")
    found = stored.pop("format", None), stored.pop("version", None)
    if found == (None, None) and stored.keys() & form.fields:
        raise StateVersionError(
            f"{path} was written by an older version of Tidemill: it has no version; {form.remedy}"
        )
    if found[0] != form.name:
        raise DamagedState(f"{path} does not say that it is a {form.name}; {form.remedy}")
    if found[1] != form.version and found[1] not in form.older:
        raise StateVersionError(
            f"{path} has version {found[1]}, this code reads {form.version}; {form.remedy}"
        )
    checksum, lacking = stored.pop("checksum", None), form.older.get(found[1], {})
    if checksum != checksum_of(stored) or stored.keys() != form.fields - lacking.keys():
        raise DamagedState(
            f"{path} was changed after it was written: its checksum does not match; {form.remedy}"
        )
    return {**stored, **lacking}
