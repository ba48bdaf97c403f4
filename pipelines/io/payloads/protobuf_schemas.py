"""Protobuf message types, from a file of descriptors or from a registry.

A file is what ``protoc --include_imports --descriptor_set_out=FILE`` writes. A registry is asked
for descriptors too (``format=serialized``), so nothing here parses ``.proto`` text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    json_format,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.message import DecodeError, EncodeError

from tidemill.features.errors import ConfigurationError, nearest
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.payloads.metadata import Fault
from tidemill.pipelines.io.payloads.protobuf_types import Column, columns_of
from tidemill.pipelines.io.payloads.registry import RegisteredSchema

_KNOWN: Final = (
    descriptor_pb2,
    any_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
_BROKEN: Final = (
    ArithmeticError,
    AttributeError,
    DecodeError,
    EncodeError,
    json_format.Error,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    pa.ArrowException,
)
"""What protobuf raises for descriptors, or values, that do not fit."""


@dataclass(frozen=True, eq=False)
class MessageType:
    """A type of messages.

    Attributes:
        name: Its full name.
        kind: The class of its messages.
        columns: The columns of its fields.
    """

    name: str
    kind: Any
    columns: Sequence[Column]

    @staticmethod
    def of(descriptor: Any) -> MessageType:
        """Return the type of a descriptor."""
        kind = message_factory.GetMessageClass(descriptor)
        return MessageType(descriptor.full_name, kind, columns_of(descriptor))

    def read(self, payload: bytes) -> Any | None:
        """Return a message, or None if the bytes are none."""
        try:
            return self.kind.FromString(payload)
        except DecodeError:
            return None

    def batch(self, records: Sequence[Any]) -> pa.RecordBatch | Fault:
        """Return messages as columns, or why they cannot be."""
        if not self.columns:
            return pa.RecordBatch.from_struct_array(pa.array([{}] * len(records), pa.struct([])))
        try:
            arrays = [column.array(records) for column in self.columns]
        except _BROKEN as error:
            for column in self.columns:
                if len(records) == 1 and (fault := column.fault(records[0])) is not None:
                    return fault
            detail = f"{type(error).__name__}: {error}"[:300]
            return Reason.BROKEN_PROTOBUF, f"{detail}; expected a message of type {self.name}"
        return pa.RecordBatch.from_arrays(arrays, names=[one.name for one in self.columns])


def from_file(path: Path, name: str) -> MessageType:
    """Return a message type of a file of descriptors.

    Args:
        path: The file.
        name: The type's full name.

    Raises:
        ConfigurationError: The file cannot be read, or has no such type.
    """
    try:
        files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file
    except (OSError, DecodeError) as error:
        raise ConfigurationError(
            f"protobuf schema {path}: cannot be read ({error}); write it with protoc "
            "--include_imports --descriptor_set_out"
        ) from error
    try:
        pool = _pool(files)
        return MessageType.of(pool.FindMessageTypeByName(name))
    except _BROKEN as error:
        known = [full for file in files for full in _names(file.package, file.message_type)]
        hint = nearest(name, known) if name not in known else f"{error}"
        raise ConfigurationError(
            f"protobuf schema {path}: has no usable message type {name!r}; {hint}"
        ) from error


def from_registry(schema: RegisteredSchema, id: int) -> tuple[Any, Any]:
    """Return a pool with a registered schema, and its file's descriptor.

    Raises:
        ConfigurationError: It is not usable.
    """
    name = f"schema {id}.proto"
    try:
        files = [*_references(schema), _file(name, schema.text)]
        pool = _pool({file.name: file for file in files}.values())
        return pool, pool.FindFileByName(name)
    except _BROKEN as error:
        raise ConfigurationError(
            f"protobuf schema: {error}; expected a registry that gives descriptors "
            "(format=serialized)"
        ) from error


def type_at(file: Any, indexes: Sequence[int]) -> Any | None:
    """Return the descriptor of a message type by its place in a file; None if it has no such.

    Args:
        file: The file's descriptor.
        indexes: The place of a type in the file, then of one in that, and so on.
    """
    types = list(file.message_types_by_name.values())
    found = None
    for index in indexes:
        if not 0 <= index < len(types):
            return None
        found = types[index]
        types = list(found.nested_types)
    return found


def _references(schema: RegisteredSchema) -> list[Any]:
    files = []
    for name, one in schema.references.items():
        files += [*_references(one), _file(name, one.text)]
    return files


def _file(name: str, text: str) -> Any:
    found = base64.b64decode(text, validate=True)
    file = descriptor_pb2.FileDescriptorProto.FromString(found)
    file.name = name
    return file


def _pool(files: Iterable[Any]) -> Any:
    pool = descriptor_pool.DescriptorPool()
    given = {file.name: file for file in files}
    for known in _KNOWN:
        if known.DESCRIPTOR.name not in given:
            file = descriptor_pb2.FileDescriptorProto()
            known.DESCRIPTOR.CopyToProto(file)
            pool.Add(file)
    for file in given.values():
        pool.Add(file)
    return pool


def _names(package: str, types: Iterable[Any]) -> Iterable[str]:
    for one in types:
        full = f"{package}.{one.name}" if package else one.name
        yield full
        yield from _names(full, one.nested_type)
