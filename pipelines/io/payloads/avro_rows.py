"""Avro messages: one record each, in one of three frames.

The frames: none (the schema is that of a file), the id of a schema in a registry (`schema_ids`),
and Avro's single-object encoding (``C3 01`` and the CRC-64-AVRO fingerprint of the file's schema).

The promises beside those of `decoding`:

* Values are columns of the types that `avro_types` lists.
* A message is read with the schema that it was written with. Where the source has a schema of its
  own beside the registry, values are resolved to that one, by Avro's rules: then a new version of
  the writers' schema does not change the columns.
* The bytes are not trusted: a message with bytes missing or left over is rejected. A schema by
  which a few bytes could be values of any depth or number is refused.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import fastavro
import pyarrow as pa
from fastavro.read import SchemaResolutionError
from fastavro.schema import (
    SchemaParseException,
    UnknownType,
    fingerprint,
    to_parsing_canonical_form,
)

from tidemill.features.errors import ConfigurationError
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.messages import Messages
from tidemill.pipelines.io.payloads.avro_types import (
    Column,
    columns_of,
    needs_names,
    without_logical_types,
)
from tidemill.pipelines.io.payloads.decoding import (
    REJECT_TOMBSTONES,
    Decoded,
    put_together,
)
from tidemill.pipelines.io.payloads.metadata import Fault, Metadata
from tidemill.pipelines.io.payloads.pieces import Joining, Piece, read_records
from tidemill.pipelines.io.payloads.registry import AVRO, RegisteredSchema, Registry
from tidemill.pipelines.io.payloads.schema_ids import FRAME_BYTES, schema_id, unusable

NO_FRAME, REGISTRY_FRAME, SINGLE_OBJECT = "none", "registry", "single_object"
FRAMES: Final = (NO_FRAME, REGISTRY_FRAME, SINGLE_OBJECT)
_WITH_NAMES: Final = {"return_record_name": True, "return_record_name_override": True}
_SINGLE_OBJECT_MARK: Final = b"\xc3\x01"
_SINGLE_OBJECT_BYTES: Final = 10

# What fastavro raises for bytes that do not fit a schema.
_BROKEN: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SchemaResolutionError,
    TypeError,
    ValueError,
    pa.ArrowException,
)


@dataclass(frozen=True, eq=False)
class AvroSchema:
    """A schema of records.

    Attributes:
        parsed: As fastavro reads with it: logical types are the types below them.
        columns: The columns of its fields.
        fingerprint: The fingerprint in the frame of a single object.
        options: How records are read with it.
    """

    parsed: Any
    columns: Sequence[Column]
    fingerprint: bytes
    options: Mapping[str, Any]

    def batch(self, records: Sequence[Any]) -> pa.RecordBatch | Fault:
        """Return records as columns, or why they cannot be."""
        if not self.columns:
            return pa.RecordBatch.from_struct_array(pa.array([{}] * len(records), pa.struct([])))
        try:
            arrays = [c.array([record[c.name] for record in records]) for c in self.columns]
        except _BROKEN as error:
            return _broken(error)
        return pa.RecordBatch.from_arrays(arrays, names=[c.name for c in self.columns])

    @staticmethod
    def of(text: str, references: Sequence[str] = ()) -> AvroSchema:
        """Parse a schema, after those that it refers to.

        Raises:
            ConfigurationError: It is not a schema of a record, or its values have no bound.
        """
        named: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        try:
            for one in references:
                fastavro.parse_schema(json.loads(one), named)
                fastavro.parse_schema(without_logical_types(json.loads(one)), plain)
            given = json.loads(text)
            whole = fastavro.parse_schema(given, named)
            parsed = fastavro.parse_schema(without_logical_types(given), plain)
            columns = columns_of(whole, named)
            canonical = to_parsing_canonical_form(whole)
        except ConfigurationError:
            raise
        except (SchemaParseException, UnknownType, *_BROKEN) as error:
            raise ConfigurationError(
                f"Avro schema {text[:60]!r}: {type(error).__name__}: {error}; expected a schema in "
                "JSON"
            ) from error
        mark = bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO"))
        # Names take a third of the time, so they are asked for where they are needed.
        options = _WITH_NAMES if needs_names(whole, named) else {}
        return AvroSchema(parsed, columns, mark, options)

    @staticmethod
    def from_file(path: Path) -> AvroSchema:
        """Parse the schema in a file.

        Raises:
            ConfigurationError: The file cannot be read, or has no usable schema.
        """
        try:
            return AvroSchema.of(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"Avro schema {path}: cannot be read ({error})") from error


@dataclass(frozen=True)
class AvroDecoder:
    """Makes rows of Avro messages.

    Attributes:
        reader: Who reads, and which columns.
        schema: The path of the source's schema; None to take each message's own columns.
        registry: Has the schemas by which messages are written; None where ``schema`` is that.
        frame: What stands before the record (`FRAMES`).
        metadata: The columns that come from beside the payload.
        nulls: Texts that mean null.
        tombstones: What becomes of a message without a value (`decoding.TOMBSTONES`).

    Raises:
        ConfigurationError: There is no schema, or it is not usable.
    """

    reader: Reader
    schema: Path | None = None
    registry: Registry | None = None
    frame: str = NO_FRAME
    metadata: Metadata = field(default_factory=Metadata)
    nulls: Sequence[str] = ()
    tombstones: str = REJECT_TOMBSTONES

    def __post_init__(self) -> None:
        stream = self.reader.stream
        if self.frame not in FRAMES:
            raise ConfigurationError(
                f"stream {stream!r}: frame {self.frame!r} is not known; known: {', '.join(FRAMES)}"
            )
        if (self.frame == REGISTRY_FRAME) != (self.registry is not None):
            raise ConfigurationError(
                f"stream {stream!r}: a registry and the frame {REGISTRY_FRAME!r} need each other"
            )
        if self.registry is None and self.schema is None:
            raise ConfigurationError(
                f"stream {stream!r}: Avro messages need a schema: name its file, or a registry"
            )
        own = None if self.schema is None else AvroSchema.from_file(self.schema)
        object.__setattr__(self, "_own", own)
        object.__setattr__(self, "_registered", {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the parsed schemas behind."""
        values = (self.reader, self.schema, self.registry, self.frame, self.metadata)
        return type(self), (*values, self.nulls, self.tombstones)

    def decode(self, messages: Messages, first_position: int) -> Iterator[Decoded]:
        """Make rows of messages; see `decoding.Decoder`."""
        joining = Joining(self.reader, self.metadata, tuple(self.nulls))
        for rows in joining.joined(messages, self._pieces(messages)):
            yield put_together(self.reader.stream, messages, rows, self.metadata, first_position)
            first_position += len(rows.messages)

    def _pieces(self, messages: Messages) -> Iterator[Piece]:
        unknown: dict[int, Fault] = {}
        return read_records(messages, self.tombstones, lambda value: self._record(value, unknown))

    def _record(self, value: bytes, unknown: dict[int, Fault]) -> tuple[AvroSchema, Any] | Fault:
        own: AvroSchema | None = self._own  # type: ignore[attr-defined]
        begin = 0
        written: AvroSchema | Fault
        if self.frame == REGISTRY_FRAME:
            begin, written = FRAME_BYTES, self._written(value, unknown)
        else:
            assert own is not None  # checked when the decoder was made
            written = own
            if self.frame == SINGLE_OBJECT:
                begin = _SINGLE_OBJECT_BYTES
                if value[:begin] != _SINGLE_OBJECT_MARK + own.fingerprint:
                    written = _not_single_object(value, own)
        if not isinstance(written, AvroSchema):
            return written
        read = own if own is not None and own is not written else None
        file = io.BytesIO(value)
        file.seek(begin)
        try:
            resolved = None if read is None else read.parsed
            options = (read or written).options
            values = fastavro.schemaless_reader(file, written.parsed, resolved, **options)
        except UnicodeDecodeError as error:
            detail = f"found byte 0x{error.object[error.start]:02x} in a text, expected UTF-8"
            return Reason.INVALID_UTF8, detail
        except _BROKEN as error:
            return _broken(error)
        if (left := len(value) - file.tell()) > 0:
            detail = f"found {left} bytes after the record, expected the record alone"
            return Reason.BROKEN_AVRO, detail
        return read or written, values

    def _written(self, value: bytes, unknown: dict[int, Fault]) -> AvroSchema | Fault:
        """Return the schema that the frame names; ``unknown`` holds those asked for just now."""
        id = schema_id(value)
        if not isinstance(id, int):
            return id
        known: dict[int, AvroSchema | Fault] = self._registered  # type: ignore[attr-defined]
        if (found := known.get(id) or unknown.get(id)) is not None:
            return found
        assert self.registry is not None  # checked when the decoder was made
        schema = self.registry.schema(id)
        if (fault := unusable(id, schema, AVRO)) is not None:
            unknown[id] = fault
            return fault
        assert schema is not None  # that would be a fault
        try:
            known[id] = AvroSchema.of(schema.text, _references(schema))
        except ConfigurationError as error:
            known[id] = Reason.UNKNOWN_SCHEMA, f"schema id {id}: {error}"
        return known[id]


def _references(schema: RegisteredSchema) -> list[str]:
    """Return the texts of all schemas that one refers to, each after those that it needs."""
    texts: dict[str, None] = {}
    for one in schema.references.values():
        texts |= dict.fromkeys([*_references(one), one.text])
    return list(texts)


def _broken(error: Exception) -> Fault:
    found = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return Reason.BROKEN_AVRO, f"{found}; expected a record of the schema"


def _not_single_object(value: bytes, schema: AvroSchema) -> Fault:
    expected = _SINGLE_OBJECT_MARK + schema.fingerprint
    return Reason.NO_SCHEMA_ID, (
        f"found {value[:_SINGLE_OBJECT_BYTES].hex(' ')} at the start of the message, expected "
        f"{expected.hex(' ')}: a single object of the source's schema"
    )
