"""Publications as the table that Feast joins offline."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa

from tests.support import parcels
from tests.support.parcels import BY_DEPOT, depot_rows
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.offline.offline_table import offline_table
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.places import OFFLINE, StorePlaces

UTC = datetime.UTC


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
