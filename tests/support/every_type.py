"""A Feast view that Tidemill did not generate, with a field of every type that Feast 0.67 has."""

from __future__ import annotations

import datetime
import struct
from pathlib import Path
from typing import Any

import feast
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import (
    BytesList,
    DoubleList,
    Int32List,
    Int64List,
    Map,
    MapList,
    RepeatedValue,
    ScalarMap,
    StringList,
    StringSet,
    Value,
    ZonedTimestamp,
)
from feast.types import (
    Array,
    Bool,
    Bytes,
    Decimal,
    Float32,
    Float64,
    ImageBytes,
    Int32,
    Int64,
    Json,
    PdfBytes,
    Set,
    String,
    Struct,
    TimeUuid,
    UnixTimestamp,
    Uuid,
)
from feast.types import Map as MapType
from feast.types import (
    ScalarMap as ScalarMapType,
)
from feast.types import (
    ZonedTimestamp as ZonedTimestampType,
)

from tidemill.serving.online.feast_rows import FeastRow

AT = datetime.datetime(2024, 2, 29, 12, 0, 0, 123_456, tzinfo=datetime.UTC)
NAN_WITH_PAYLOAD = struct.unpack("<d", bytes.fromhex("bebafecadebaf87f"))[0]
TEXTS = ["", "plain", "dépôt 😀", "a\0b", '"quoted"']
_UUID = "00112233-4455-6677-8899-aabbccddeeff"


def _float32(bits: int) -> Value:
    # A Python float would change the bits of a float32's NaN before it reaches a store.
    return Value.FromString(b"\x35" + bits.to_bytes(4, "little"))


def _map(**values: Value) -> Map:
    return Map(val=values)


_NESTED = _map(b=Value(int64_val=2**53 + 1), a=Value(string_val="é"), none=Value())

VALUES: dict[str, tuple[Any, list[Value]]] = {
    "int64": (Int64, [Value(int64_val=v) for v in (0, 2**63 - 1, -(2**63), 2**53 + 1, 7)]),
    "int32": (Int32, [Value(int32_val=v) for v in (0, 2**31 - 1, -(2**31), 5, -5)]),
    "float64": (
        Float64,
        [Value(double_val=v) for v in (-0.0, NAN_WITH_PAYLOAD, float("-inf"), 5e-324, 0.1 + 0.2)],
    ),
    "float32": (
        Float32,
        [_float32(b) for b in (0x80000000, 0x7FC0BEEF, 0x7F800000, 1, 0x3DCCCCCD)],
    ),
    "bool": (Bool, [Value(bool_val=v) for v in (False, True, False, True, False)]),
    "string": (String, [Value(string_val=v) for v in TEXTS]),
    "bytes": (Bytes, [Value(bytes_val=v) for v in (b"", b"\0", b"\xff\xfe", b"abc", b"\n")]),
    "pdf": (PdfBytes, [Value(bytes_val=v) for v in (b"%PDF", b"", b"\0", b"1", b"2")]),
    "image": (ImageBytes, [Value(bytes_val=v) for v in (b"\x89PNG", b"", b"\0", b"1", b"2")]),
    "seconds": (UnixTimestamp, [Value(unix_timestamp_val=v) for v in (0, -1, 2**33, 1, 2)]),
    "zoned": (
        ZonedTimestampType,
        [
            Value(zoned_timestamp_val=ZonedTimestamp(unix_timestamp=v, zone="Europe/Berlin"))
            for v in (0, -1, 2**33, 1, 2)
        ],
    ),
    "json": (Json, [Value(json_val=v) for v in ("{}", "null", '{"a": [1]}', "1.0", '"x"')]),
    "uuid": (Uuid, [Value(uuid_val=_UUID)] * 5),
    "time_uuid": (TimeUuid, [Value(time_uuid_val=_UUID)] * 5),
    "decimal": (Decimal, [Value(decimal_val=v) for v in ("0.10", "-1E+9", "0", "1", "2.5")]),
    "int64s": (
        Array(Int64),
        [Value(int64_list_val=Int64List(val=v)) for v in ([], [2**53 + 1, -1], [0], [1], [2, 3])],
    ),
    "int32s": (
        Array(Int32),
        [Value(int32_list_val=Int32List(val=v)) for v in ([], [-(2**31)], [0], [1], [2, 3])],
    ),
    "float64s": (
        Array(Float64),
        [
            Value(double_list_val=DoubleList(val=v))
            for v in ([-0.0, 0.1], [], [NAN_WITH_PAYLOAD], [float("inf")], [1.0, 2.0])
        ],
    ),
    "strings": (
        Array(String),
        [Value(string_list_val=StringList(val=v)) for v in (TEXTS, [], [""], ["a"], ["b", "c"])],
    ),
    "byteses": (
        Array(Bytes),
        [Value(bytes_list_val=BytesList(val=v)) for v in ([], [b""], [b"\xff", b"a"], [b"1"], [])],
    ),
    "set": (
        Set(String),
        [Value(string_set_val=StringSet(val=v)) for v in ([], ["a"], ["b", "a"], ["é"], [""])],
    ),
    "map": (MapType, [Value(map_val=v) for v in (Map(), _NESTED, _map(x=Value()), Map(), _NESTED)]),
    "maps": (
        Array(MapType),
        [Value(map_list_val=MapList(val=v)) for v in ([], [_NESTED, Map()], [Map()], [], [])],
    ),
    "struct": (Struct({"b": Int64, "a": String}), [Value(struct_val=_NESTED)] * 5),
    "scalar_map": (
        ScalarMapType,
        [Value(scalar_map_val=ScalarMap())] * 5,
    ),
    "nested": (
        Array(Array(Int64)),
        [
            Value(list_val=RepeatedValue(val=[Value(int64_list_val=Int64List(val=v))]))
            for v in ([], [1], [1, 2], [2**62], [0])
        ],
    ),
}
"""Field name to its Feast type and five values of it."""

KEYS = ["ann", "bob", "cat", "dé", "eve", "nil"]
"""The entities; the last one has a null in every field."""


def view(root: Path, name: str = "every type, ours") -> tuple[feast.Entity, feast.FeatureView]:
    """The entity and the view."""
    entity = feast.Entity(name="person", join_keys=["person"], value_type=feast.ValueType.STRING)
    source = feast.FileSource(
        name="every_type_source", path=str(root / "none.parquet"), timestamp_field="event_timestamp"
    )
    fields = [feast.Field(name=name, dtype=dtype) for name, (dtype, _) in VALUES.items()]
    return entity, feast.FeatureView(
        name=name,
        entities=[entity],
        schema=[feast.Field(name="person", dtype=String), *fields],
        source=source,
        ttl=datetime.timedelta(0),
    )


def rows(names: list[str] | None = None) -> list[FeastRow]:
    """A row for each of `KEYS`, in the form of Feast's generic write path."""
    wanted = names or list(VALUES)
    return [
        (
            EntityKey(join_keys=["person"], entity_values=[Value(string_val=key)]),
            {name: VALUES[name][1][at] if at < 5 else Value() for name in wanted},
            AT,
            None,
        )
        for at, key in enumerate(KEYS)
    ]


def wire(value: Value) -> str:
    """The bytes of a value, as text, to compare values bit for bit."""
    return value.SerializeToString(deterministic=True).hex()


def written(name: str) -> list[str]:
    """The values written for a field, by entity, in the form of `wire`."""
    return [wire(values[name]) for _, values, _, _ in rows()]
