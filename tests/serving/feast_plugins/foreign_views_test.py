"""Views that Tidemill did not generate, in the ordered stores: any type, in order, without age."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import feast
import pandas as pd
import pytest
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Float64, Int64, String, Struct

from tests.support import every_type
from tests.support.every_type import AT, KEYS, VALUES
from tests.support.stores import STORES, place_of
from tidemill.features.errors import ConflictingPublication, InputError, StoreError
from tidemill.features.feast_objects import DEFINITION_TAG, MAX_STALENESS_TAG, REVISION, VALID_UNTIL
from tidemill.serving.online.feast_rows import key_space
from tidemill.serving.stores.feast_config import repo_config
from tidemill.serving.stores.places import StorePlaces

SECOND = datetime.timedelta(seconds=1)


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[feast.FeatureStore]:
    with place_of(request.param, tmp_path) as place:
        config = repo_config("parcels", StorePlaces.below(tmp_path, online=place), clock="wall")
        opened = feast.FeatureStore(config=config)
        opened.apply(list(every_type.view(tmp_path)))
        yield opened


def _write(store: feast.FeatureStore, view: str, rows: list[Any]) -> None:
    store._get_provider().online_write_batch(
        store.config, store.get_feature_view(view), rows, progress=None
    )


def _read(store: feast.FeatureStore, refs: list[str], *keys: str) -> Any:
    return store.get_online_features(refs, [{"person": key} for key in keys]).proto


def _small(store: feast.FeatureStore, root: Path, *more: feast.Field, **tags: str) -> None:
    entity, _ = every_type.view(root)
    source = feast.FileSource(
        name="small", path=str(root / "s.parquet"), timestamp_field="event_timestamp"
    )
    fields = [feast.Field(name="x", dtype=Int64), feast.Field(name="y", dtype=String), *more]
    view = feast.FeatureView(
        name="small", entities=[entity], schema=fields, source=source, tags=tags
    )
    store.apply([entity, view])


def _row(at: datetime.datetime = AT, key: str = "ann", **values: Value) -> Any:
    return EntityKey(join_keys=["person"], entity_values=[Value(string_val=key)]), values, at, None


def _ann(store: feast.FeatureStore, *names: str) -> list[Value]:
    proto = _read(store, [f"small:{name}" for name in names], "ann")
    read = dict(zip(proto.metadata.feature_names.val, proto.results, strict=True))
    return [read[name].values[0] for name in names]


def _xy(store: feast.FeatureStore) -> list[Any]:
    x, y = _ann(store, "x", "y")
    return [x.int64_val, y.string_val]


@pytest.mark.parametrize("twin", ["sync", "async"])
def test_every_type_is_read_to_the_bit(store: feast.FeatureStore, twin: str) -> None:
    _write(store, "every type, ours", every_type.rows())
    refs = [f"every type, ours:{name}" for name in VALUES]
    asked = [{"person": key} for key in [*KEYS, "nobody"]]
    if twin == "sync":
        proto = store.get_online_features(refs, asked).proto
    else:
        proto = asyncio.run(store.get_online_features_async(refs, asked)).proto
    names = list(proto.metadata.feature_names.val)
    for name in VALUES:
        vector = proto.results[names.index(name)]
        assert [every_type.wire(v) for v in vector.values] == [*every_type.written(name), ""], name
        statuses = [FieldStatus.Name(status) for status in vector.statuses]
        assert statuses == ["PRESENT"] * len(KEYS) + ["NOT_FOUND"]


def test_the_values_of_the_test_hold_every_type_of_feasts() -> None:
    kinds = {value.WhichOneof("val") for _, values in VALUES.values() for value in values}
    every = {field.name for field in Value.DESCRIPTOR.fields}
    # Lists and sets of the types above, and types that Feast itself cannot make.
    assert every - kinds - {"null_val"} <= {
        name for name in every if name.endswith(("_list_val", "_set_val")) or name == "set_val"
    }


def test_row_of_a_foreign_view_has_no_age(store: feast.FeatureStore, tmp_path: Path) -> None:
    _small(store, tmp_path)
    _write(store, "small", [_row(AT - 10_000 * SECOND, x=Value(int64_val=1), y=Value())])
    proto = _read(store, ["small:x"], "ann")
    assert FieldStatus.Name(proto.results[-1].statuses[0]) == "PRESENT"


def test_older_row_of_a_foreign_view_never_overwrites(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    _small(store, tmp_path)
    newer = _row(AT, x=Value(int64_val=2), y=Value(string_val="new"))
    older = _row(AT - SECOND, x=Value(int64_val=1), y=Value(string_val="old"))
    _write(store, "small", [newer, older])
    _write(store, "small", [older])
    assert _xy(store) == [2, "new"]
    with pytest.raises(ConflictingPublication, match=r"view 'small', person='ann'"):
        _write(store, "small", [_row(AT, x=Value(int64_val=3), y=Value(string_val="new"))])


def test_foreign_row_is_whole_and_holds_nothing_else(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    _small(store, tmp_path)
    with pytest.raises(InputError, match="'small': a row for the online store lacks y"):
        _write(store, "small", [_row(x=Value(int64_val=1))])
    with pytest.raises(InputError, match="'small': a row for the online store holds z"):
        _write(store, "small", [_row(x=Value(int64_val=1), y=Value(), z=Value(int64_val=1))])
    with pytest.raises(InputError, match=r"'y' is STRING, .* must be string_val, found bytes_val"):
        _write(store, "small", [_row(x=Value(), y=Value(bytes_val=b"a"))])


def test_stock_dataframe_write_of_a_foreign_view_is_read_back(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    _small(store, tmp_path, feast.Field(name="names", dtype=Array(String)))
    frame = pd.DataFrame(
        {
            "person": ["ann", "bob"],
            "event_timestamp": [AT, AT],
            "x": [2**53 + 1, 5],
            "y": ["é", None],
            "names": [["a", ""], ["b"]],
        }
    )
    store.write_to_online_store("small", frame)
    answer = store.get_online_features(
        ["small:x", "small:y", "small:names"], [{"person": "ann"}, {"person": "bob"}]
    ).to_dict()
    assert answer["x"] == [2**53 + 1, 5]
    assert answer["y"] == ["é", None]
    assert answer["names"] == [["a", ""], ["b"]]


def test_null_is_a_null_in_either_of_feasts_forms(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    _small(store, tmp_path)
    _write(store, "small", [_row(x=Value(null_val=0), y=Value(string_val=""))])
    _write(store, "small", [_row(x=Value(), y=Value(string_val=""))])  # the same row: no conflict
    assert [value.WhichOneof("val") for value in _ann(store, "x", "y")] == [None, "string_val"]


def test_foreign_view_may_declare_the_technical_fields(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    technical = [feast.Field(name=name, dtype=Int64) for name in (REVISION, VALID_UNTIL)]
    _small(store, tmp_path, *technical)
    first = {"x": Value(int64_val=1), "y": Value(), VALID_UNTIL: Value(int64_val=5)}
    _write(store, "small", [_row(**first, **{REVISION: Value(int64_val=2)})])
    _write(store, "small", [_row(**{**first, "x": Value(int64_val=9)}, **{REVISION: Value()})])
    assert _xy(store)[0] == 1
    _write(
        store,
        "small",
        [_row(**{**first, "x": Value(int64_val=9)}, **{REVISION: Value(int64_val=3)})],
    )
    assert [value.int64_val for value in _ann(store, "x", REVISION, VALID_UNTIL)] == [9, 3, 5]
    with pytest.raises(StoreError, match=f"{REVISION} must be Int64"):
        _small(store, tmp_path, feast.Field(name=REVISION, dtype=Float64))


def test_changed_schema_of_a_foreign_view_starts_empty(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    _small(store, tmp_path)
    _write(store, "small", [_row(x=Value(int64_val=1), y=Value(string_val="a"))])
    before = key_space(store.config, store.get_feature_view("small"))
    _small(store, tmp_path, feast.Field(name="z", dtype=String))
    assert key_space(store.config, store.get_feature_view("small")) != before
    assert _xy(store) == [0, ""]
    _small(store, tmp_path)
    assert key_space(store.config, store.get_feature_view("small")) == before
    assert _xy(store) == [1, "a"]


def test_order_of_a_structs_fields_makes_no_other_key_space(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    """A registry keeps no order of the fields, so two processes may see two orders."""
    spaces = []
    for fields in ({"a": Int64, "b": String}, {"b": String, "a": Int64}):
        _small(store, tmp_path, feast.Field(name="z", dtype=Array(Struct(fields))))
        spaces.append(key_space(store.config, store.get_feature_view("small")))
    assert spaces[0] == spaces[1]


def test_dropped_foreign_view_takes_its_rows_along(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    _small(store, tmp_path)
    _write(store, "small", [_row(x=Value(int64_val=1), y=Value(string_val="a"))])
    store.apply([], objects_to_delete=[store.get_feature_view("small")], partial=False)
    _small(store, tmp_path)
    assert _xy(store) == [0, ""]


def test_view_with_half_of_the_tags_or_a_strange_name_is_refused(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="'small' has the tag tidemill_definition, and not"):
        _small(store, tmp_path, **{DEFINITION_TAG: "abc"})
    with pytest.raises(
        StoreError, match=r"'small' has the tags .* not Int64, Float64 or Bool \(y\)"
    ):
        _small(store, tmp_path, **{DEFINITION_TAG: "abc", MAX_STALENESS_TAG: "1"})
    entity, quoted = every_type.view(tmp_path, 'a"b')
    with pytest.raises(StoreError, match="its name holds a quote"):
        store.apply([entity, quoted])
