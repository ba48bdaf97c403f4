"""The frame around messages whose schema a registry has: a zero byte, then the schema's id.

Confluent's wire format: the byte 0, the id as four bytes, most significant first, the payload.
"""

from __future__ import annotations

from typing import Final

from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.payloads.metadata import Fault
from tidemill.pipelines.io.payloads.registry import RegisteredSchema

FRAME_BYTES: Final = 5
_MAGIC: Final = 0
_LARGEST_ID: Final = 2**31 - 1
"""Registries count in signed 32 bits. They answer a request for more as one for no schema at all,
which would be taken for the answer of something that is no registry."""


def schema_id(value: bytes) -> int | Fault:
    """Return the id of a message's schema; its payload begins after `FRAME_BYTES`."""
    if len(value) >= FRAME_BYTES and value[0] == _MAGIC:
        found = int.from_bytes(value[1:FRAME_BYTES], "big")
        if found <= _LARGEST_ID:
            return found
        return Reason.UNKNOWN_SCHEMA, (
            f"found the schema id {found}, expected that of a registered schema, {_LARGEST_ID} at "
            "most"
        )
    return Reason.NO_SCHEMA_ID, (
        f"found {value[:FRAME_BYTES]!r} at the start of the message, expected a zero byte and the "
        "four bytes of a schema's id"
    )


def unusable(id: int, schema: RegisteredSchema | None, kind: str) -> Fault | None:
    """Say why a schema from the registry cannot be used as one of a kind; None if it can."""
    if schema is None:
        what = f"found the schema id {id}, which the registry does not know"
    elif schema.kind != kind:
        what = f"found the schema id {id} of a schema of kind {schema.kind}"
    else:
        return None
    return Reason.UNKNOWN_SCHEMA, f"{what}; expected a registered schema of kind {kind}"
