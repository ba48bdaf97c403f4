"""The topic of a live source in the YAML file.

```yaml
kafka:
  bootstrap: localhost:9092     # and the other keys of `pipelines.config.kafka_connection`
  topic: payments
  format: json                  # optional: of the messages; by default the source's format
  columns: {card: key}          # optional: key, timestamp, offset, partition or header:NAME
  tombstones: ignore            # optional: messages without a value; by default they are rejected
  schema: payment.avsc          # optional: of avro, or descriptors of protobuf
  message: shop.Payment         # optional: the message type of protobuf
  registry: {url: "http://localhost:8081"}   # optional: of avro and protobuf; also user,
                                # password_env, ca
  start: handoff                # optional: handoff (default), earliest, latest, or a time
  clock: wall                   # optional: wall (default), or messages for producers of the past
  quiet: 2s                     # optional: how long a message may be on its way to the broker
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tidemill.features.contract import SECOND
from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.kafka_connection import (
    CONNECTION_KEYS,
    KafkaConnection,
    read_connection,
    read_topic,
)
from tidemill.pipelines.config.schema_registry import SchemaRegistry, read_schema_registry
from tidemill.pipelines.config.strict_yaml import Value
from tidemill.pipelines.io.payloads.decoders import FORMATS
from tidemill.pipelines.io.payloads.decoding import REJECT_TOMBSTONES, TOMBSTONES
from tidemill.pipelines.io.payloads.metadata import Metadata

KAFKA_KEYS: Final = (
    "topic", "format", "columns", "tombstones", "schema", "message", "frame", "registry", "start",
    "clock", "quiet", *CONNECTION_KEYS,
)  # fmt: skip
HANDOFF: Final = "handoff"
"""Begin at the messages that were sent at the instant of the handed-over states, or later."""
EARLIEST: Final = "earliest"
LATEST: Final = "latest"
PAYLOADS: Final = FORMATS
"""The formats of messages."""
CLOCKS: Final = ("wall", "messages")


@dataclass(frozen=True, kw_only=True)
class KafkaTopic(KafkaConnection):
    """The topic of a live source.

    Attributes:
        topic: The topic; it must exist.
        format: The format of the messages; None is the source's format, or ``json``.
        columns: Declared columns that come from beside the payload: from ``key``, ``timestamp``,
            ``offset``, ``partition``, ``header:NAME`` or ``last_header:NAME``.
        tombstones: What becomes of a message without a value.
        schema: A file with the schema of avro, or with the descriptors of protobuf.
        message: The full name of protobuf's message type.
        frame: What stands before a record of avro; None is ``registry`` with a registry, else
            ``none``.
        registry: Where the schemas of avro or protobuf are registered.
        start: Where the stream begins: at the messages of ``evaluate_until`` (``handoff``), at the
            ``earliest``, at the ``latest``, or at those of an instant.
        clock: What a silent partition is timed by: ``wall``, or for producers that replay the past
            ``messages``, the newest timestamp of a message.
        quiet_us: How long a message may be on its way to the broker: so much less is the watermark
            of a silent partition.
    """

    topic: str
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tombstones: str = REJECT_TOMBSTONES
    schema: Path | None = None
    message: str | None = None
    frame: str | None = None
    registry: SchemaRegistry | None = None
    start: str | int = HANDOFF
    clock: str = "wall"
    quiet_us: int = 2 * SECOND


def read_kafka(value: Value, folder: Path) -> KafkaTopic:
    """Read the section of a topic; relative paths are below ``folder``.

    Raises:
        ConfigurationError: A value cannot be used, or does not go with another.
    """
    section = value.section(KAFKA_KEYS)
    topic = read_topic(section)
    found = section.read(
        {
            "format": lambda value: value.one_of(PAYLOADS),
            "start": _start,
            "clock": lambda value: value.one_of(CLOCKS),
            "quiet": Value.duration_us,
            "columns": _columns,
            "tombstones": lambda value: value.one_of(TOMBSTONES),
            "schema": lambda value: folder / value.text(),
            "message": Value.text,
            "frame": Value.text,
            "registry": lambda value: read_schema_registry(value, folder),
        }
    )
    return KafkaTopic(topic=topic, **found, **read_connection(section, folder))


def _start(value: Value) -> str | int:
    if getattr(value.node, "value", None) in (HANDOFF, EARLIEST, LATEST):
        return value.text()
    try:
        return value.instant_us()
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; or {HANDOFF}, {EARLIEST} or {LATEST}") from None


def _columns(value: Value) -> dict[str, str]:
    found = {name: source.text() for name, source in value.section().values.items()}
    try:
        Metadata(found)
    except ConfigurationError as error:
        raise value.wrong(str(error)) from None
    return found
