"""Publications as rows of the online database, and of Feast's generic write path."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from tests.support.parcels import BY_COURIER, BY_DEPOT, courier_rows, depot_rows, feast_rows
from tidemill.features.contract import LATEST_EVENT, moment_of
from tidemill.features.errors import InputError
from tidemill.serving.online.cells import decode_row
from tidemill.serving.online.parcels import online_rows

UTC = datetime.UTC


def test_online_rows_carry_times_revision_shard_and_values() -> None:
    batch = courier_rows(
        {
            "entity_key": "bé".encode(),
            "event_timestamp": 5,
            "revision": 3,
            "metres_1d": 0.1,
            "signed": False,
            "due": moment_of(LATEST_EVENT),
        }
    )
    for form in (batch, pa.Table.from_batches([batch, batch.slice(0, 0)])):
        (row,) = online_rows(BY_COURIER, form, shard=7).rows()
        assert row[1:5] == (5, 3, 10**15, 7)
        values = decode_row([c.dtype for c in BY_COURIER.columns], row.cells)
        assert values == [None, None, 0.1, None, None, None, False, LATEST_EVENT]


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
    with pytest.raises(InputError, match="event_timestamp 10000-01-01T00:00:00Z in row 1"):
        online_rows(BY_DEPOT, depot_rows((1, 1, 1, 1), (1, LATEST_EVENT + 1, 1, 1)), shard=0)


def test_null_key_is_refused() -> None:
    batch = courier_rows({"entity_key": None})
    with pytest.raises(InputError, match="entity_key is null"):
        online_rows(BY_COURIER, batch, shard=0)


def test_no_publications_are_no_rows() -> None:
    assert online_rows(BY_DEPOT, depot_rows(), shard=0).rows() == []
    assert feast_rows(BY_DEPOT, depot_rows()) == []
