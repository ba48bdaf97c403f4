"""The state of an operator at a savepoint, taken over into the folder of another stream.

Its counters begin anew; nothing else of it changes. What it has applied is linked, not copied.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tidemill.pipelines.io.framing import Kind, decode_document, encode_document
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.pipelines.stream.state_files import state_path, write_state

_REMEDY: Final = "restore the folder from a copy"


def take_over_state(former: Path, folder: Path, key: OperatorKey) -> None:
    """Take over the state of an operator.

    Args:
        former: The folder of the savepoint.
        folder: The folder that takes it.
        key: The operator.

    Raises:
        StateError: The state is damaged, of another operator, or of another version.
    """
    path = state_path(former, key)
    kinds = (Kind.OPERATOR_FILE, Kind.OPERATOR_SAVEPOINT)
    what = f"{path}: the state of {key}"
    found = decode_document(path.read_bytes(), kinds, what, _REMEDY, key.text)
    head = decode_document(found.blobs[0], Kind.OPERATOR_HEAD, what, _REMEDY, key.text)
    fields = {
        **head.fields,
        **{name: dict.fromkeys(head.fields[name], 0) for name in ("seen", "kernel")},
    }
    anew = encode_document(Kind.OPERATOR_HEAD, key.text, fields, head.blobs)
    if found.kind is Kind.OPERATOR_SAVEPOINT:
        for name in (found.fields["base"], *found.fields["since"]):
            (folder / name).unlink(missing_ok=True)
            os.link(former / name, folder / name)
    blobs = [anew, *found.blobs[1:]]
    write_state(state_path(folder, key), encode_document(found.kind, key.text, found.fields, blobs))
