"""The decoders by the names of their formats, and the options that each takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tidemill.features.errors import ConfigurationError, nearest
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.payloads.arrow_rows import ArrowDecoder
from tidemill.pipelines.io.payloads.avro_rows import NO_FRAME, REGISTRY_FRAME, AvroDecoder
from tidemill.pipelines.io.payloads.decoding import REJECT_TOMBSTONES, TOMBSTONES, Decoder
from tidemill.pipelines.io.payloads.json_rows import JsonDecoder
from tidemill.pipelines.io.payloads.metadata import Metadata
from tidemill.pipelines.io.payloads.protobuf_rows import ProtobufDecoder
from tidemill.pipelines.io.payloads.registry import Registry, RegistryPlace

OPTIONS: Final = {
    "json": (),
    "arrow": (),
    "avro": ("schema", "registry", "frame"),
    "protobuf": ("schema", "message", "registry"),
}
"""What a format of messages takes, by format."""
FORMATS: Final = tuple(OPTIONS)
"""The formats of messages."""


def decoder(
    format: str,
    reader: Reader,
    *,
    metadata: Metadata | None = None,
    nulls: Sequence[str] = (),
    tombstones: str = REJECT_TOMBSTONES,
    schema: Path | None = None,
    message: str | None = None,
    registry: RegistryPlace | None = None,
    frame: str | None = None,
) -> Decoder:
    """Return the decoder of a topic's messages.

    Args:
        format: ``json``, ``arrow``, ``avro`` or ``protobuf``.
        reader: Who reads, and which columns.
        metadata: The columns that come from beside the payload; None for none.
        nulls: Texts that mean null.
        tombstones: What becomes of a message without a value (`decoding.TOMBSTONES`).
        schema: For avro a file of its schema; for protobuf a file of descriptors.
        message: For protobuf the full name of the message type.
        registry: For avro and protobuf the registry that has the messages' schemas.
        frame: For avro what stands before a record (`avro_rows.FRAMES`); None for none, or with a
            registry for its own.

    Raises:
        ConfigurationError: The format is not known, or an option does not fit it.
    """
    stream = reader.stream
    if format not in OPTIONS:
        raise ConfigurationError(
            f"stream {stream!r}: format {format!r} of messages is not known; "
            f"{nearest(format, FORMATS)}"
        )
    if tombstones not in TOMBSTONES:
        raise ConfigurationError(
            f"stream {stream!r}: tombstones: {tombstones!r} is not known; "
            f"{nearest(tombstones, TOMBSTONES)}"
        )
    given = {"schema": schema, "message": message, "registry": registry, "frame": frame}
    for name, value in given.items():
        if value is not None and name not in OPTIONS[format]:
            raise ConfigurationError(
                f"stream {stream!r}: messages of the format {format!r} have no {name}; leave it out"
            )
    metadata = metadata or Metadata()
    client = None if registry is None else Registry(registry)
    match format:
        case "json":
            return JsonDecoder(reader, metadata, nulls, tombstones)
        case "arrow":
            return ArrowDecoder(reader, metadata, nulls, tombstones)
        case "avro":
            frame = frame or (NO_FRAME if client is None else REGISTRY_FRAME)
            return AvroDecoder(reader, schema, client, frame, metadata, nulls, tombstones)
        case _:
            return ProtobufDecoder(reader, schema, message, client, metadata, nulls, tombstones)
