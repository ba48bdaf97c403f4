"""Protobuf descriptors, made without a compiler."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

KINDS = {
    name.removeprefix("TYPE_").lower(): number
    for name, number in descriptor_pb2.FieldDescriptorProto.Type.items()
}


def file_of(
    name: str,
    *messages: Any,
    syntax: str = "proto3",
    package: str = "shop",
    imports: tuple[str, ...] = (),
) -> Any:
    """A file with message types."""
    file = descriptor_pb2.FileDescriptorProto(
        name=name, package=package, syntax=syntax, dependency=imports
    )
    file.message_type.extend(messages)
    return file


def message_of(
    name: str,
    *,
    nested: tuple[Any, ...] = (),
    enums: dict[str, list[str]] | None = None,
    optional: tuple[str, ...] = (),
    repeated: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
    maps: dict[str, str] | None = None,
    **fields: str,
) -> Any:
    """A message type; a field's kind is a scalar's name, or ``.full.Name`` or ``enum .full.Name``.

    ``optional`` are proto3's fields with presence.
    """
    made = descriptor_pb2.DescriptorProto(name=name, nested_type=nested)
    for enum, values in (enums or {}).items():
        kind = made.enum_type.add(name=enum)
        for number, value in enumerate(values):
            kind.value.add(name=value, number=number)
    for map_name, value_kind in (maps or {}).items():
        entry = message_of(f"{map_name.capitalize()}Entry", key="string", value=value_kind)
        entry.options.map_entry = True
        made.nested_type.append(entry)
        fields[map_name] = f".shop.{name}.{entry.name}"
        repeated = (*repeated, map_name)
    for number, (field, kind_name) in enumerate(fields.items(), start=1):
        one = made.field.add(name=field, number=number, label=1)
        if field in repeated:
            one.label = 3
        elif field in required:
            one.label = 2
        if kind_name.startswith((".", "enum ")):
            is_enum = kind_name.startswith("enum ")
            one.type = KINDS["enum" if is_enum else "message"]
            one.type_name = kind_name.removeprefix("enum ")
        else:
            one.type = KINDS[kind_name]
        if field in optional:
            one.proto3_optional = True
            one.oneof_index = len(made.oneof_decl)
            made.oneof_decl.add(name=f"_{field}")
    return made


def set_of(*files: Any) -> bytes:
    """A file of descriptors, as a compiler writes it."""
    return bytes(descriptor_pb2.FileDescriptorSet(file=files).SerializeToString())


def class_of(*files: Any, name: str = "shop.Order") -> Any:
    """The class of a type's messages, by a pool of its own."""
    pool = descriptor_pool.DescriptorPool()
    known = descriptor_pb2.FileDescriptorProto()
    timestamp_pb2.DESCRIPTOR.CopyToProto(known)
    pool.Add(known)
    for file in files:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


TIMESTAMP_FILE = "google/protobuf/timestamp.proto"
TIMESTAMP = "." + timestamp_pb2.Timestamp.DESCRIPTOR.full_name
