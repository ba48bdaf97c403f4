"""The topics that a stream writes to, in the YAML file.

```yaml
predictions:
  kafka:
    bootstrap: localhost:9092     # and the other keys of `pipelines.config.kafka_connection`
    topic: predictions
    compression: zstd             # optional: none (default), gzip, lz4, snappy or zstd
    give_up_after: 10m            # optional: how long the broker may be away
rejected:                         # optional: the same for rejected records
  kafka: {bootstrap: localhost:9092, topic: rejected}
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.features.contract import MINUTE
from tidemill.pipelines.config.kafka_connection import (
    CONNECTION_KEYS,
    KafkaConnection,
    read_connection,
    read_topic,
)
from tidemill.pipelines.config.kafka_section import KafkaTopic
from tidemill.pipelines.config.strict_yaml import Section, Value

PREDICTIONS: Final = "predictions"
REJECTED: Final = "rejected"
SINKS: Final = (PREDICTIONS, REJECTED)
"""The sections that name a topic which a stream writes to."""
SINK_KEYS: Final = ("topic", "compression", "give_up_after", *CONNECTION_KEYS)
COMPRESSIONS: Final = ("none", "gzip", "lz4", "snappy", "zstd")


@dataclass(frozen=True, kw_only=True)
class KafkaSink(KafkaConnection):
    """A topic that the stream writes to, exactly once for readers of committed messages.

    ``predictions`` names that of predictions, and ``rejected`` that of rejected records.

    Attributes:
        topic: The topic; it must exist.
        compression: How messages are compressed: ``none``, ``gzip``, ``lz4``, ``snappy`` or
            ``zstd``.
        give_up_after_us: How long the broker may be away before the stream fails.
    """

    topic: str
    compression: str = "none"
    give_up_after_us: int = 10 * MINUTE


def read_sinks(top: Section, folder: Path) -> dict[str, KafkaSink]:
    """Read the topics that a stream writes to, by section; relative paths are below ``folder``.

    Raises:
        ConfigurationError: A value cannot be used, or does not go with another.
    """
    return {
        name: _sink(top.values[name].section(("kafka",)).required("kafka"), folder)
        for name in SINKS
        if name in top.values
    }


def check_not_read(
    top: Section, sinks: Mapping[str, KafkaSink], sources: Mapping[str, KafkaTopic | None]
) -> None:
    """Check that a stream does not write to a topic that it reads: it would read on for ever.

    Args:
        top: The file.
        sinks: The topics that the stream writes to, by section.
        sources: The topics that it reads, by source; None of a source of files.

    Raises:
        ConfigurationError: A section names the topic of a source, at one of its brokers.
    """
    for name, sink in sinks.items():
        for source, topic in sources.items():
            if topic is None or topic.topic != sink.topic:
                continue
            if set(topic.bootstrap) & set(sink.bootstrap):
                raise top.values[name].wrong(
                    f"{sink.topic!r} is the topic of the source {source!r}, so the stream would "
                    "read what it writes, without an end; name another topic"
                )


def _sink(value: Value, folder: Path) -> KafkaSink:
    section = value.section(SINK_KEYS)
    found = section.read(
        {
            "compression": lambda value: value.one_of(COMPRESSIONS),
            "give_up_after": Value.duration_us,
        }
    )
    return KafkaSink(topic=read_topic(section), **found, **read_connection(section, folder))
