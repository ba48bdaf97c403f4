"""Messages of producers of two versions in one topic, read by either version of the project.

==================  ===========  =====  =================  ============================
producers           json         arrow  avro               protobuf
==================  ===========  =====  =================  ============================
without the column  null         null   null, its default  null; without presence its
                                                           default
of a narrower type  as a number  cast   cast               cast, by the message's own
                                                           schema
with more columns   left out     left   left out           left out
                                 out
==================  ===========  =====  =================  ============================
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.descriptors import class_of, file_of, message_of, set_of
from tests.support.judged import read_stream
from tests.support.payloads import judged, messages
from tests.support.schema_registry import schema_registry
from tidemill import EventStream
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.payloads.arrow_rows import ArrowDecoder
from tidemill.pipelines.io.payloads.avro_rows import REGISTRY_FRAME, AvroDecoder
from tidemill.pipelines.io.payloads.decoding import Decoder
from tidemill.pipelines.io.payloads.json_rows import JsonDecoder
from tidemill.pipelines.io.payloads.protobuf_rows import ProtobufDecoder
from tidemill.pipelines.io.payloads.registry import Registry, RegistryPlace

BEFORE = EventStream(
    "orders",
    {"id": "string", "at": "timestamp", "n": "int64", "x": "int64"},
    event_time="at",
    event_id="id",
)
AFTER = replace(
    BEFORE,
    schema={**BEFORE.schema, "x": "float64", "tip": "float64"},
    optional=["tip"],
    widened={"x": "int64"},
)
AT = "2026-01-31T17:05:00Z"
OLD = [{"id": "a", "at": AT, "n": 1, "x": 3}, {"id": "b", "at": AT, "n": None, "x": None}]
NEW = [
    {"id": "c", "at": AT, "n": 2**40, "x": 3.5, "tip": 0.25},
    {"id": "d", "at": AT, "n": 2, "x": 4.0, "tip": None},
]
READ = [
    {"id": "a", "n": 1, "x": 3.0, "tip": None},
    {"id": "b", "n": None, "x": None, "tip": None},
    {"id": "c", "n": 2**40, "x": 3.5, "tip": 0.25},
    {"id": "d", "n": 2, "x": 4.0, "tip": None},
]
Made = tuple[Callable[[EventStream], Decoder], list[bytes], list[bytes]]


def reader(definition: EventStream) -> Reader:
    return Reader("orders", list(definition.schema))


@contextmanager
def json_messages(_: Path) -> Iterator[Made]:
    old, new = ([json.dumps(row).encode() for row in rows] for rows in (OLD, NEW))
    yield lambda of: JsonDecoder(reader(of)), old, new


@contextmanager
def arrow_messages(_: Path) -> Iterator[Made]:
    def streams(rows: Sequence[Any], schema: pa.Schema) -> list[bytes]:
        found = []
        for row in rows:
            sink = io.BytesIO()
            with pa.ipc.new_stream(sink, schema) as writer:
                writer.write_batch(pa.RecordBatch.from_pylist([row], schema))
            found.append(sink.getvalue())
        return found

    texts = [("id", pa.string()), ("at", pa.string())]
    old = pa.schema([*texts, ("n", pa.int32()), ("x", pa.int64())])
    new = pa.schema([*texts, ("n", pa.int64()), ("x", pa.float64()), ("tip", pa.float32())])
    yield lambda of: ArrowDecoder(reader(of)), streams(OLD, old), streams(NEW, new)


AVRO_OLD = {"id": "string", "at": "string", "n": ["null", "int"], "x": ["null", "long"]}
AVRO_NEW = {
    "id": "string",
    "at": "string",
    "n": ["null", "long"],
    "x": ["null", "double"],
    "tip": ["null", "double"],
}


def record(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "record",
        "name": "Order",
        "fields": [
            {"name": name, "type": kind} | ({"default": None} if name == "tip" else {})
            for name, kind in fields.items()
        ],
    }


def framed(id: int, payload: bytes) -> bytes:
    return b"\0" + id.to_bytes(4, "big") + payload


def avro(id: int, fields: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[bytes]:
    found = []
    for row in rows:
        sink = io.BytesIO()
        fastavro.schemaless_writer(sink, fastavro.parse_schema(record(fields)), row)
        found.append(framed(id, sink.getvalue()))
    return found


@contextmanager
def avro_messages(folder: Path, *, own: bool = False) -> Iterator[Made]:
    path = None
    if own:
        path = folder / "orders.avsc"
        path.write_text(json.dumps(record(AVRO_NEW)))
    with schema_registry() as server:
        for id, fields in ((1, AVRO_OLD), (2, AVRO_NEW)):
            server.register(id, json.dumps(record(fields)))
        registry = Registry(RegistryPlace(server.url))
        yield (
            lambda of: AvroDecoder(reader(of), path, registry, REGISTRY_FRAME),
            avro(1, AVRO_OLD, OLD),
            avro(2, AVRO_NEW, NEW),
        )


@contextmanager
def avro_resolved(folder: Path) -> Iterator[Made]:
    with avro_messages(folder, own=True) as made:
        yield made


PROTO_OLD = file_of(
    "old",
    message_of("Order", optional=("n", "x"), id="string", at="string", n="int32", x="int64"),
)
PROTO_NEW = file_of(
    "new",
    message_of(
        "Order", optional=("n", "x", "tip"), id="string", at="string", n="int64", x="double",
        tip="double",
    ),
)  # fmt: skip


def protobuf(file: Any, rows: Sequence[dict[str, Any]]) -> list[bytes]:
    kind = class_of(file)
    given = [{name: value for name, value in row.items() if value is not None} for row in rows]
    return [kind(**row).SerializeToString() for row in given]


@contextmanager
def protobuf_messages(_: Path) -> Iterator[Made]:
    with schema_registry() as server:
        for id, file in ((1, PROTO_OLD), (2, PROTO_NEW)):
            text = base64.b64encode(file.SerializeToString()).decode()
            server.register(id, text, "PROTOBUF", query="?format=serialized")
        registry = Registry(RegistryPlace(server.url))
        yield (
            lambda of: ProtobufDecoder(reader(of), message="shop.Order", registry=registry),
            [framed(1, b"\0" + one) for one in protobuf(PROTO_OLD, OLD)],
            [framed(2, b"\0" + one) for one in protobuf(PROTO_NEW, NEW)],
        )


KINDS = [json_messages, arrow_messages, avro_messages, avro_resolved, protobuf_messages]


def accepted(made: Callable[[EventStream], Decoder], of: EventStream, values: list[bytes]) -> Any:
    rows, refused, _ = judged(of, made(of), messages(values))
    return [{name: row[name] for name in of.schema if name != "at"} for row in rows], [
        one["reason"] for one in refused
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_both_versions_are_read_together(tmp_path: Path, kind: Any) -> None:
    with kind(tmp_path) as (made, old, new):
        assert accepted(made, AFTER, [*old, *new]) == (READ, [])
        # In turn, as in a topic that both send to.
        assert accepted(made, AFTER, [old[0], new[0], old[1], new[1]]) == (
            [READ[0], READ[2], READ[1], READ[3]],
            [],
        )


@pytest.mark.parametrize("kind", [json_messages, arrow_messages, avro_messages, protobuf_messages])
def test_the_version_before_leaves_the_new_column_out(tmp_path: Path, kind: Any) -> None:
    with kind(tmp_path) as (made, old, new):
        rows, reasons = accepted(made, BEFORE, [*old, *new])
        assert [row["id"] for row in rows] == ["a", "b"]
        # 3.5 and even 4.0 are no int64: the rows are rejected, and can be fed in again.
        assert reasons == [Reason.WRONG_TYPE] * 2
        names = list(rows[0])
        assert names == ["id", "n", "x"]


@pytest.mark.parametrize("kind", [arrow_messages, avro_messages, protobuf_messages])
def test_a_column_that_is_not_optional_is_missed(tmp_path: Path, kind: Any) -> None:
    strict = replace(AFTER, optional=[])
    with kind(tmp_path) as (made, old, new):
        rows, reasons = accepted(made, strict, [*old, *new])
        assert [row["id"] for row in rows] == ["c", "d"]
        assert reasons == [Reason.MISSING_COLUMN] * 2


def test_protobuf_takes_a_field_of_another_wire_type_for_none(tmp_path: Path) -> None:
    """Why a double needs the schemas of a registry, or a field of another number."""
    path = tmp_path / "order.desc"
    path.write_bytes(set_of(PROTO_NEW))
    old = protobuf(PROTO_OLD, OLD)
    decoder = ProtobufDecoder(reader(AFTER), path, "shop.Order")
    rows, _ = accepted(lambda _: decoder, AFTER, old)
    assert [row["x"] for row in rows] == [None, None]
    assert [row["n"] for row in rows] == [1, None]


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
def test_files_of_both_versions_are_read_together(tmp_path: Path, name: str) -> None:
    paths = []
    for number, rows in enumerate((OLD, NEW)):
        path = tmp_path / f"{number}.{name}"
        if name == "csv":
            lines = [",".join(rows[0])]
            for row in rows:
                lines.append(",".join("" if v is None else str(v) for v in row.values()))
            path.write_text("\n".join(lines) + "\n")
        elif name == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)) + "\n")
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
        paths.append(path)
    found = list(read_stream(AFTER, paths))
    kept = [row for batch in found for row in batch.batch.to_pylist()]
    assert [{name: row[name] for name in row if name != "at"} for row in kept] == READ
    assert sum(batch.rejected.num_rows for batch in found) == 0
