"""Protobuf messages: presence, well-known types, registries, bytes that lie."""

from __future__ import annotations

import base64
import datetime
import json
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from google.protobuf import timestamp_pb2

from tests.support.descriptors import (
    TIMESTAMP,
    TIMESTAMP_FILE,
    class_of,
    file_of,
    message_of,
    set_of,
)
from tests.support.payloads import checked, faults_of, messages, rejected_of, rows_of
from tests.support.schema_registry import schema_registry
from tidemill.features.errors import ConfigurationError, RegistryUnavailable
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.payloads.decoding import IGNORE_TOMBSTONES, Decoded
from tidemill.pipelines.io.payloads.metadata import Metadata
from tidemill.pipelines.io.payloads.protobuf_rows import ProtobufDecoder, message_indexes
from tidemill.pipelines.io.payloads.registry import Registry, RegistryPlace


def decoder(tmp_path: Path, *files: Any, **options: Any) -> ProtobufDecoder:
    path = tmp_path / "orders.desc"
    path.write_bytes(set_of(*files))
    options = {"message": "shop.Order", **options}
    return ProtobufDecoder(Reader("orders"), path, **options)


def decode(given: ProtobufDecoder, values: Sequence[bytes | None]) -> list[Decoded]:
    decoded = list(given.decode(messages(values), 7))
    checked(decoded, 7)
    return decoded


SCALARS = {
    "double": (0.1, pa.float64()),
    "float": (0.5, pa.float32()),
    "int32": (-5, pa.int64()),
    "int64": (2**63 - 1, pa.int64()),
    "uint32": (2**32 - 1, pa.uint64()),
    "uint64": (2**64 - 1, pa.uint64()),
    "sint32": (-5, pa.int64()),
    "sint64": (-(2**63), pa.int64()),
    "fixed32": (7, pa.uint64()),
    "fixed64": (7, pa.uint64()),
    "sfixed32": (-7, pa.int64()),
    "sfixed64": (-7, pa.int64()),
    "bool": (True, pa.bool_()),
    "string": ("é", pa.string()),
    "bytes": (b"\xff", pa.binary()),
}


@pytest.mark.parametrize("kind", SCALARS)
def test_scalars_have_a_default_or_a_presence(tmp_path: Path, kind: str) -> None:
    value, arrow = SCALARS[kind]
    file = file_of("orders.proto", message_of("Order", a=kind, b=kind, optional=("b",)))
    order = class_of(file)
    given = [order(a=value, b=value), order()]
    (part,) = decode(decoder(tmp_path, file), [one.SerializeToString() for one in given])
    batch = part.raw.batch
    assert [field.type for field in batch.schema] == [arrow, arrow]
    default = type(value)()
    assert batch.to_pylist() == [{"a": value, "b": value}, {"a": default, "b": None}]


def test_fields_of_proto2_are_null_where_they_are_not_set(tmp_path: Path) -> None:
    message = message_of("Order", a="int32", b="string", required=("b",))
    file = file_of("orders.proto", message, syntax="proto2")
    order = class_of(file)
    values = [order(b="x").SerializeToString(), order(a=0, b="").SerializeToString(), b""]
    decoded = decode(decoder(tmp_path, file), values)
    assert rows_of(decoded) == [{"a": None, "b": "x"}, {"a": 0, "b": ""}]
    (row,) = rejected_of(decoded)
    assert row["reason"] == Reason.BROKEN_PROTOBUF
    assert "found a message without b" in row["detail"]


def test_a_text_of_proto2_that_is_not_utf8_rejects_its_row(tmp_path: Path) -> None:
    message = message_of("Order", a="string")
    decoded = decode(
        decoder(tmp_path, file_of("orders.proto", message, syntax="proto2")),
        [b"\x0a\x01x", b"\x0a\x01\xff", b"\x0a\x01y"],
    )
    assert rows_of(decoded) == [{"a": "x"}, {"a": "y"}]
    assert faults_of(decoded) == [(8, Reason.INVALID_UTF8)]


def timed(seconds: int, nanos: int = 0) -> bytes:
    order = class_of(TIMED)
    at = timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)
    return bytes(
        order.FromString(
            b"\x0a" + bytes([at.ByteSize()]) + at.SerializeToString()
        ).SerializeToString()
    )


TIMED = file_of("orders.proto", message_of("Order", at=TIMESTAMP), imports=(TIMESTAMP_FILE,))


def test_timestamps_are_times_of_whole_microseconds(tmp_path: Path) -> None:
    values = [
        timed(1, 5_000),
        b"",
        timed(1, 5_001),
        timed(253_402_300_800),
        timed(2**62),
        timed(1, -1),
        timed(253_402_300_799, 999_999_000),
    ]
    decoded = decode(decoder(tmp_path, TIMED), values)
    utc = datetime.UTC
    assert rows_of(decoded) == [
        {"at": datetime.datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=utc)},
        {"at": None},
        {"at": datetime.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=utc)},
    ]
    (part,) = decoded
    assert part.raw.batch.schema.field("at").type == pa.timestamp("us", "UTC")
    assert faults_of(decoded) == [
        (9, Reason.WRONG_TYPE),
        *[(place, Reason.TIME_OUT_OF_RANGE) for place in (10, 11, 12)],
    ]
    details = [row["detail"] for row in rejected_of(decoded)]
    assert "column 'at': found 1970-01-01T00:00:01.000005001Z" in details[0]
    assert "expected a time in the years 1 to 9999" in details[1]


def test_enums_are_names_and_everything_nested_is_json(tmp_path: Path) -> None:
    item = message_of("Item", count="int64", label="string", data="bytes", optional=("label",))
    order = message_of(
        "Order",
        nested=(item,),
        enums={"State": ["NEW", "PAID"]},
        maps={"totals": "double"},
        repeated=("numbers", "items", "states", "times"),
        state="enum .shop.Order.State",
        states="enum .shop.Order.State",
        numbers="int64",
        items=".shop.Order.Item",
        first=".shop.Order.Item",
        at=TIMESTAMP,
        times=TIMESTAMP,
    )
    file = file_of("orders.proto", order, imports=(TIMESTAMP_FILE,))
    made = class_of(file)()
    made.state = 1
    made.states.extend([0, 1, 9])
    made.numbers.extend([1, 2**62])
    made.items.add(count=3, label="é", data=b"\xff")
    made.first.count = 4
    made.totals["b"], made.totals["a"] = 0.5, 1.0
    made.times.add(seconds=1)
    unknown = class_of(file)()
    unknown.state = 9
    values = [made.SerializeToString(), unknown.SerializeToString()]
    first, second = rows_of(decode(decoder(tmp_path, file), values))
    assert first == {
        "state": "PAID",
        "states": '["NEW","PAID","9"]',
        "numbers": f"[1,{2**62}]",
        "items": '[{"count":3,"label":"é","data":"/w=="}]',
        "first": '{"count":4,"label":null,"data":""}',
        "totals": '{"a":1.0,"b":0.5}',
        "at": None,
        "times": '["1970-01-01T00:00:01.000000Z"]',
    }
    assert (second["state"], second["items"], second["first"]) == ("9", "[]", None)


def test_well_known_types(tmp_path: Path) -> None:
    names = ("wrappers", "duration", "struct", "any", "field_mask")
    message = message_of(
        "Order",
        repeated=("many",),
        count=".google.protobuf.Int64Value",
        text=".google.protobuf.StringValue",
        took=".google.protobuf.Duration",
        free=".google.protobuf.Struct",
        any=".google.protobuf.Any",
        many=".google.protobuf.BoolValue",
    )
    imports = tuple(f"google/protobuf/{name}.proto" for name in names)
    file = file_of("orders.proto", message, imports=imports)
    given = decoder(tmp_path, file)
    kind = given._own.kind  # type: ignore[attr-defined]
    made = kind()
    made.count.value = 0
    made.took.seconds, made.took.nanos = -1, -500_000_000
    made.free["a"] = [1, None, "x"]
    made.any.type_url, made.any.value = "type/of.Theirs", b"\1"
    made.many.add(value=True)
    (row,) = rows_of(decode(given, [made.SerializeToString()]))
    assert row == {
        "count": 0,
        "text": None,
        "took": "-1.5s",
        "free": '{"a":[1.0,null,"x"]}',
        "any": '{"type_url":"type/of.Theirs","value":"AQ=="}',
        "many": "[true]",
    }
    made.free["a"] = float("nan")
    assert faults_of(decode(given, [made.SerializeToString()])) == [(7, Reason.BROKEN_PROTOBUF)]


def test_broken_messages_are_rejected_with_their_bytes(tmp_path: Path) -> None:
    file = file_of("orders.proto", message_of("Order", a="string", b="int64"))
    given = decoder(tmp_path, file)
    values = [b"\x0a\x02x", b"\xff", None, b"\x0a\x01x", b"\x0a\x01\xff", b"\x0b" * 500]
    decoded = decode(given, values)
    assert rows_of(decoded) == [{"a": "x", "b": 0}]
    assert faults_of(decoded) == [
        *[(7, Reason.BROKEN_PROTOBUF), (8, Reason.BROKEN_PROTOBUF), (9, Reason.NO_VALUE)],
        *[(11, Reason.BROKEN_PROTOBUF), (12, Reason.BROKEN_PROTOBUF)],
    ]
    assert [row["payload"] for row in rejected_of(decoded)] == [
        *[values[0], values[1], b"", values[4], values[5]]
    ]
    ignoring = decoder(tmp_path, file, tombstones=IGNORE_TOMBSTONES)
    assert decode(ignoring, [None]) == []


def test_damaged_messages_never_raise(tmp_path: Path) -> None:
    item = message_of("Item", a="int64", at=TIMESTAMP, next=".shop.Order.Item")
    order = message_of(
        "Order",
        nested=(item,),
        repeated=("items", "numbers"),
        items=".shop.Order.Item",
        numbers="sint32",
        text="string",
        at=TIMESTAMP,
    )
    file = file_of("orders.proto", order, imports=(TIMESTAMP_FILE,))
    made = class_of(file)(text="texts", numbers=[1, 2, 3])
    made.at.seconds, made.at.nanos = 1_700_000_000, 5000
    made.items.add(a=5).next.next.at.seconds = 7
    good = made.SerializeToString()
    chance, values = random.Random(0), []
    for _ in range(3000):
        changed = bytearray(good)
        for _ in range(chance.choice([1, 1, 3])):
            changed[chance.randrange(len(good))] = chance.choice([0, 1, 10, 0x7F, 0x80, 0xFF])
        values.append(
            bytes(changed[: chance.randrange(len(good)) if chance.random() < 0.2 else 99])
        )
    values.append(b"\x1a\x7f" * 40)
    decoded = decode(decoder(tmp_path, file), values)
    reasons = {reason for _, reason in faults_of(decoded)}
    assert reasons <= {"broken_protobuf", "time_out_of_range", "wrong_type"}
    assert {"broken_protobuf", "wrong_type"} <= reasons
    assert len(rows_of(decoded)) > 200


@pytest.mark.parametrize("indexes", [b"\0", b"\2\0"])
def test_messages_name_their_schemas_and_types(tmp_path: Path, indexes: bytes) -> None:
    inner = message_of("Inner", x="int32")
    file = file_of(
        "x", message_of("Order", a="string", nested=(inner,)), message_of("Other", b="bool")
    )
    text = base64.b64encode(file.SerializeToString()).decode()
    with schema_registry() as server:
        server.register(1, text, "PROTOBUF", query="?format=serialized")
        server.register(2, '"int"', query="?format=serialized")
        server.register(3, 'syntax = "proto3";', "PROTOBUF", query="?format=serialized")
        registry = Registry(RegistryPlace(server.url))
        any_type = ProtobufDecoder(Reader("orders"), registry=registry)
        orders = ProtobufDecoder(Reader("orders"), message="shop.Order", registry=registry)
        start = b"\0\0\0\0\1"
        order, other = start + indexes + b"\x0a\x01x", start + b"\2\2\x08\1"
        nested = start + b"\4\0\0\x08\5"
        decoded = decode(any_type, [order, order, other, nested])
        assert rows_of(decoded) == [{"a": "x"}, {"a": "x"}, {"b": True}, {"x": 5}]
        bad = [
            *[other, start + b"\2\6", start, start + b"\xff" * 6, b"\1", b"\0\0\0\0\2\0"],
            *[b"\0\0\0\0\3\0", b"\0\0\0\0\x09\0"],
        ]
        decoded = decode(orders, [order, *bad])
        assert rows_of(decoded) == [{"a": "x"}]
        unknown, no_id = Reason.UNKNOWN_SCHEMA, Reason.NO_SCHEMA_ID
        assert [reason for _, reason in faults_of(decoded)] == [
            *[unknown, unknown, no_id, no_id, no_id, unknown, unknown, unknown]
        ]
        details = [row["detail"] for row in rejected_of(decoded)]
        assert "of type shop.Other, expected one of shop.Order" in details[0]
        assert "the type at [3] of schema id 1" in details[1]
        assert "format=serialized" in details[6]
        assert rows_of(decode(pickle.loads(pickle.dumps(orders)), [order])) == [{"a": "x"}]
        own = decoder(tmp_path, file_of("y", message_of("Order", c="string")), registry=registry)
        assert rows_of(decode(own, [order])) == [{"c": "x"}]
        assert faults_of(decode(own, [other])) == [(7, unknown)]


def test_schemas_import_others() -> None:
    inner = file_of("ignored", message_of("Inner", x="int32"))
    outer = file_of("ignored", message_of("Order", a=".shop.Inner"), imports=("shop/inner.proto",))
    with schema_registry() as server:
        for id, file, references, subject in (
            (1, inner, None, ("inner", 1)),
            (2, outer, [{"name": "shop/inner.proto", "subject": "inner", "version": 1}], None),
        ):
            text = base64.b64encode(file.SerializeToString()).decode()
            query = "?format=serialized"
            server.register(id, text, "PROTOBUF", references, subject, query=query)
        given = ProtobufDecoder(Reader("orders"), registry=Registry(RegistryPlace(server.url)))
        decoded = decode(given, [b"\0\0\0\0\2\0\x0a\2\x08\5"])
        assert rows_of(decoded) == [{"a": json.dumps({"x": 5}, separators=(",", ":"))}]


def test_a_registry_that_does_not_answer_rejects_nothing() -> None:
    with schema_registry() as server:
        server.failures = [503] * 9
        registry = Registry(RegistryPlace(server.url, pause_s=0.001))
        with pytest.raises(RegistryUnavailable):
            decode(ProtobufDecoder(Reader("orders"), registry=registry), [b"\0\0\0\0\1\0"])


def test_schemas_that_cannot_be_used(tmp_path: Path) -> None:
    file = file_of("orders.proto", message_of("Order", a="int32"))
    with pytest.raises(ConfigurationError, match=r"did you mean 'shop\.Order'"):
        decoder(tmp_path, file, message="shop.Ordr")
    with pytest.raises(ConfigurationError, match="name the message type"):
        decoder(tmp_path, file, message=None)
    with pytest.raises(ConfigurationError, match="no usable message type"):
        decoder(tmp_path, file_of("o.proto", message_of("Order"), imports=("none.proto",)))
    broken = tmp_path / "broken.desc"
    broken.write_bytes(b"\xff")
    for path in (broken, tmp_path / "none"):
        with pytest.raises(ConfigurationError, match="protoc"):
            ProtobufDecoder(Reader("orders"), path, "shop.Order")
    with pytest.raises(ConfigurationError, match="need a schema"):
        ProtobufDecoder(Reader("orders"))


def test_metadata_columns(tmp_path: Path) -> None:
    file = file_of("orders.proto", message_of("Order", a="int32"))
    metadata = Metadata({"place": "offset"})
    given = decoder(tmp_path, file, metadata=metadata)
    assert rows_of(decode(given, [b"\x08\5"])) == [{"a": 5, "place": 100}]
    empty = decoder(tmp_path, file_of("o.proto", message_of("Order")))
    (part,) = decode(empty, [b"", b""])
    assert part.raw.batch.num_rows == 2


def test_indexes_are_varints_in_zigzag() -> None:
    assert message_indexes(b"\0", 0) == ((0,), 1)
    assert message_indexes(b"--\x02\x80\x02rest", 2) == ((128,), 5)
    assert message_indexes(b"\x01\x00", 0) is None
    assert message_indexes(b"\xfe\x7f" + b"\0" * 9000, 0) is None
