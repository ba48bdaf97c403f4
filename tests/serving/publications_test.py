"""Publications in Arrow."""

from __future__ import annotations

import pyarrow as pa

from tests.support.parcels import BY_DEPOT, depot_rows
from tidemill.serving.publications import entity_keys, schema


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
