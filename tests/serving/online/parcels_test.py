"""Publications in Arrow, as rows of a store, and as Parquet for the offline store."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support import parcels
from tests.support.parcels import BY_COURIER, BY_DEPOT, courier_rows, depot_rows
from tidemill.features.contract import LATEST_EVENT
from tidemill.features.errors import InputError
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.online.cells import decode_row
from tidemill.serving.online.publications import (
    entity_keys,
    feast_rows,
    offline_table,
    online_rows,
    schema,
)
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.places import OFFLINE, StorePlaces

UTC = datetime.UTC


def test_schema_has_the_feature_columns_by_name_and_dtype() -> None:
    assert schema(BY_DEPOT) == pa.schema(
        [
            pa.field("entity_key", pa.binary(), nullable=False),
            pa.field("event_timestamp", pa.int64(), nullable=False),
            pa.field("valid_until", pa.int64(), nullable=False),
            pa.field("revision", pa.int64(), nullable=False),
            pa.field("by_depot__scans_1d", pa.int64()),
        ]
    )


def test_int64_keys_come_from_decimal_text() -> None:
    keys = [-(2**63), 0, 2**63 - 1]
    batch = depot_rows(*((key, 1, 1, 1) for key in keys))
    assert entity_keys(BY_DEPOT, batch) == pa.array(keys, pa.int64())


def test_online_rows_carry_times_revision_shard_and_values() -> None:
    batch = courier_rows(
        {"entity_key": "bé".encode(), "event_timestamp": 5, "revision": 3, "metres_1d": 0.1}
    )
    for form in (batch, pa.Table.from_batches([batch, batch.slice(0, 0)])):
        (row,) = online_rows(BY_COURIER, form, shard=7).rows()
        assert row[1:5] == (5, 3, 10**15, 7)
        values = decode_row([c.dtype for c in BY_COURIER.columns], row.cells)
        assert values == [None, None, 0.1, None, None, None]


def test_feast_rows_carry_the_technical_fields_and_leave_nulls_unset() -> None:
    ((key, values, time, created),) = feast_rows(
        BY_COURIER, courier_rows({"entity_key": b"bea", "event_timestamp": 5, "scans_1d": 2})
    )
    assert key.join_keys == ["courier"]
    assert key.entity_values[0].string_val == "bea"
    assert time == datetime.datetime(1970, 1, 1, microsecond=5, tzinfo=UTC)
    assert created is None
    assert values["scans_1d"].int64_val == 2
    assert values["metres_1d"].WhichOneof("val") is None
    assert values["tidemill_valid_until"].int64_val == 10**15
    assert values["tidemill_revision"].int64_val == 1


def test_other_columns_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"view 'by_depot' .* by_depot__scans_1d int64, found "):
        online_rows(BY_DEPOT, courier_rows({"entity_key": b"x"}), shard=0)


def test_time_that_feast_cannot_carry_is_refused() -> None:
    with pytest.raises(InputError, match=f"event_timestamp {LATEST_EVENT + 1} in row 1"):
        online_rows(BY_DEPOT, depot_rows((1, 1, 1, 1), (1, LATEST_EVENT + 1, 1, 1)), shard=0)


def test_null_key_is_refused() -> None:
    batch = courier_rows({"entity_key": None})
    with pytest.raises(InputError, match="entity_key is null"):
        online_rows(BY_COURIER, batch, shard=0)


def test_no_publications_are_no_rows() -> None:
    assert online_rows(BY_DEPOT, depot_rows(), shard=0).rows() == []
    assert feast_rows(BY_DEPOT, depot_rows()) == []


def test_offline_table_has_the_join_key_and_times_in_utc() -> None:
    table = offline_table(BY_DEPOT, depot_rows((7, 1_500_000, 2, 9)))
    assert table.schema.field("event_timestamp").type == pa.timestamp("us", tz="UTC")
    assert table.to_pylist() == [
        {
            "depot": 7,
            "event_timestamp": datetime.datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC),
            "scans_1d": 9,
            "tidemill_valid_until": 10**15,
            "tidemill_revision": 2,
        }
    ]


def test_feast_joins_the_offline_publications(tmp_path: Path) -> None:
    store = open_store(parcels.PARCELS, StorePlaces.below(tmp_path), clock="wall")
    log = OfflineLog.of(tmp_path / OFFLINE, BY_DEPOT)
    minute = 60 * 1_000_000
    log.write(BY_DEPOT, depot_rows((7, minute, 1, 10), (7, 3 * minute, 2, 20)), "a")
    log.write(BY_DEPOT, depot_rows((7, 2 * minute, 2, 15), (8, minute, 1, 80)), "b")
    asked = pa.table(
        {
            "depot": [7, 7, 7, 8],
            "event_timestamp": pa.array(
                [minute, 5 * minute // 2, 3 * minute, 9 * minute], pa.timestamp("us", tz="UTC")
            ),
        }
    ).to_pandas()
    joined = store.get_historical_features(asked, features=["by_depot:scans_1d"]).to_df()
    joined = joined.sort_values(["depot", "event_timestamp"])
    assert joined["scans_1d"].tolist() == [10, 15, 20, 80]
