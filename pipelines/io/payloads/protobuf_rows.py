"""Protobuf messages: one row each, bare or with the id of their schema in a registry.

In a registry's frame (`schema_ids`) the place of the message's type in its file follows the id: how
many indexes, then the indexes, as varints in zigzag; a single zero byte is the first type.

The promises beside those of `decoding`:

* Values are columns of the types that `protobuf_types` lists.
* Fields that a schema does not know are skipped, as protobuf does; so the source's own schema reads
  what newer and older writers wrote. Beside a registry, a message whose type has another name than
  that of the source's schema is rejected.
* The bytes are not trusted: what is no message of the type is rejected. Protobuf has no mark by
  which every message of another type could be told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tidemill.features.errors import ConfigurationError
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.messages import Messages
from tidemill.pipelines.io.payloads.decoding import (
    REJECT_TOMBSTONES,
    Decoded,
    put_together,
)
from tidemill.pipelines.io.payloads.metadata import Fault, Metadata
from tidemill.pipelines.io.payloads.pieces import Joining, Piece, read_records
from tidemill.pipelines.io.payloads.protobuf_schemas import (
    MessageType,
    from_file,
    from_registry,
    type_at,
)
from tidemill.pipelines.io.payloads.registry import PROTOBUF, Registry
from tidemill.pipelines.io.payloads.schema_ids import FRAME_BYTES, schema_id, unusable

_MOST_INDEXES: Final = 100
_VARINT_BYTES: Final = 5


@dataclass(frozen=True)
class ProtobufDecoder:
    """Makes rows of protobuf messages.

    Attributes:
        reader: Who reads, and which columns.
        schema: A file of descriptors; None to take each message's own type from the registry.
        message: The full name of the type; with a registry alone, None takes messages of any.
        registry: Has the schemas by which messages are written; None if they have no frame.
        metadata: The columns that come from beside the payload.
        nulls: Texts that mean null.
        tombstones: What becomes of a message without a value (`decoding.TOMBSTONES`).

    Raises:
        ConfigurationError: There is no schema, or it is not usable.
    """

    reader: Reader
    schema: Path | None = None
    message: str | None = None
    registry: Registry | None = None
    metadata: Metadata = field(default_factory=Metadata)
    nulls: Sequence[str] = ()
    tombstones: str = REJECT_TOMBSTONES

    def __post_init__(self) -> None:
        own = None
        if self.schema is not None:
            if self.message is None:
                raise ConfigurationError(
                    f"stream {self.reader.stream!r}: name the message type of {self.schema}"
                )
            own = from_file(self.schema, self.message)
        elif self.registry is None:
            raise ConfigurationError(
                f"stream {self.reader.stream!r}: protobuf messages need a schema: name a file of "
                "descriptors, or a registry"
            )
        object.__setattr__(self, "_own", own)
        object.__setattr__(self, "_files", {})
        object.__setattr__(self, "_types", {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the descriptors behind."""
        values = (self.reader, self.schema, self.message, self.registry, self.metadata)
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

    def _record(self, value: bytes, unknown: dict[int, Fault]) -> tuple[MessageType, Any] | Fault:
        kind: MessageType | Fault | None = self._own  # type: ignore[attr-defined]
        payload = value
        if self.registry is not None:
            framed = self._framed(value, unknown)
            if not isinstance(framed[0], MessageType):
                return framed
            written, begin = framed
            payload = value[begin:]
            kind = kind or written
        assert isinstance(kind, MessageType)  # checked when the decoder was made
        record = kind.read(payload)
        if record is None:
            found = "found bytes that are none"
        elif not record.IsInitialized():
            missing = ", ".join(record.FindInitializationErrors())
            found = f"found a message without {missing}"
        else:
            return kind, record
        return Reason.BROKEN_PROTOBUF, f"{found}, expected a message of type {kind.name}"

    def _framed(self, value: bytes, unknown: dict[int, Fault]) -> tuple[MessageType, int] | Fault:
        """Return a message's type and where it begins; ``unknown`` holds ids asked for just now."""
        id = schema_id(value)
        if not isinstance(id, int):
            return id
        indexes = message_indexes(value, FRAME_BYTES)
        if indexes is None:
            return Reason.NO_SCHEMA_ID, (
                f"found {value[FRAME_BYTES:20].hex(' ')} after the schema id {id}, expected the "
                "indexes of a message type"
            )
        places, begin = indexes
        types: dict[Any, MessageType | Fault] = self._types  # type: ignore[attr-defined]
        found = types.get((id, places))
        if found is None:
            file = self._file(id, unknown)
            if isinstance(file, tuple):
                return file
            found = types[id, places] = self._type(id, file, places)
        return (found, begin) if isinstance(found, MessageType) else found

    def _file(self, id: int, unknown: dict[int, Fault]) -> Any | Fault:
        files: dict[int, Any] = self._files  # type: ignore[attr-defined]
        if (known := files.get(id) or unknown.get(id)) is not None:
            # The pool holds the descriptors that the file's are part of.
            return known if isinstance(known, tuple) else known[1]
        assert self.registry is not None  # only its messages have a frame
        schema = self.registry.schema(id, "serialized")
        if (fault := unusable(id, schema, PROTOBUF)) is not None:
            unknown[id] = fault
            return fault
        assert schema is not None  # that would be a fault
        try:
            pool, file = from_registry(schema, id)
        except ConfigurationError as error:
            files[id] = fault = (Reason.UNKNOWN_SCHEMA, f"schema id {id}: {error}")
            return fault
        files[id] = [pool, file]
        return file

    def _type(self, id: int, file: Any, places: tuple[int, ...]) -> MessageType | Fault:
        descriptor = type_at(file, places)
        if descriptor is None:
            return Reason.UNKNOWN_SCHEMA, (
                f"found the type at {list(places)} of schema id {id}, which has no such type"
            )
        if self.message not in (None, descriptor.full_name):
            return Reason.UNKNOWN_SCHEMA, (
                f"found a message of type {descriptor.full_name}, expected one of {self.message}"
            )
        return MessageType.of(descriptor)


def message_indexes(value: bytes, begin: int) -> tuple[tuple[int, ...], int] | None:
    """Return the indexes of a message's type and where its payload begins; None if there are none.

    >>> message_indexes(bytes([0]), 0)
    ((0,), 1)
    >>> message_indexes(bytes([4, 2, 0]) + b"rest", 0)
    ((1, 0), 3)
    """
    read = _varint(value, begin)
    if read is None:
        return None
    count, place = read
    if count == 0:
        return (0,), place
    if not 0 < count <= _MOST_INDEXES:
        return None
    places: list[int] = []
    for _ in range(count):
        read = _varint(value, place)
        if read is None:
            return None
        index, place = read
        places.append(index)
    return tuple(places), place


def _varint(value: bytes, begin: int) -> tuple[int, int] | None:
    """Return a number in zigzag and the place after it; None if there is none."""
    number = 0
    for count, byte in enumerate(value[begin : begin + _VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), begin + count + 1
    return None
