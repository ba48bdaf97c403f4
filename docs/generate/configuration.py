"""The page of the YAML file, made from the classes of `pipelines.config`."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from docs.generate.docstrings import constants, entries, sentence, summary, table
from tidemill.features.bigquery_dataset import BigQueryDataset
from tidemill.features.contract import format_duration
from tidemill.features.rows.local_times import RULES
from tidemill.pipelines.config import (
    archive_section,
    configuration,
    inference_section,
    kafka_section,
    offline_section,
    online_section,
    project_import,
    registry_section,
    sink_section,
    source_section,
    telemetry_section,
)
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.config.choices import ENGINES, LOG_FORMATS, LOG_LEVELS, MODES
from tidemill.pipelines.config.configuration import Configuration, Splits, StreamOptions, Training
from tidemill.pipelines.config.inference_section import InferenceOptions
from tidemill.pipelines.config.kafka_connection import CLIENTS, MECHANISMS
from tidemill.pipelines.config.kafka_section import (
    CLOCKS,
    EARLIEST,
    HANDOFF,
    LATEST,
    KafkaTopic,
)
from tidemill.pipelines.config.live_settings import LIVE_KEYS
from tidemill.pipelines.config.schema_registry import REGISTRY_KEYS, SchemaRegistry
from tidemill.pipelines.config.sink_section import KafkaSink
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.config.telemetry_section import LogOptions, MetricsPage, TraceOptions
from tidemill.pipelines.io.files import input_files, judged_rows
from tidemill.pipelines.io.payloads.avro_rows import FRAMES
from tidemill.pipelines.io.payloads.decoders import FORMATS
from tidemill.pipelines.io.payloads.decoding import TOMBSTONES
from tidemill.serving.stores.offline_places import ParquetPlace
from tidemill.serving.stores.online_places import ONLINE, FeastPlace, SqlitePlace
from tidemill.serving.stores.redis_place import RedisPlace, RedisTls
from tidemill.serving.stores.registry_places import REGISTRY, FileRegistry, SqlRegistry


@dataclass(frozen=True)
class Described:
    """A section of the file.

    Attributes:
        title: Its heading.
        keys: The keys that it takes (`pipelines.config`).
        documented: The class whose fields its keys fill.
        example: Its lines in a file, where they are not in `EXAMPLE`: the keys that go together.
        other: Such lines with the keys that exclude some of those.
        names: Key to the field that it fills, where the two differ.
        choices: Key to the texts that it takes, if they are few.
        defaults: Key to its default, where the reader and not the class has it.
        required: The keys without a default.
    """

    title: str
    keys: Sequence[str]
    documented: type
    example: str = ""
    other: str = ""
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    choices: dict[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    defaults: dict[str, str] = dataclasses.field(default_factory=dict)
    required: tuple[str, ...] = ()


EXAMPLE: Final = """\
project: project:project
root: ./run
shards: 4
sources:
  orders:
    files: [events/orders-*.csv]
    format: csv
    nulls: ["", NA]
    zone: Europe/Berlin
    ambiguous: first
    transform: ingest:orders
    partitions: 2
    max_rejected: 0.3
  checkouts:
    files: [events/checkouts.jsonl]
    received: received_at
splits: &splits
  train_until: 2026-02-01T00:00:00Z
  evaluate_until: 2026-02-15T00:00:00Z
  stream_until: 2026-03-01T00:00:00Z
sample:
  train_until: 2026-01-05T00:00:00Z
  evaluate_until: 2026-01-06T00:00:00Z
  stream_until: 2026-01-07T00:00:00Z
training:
  epochs: 8
  batch_size: 256
  learning_rate: 0.01
  seeds: 3
  seed: 7
  rate_groups: [amount_bin]
  keep_bundles: 10
online_store: {type: sqlite, path: store.db, give_up_after: 20m}
offline_store: {type: parquet, memory_limit: 2GB, threads: 4, spill: scratch}
registry: {type: file, path: features.db}
stream:
  engine: prism
  mode: eager
  poll_rows: 512
  speed: 60
  answer_within: 10m
  savepoint_every: 30s
  keep_live: 30d
  gap_batches: 200
  joiners: 2
  readers: 2
  inference: {accelerator: "type:nvidia-l4;count:1;install-nvidia-driver", min_ram: 8GB}
  exchange: "s3://bucket/tidemill?region=eu-west-1"
predictions: {kafka: {bootstrap: "localhost:9092", topic: predictions}}
rejected: {kafka: {bootstrap: "localhost:9092", topic: rejected}}
metrics: {listen: "localhost:9464"}
logging: {format: json, level: info}
tracing: {endpoint: "http://localhost:4318"}
""".replace("splits: &splits", "splits:")
"""A file with every key of the sections that every project has."""

LIVE: Final = """\
sources:
  orders: {{files: [events/orders-*.csv]}}
  checkouts:
    files: [events/checkouts.jsonl]
    received: received_at
    kafka:
{kafka}
splits: {{train_until: 2026-02-01T00:00:00Z, evaluate_until: 2026-02-15T00:00:00Z}}
sample: null"""
"""The sections of a project with a source that goes on in a topic."""
TOPIC: Final = """\
      bootstrap: "broker-1:9093,broker-2:9093"
      topic: checkouts
      format: avro
      schema: checkout.avsc
      frame: registry
      registry: {url: "http://schemas:8081", user: tidemill, password_env: SCHEMAS, ca: ca.pem}
      columns: {customer: key}
      tombstones: ignore
      start: earliest
      clock: messages
      quiet: 5s
      tls: true
      username: tidemill
      password_env: KAFKA_PASSWORD
      mechanism: PLAIN
      client: confluent-kafka"""
PROTOBUF_TOPIC: Final = """\
      bootstrap: "broker-1:9093"
      topic: checkouts
      format: protobuf
      schema: checkout.desc
      message: shop.Checkout
      username: tidemill
      password_file: kafka-password"""
ARCHIVED: Final = LIVE.format(kafka=TOPIC) + "\narchive: {folder: archive, every: 5m, keep: 400d}"

SECTIONS: Final = (
    Described(
        "Top level", configuration.KEYS, Configuration,
        names={"project": "project_name"},
        defaults={
            "shards": "2", "registry": f"a file, `{REGISTRY}`", "sample": "none",
            "online_store": f"SQLite, `{ONLINE}`", "offline_store": "Parquet",
        },
        other=ARCHIVED, required=("project", "root", "sources"),
    ),
    Described(
        "sources: NAME", source_section.SOURCE_KEYS, Source,
        choices={
            "format": sorted({*input_files.FORMATS.values(), *FORMATS}), "ambiguous": RULES,
        },
        other=LIVE.format(kafka=TOPIC),
        defaults={"files": "required, unless the source has a topic"},
    ),
    Described(
        "sources: NAME, kafka", kafka_section.KAFKA_KEYS, KafkaTopic,
        LIVE.format(kafka=TOPIC), other=LIVE.format(kafka=PROTOBUF_TOPIC),
        choices={
            "bootstrap": ["host:port,..."], "format": FORMATS, "clock": CLOCKS,
            "columns": ["column: from"], "tombstones": TOMBSTONES, "frame": FRAMES,
            "start": [HANDOFF, EARLIEST, LATEST, "an instant"], "mechanism": MECHANISMS,
            "client": CLIENTS,
        },
        defaults={"columns": "none"},
        required=("bootstrap", "topic"),
    ),
    Described(
        "sources: NAME, kafka, registry", REGISTRY_KEYS, SchemaRegistry,
        LIVE.format(kafka=TOPIC), required=("url",),
    ),
    Described(
        "splits, sample", configuration.SPLIT_KEYS, Splits,
        required=configuration.SPLIT_KEYS,
    ),
    Described("training", tuple(configuration.TRAINING_KEYS), Training),
    Described(
        "stream", tuple(configuration.STREAM_KEYS), StreamOptions,
        choices={"engine": ENGINES, "mode": MODES},
    ),
    Described("stream, inference", inference_section.INFERENCE_KEYS, InferenceOptions),
    Described(
        "online_store: sqlite", online_section.SQLITE_KEYS, SqlitePlace,
        "online_store: {type: sqlite, path: store.db, give_up_after: 20m}",
        defaults={"path": f"`{ONLINE}`"},
    ),
    Described(
        "online_store: redis", online_section.REDIS_KEYS, RedisPlace,
        "online_store:\n  type: redis\n  host: redis.example\n  port: 6380\n  db: 1\n"
        "  username: tidemill\n  password_env: REDIS_PASSWORD\n"
        "  tls: {ca: ca.crt, cert: own.crt, key: own.key}\n  timeout: 2s\n  give_up_after: 20m",
        other="online_store: {type: redis, username: tidemill, password_file: redis-password}",
        required=("type",),
    ),
    Described(
        "online_store: redis, tls", online_section.TLS_KEYS, RedisTls,
        "online_store: {type: redis, tls: {ca: ca.crt, cert: own.crt, key: own.key}}",
    ),
    Described(
        "online_store: feast", online_section.FEAST_KEYS, FeastPlace,
        "online_store:\n  type: feast\n  options: {type: postgres, host: db.example, "
        "password: \"${DB_PASSWORD}\"}\n  give_up_after: 20m",
        required=("type", "options"),
    ),
    Described(
        "offline_store: parquet", offline_section.PARQUET_KEYS, ParquetPlace,
        "offline_store: {type: parquet, memory_limit: 2GB, threads: 4, spill: scratch}",
    ),
    Described(
        "offline_store: bigquery", offline_section.BIGQUERY_KEYS, BigQueryDataset,
        "offline_store: {type: bigquery, project: some-project, dataset: features}",
        required=("type", "project", "dataset"),
    ),
    Described(
        "registry: file", ("type", "path"), FileRegistry,
        "registry: {type: file, path: features.db}", defaults={"path": f"`{REGISTRY}`"},
    ),
    Described(
        "registry: sql", registry_section.REGISTRY_KEYS, SqlRegistry,
        "registry: {type: sql, path: \"postgresql+psycopg://feast@db.example/feast\"}",
        other="registry: {type: sql, path_env: REGISTRY_URL}",
        names={"path": "url", "path_env": "url_env"}, required=("type",),
    ),
    Described(
        "predictions: kafka", sink_section.SINK_KEYS, KafkaSink,
        "predictions:\n  kafka:\n    bootstrap: \"broker-1:9093,broker-2:9093\"\n"
        "    topic: predictions\n    compression: zstd\n    give_up_after: 20m\n    tls: true\n"
        "    username: tidemill\n    password_env: KAFKA_PASSWORD\n    mechanism: PLAIN"
        "\n    client: confluent-kafka",
        other="rejected:\n  kafka: {bootstrap: \"broker-1:9093\", topic: rejected, "
        "username: tidemill, password_file: kafka-password}",
        choices={
            "bootstrap": ["host:port,..."], "compression": sink_section.COMPRESSIONS,
            "mechanism": MECHANISMS,
            "client": CLIENTS,
        },
        required=("bootstrap", "topic"),
    ),
    Described(
        "archive", archive_section.ARCHIVE_KEYS, Archive,
        ARCHIVED, required=("folder",),
    ),
    Described(
        "metrics", telemetry_section.METRICS_KEYS, MetricsPage, required=("listen",),
    ),
    Described(
        "logging", telemetry_section.LOGGING_KEYS, LogOptions,
        "logging: {format: json, level: info}",
        choices={"format": LOG_FORMATS, "level": LOG_LEVELS},
    ),
    Described(
        "tracing", telemetry_section.TRACING_KEYS, TraceOptions, required=("endpoint",),
    ),
)  # fmt: skip
"""Every section, in the order of the file."""

TRANSFORM: Final = '''\
import pyarrow as pa
import pyarrow.compute as pc


def orders(raw: pa.RecordBatch) -> pa.RecordBatch:
    """Give amounts in euros; reject those without a currency; drop test orders."""
    euros = pc.divide(pc.cast(raw["cents"], pa.float64()), 100.0)
    no_currency = pc.is_null(raw["currency"])
    return pa.RecordBatch.from_pydict(
        {
            "order": raw["order"],
            "ordered_at": raw["ordered_at"],
            "customer": raw["customer"],
            "amount": euros,
            "__reject__": pc.if_else(no_currency, "it has no currency", None),
            "__drop__": pc.equal(raw["customer"], "test"),
        }
    )
'''
"""The function that `EXAMPLE` names."""

_KINDS: Final = {
    str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path",
    tuple: "list of texts",
}  # fmt: skip


_FAILS: Final = (
    "It takes and returns a `pyarrow.RecordBatch`; an exception in it, or another number of rows, "
    "ends the command with an error that names the function."
)


def render() -> str:
    """Return the page."""
    lines = [
        "# Configuration",
        "",
        "<!-- Made by `make docs` from pipelines/config/; do not edit. -->",
        "",
        *_introduction(),
        "",
        "## A file with all sections",
        "",
        "```yaml",
        EXAMPLE.rstrip(),
        "```",
        "",
    ]
    for section in SECTIONS:
        lines += [f"## {section.title}", "", summary(section.documented), ""]
        rows = [row(section, key) for key in section.keys]
        lines += [table(["key", "type", "default", "example", "meaning"], rows), ""]
        for example in filter(None, (section.example, section.other)):
            lines += ["```yaml", example, "```", ""]
    return "\n".join([*lines, *_live(), *_transform()])


def _live() -> list[str]:
    """Return the section on what a stream that runs takes over."""
    rows = [[f"`{key}`", f"{when}"] for key, when in LIVE_KEYS.items()]
    return [
        "## What a stream takes over while it runs",
        "",
        "`tidemill reload` lets the stream that runs, on whatever engine, read its file again. It",
        "takes over these keys:",
        "",
        table(["key", "when"], rows),
        "",
        "It prints what the stream has taken over, and what else differs and waits for a restart",
        "(`tidemill stream --resume`); `tidemill status` shows both, and the stream logs them as",
        "the event `reload`. A file that cannot be used is refused by the command; the stream goes",
        "on with what it has. No other key is live: workers of an engine are other processes, and",
        "what values depend on (views, shards, `answer_within`, a topic's `quiet`) belongs to a",
        "restart or to `tidemill upgrade`. SIGHUP does not reload: it comes when a terminal is",
        "closed, and ends a stream in order.",
        "",
    ]


def _introduction() -> list[str]:
    """Return the promises in the docstring of the module that reads the file."""
    text = (configuration.__doc__ or "").partition("\n\n")[2].partition("```yaml")[0]
    return re.sub(r" \(`[\w.]+`\)", "", text).strip().replace("``", "`").splitlines()


def row(section: Described, key: str) -> list[str]:
    """Return a key's row: key, type, default, example, meaning."""
    if key == "type":
        kind = section.title.rpartition(" ")[2]
        needed = "required" if "type" in section.required else f"`{kind}`"
        return ["`type`", "text", needed, f"`{kind}`", "What kind of store it is."]
    documented, name = field_of(section, key)
    field = {one.name: one for one in dataclasses.fields(documented)}[name]
    kind = _kind(documented, field)
    if key in section.choices:
        kind = " or ".join(f"`{choice}`" for choice in section.choices[key])
    if key in section.required:
        default = "required"
    else:
        default = section.defaults.get(key) or _default(field)
    meaning = entries(documented, "Attributes")[name].replace(", in microseconds", "")
    meaning = re.sub(r"\bNone\b", "null", meaning)
    return [f"`{key}`", kind, default, _example(section, key), meaning]


def field_of(section: Described, key: str) -> tuple[type, str]:
    """Return the class and the name of the field that a key fills."""
    names = {field.name for field in dataclasses.fields(section.documented)}
    for name in (section.names.get(key, key), f"{key}_us"):
        if name in names:
            return section.documented, name
    return Configuration, f"{key}_us"


def _kind(documented: type, field: dataclasses.Field[Any]) -> str:
    if field.name.endswith("_us"):
        return "instant" if documented is Splits else "duration"
    if documented is Configuration and field.name in ("sources", "splits", "sample",
                                                      "stream", "registry", "online_store",
                                                      "offline_store"):  # fmt: skip
        return "section"
    kind = typing.get_type_hints(documented)[field.name]
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    found = next(one for one in options if one is not type(None))
    if dataclasses.is_dataclass(found):
        return "section"
    origin = typing.get_origin(found) or found
    if callable(origin) and origin not in _KINDS:
        return "section" if field.name == "options" else "`module:function`"
    return _KINDS[origin] if field.name != "project_name" else "`module:attribute`"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return (
            "the defaults below" if field.default_factory is not dataclasses.MISSING else "required"
        )
    if field.default is None:
        return "none"
    if field.name.endswith("_us"):
        return f"`{format_duration(field.default)}`"
    return f"`{list(field.default) if isinstance(field.default, tuple) else field.default}`"


def _example(section: Described, key: str) -> str:
    """Return a key's value as the example writes it; empty for a section of several lines."""
    for text in (section.example, section.other, EXAMPLE):
        for name, value in _scalars(text, yaml.compose(text, Loader=yaml.SafeLoader)):
            if name == key:
                return f"`{value}`"
    return ""


def _scalars(text: str, node: yaml.Node | None) -> Iterator[tuple[str, str]]:
    """Yield the keys of a document with their values, those of one line."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            written = text[value.start_mark.index : value.end_mark.index].strip()
            if "\n" not in written:
                yield key.value, written
            yield from _scalars(text, value)


def _transform() -> list[str]:
    marks = constants(judged_rows.__name__)
    asked = entries(judged_rows.Judge, "Args")["transform"]
    for name in ("REJECT_COLUMN", "DROP_COLUMN"):
        asked = asked.replace(f"`{name}`", f"`{getattr(judged_rows, name)}`")
    rows = [
        [f"`{getattr(judged_rows, name)}`", marks[name]]
        for name in ("REJECT_COLUMN", "DROP_COLUMN")
    ]
    return [
        "## The function of `transform`",
        "",
        f"{asked} {_FAILS}",
        "",
        table(["column", "meaning"], rows),
        "",
        sentence(f"Of its module: {(project_import.__doc__ or '').partition('Promises: ')[2]}"),
        "",
        "```python",
        "# ingest.py",
        TRANSFORM.rstrip(),
        "```",
        "",
    ]
