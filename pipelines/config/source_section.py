"""A source of the YAML file: the files or the topic of an event stream or of the requests.

```yaml
sources:
  orders:
    files: [events/orders-*.csv]  # paths, globs, or package://NAME/PATH in an installed package
    format: csv                 # optional: csv, jsonl or parquet; by default by extension
    nulls: ["", NA]             # optional: texts that mean null; by default the empty csv cell
    zone: Europe/Berlin         # optional: of times without an offset
    ambiguous: first            # optional: first, last or infer, for local times that occur twice
    transform: ingest:orders    # optional: raw RecordBatch -> RecordBatch, before validation
    partitions: 1               # optional: partitions of the replay log made from it
    received: received_at       # optional, instead of partitions: each file is a log
    kafka: {bootstrap: "localhost:9092", topic: orders}   # optional: where it goes on, live
    max_rejected: 0.1           # optional: the share of rows that may be rejected
```
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidemill.features import zones
from tidemill.features.definitions import TIMESTAMP, EventStream, Project
from tidemill.features.errors import DefinitionError, nearest
from tidemill.features.rows.local_times import INFER, RULES
from tidemill.pipelines.config.kafka_section import PAYLOADS, KafkaTopic, read_kafka
from tidemill.pipelines.config.project_import import import_attribute
from tidemill.pipelines.config.strict_yaml import Section, Value, or_null
from tidemill.pipelines.io.files import input_files
from tidemill.pipelines.io.payloads.decoders import OPTIONS

MAX_REJECTED: Final = 0.1
"""The default of `Source.max_rejected`."""

_FORMATS: Final = tuple(sorted(set(input_files.FORMATS.values())))

SOURCE_KEYS: Final = (
    "files", "format", "nulls", "zone", "ambiguous", "transform", "partitions", "received",
    "max_rejected", "kafka",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """The files of an event stream or of the requests, and the topic where they go on.

    Attributes:
        name: The stream's or the request's name.
        files: Patterns (`pipelines.io.files.input_files.find_files`): absolute, or ``package://``;
            a source with a topic may have none.
        format: ``csv``, ``jsonl`` or ``parquet``; None goes by each file's extension. Of a source
            with a topic it may be the format of the messages, ``json``.
        nulls: Texts that mean null; None is the format's default.
        zone: The IANA zone of times without an offset; None refuses such times.
        ambiguous: The rule for local times that occurred twice (`features.rows.local_times.RULES`);
            None rejects their rows.
        transform: Applied to raw batches before validation.
        partitions: The number of partitions of the replay log.
        received: The timestamp column with the time at which the log received a row. Each file
            is then a partition in order of arrival, and rows that are too late or ahead are
            rejected. None: the files are a table without an order of arrival. Rows of messages
            have the message's timestamp there.
        max_rejected: The greatest share of the rows (0 to 1) that may be rejected before a command
            that reads the source fails (`pipelines.ingest.rejected_shares`).
        kafka: The topic where the source goes on; None of files alone.
    """

    name: str
    files: tuple[str, ...]
    format: str | None = None
    nulls: tuple[str, ...] | None = None
    zone: str | None = None
    ambiguous: str | None = None
    transform: Callable[[Any], Any] | None = None
    partitions: int = 1
    received: str | None = None
    max_rejected: float = MAX_REJECTED
    kafka: KafkaTopic | None = None

    @property
    def is_live(self) -> bool:
        """Whether its rows come as they happen. Files do not: they are replayed."""
        return self.kafka is not None

    def find_files(self) -> list[Path]:
        """Return the files that match the patterns now.

        Raises:
            ConfigurationError: A pattern matches no file.
        """
        return input_files.find_files(self.files) if self.files else []


def read_source(project: Project, name: str, section: Section, folder: Path) -> Source:
    """Read the section of a source.

    Args:
        project: The project, which declares the source's columns.
        name: The stream's or the request's name.
        section: The section, with keys of `SOURCE_KEYS`.
        folder: Where relative paths and the modules of transforms are.

    Raises:
        ConfigurationError: A value cannot be used, or does not go with another.
    """
    topic = section.optional("kafka", lambda value: read_kafka(value, folder), None)
    patterns: tuple[str, ...] = ()
    if topic is None or "files" in section.values:
        files = section.required("files")
        patterns = files.texts()
        if not patterns or "" in patterns:
            raise files.wrong("expected at least one file, such as [events/*.csv], and none empty")
    if topic is not None:
        _check_topic(section, project, name)
    if {"partitions", "received"} <= section.values.keys():
        raise section.values["partitions"].wrong(
            "a source with 'received' is a log, whose files are its partitions; remove one of the "
            "two keys"
        )
    _check_ambiguous(section)
    return Source(
        name=name,
        files=tuple(
            pattern if pattern.startswith(input_files.PACKAGE) else str(folder / pattern)
            for pattern in patterns
        ),
        kafka=topic,
        **section.read(
            {
                "format": or_null(lambda value: _format(value, topic)),
                "nulls": or_null(Value.texts),
                "zone": or_null(_zone),
                "ambiguous": or_null(lambda value: value.one_of(RULES)),
                "transform": or_null(lambda value: _transform(value, folder)),
                "partitions": Value.count,
                "max_rejected": Value.share,
                "received": or_null(lambda value: _received(value, project, name)),
            }
        ),
    )


def _format(value: Value, topic: KafkaTopic | None) -> str:
    return value.one_of(_FORMATS if topic is None else (*_FORMATS, *PAYLOADS))


def _check_topic(section: Section, project: Project, name: str) -> None:
    """Refuse what a source with a topic cannot have, or lacks."""
    given = {key for key, value in section.values.items() if not value.is_null}
    where = section.values["kafka"]
    if "partitions" in given:
        raise section.values["partitions"].wrong(
            "the partitions of a source with a topic are those of the topic, after one of each "
            "file; remove the key"
        )
    if "received" not in given:
        raise where.wrong(
            "a source with a topic needs 'received': the transport column that holds the timestamp "
            "of each message"
        )
    if "format" in given:
        value = section.values["format"]
        is_payload = value.text() in PAYLOADS
        if is_payload and ("format" in where.section().values or "files" in given):
            raise value.wrong(
                "is the format of messages, and the source has files too; name it in 'kafka'"
            )
        if not is_payload and "files" not in given:
            raise value.wrong(
                f"is a format of files, and the source has none; messages are one of "
                f"{', '.join(PAYLOADS)}"
            )
    _check_options(section)
    schema = project.definition(name).schema
    if "columns" in where.section().values:
        for column, value in where.section().values["columns"].section().values.items():
            if column not in schema:
                raise value.wrong(f"{name!r} has no column {column!r}; {nearest(column, schema)}")


def _check_options(section: Section) -> None:
    """Refuse what the format of a topic's messages does not take, or lacks."""
    topic = section.values["kafka"].section().values
    named = topic.get("format") or section.values.get("format")
    text = None if named is None or named.is_null else named.text()
    of_messages = text if text in OPTIONS else "json"  # it may be the format of the files
    taken = OPTIONS[of_messages]
    for key in sorted({key for keys in OPTIONS.values() for key in keys} & topic.keys()):
        if key not in taken:
            takes = " or ".join(name for name, keys in OPTIONS.items() if key in keys)
            raise topic[key].wrong(
                f"messages of the format {of_messages!r} have none; remove the key, or name their "
                f"format, such as {takes}"
            )
    if taken and not {"schema", "registry"} & topic.keys():
        raise section.values["kafka"].wrong(
            f"messages of the format {of_messages!r} need a 'schema' or a 'registry'"
        )


def _check_ambiguous(section: Section) -> None:
    """Refuse a rule for repeated local times that could not decide anything."""
    given = {name for name, value in section.values.items() if not value.is_null}
    if "ambiguous" not in given:
        return
    value = section.values["ambiguous"]
    if "zone" not in given:
        raise value.wrong(
            "without 'zone' no local time is read at all; name the zone of the source's times, or "
            "remove the key"
        )
    if value.text() == INFER and "received" not in given:
        raise value.wrong(
            f"{INFER} takes the instant that fits the time of receipt, and the source has no "
            "'received'; name that column, or choose first or last"
        )


def _received(value: Value, project: Project, name: str) -> str:
    definition = project.definition(name)
    times = [column for column, dtype in definition.schema.items() if dtype == TIMESTAMP]
    column = value.text()
    if column not in times:
        raise value.wrong(f"{name!r} has no timestamp column {column!r}; {nearest(column, times)}")
    if isinstance(definition, EventStream) and column not in definition.transport:
        raise value.wrong(
            f"{column!r} is no transport column of stream {name!r}, so an event that is delivered "
            f"again would count twice; declare EventStream({name!r}, transport=[{column!r}], ...)"
        )
    return column


def _zone(value: Value) -> str:
    name = value.text()
    try:
        zones.zone(name)
    except DefinitionError as error:
        raise value.wrong(str(error)) from None
    return name


def _transform(value: Value, folder: Path) -> Callable[[Any], Any]:
    transform = import_attribute(value, folder)
    if not callable(transform):
        raise value.wrong(
            f"{value.text()} is a {type(transform).__name__}, expected a function from a "
            "RecordBatch to a RecordBatch"
        )
    found: Callable[[Any], Any] = transform
    return found
