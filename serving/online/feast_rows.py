"""Conversion between Feast's feature views and rows and those of an online database.

Any Feast view has a key space (`stored_view`):

* The tags of a view that `features.feast_objects` generated name its definition. The view is
  **judged**: the age of its rows is that of the frontier that the stream published.
* Any other view is **foreign**. Its key space is that of its name and schema, so a changed schema
  starts empty. It has no published frontier, so its rows are never too old, as in Feast's own
  stores. An Int64 field `REVISION` or `VALID_UNTIL` in its schema means what it means in a judged
  view.

Values keep their bits: an Int64 or Float64 as its 8 bytes, and so a Bool of a judged view; any
other type as the bytes of Feast's ``Value`` message. An empty ``Value`` and ``null_val`` are both
null; an empty list is not null.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

from feast import FeatureView
from feast.infra.key_encoding_utils import deserialize_entity_key, serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from feast.repo_config import RepoConfig
from feast.type_map import VALUE_TYPE_TO_PROTO_VALUE_MAP
from feast.types import Array, Bool, FeastType, Int64, PrimitiveFeastType, Set, Struct
from feast.value_type import ValueType

from tidemill.features.contract import (
    EARLIEST_EVENT,
    LATEST_EVENT,
    TIME_MAX,
    moment_of,
    time_of,
)
from tidemill.features.definitions import BOOL, FEATURE_DTYPES, FLOAT64, INT64, TIMESTAMP
from tidemill.features.errors import InputError, StoreError
from tidemill.features.feast_objects import (
    DEFINITION_TAG,
    DTYPE_TAG,
    MAX_STALENESS_TAG,
    REVISION,
    VALID_UNTIL,
    VIEW_TAG,
)
from tidemill.serving.online.cells import Value, decode_row, encode_row, is_word
from tidemill.serving.online.rows import KeySpace, Row, RowBatch

FeastRow = tuple[EntityKey, dict[str, ValueProto], datetime.datetime, datetime.datetime | None]
"""A row of Feast's ``online_write_batch``: key, values, event timestamp, created timestamp."""

FeastReading = tuple[datetime.datetime | None, dict[str, ValueProto] | None]
"""A result of Feast's ``online_read``: event timestamp and values, or None and None."""

FOREIGN: Final = "schema-"
"""The start of the definition of a foreign view's key space."""

_TECHNICAL: Final = (VALID_UNTIL, REVISION)

# Columns of 8 bytes are called by their dtype in Tidemill, others by Feast's ValueType.
_NUMBERS: Final = {ValueType.INT64: INT64, ValueType.DOUBLE: FLOAT64}
PROTO_FIELD: Final = {
    INT64: "int64_val",
    FLOAT64: "double_val",
    BOOL: "bool_val",
    TIMESTAMP: "int64_val",  # microseconds; Feast's own timestamps are whole seconds
    **{kind.name: field for kind, field in VALUE_TYPE_TO_PROTO_VALUE_MAP.items()},
    # Feast writes these in these fields, but lacks them in its map.
    ValueType.PDF_BYTES.name: "bytes_val",
    ValueType.IMAGE_BYTES.name: "bytes_val",
    ValueType.ZONED_TIMESTAMP.name: "zoned_timestamp_val",
}
"""The field of Feast's ``Value`` that holds a value, by dtype."""


@dataclass(frozen=True)
class StoredView:
    """How an online database stores a Feast feature view.

    Attributes:
        space: Its key space.
        technical: Those of `VALID_UNTIL` and `REVISION` that it declares.
        judged: Whether its rows have an age, which is that of a published frontier.
    """

    space: KeySpace
    technical: tuple[str, ...]
    judged: bool


def stored_view(config: RepoConfig, table: FeatureView) -> StoredView:
    """Return how an online database stores a Feast feature view, from its fields and its tags.

    Raises:
        StoreError: Its tags contradict each other, or Feast has no value for a field's type.
    """
    tags = table.tags
    definition = tags.get(DEFINITION_TAG)
    types = _PRIMITIVES if definition is None else _GENERATED
    # A lookup by identity takes a tenth of the time.
    fields = [
        (field.name, types.get(id(field.dtype)) or _type_of(field.dtype))
        for field in table.features
    ]
    if definition is not None:
        fields = [
            (name, _TIMESTAMP if DTYPE_TAG in field.tags and kind is _INT64 else kind)
            for (name, kind), field in zip(fields, table.features, strict=True)
        ]
    return _stored_view(
        config.project,
        table.name,
        tuple(fields),
        definition,
        tags.get(MAX_STALENESS_TAG),
        tags.get(VIEW_TAG),
    )


# Cached, because every read needs it. The arguments are all that it depends on, so a changed view
# has another entry.
@functools.lru_cache(maxsize=1_024)
def _stored_view(
    project: str,
    table: str,
    fields: tuple[tuple[str, _Type], ...],
    definition: str | None,
    max_staleness: str | None,
    view: str | None,
) -> StoredView:
    columns = tuple((name, _dtype(table, name, kind)) for name, kind in fields)
    if (definition is None) != (max_staleness is None):
        found = DEFINITION_TAG if max_staleness is None else MAX_STALENESS_TAG
        raise StoreError(
            f"feature view {table!r} has the tag {found}, and not the other one of "
            f"{DEFINITION_TAG} and {MAX_STALENESS_TAG}: take the view that "
            "tidemill.features.feast_objects generates, or remove the tag"
        )
    generated = definition is not None
    if not generated:
        columns = tuple(sorted(columns))  # the order of declaration has no meaning
    if generated and (strange := [name for name, dtype in columns if dtype not in FEATURE_DTYPES]):
        raise StoreError(
            f"feature view {table!r} has the tags of a generated view, and fields that are "
            f"not Int64, Float64 or Bool ({', '.join(strange)}): take the view that "
            "tidemill.features.feast_objects generates, or remove the tags"
        )
    technical = tuple(name for name, _ in columns if name in _TECHNICAL)
    if wrong := [name for name, dtype in columns if name in technical and dtype != INT64]:
        raise StoreError(
            f"feature view {table!r}: {', '.join(wrong)} must be Int64; rename the field or "
            "change its type"
        )
    return StoredView(
        space=KeySpace(
            project=_without_seam(project),
            view=(table if view is None else view) if generated else _without_seam(table),
            definition=_schema_hash(project, table, fields) if definition is None else definition,
            columns=tuple(column for column in columns if column[0] not in technical),
            max_staleness_us=TIME_MAX if max_staleness is None else int(max_staleness),
        ),
        technical=technical,
        judged=generated,
    )


def key_space(config: RepoConfig, table: FeatureView) -> KeySpace:
    """Return the key space of a Feast feature view (`stored_view`)."""
    return stored_view(config, table).space


def row_batch(config: RepoConfig, view: StoredView, data: Sequence[FeastRow]) -> RowBatch:
    """Convert rows of Feast's generic write path; their shard is unknown.

    Each row must hold every feature of the view, with a null for a missing value. A row without
    `REVISION` and `VALID_UNTIL` (absent or null) has revision 0 and is valid forever.

    Raises:
        InputError: A row lacks a feature or has an unknown one, or a value has another type.
    """
    rows = [_row(config, view, key, values, time) for key, values, time, _ in data]
    return RowBatch.of(rows, None)


def feast_reading(
    view: StoredView, row: Row | None, features: Sequence[str] | None
) -> FeastReading:
    """Convert a stored row for Feast's ``online_read``; features None means all."""
    if row is None:
        return None, None
    space = view.space
    out = {
        name: _proto(dtype, value)
        for (name, dtype), value in zip(
            space.columns, decode_row(space.dtypes, row.cells), strict=True
        )
        if features is None or name in features
    }
    for name, instant in ((VALID_UNTIL, row.valid_until), (REVISION, row.revision)):
        if name in view.technical and (features is None or name in features):
            out[name] = ValueProto(int64_val=instant)
    return moment_of(row.event_timestamp), out


def feast_rows(view: StoredView, rows: RowBatch) -> list[FeastRow]:
    """Convert rows for Feast's ``online_write_batch``: the inverse of `row_batch`."""
    out: list[FeastRow] = []
    for row in rows.rows():
        time, values = feast_reading(view, row, None)
        assert time is not None
        assert values is not None
        out.append((deserialize_entity_key(row.key), values, time, None))
    return out


def feast_key(config: RepoConfig, key: EntityKey) -> bytes:
    """Serialize an entity key as Feast does."""
    serialized: bytes = serialize_entity_key(
        key, entity_key_serialization_version=config.entity_key_serialization_version
    )
    return serialized


def _named(feast_type: FeastType) -> str | None:
    try:
        kind = feast_type.to_value_type()
    except KeyError:  # a list of a type that Feast has no list of
        return None
    dtype = _NUMBERS.get(kind, kind.name)
    return dtype if dtype in PROTO_FIELD else None


def _type_name(dtype: Any) -> str:
    # A registry does not keep the order of a Struct's fields.
    if isinstance(dtype, Struct):
        fields = sorted((name, _type_name(of)) for name, of in dtype.fields.items())
        return f"Struct({', '.join(f'{name}: {of}' for name, of in fields)})"
    if isinstance(dtype, Array | Set):
        return f"{type(dtype).__name__}({_type_name(dtype.base_type)})"
    return str(dtype)


@dataclass(frozen=True)
class _Type:
    """A type of Feast's.

    Attributes:
        name: Text that distinguishes it from all others.
        dtype: The dtype of its cells; None if Feast has no value for it.
    """

    name: str
    dtype: str | None


def _type_of(feast_type: FeastType) -> _Type:
    return _Type(_type_name(feast_type), _named(feast_type))


# By identity, because Feast's own hash of a type is too slow for a read.
_PRIMITIVES: Final = {id(kind): _type_of(kind) for kind in PrimitiveFeastType}
# A Bool of a foreign view is in the tail, where rows of existing stores have it.
_GENERATED: Final = {**_PRIMITIVES, id(Bool): _Type(_type_name(Bool), BOOL)}
_INT64: Final = _PRIMITIVES[id(Int64)]
_TIMESTAMP: Final = _Type(f"{_INT64.name} of microseconds", TIMESTAMP)


def _dtype(table: str, name: str, kind: _Type) -> str:
    if kind.dtype is None:
        raise StoreError(
            f"feature view {table!r}: Feast has no value for the type of {name!r}, "
            f"{kind.name}; choose another type"
        )
    return kind.dtype


def _without_seam(name: str) -> str:
    # The parts of a key space's name are joined by two underscores, which no name of Tidemill's
    # holds.
    return name.replace("__", "_%5F")


def _schema_hash(project: str, table: str, fields: Sequence[tuple[str, _Type]]) -> str:
    # The digest covers the names, so the key space's name is unique, whatever the view is called.
    # `FOREIGN` distinguishes it from that of a generated view, whose definition is a bare hash.
    names = [project, table]
    for name, kind in sorted(fields, key=itemgetter(0)):
        names += [name, kind.name]
    if '"' in project + table or "\0" in project + table:
        raise StoreError(f"feature view {table!r}: its name holds a quote or a NUL: rename it")
    digest = hashlib.sha256()
    for name in names:
        digest.update(len(name.encode()).to_bytes(8, "little") + name.encode())
    return FOREIGN + digest.hexdigest()[:16]


def _row(
    config: RepoConfig,
    view: StoredView,
    key: EntityKey,
    values: Mapping[str, ValueProto],
    event_timestamp: datetime.datetime,
) -> Row:
    space = view.space
    if lacking := [name for name, _ in space.columns if name not in values]:
        raise InputError(
            f"view {space.view!r}: a row for the online store lacks {', '.join(lacking)}; "
            "a publication holds every feature of its view (null where it has no value)"
        )
    if len(values) > len(space.columns):
        # Feast gives the keys, too, with a row of an on-demand view.
        known = {name for name, _ in space.columns} | {*view.technical, *key.join_keys}
        if unknown := [name for name in values if name not in known]:
            raise InputError(
                f"view {space.view!r}: a row for the online store holds {', '.join(unknown)}, "
                "which the view does not have: register the view that has it, or leave it out"
            )
    revision = _python(space, REVISION, INT64, values.get(REVISION, ValueProto()))
    until = _python(space, VALID_UNTIL, INT64, values.get(VALID_UNTIL, ValueProto()))
    return Row(
        key=feast_key(config, key),
        event_timestamp=time_of(event_timestamp),
        revision=0 if revision is None else int(revision),
        valid_until=TIME_MAX if until is None else int(until),
        shard=None,
        cells=encode_row(
            space.dtypes,
            [_python(space, name, dtype, values[name]) for name, dtype in space.columns],
        ),
    )


def _python(space: KeySpace, name: str, dtype: str, value: ValueProto) -> Value:
    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    if kind != PROTO_FIELD[dtype]:
        raise InputError(
            f"view {space.view!r}: {name!r} is {dtype}, so its Feast value must be "
            f"{PROTO_FIELD[dtype]}, found {kind}"
        )
    if is_word(dtype):
        word: int | float | bool = getattr(value, kind)
        if dtype == TIMESTAMP and not EARLIEST_EVENT <= word <= LATEST_EVENT:
            raise InputError(
                f"view {space.view!r}: {name!r} is a timestamp, so its Feast value counts "
                f"microseconds in the years 1 to 9999, found {word}"
            )
        return word
    # Deterministic, because the order of a map's entries may differ otherwise.
    message: bytes = value.SerializeToString(deterministic=True)
    return message


def _proto(dtype: str, value: Value) -> ValueProto:
    if isinstance(value, bytes):
        return ValueProto.FromString(value)
    proto = ValueProto()
    if value is not None:
        setattr(proto, PROTO_FIELD[dtype], value)
    return proto
