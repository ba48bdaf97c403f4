"""Feast over the change-point log: its joins give the values that batch computes."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import feast
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.errors import (
    EntityTimestampInferenceException,
    FeastEntityDFMissingColumnsError,
)

from tests.support import parcels
from tests.support.feast_definitions import feast_objects
from tests.support.offline_project import (
    BY_CAR,
    CAR,
    END,
    PINGS,
    PROJECT,
    START,
    VIEWS,
    history,
    instants,
    words,
)
from tests.support.parcels import BY_COURIER, BY_DEPOT, courier_rows, depot_rows
from tests.support.strategies import to_batch
from tests.support.streaming_project import Arrived, write_log
from tidemill.features.contract import DAY, HOUR, MINUTE, TIME_MAX
from tidemill.features.definitions import FeatureView
from tidemill.features.errors import InputError, StoreError
from tidemill.features.feast_objects import (
    DEFINITION_TAG,
    MAX_STALENESS_TAG,
    REVISION,
    VALID_UNTIL,
)
from tidemill.features.kernel.columns import plain_array
from tidemill.pipelines.history.point_in_time import columns_of, values_at
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.publish.offline_history import log_history
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.places import OFFLINE, StorePlaces

UTC = datetime.UTC
ROWS = history(seed=1, pings=4_000)
DEPOT_DIRECTORY = f"{OFFLINE}/by_depot/{BY_DEPOT.hash}"


def at(time_us: int) -> datetime.datetime:
    return datetime.datetime(1970, 1, 1, tzinfo=UTC) + datetime.timedelta(microseconds=time_us)


def times(*instants_us: int) -> pa.Array:
    return pa.array(instants_us, pa.timestamp("us", tz="UTC"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose offline log holds all of `ROWS`, in two partitions and three shards."""
    folder = tmp_path_factory.mktemp("fleet")
    parts = [ROWS[p::2] for p in range(2)]
    arrived = [
        Arrived("pings", p, rows, sorted(row["at"] for row in rows)) for p, rows in enumerate(parts)
    ]
    write_log(folder / "build", PROJECT, arrived)
    until = {view.name: END for view in VIEWS}
    log_history(PROJECT.views, Log(folder / "build"), folder / OFFLINE, shards=3, until_us=until)
    return folder


@pytest.fixture(scope="module")
def fleet(root: Path) -> feast.FeatureStore:
    return open_store(PROJECT, StorePlaces.below(root), clock="replay")


@pytest.fixture
def depots(tmp_path: Path) -> feast.FeatureStore:
    return open_store(parcels.PARCELS, StorePlaces.below(tmp_path), clock="wall")


def write(root: Path, view: FeatureView, rows: pa.RecordBatch, part: str = "p") -> OfflineLog:
    log = OfflineLog.of(root / OFFLINE, view)
    log.write(view, rows, part)
    return log


def ask(store: feast.FeatureStore, rows: Any, *features: str) -> pa.Table:
    return store.get_historical_features(rows, features=list(features)).to_arrow()


def differences(rows: pa.Table, found: pa.Table, view: FeatureView) -> int:
    """Count the pairs whose values differ from those that batch computes, bit for bit."""
    keys = rows.column("car" if view.entity is CAR else "site").combine_chunks()
    instants_us = rows.column("event_timestamp").cast(pa.int64()).to_numpy()
    values = values_at(view, to_batch(PINGS.schema, ROWS), keys, instants_us)
    wrong = np.zeros(len(rows), np.bool_)
    for name, expected in columns_of(view, *values).items():
        # Feast's timestamps are whole seconds, so a time is an Int64 of microseconds there.
        assert found.column(name).type == plain_array(expected).type
        for mine, theirs in zip(words(found.column(name)), words(expected), strict=True):
            wrong |= mine != theirs
    return int(wrong.sum())


def test_100_000_pairs_are_what_batch_computes_bit_for_bit(fleet: feast.FeatureStore) -> None:
    rows = instants(ROWS, 100_000, seed=2)
    service = fleet.get_feature_service("fleet")
    found = fleet.get_historical_features(rows, service, full_feature_names=True).to_arrow()
    assert found.select(rows.column_names).equals(rows)
    assert {view.name: differences(rows, found, view) for view in VIEWS} == {
        view.name: 0 for view in VIEWS
    }
    # Pairs of every kind were among them.
    count = found.column("by_car__pings_30m").to_numpy()
    assert (count == 0).sum() > 10_000 < (count > 0).sum()
    assert pa.compute.is_in(rows.column("car"), pa.array(["nobody", None])).to_numpy().sum() > 1_000


@pytest.mark.parametrize("count", [1, 3, 63, 64, 500])
def test_few_pairs_too(fleet: feast.FeatureStore, count: int) -> None:
    # duckdb runs an as-of join of few rows by another algorithm.
    rows = instants(ROWS, count, seed=count)
    service = fleet.get_feature_service("fleet")
    found = fleet.get_historical_features(rows, service, full_feature_names=True).to_arrow()
    assert sum(differences(rows, found, view) for view in VIEWS) == 0


def test_every_publication_holds_past_the_instant_that_reads_it(fleet: feast.FeatureStore) -> None:
    rows = instants(ROWS, 20_000, seed=3)
    for view in VIEWS:
        found = ask(fleet, rows, f"{view.name}:{VALID_UNTIL}", f"{view.name}:{REVISION}")
        until = found.column(VALID_UNTIL)
        present = until.is_valid().to_numpy()
        holds = until.fill_null(0).to_numpy() > rows["event_timestamp"].cast("int64").to_numpy()
        assert holds[present].all()
        assert 10_000 < present.sum() < 20_000


def test_technical_fields_of_a_quiet_entity_are_those_of_its_last_publication(
    fleet: feast.FeatureStore,
) -> None:
    rows = pa.table({"car": ["once", "nobody"], "event_timestamp": times(END, END)})
    found = ask(fleet, rows, f"by_car:{REVISION}", f"by_car:{VALID_UNTIL}", "by_car:pings_30m")
    assert found.drop_columns(["event_timestamp"]).to_pylist() == [
        {"car": "once", REVISION: 1, VALID_UNTIL: TIME_MAX, "pings_30m": 0},
        {"car": "nobody", REVISION: None, VALID_UNTIL: None, "pings_30m": 0},
    ]


def test_only_days_that_can_matter_are_read(fleet: feast.FeatureStore, root: Path) -> None:
    # by_car looks back a day and five minutes. Files of other days need not even be Parquet.
    rows = pa.table({"car": ["a"], "event_timestamp": times(START + 6 * DAY + HOUR)})
    good = ask(fleet, rows, "by_car:idle_1d")
    directory = OfflineLog.of(root / OFFLINE, BY_CAR).directory
    days = sorted(directory.glob("date=*"))
    needed = {str(np.datetime64((START + n * DAY) // DAY, "D")) for n in (5, 6)}
    spoilt = [
        day / "spoilt.parquet" for day in days if day.name.removeprefix("date=") not in needed
    ]
    assert len(spoilt) == len(days) - 2 > 5
    try:
        for file in spoilt:
            file.write_bytes(b"not Parquet")
        assert ask(fleet, rows, "by_car:idle_1d").equals(good)
    finally:
        for file in spoilt:
            file.unlink()


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_event_is_found_up_to_the_last_instant_that_covers_it(
    tmp_path: Path, view: FeatureView
) -> None:
    # At the beginning of a hop: no tile lasts longer.
    start = (START // view.hop_us + 1) * view.hop_us
    event = {**ROWS[0], "at": start, "car": "a", "site": 1, "speed": 60.0, "moving": True}
    write_log(tmp_path / "build", PROJECT, [Arrived("pings", 0, [event], [start])])
    until = {view.name: END for view in VIEWS}
    log_history(
        PROJECT.views, Log(tmp_path / "build"), tmp_path / OFFLINE, shards=1, until_us=until
    )
    store = open_store(PROJECT, StorePlaces.below(tmp_path), clock="replay")
    end = start + view.hop_us + view.longest_window_us
    keys = pa.array(["a"]) if view.entity is CAR else pa.array([1])
    for instant, is_empty in ((end - 1, False), (end, True)):
        rows = pa.table({view.entity.join_key: keys, "event_timestamp": times(instant)})
        found = ask(store, rows, *(f"{view.name}:{name}" for name in _feast_names(view)))
        values = values_at(view, to_batch(PINGS.schema, [event]), keys, np.array([instant]))
        expected = {name: column[0].as_py() for name, column in columns_of(view, *values).items()}
        assert list(found.to_pylist()[0].values())[2:] == list(expected.values())
        assert all(not value for value in expected.values()) is is_empty


def _feast_names(view: FeatureView) -> list[str]:
    return [column.name.removeprefix(f"{view.name}__") for column in view.columns]


def test_memory_limit_and_threads_are_duckdbs(root: Path, fleet: feast.FeatureStore) -> None:
    small = feast.FeatureStore(
        config=feast.RepoConfig(
            project="fleet",
            provider="local",
            repo_path=root,
            registry={"registry_type": "file", "path": str(root / "registry.db")},
            offline_store={
                "type": "tidemill.serving.feast_plugins.offline_store.ChangePointOfflineStore",
                "memory_limit": "64MB",
                "threads": 1,
                "spill": str(root),
            },
            entity_key_serialization_version=3,
        )
    )
    assert small.config.offline_store.engine(root).memory_limit == "64MB"
    rows = instants(ROWS, 5_000, seed=5)
    found = small.get_historical_features(
        rows, fleet.get_feature_service("fleet"), full_feature_names=True
    ).to_arrow()
    assert sum(differences(rows, found, view) for view in VIEWS) == 0
    assert not list(root.glob("tidemill-join-*"))


# Ties, absences, and the order of rows.


def test_highest_revision_at_an_instant_is_the_value(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    chance = np.random.default_rng(0)
    rows = [
        (k, t, 10 * t + r, 100 * t + r) for k in range(50) for t in range(1, 11) for r in range(3)
    ]
    for part, chosen in enumerate(np.array_split(chance.permutation(len(rows)), 7)):
        write(tmp_path, BY_DEPOT, depot_rows(*(rows[i] for i in chosen)), f"p{part}")
    for asked in (20, 500):  # both of duckdb's algorithms
        pairs = [(k, t) for k in range(50) for t in range(1, 11)][:asked]
        table = pa.table(
            {"depot": [k for k, _ in pairs], "event_timestamp": times(*(t for _, t in pairs))}
        )
        found = ask(depots, table, "by_depot:scans_1d")
        assert found.column("scans_1d").to_pylist() == [100 * t + 2 for _, t in pairs]


def test_entities_and_instants_without_a_publication_have_the_declared_empty_values(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    write(
        tmp_path,
        BY_COURIER,
        courier_rows(
            {"entity_key": b"bea", "event_timestamp": 10, "scans_1d": 2, "grams_1d": None}
        ),
    )
    rows = pa.table(
        {"courier": ["bea", "bea", "who", None], "event_timestamp": times(9, 10, 10, 10)}
    )
    found = ask(
        depots, rows, *(f"by_courier:{n}" for n in ("scans_1d", "grams_1d", "metres_1d", "idle"))
    )
    assert found.column("scans_1d").to_pylist() == [0, 2, 0, 0]
    assert found.column("grams_1d").to_pylist() == [0, None, 0, 0], (
        "a null that was published stays"
    )
    assert found.column("metres_1d").to_pylist() == [None] * 4
    assert found.column("idle").to_pylist() == [None] * 4


def test_anchored_feature_is_finished_for_the_rows_own_instant(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    write(
        tmp_path, BY_COURIER, courier_rows({"entity_key": b"b", "event_timestamp": 11, "idle": 10})
    )
    rows = pa.table({"courier": ["b"] * 3, "event_timestamp": times(10, 11, 5_000_000_007)})
    found = ask(depots, rows, "by_courier:idle")
    assert found.column("idle").to_pylist() == [None, 1, 4_999_999_997]


def test_log_that_was_never_written_is_refused(depots: feast.FeatureStore) -> None:
    rows = pa.table({"depot": [7], "event_timestamp": times(9)})
    with pytest.raises(StoreError, match=r"view 'by_depot': there is no offline log at .*backfill"):
        ask(depots, rows, "by_depot:scans_1d")


def test_rows_come_back_as_they_were_given(depots: feast.FeatureStore, tmp_path: Path) -> None:
    write(tmp_path, BY_DEPOT, depot_rows((7, 10, 1, 5), (8, 20, 1, 6)))
    frame = pd.DataFrame(
        {
            "note": ["x", None, "x", "y"],
            "depot": [8, 7, 8, 7],
            "event_timestamp": pd.to_datetime([20, 10, 20, 9], unit="us", utc=True),
        },
        index=[3, 3, 1, 0],
    )
    found = depots.get_historical_features(frame, ["by_depot:scans_1d"]).to_df()
    assert found["scans_1d"].tolist() == [6, 5, 6, 0]
    pd.testing.assert_frame_equal(
        found[list(frame)], frame.reset_index(drop=True), check_dtype=False
    )


def test_no_rows_are_no_rows(depots: feast.FeatureStore, tmp_path: Path) -> None:
    write(tmp_path, BY_DEPOT, depot_rows((7, 10, 1, 5)))
    found = ask(depots, pa.table({"depot": pa.array([], "int64"), "event_timestamp": times()}),
                "by_depot:scans_1d")  # fmt: skip
    assert found.schema == pa.schema(
        [("depot", "int64"), ("event_timestamp", pa.timestamp("us", "UTC")), ("scans_1d", "int64")]
    )
    assert len(found) == 0


# The forms of a request.


def test_full_names_services_and_aliases(fleet: feast.FeatureStore) -> None:
    rows = instants(ROWS, 300, seed=4)
    named = ask(fleet, rows, "by_car:pings_30m", "by_site:cars_3h")
    assert named.column_names == [*rows.column_names, "pings_30m", "cars_3h"]
    view = fleet.get_feature_view("by_car")
    fleet.apply(
        feast.FeatureService(
            name="pair",
            features=[
                view[["pings_30m"]].with_name("mine"),
                view[["pings_30m"]].with_name("other").with_join_key_map({"car": "other_car"}),
            ],
        )
    )
    both = rows.append_column("other_car", pa.array(rows.column("car").to_pylist()[::-1]))
    found = fleet.get_historical_features(
        both, fleet.get_feature_service("pair"), full_feature_names=True
    ).to_arrow()
    assert found.column("mine__pings_30m").equals(named.column("pings_30m"))
    turned = rows.set_column(0, "car", both.column("other_car"))
    assert found.column("other__pings_30m").equals(
        ask(fleet, turned, "by_car:pings_30m")["pings_30m"]
    )


def test_sql_gives_the_entity_rows(depots: feast.FeatureStore, tmp_path: Path) -> None:
    write(tmp_path, BY_DEPOT, depot_rows((7, 10, 1, 5)))
    pq.write_table(pa.table({"depot": [7, 8], "when": times(10, 10)}), tmp_path / "asked.parquet")
    found = ask(depots, f"SELECT depot, \"when\" FROM '{tmp_path}/asked.parquet' ORDER BY depot",
                "by_depot:scans_1d")  # fmt: skip
    assert found.column("scans_1d").to_pylist() == [5, 0]
    assert found.column("when").cast("int64").to_pylist() == [10, 10]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([10], pa.timestamp("us")), 5),
        (pa.array([9], pa.timestamp("us", "UTC")), 0),
        (pa.array([9_999], pa.timestamp("ns", "UTC")), 0),
        (pa.array([10_001], pa.timestamp("ns", "UTC")), 5),
        (pa.array([-1], pa.timestamp("ns", "UTC")), 0),
        (pa.array([10], pa.timestamp("us", "America/New_York")), 5),
        (pa.array([1], pa.timestamp("s")), 5),
    ],
)
def test_times_of_any_unit_and_zone(
    depots: feast.FeatureStore, tmp_path: Path, column: pa.Array, expected: int
) -> None:
    write(tmp_path, BY_DEPOT, depot_rows((7, 10, 1, 5)))
    found = ask(depots, pa.table({"depot": [7], "event_timestamp": column}), "by_depot:scans_1d")
    assert found.column("scans_1d").to_pylist() == [expected]


@pytest.mark.parametrize(
    "keys",
    [pa.array([7, None], "int32"), pa.array([7.0, None]), pa.array([7, None]).dictionary_encode()],
)
def test_keys_of_other_numeric_types(
    depots: feast.FeatureStore, tmp_path: Path, keys: pa.Array
) -> None:
    write(tmp_path, BY_DEPOT, depot_rows((7, 10, 1, 5)))
    rows = pa.table({"depot": keys, "event_timestamp": times(10, 10)})
    assert ask(depots, rows, "by_depot:scans_1d").column("scans_1d").to_pylist() == [5, 0]


BIG = 2**53


def test_a_float_key_that_may_be_several_integers_is_refused_by_name(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    write(tmp_path, BY_DEPOT, depot_rows((BIG, 10, 1, 5), (BIG + 1, 10, 1, 6)))
    # pandas makes a float64 of integers with a null.
    frame = pd.DataFrame({"depot": [7, BIG + 1, None], "event_timestamp": [at(10)] * 3})
    assert frame["depot"].tolist()[1] == BIG
    instant = "TIMESTAMPTZ '1970-01-01 00:00:00.00001+00' AS event_timestamp"
    query = (
        f"SELECT 7::DOUBLE AS depot, {instant} UNION ALL SELECT {BIG + 1}::DOUBLE, {instant} "
        "ORDER BY depot"
    )
    for rows in (frame, query):
        with pytest.raises(InputError) as caught:
            ask(depots, rows, "by_depot:scans_1d")
        message = str(caught.value)
        assert "column 'depot' of the entity rows: found 9007199254740992.0 in row 1" in message
        assert "may be any of several integers. Give the column as int64" in message
    frame["depot"] = pd.array([7, BIG + 1, None], "Int64")
    assert ask(depots, frame, "by_depot:scans_1d").column("scans_1d").to_pylist() == [0, 6, 0]


@pytest.mark.parametrize(
    ("kind", "last"), [("float64", 2**53 - 1), ("float32", 2**24 - 1), ("float16", 2**11 - 1)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_float_keys_are_read_up_to_the_last_exact_one(
    depots: feast.FeatureStore, tmp_path: Path, kind: str, last: int, sign: int
) -> None:
    write(tmp_path, BY_DEPOT, depot_rows((sign * last, 10, 1, 5)))

    def rows(key: int) -> pa.Table:
        floats = pa.array(np.array([key], kind))
        return pa.table({"depot": floats, "event_timestamp": times(10)})

    assert ask(depots, rows(sign * last), "by_depot:scans_1d").column("scans_1d").to_pylist() == [5]
    with pytest.raises(InputError, match="may be any of several integers"):
        ask(depots, rows(sign * (last + 1)), "by_depot:scans_1d")


def test_int64_values_with_nulls_keep_their_bits_in_pandas(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    big = 2**53 + 1
    write(tmp_path, BY_COURIER, courier_rows(
        {"entity_key": b"b", "event_timestamp": 10, "grams_1d": big},
        {"entity_key": b"c", "event_timestamp": 10, "grams_1d": None},
    ))  # fmt: skip
    frame = pd.DataFrame({"courier": ["b", "c"], "event_timestamp": [at(10)] * 2})
    found = depots.get_historical_features(frame, ["by_courier:grams_1d"]).to_df()
    assert str(found["grams_1d"].dtype) == "Int64"
    assert found["grams_1d"].tolist() == [big, pd.NA]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ({"event_timestamp": times(1)}, FeastEntityDFMissingColumnsError, "depot"),
        ({"depot": [7]}, EntityTimestampInferenceException, "event_timestamp"),
        ({"depot": [7], "event_timestamp": [5]}, InputError, "must be a timestamp, found int64"),
        ({"depot": [7], "event_timestamp": times(None)}, InputError, "is null in 1 rows"),
        ({"depot": ["7"], "event_timestamp": times(1)}, InputError, "keys of type string"),
        ({"depot": [7.5], "event_timestamp": times(1)}, InputError, "'depot'.*7.5"),
        ({"depot": [7], "scans_1d": [1], "event_timestamp": times(1)}, InputError, "'scans_1d'"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_joined_are_refused(
    depots: feast.FeatureStore, rows: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(depots, pa.table(rows), "by_depot:scans_1d")


def test_span_without_rows_is_refused(depots: feast.FeatureStore) -> None:
    with pytest.raises(InputError, match="a span of time alone"):
        depots.get_historical_features(
            features=["by_depot:scans_1d"], start_date=at(0), end_date=at(9)
        )


def test_generated_view_without_the_tags_of_the_log_is_refused(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    old = feast.FeatureView(
        name="old",
        entities=[depots.get_entity("depot")],
        schema=[feast.Field(name="n", dtype=feast.types.Int64)],
        source=feast.FileSource(
            path=str(tmp_path / "f.parquet"), timestamp_field="event_timestamp"
        ),
        tags={DEFINITION_TAG: "0" * 16, MAX_STALENESS_TAG: "1"},
    )
    depots.apply(old)
    with pytest.raises(StoreError, match=r"'old' lacks the tags tidemill_reach_us.*tidemill apply"):
        ask(depots, pa.table({"depot": [7], "event_timestamp": times(1)}), "old:n")


# The end of the log.


def test_instants_outside_the_log_are_refused_not_answered_with_old_numbers(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    log = write(tmp_path, BY_DEPOT, depot_rows((7, 10 * MINUTE, 1, 5)))
    log.reach(0, 1, since_us=5 * MINUTE, until_us=20 * MINUTE)

    def read(*instants_us: int) -> list[int]:
        rows = pa.table({"depot": [7] * len(instants_us), "event_timestamp": times(*instants_us)})
        return list(ask(depots, rows, "by_depot:scans_1d").column("scans_1d").to_pylist())

    assert read(5 * MINUTE, 20 * MINUTE) == [0, 5]
    with pytest.raises(StoreError, match=r"to 1970-01-01T00:20:00.000001.*is complete from"):
        read(10 * MINUTE, 20 * MINUTE + 1)
    with pytest.raises(StoreError, match="complete from 1970-01-01T00:05:00"):
        read(5 * MINUTE - 1)
    log.reach(0, 1, since_us=20 * MINUTE, until_us=30 * MINUTE)
    assert read(20 * MINUTE + 1) == [5]


def test_publication_that_was_not_followed_is_not_read_past_its_end(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    row = {"entity_key": b"bea", "event_timestamp": 10, "valid_until": 300, "scans_1d": 1}
    write(tmp_path, BY_COURIER, courier_rows(row))
    rows = pa.table({"courier": ["bea"], "event_timestamp": times(299)})
    assert ask(depots, rows, "by_courier:scans_1d").column("scans_1d").to_pylist() == [1]
    late = pa.table({"courier": ["bea"], "event_timestamp": times(300)})
    overrun = r"entity 'bea' at .*holds until .*publication that was due then"
    with pytest.raises(StoreError, match=overrun):
        ask(depots, late, "by_courier:scans_1d")


def test_files_of_another_definition_are_refused(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    log = write(tmp_path, BY_DEPOT, depot_rows((7, 10, 1, 5)))
    table = pq.read_table(log.files(0, 10)[0], partitioning=None)
    place = table.schema.get_field_index("scans_1d")
    wrong = table.set_column(place, "scans_1d", table.column(place).cast("float64"))
    pq.write_table(wrong, log.files(0, 10)[0])
    with pytest.raises(InputError, match=r"'scans_1d'.* is double, expected int64"):
        ask(depots, pa.table({"depot": [7], "event_timestamp": times(10)}), "by_depot:scans_1d")


@pytest.mark.parametrize(("name", "kind"), [("signed", "bool"), ("due", "timestamp")])
def test_files_that_hold_a_bool_or_a_time_as_integers_are_refused(
    depots: feast.FeatureStore, tmp_path: Path, name: str, kind: str
) -> None:
    log = write(tmp_path, BY_COURIER, courier_rows({"entity_key": b"bea", "event_timestamp": 10}))
    (file,) = log.files(0, 10)
    table = pq.read_table(file, partitioning=None)
    place = table.schema.get_field_index(name)
    pq.write_table(table.set_column(place, name, table.column(place).cast("int64")), file)
    rows = pa.table({"courier": ["bea"], "event_timestamp": times(11)})
    with pytest.raises(InputError, match=rf"'{name}'.* is int64, expected {kind}"):
        ask(depots, rows, f"by_courier:{name}")


def test_definition_tells_a_reader_the_empty_values_and_the_reach() -> None:
    view = feast_objects(parcels.PARCELS, "offline").feature_views[0]
    assert {f.name: f.tags.get("tidemill_empty") for f in view.features} == {
        "scans_1d": "0",
        "grams_1d": "0",
        "metres_1d": None,
        "last_metres_0": None,
        "last_metres_1": None,
        "idle": None,
        "signed": None,
        "due": None,
        VALID_UNTIL: None,
        REVISION: None,
    }
    assert view.tags["tidemill_reach_us"] == str(DAY + 5 * MINUTE)
