"""Avro messages: values as validation takes them, schemas that change, bytes that lie."""

from __future__ import annotations

import datetime
import io
import json
import pickle
import random
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest

from tests.support.payloads import checked, faults_of, messages, rejected_of, rows_of
from tests.support.schema_registry import schema_registry
from tidemill.features.errors import ConfigurationError, RegistryUnavailable
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.payloads.avro_rows import (
    REGISTRY_FRAME,
    SINGLE_OBJECT,
    AvroDecoder,
)
from tidemill.pipelines.io.payloads.decoding import IGNORE_TOMBSTONES, Decoded
from tidemill.pipelines.io.payloads.metadata import Metadata
from tidemill.pipelines.io.payloads.registry import Registry, RegistryPlace


def record(**fields: Any) -> dict[str, Any]:
    """A schema of a record; a field that may be null is null by default."""
    return {
        "type": "record",
        "name": "Order",
        "fields": [
            {"name": name, "type": kind}
            | ({"default": None} if isinstance(kind, list) and kind[0] == "null" else {})
            for name, kind in fields.items()
        ],
    }


def encoded(schema: Any, *rows: dict[str, Any]) -> list[bytes]:
    values = []
    for row in rows:
        file = io.BytesIO()
        fastavro.schemaless_writer(file, fastavro.parse_schema(schema), row)
        values.append(file.getvalue())
    return values


def written(tmp_path: Path, schema: Any) -> Path:
    path = tmp_path / "orders.avsc"
    path.write_text(schema if isinstance(schema, str) else json.dumps(schema))
    return path


def decode(decoder: AvroDecoder, values: Sequence[bytes | None]) -> list[Decoded]:
    decoded = list(decoder.decode(messages(values), 7))
    checked(decoded, 7)
    return decoded


def column(tmp_path: Path, kind: Any, *given: Any) -> tuple[pa.DataType, list[Any]]:
    """Return the type and the values of a column of an Avro type."""
    schema = record(a=kind)
    decoder = AvroDecoder(Reader("orders"), written(tmp_path, schema))
    (part,) = decode(decoder, encoded(schema, *({"a": one} for one in given)))
    array = part.raw.batch["a"]
    return array.type, array.to_pylist()


DAY = datetime.date(2024, 2, 29)
AT = datetime.datetime(2024, 2, 29, 17, 5, 0, 123_000, tzinfo=datetime.UTC)


def logical(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "logicalType": name, **more}


@pytest.mark.parametrize(
    ("kind", "given", "arrow", "value"),
    [
        ("boolean", True, pa.bool_(), True),
        ("int", -5, pa.int64(), -5),
        ("long", 2**63 - 1, pa.int64(), 2**63 - 1),
        ("float", 0.5, pa.float32(), 0.5),
        ("double", 0.1, pa.float64(), 0.1),
        ("string", "é", pa.string(), "é"),
        ("bytes", b"\xff", pa.binary(), b"\xff"),
        ({"type": "fixed", "name": "F", "size": 2}, b"ab", pa.binary(), b"ab"),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, "B", pa.string(), "B"),
        (logical("string", "uuid"), "a-b", pa.string(), "a-b"),
        (logical("long", "timestamp-millis"), AT, pa.timestamp("ms", "UTC"), AT),
        (logical("long", "timestamp-micros"), AT, pa.timestamp("us", "UTC"), AT),
        (
            logical("long", "local-timestamp-millis"),
            AT.replace(tzinfo=None),
            pa.timestamp("ms"),
            AT.replace(tzinfo=None),
        ),
        (logical("int", "date"), DAY, pa.string(), "2024-02-29"),
        (
            logical("int", "time-millis"),
            datetime.time(17, 5, 0, 1000),
            pa.string(),
            "17:05:00.001000",
        ),
        (
            logical("bytes", "decimal", precision=9, scale=2),
            Decimal("-12.50"),
            pa.string(),
            "-12.50",
        ),
        (logical("bytes", "decimal", precision=9, scale=0), Decimal(12), pa.string(), "12"),
        (logical("int", "a-type-of-theirs"), 5, pa.int64(), 5),
        ({"type": "array", "items": "int"}, [1, 2], pa.string(), "[1,2]"),
        ({"type": "map", "values": "bytes"}, {"é": b"\xff"}, pa.string(), '{"é":"ÿ"}'),
        (
            {"type": "array", "items": logical("long", "timestamp-millis")},
            [AT],
            pa.string(),
            '["2024-02-29T17:05:00.123Z"]',
        ),
        (
            {
                "type": "record",
                "name": "R",
                "fields": [{"name": "d", "type": logical("int", "date")}],
            },
            {"d": DAY},
            pa.string(),
            '{"d":"2024-02-29"}',
        ),
        (["null", "int", "string"], "x", pa.string(), "x"),
        (["null", "int", "string"], 5, pa.string(), "5"),
        (["boolean", "double"], True, pa.string(), "true"),
    ],
)
def test_values_of_every_type(
    tmp_path: Path, kind: Any, given: Any, arrow: pa.DataType, value: Any
) -> None:
    assert column(tmp_path, kind, given) == (arrow, [value])
    if not isinstance(kind, list):
        assert column(tmp_path, ["null", kind], None, given) == (arrow, [None, value])


def test_a_union_of_records_knows_which_it_is(tmp_path: Path) -> None:
    one, two = record(when=logical("int", "date")), record(when="int")
    union = ["null", one | {"name": "One"}, two | {"name": "Two"}]
    given = [("One", {"when": DAY}), ("Two", {"when": 5}), None]
    _, values = column(tmp_path, union, *given)
    assert values == ['{"when":"2024-02-29"}', '{"when":5}', None]


def test_times_and_dates_that_python_has_not(tmp_path: Path) -> None:
    schema = record(at="long", day="int")
    values = encoded(schema, {"at": 2**62, "day": 2**31 - 1})
    typed = record(at=logical("long", "timestamp-micros"), day=logical("int", "date"))
    (part,) = decode(AvroDecoder(Reader("orders"), written(tmp_path, typed)), values)
    assert part.raw.batch["at"].cast(pa.int64()).to_pylist() == [2**62]
    assert part.raw.batch["day"].to_pylist() == ["5881580-07-11"]


def test_a_time_of_no_day_rejects_its_row_alone(tmp_path: Path) -> None:
    values = encoded(record(a="int"), {"a": 5}, {"a": 86_400_000}, {"a": 6})
    typed = written(tmp_path, record(a=logical("int", "time-millis")))
    decoded = decode(AvroDecoder(Reader("orders"), typed), values)
    assert faults_of(decoded) == [(8, Reason.BROKEN_AVRO)]
    assert [row["a"] for row in rows_of(decoded)] == ["00:00:00.005000", "00:00:00.006000"]


def test_broken_messages_are_rejected_with_their_bytes(tmp_path: Path) -> None:
    schema = record(a="long", b="string")
    (good,) = encoded(schema, {"a": 5, "b": "é"})
    values = [good, good + b"x", good[:-1], b"", b"\x02\x02\xff", None]
    decoded = decode(AvroDecoder(Reader("orders"), written(tmp_path, schema)), values)
    rejections = rejected_of(decoded)
    assert [row["reason"] for row in rejections] == [
        *[Reason.BROKEN_AVRO] * 3,
        Reason.INVALID_UTF8,
        Reason.NO_VALUE,
    ]
    assert [row["payload"] for row in rejections] == [*values[1:5], b""]
    assert "found 1 bytes after the record" in rejections[0]["detail"]
    assert rows_of(decoded) == [{"a": 5, "b": "é"}]
    (part,) = decoded
    assert part.raw.payloads(part.raw.positions - 7) == [good]
    ignoring = AvroDecoder(
        Reader("orders"), written(tmp_path, schema), tombstones=IGNORE_TOMBSTONES
    )
    assert decode(ignoring, [None]) == []


def test_damaged_messages_never_raise(tmp_path: Path) -> None:
    inner = record(x=["null", "double"], y={"type": "map", "values": "string"}) | {"name": "Inner"}
    schema = record(
        a=["null", "long"],
        b="string",
        c={"type": "array", "items": inner},
        d=logical("bytes", "decimal", precision=5, scale=1),
        e={"type": "enum", "name": "E", "symbols": ["A", "B"]},
        f=["null", "int", "string", "boolean"],
    )
    row = {
        "a": 5,
        "b": "text",
        "c": [{"x": 0.5, "y": {"k": "v"}}] * 3,
        "d": Decimal("1.5"),
        "e": "A",
        "f": "z",
    }
    (good,) = encoded(schema, row)
    chance, values = random.Random(0), []
    for _ in range(3000):
        changed = bytearray(good)
        for _ in range(chance.choice([1, 1, 3])):
            changed[chance.randrange(len(good))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
        values.append(
            bytes(changed[: chance.randrange(len(good)) if chance.random() < 0.2 else 99])
        )
    decoded = decode(AvroDecoder(Reader("orders"), written(tmp_path, schema)), values)
    assert {reason for _, reason in faults_of(decoded)} == {"broken_avro", "invalid_utf8"}
    assert len(rows_of(decoded)) > 200


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        ("{", "expected a schema in JSON"),
        ('"int"', "expected a record"),
        (record(a="none"), "none"),
        (record(a={"type": "array", "items": "null"}), "items of no bytes"),
        (record(a=["null", "Order"]), "contains itself"),
        (record(a={"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}), "bytes"),
        (
            record(
                a={"type": "map", "values": {"type": "array", "items": record() | {"name": "E"}}}
            ),
            "items of no bytes",
        ),
    ],
)
def test_schemas_that_cannot_be_used(tmp_path: Path, schema: Any, found: str) -> None:
    with pytest.raises(ConfigurationError, match=found):
        AvroDecoder(Reader("orders"), written(tmp_path, schema))


def test_a_decoder_needs_a_schema_and_a_frame_that_fits(tmp_path: Path) -> None:
    registry = Registry(RegistryPlace("http://localhost:1"))
    path = written(tmp_path, record(a="int"))
    for options in (
        {},
        {"schema": tmp_path / "none"},
        {"schema": path, "frame": "frame"},
        {"schema": path, "registry": registry},
        {"schema": path, "frame": REGISTRY_FRAME},
    ):
        with pytest.raises(ConfigurationError):
            AvroDecoder(Reader("orders"), **options)


def test_single_objects_have_the_fingerprint_of_their_schema(tmp_path: Path) -> None:
    # Of Avro's specification: the fingerprint of "int" is 0x7275d51a3f395c8f.
    schema = record(a="int")
    decoder = AvroDecoder(Reader("orders"), written(tmp_path, schema), frame=SINGLE_OBJECT)
    canonical = fastavro.schema.to_parsing_canonical_form(schema)
    mark = b"\xc3\x01" + bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))
    assert fastavro.schema.fingerprint('"int"', "CRC-64-AVRO") == "8f5c393f1ad57572"
    (plain,) = encoded(schema, {"a": 5})
    decoded = decode(decoder, [mark + plain, plain, mark[:-1] + b"?" + plain])
    assert rows_of(decoded) == [{"a": 5}]
    assert faults_of(decoded) == [(8, Reason.NO_SCHEMA_ID), (9, Reason.NO_SCHEMA_ID)]


def framed(id: int, payload: bytes) -> bytes:
    return b"\0" + id.to_bytes(4, "big") + payload


OLD = record(a="int")
NEW = record(a="long", b=["null", "string"])


def test_messages_name_their_schemas(tmp_path: Path) -> None:
    with schema_registry() as server:
        server.register(1, json.dumps(OLD))
        server.register(2, json.dumps(NEW))
        server.register(3, "message A {}", "PROTOBUF")
        server.register(4, '"int"')
        registry = Registry(RegistryPlace(server.url))
        decoder = AvroDecoder(Reader("orders"), registry=registry, frame=REGISTRY_FRAME)
        (old,), (new,) = encoded(OLD, {"a": 1}), encoded(NEW, {"a": 2, "b": "x"})
        values = [
            *[framed(1, old), framed(1, old), framed(2, new)],
            *[framed(3, old), framed(4, old), framed(5, old), framed(5, old), b"\1" + old, b"\0"],
            *[framed(2**31, old), framed(2**32 - 1, old)],
        ]
        decoded = decode(decoder, values)
        assert rows_of(decoded) == [{"a": 1}, {"a": 1}, {"a": 2, "b": "x"}]
        assert [len(part) for part in decoded] == [2, 9]
        reasons = [reason for _, reason in faults_of(decoded)]
        unknown, no_id = Reason.UNKNOWN_SCHEMA, Reason.NO_SCHEMA_ID
        assert reasons == [unknown] * 4 + [no_id] * 2 + [unknown] * 2
        details = [row["detail"] for row in rejected_of(decoded)]
        assert "kind PROTOBUF" in details[0]
        assert "expected a record" in details[1]
        assert "id 5, which the registry does not know" in details[2]
        assert server.paths == [f"/schemas/ids/{id}" for id in (1, 2, 3, 4, 5)]
        # An id that was not known may be known later.
        server.register(5, json.dumps(OLD))
        assert rows_of(decode(decoder, [framed(5, old)])) == [{"a": 1}]
        again = pickle.loads(pickle.dumps(decoder))
        assert rows_of(decode(again, values[:1])) == [{"a": 1}]


def test_a_schema_of_the_sources_own_resolves_those_of_writers(tmp_path: Path) -> None:
    with schema_registry() as server:
        server.register(1, json.dumps(OLD))
        server.register(2, json.dumps(record(a="int", c="string")))
        server.register(3, json.dumps(record(a="string")))
        registry = Registry(RegistryPlace(server.url))
        decoder = AvroDecoder(
            Reader("orders"), written(tmp_path, NEW), registry=registry, frame=REGISTRY_FRAME
        )
        (old,) = encoded(OLD, {"a": 1})
        (other,) = encoded(record(a="int", c="string"), {"a": 2, "c": "y"})
        (text,) = encoded(record(a="string"), {"a": "z"})
        decoded = decode(decoder, [framed(1, old), framed(2, other), framed(3, text)])
        assert rows_of(decoded) == [{"a": 1, "b": None}, {"a": 2, "b": None}]
        assert [len(part) for part in decoded] == [3]
        assert faults_of(decoded) == [(9, Reason.BROKEN_AVRO)]


def test_schemas_refer_to_others() -> None:
    inner = record(x=logical("int", "date")) | {"name": "shop.Inner"}
    outer = record(a=["null", "shop.Inner"]) | {"name": "shop.Outer"}
    with schema_registry() as server:
        server.register(1, json.dumps(inner), subject=("inner", 1))
        reference = {"name": "shop.Inner", "subject": "inner", "version": 1}
        server.register(2, json.dumps(outer), references=[reference])
        registry = Registry(RegistryPlace(server.url))
        decoder = AvroDecoder(Reader("orders"), registry=registry, frame=REGISTRY_FRAME)
        named: dict[str, Any] = {}
        fastavro.parse_schema(inner, named)
        file = io.BytesIO()
        schema = fastavro.parse_schema(outer, named)
        fastavro.schemaless_writer(file, schema, {"a": {"x": DAY}})
        decoded = decode(decoder, [framed(2, file.getvalue())])
        assert rows_of(decoded) == [{"a": '{"x":"2024-02-29"}'}]


def test_a_registry_that_does_not_answer_rejects_nothing() -> None:
    with schema_registry() as server:
        server.failures = [503] * 9
        registry = Registry(RegistryPlace(server.url, pause_s=0.001))
        decoder = AvroDecoder(Reader("orders"), registry=registry, frame=REGISTRY_FRAME)
        with pytest.raises(RegistryUnavailable):
            decode(decoder, [framed(1, b"")])


def test_metadata_columns_and_the_payloads_own(tmp_path: Path) -> None:
    schema = record(a="int", b="string")
    values = encoded(schema, {"a": 1, "b": "x"})
    path = written(tmp_path, schema)
    for wins, rows, faults in (
        (False, [], [(7, Reason.METADATA_CONFLICT)]),
        (True, [{"a": 1, "b": 100}], []),
    ):
        metadata = Metadata({"b": "offset"}, wins=wins)
        decoded = decode(AvroDecoder(Reader("orders"), path, metadata=metadata), values)
        assert (rows_of(decoded), faults_of(decoded)) == (rows, faults)
