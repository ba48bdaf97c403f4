"""The other methods of an offline store: saving, writing, materializing."""

from __future__ import annotations

import datetime
import shutil
import warnings
from pathlib import Path
from typing import Any

import feast
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage

from tests.support import parcels
from tests.support.feast_definitions import feast_objects
from tests.support.offline_project import END, PINGS, PROJECT, START, VIEWS, history
from tests.support.parcels import BY_DEPOT, depot_rows
from tests.support.strategies import to_batch
from tests.support.streaming_project import Arrived, write_log
from tidemill.features.contract import (
    DAY,
    EARLIEST_EVENT,
    HOUR,
    LATEST_EVENT,
    MINUTE,
    TIME_MAX,
    TIME_MIN,
)
from tidemill.features.definitions import FeatureView
from tidemill.features.errors import InputError, StoreError
from tidemill.features.feast_objects import REVISION, VALID_UNTIL
from tidemill.features.kernel.advance import Publish, advance
from tidemill.features.kernel.plan import make_plan
from tidemill.features.kernel.prepare import prepare_events
from tidemill.features.kernel.tiles.state import State
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.publish.newest_rows import newest_per_entity
from tidemill.pipelines.publish.offline_history import log_history
from tidemill.pipelines.stream.publications import named_publications
from tidemill.serving.generations.current import CURRENT, Current, write_current
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.parcels import online_rows
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.feast_config import repo_config
from tidemill.serving.stores.online_places import default_place
from tidemill.serving.stores.places import OFFLINE, StorePlaces

UTC = datetime.UTC


def at(time_us: int) -> datetime.datetime:
    return datetime.datetime(1970, 1, 1, tzinfo=UTC) + datetime.timedelta(microseconds=time_us)


def times(*instants_us: int) -> pa.Array:
    return pa.array(instants_us, pa.timestamp("us", tz="UTC"))


@pytest.fixture
def depots(tmp_path: Path) -> feast.FeatureStore:
    return open_store(parcels.PARCELS, StorePlaces.below(tmp_path), clock="wall")


def write(root: Path, view: FeatureView, rows: pa.RecordBatch, part: str = "p") -> OfflineLog:
    log = OfflineLog.of(root / OFFLINE, view)
    log.write(view, rows, part)
    return log


def ask(store: feast.FeatureStore, rows: Any, *features: str) -> pa.Table:
    return store.get_historical_features(rows, features=list(features)).to_arrow()


def test_saved_dataset_is_what_was_joined(depots: feast.FeatureStore, tmp_path: Path) -> None:
    write(tmp_path, BY_DEPOT, depot_rows((7, 10, 1, 5), (8, 10, 1, 6)))
    rows = pa.table({"depot": [8, 7], "event_timestamp": times(10, 12)})
    job = depots.get_historical_features(rows, ["by_depot:scans_1d"])
    storage = SavedDatasetFileStorage(path=str(tmp_path / "saved.parquet"))
    dataset = depots.create_saved_dataset(job, name="saved", storage=storage)
    found = dataset.to_arrow().sort_by("depot").select(["depot", "scans_1d"])
    assert found.to_pylist() == [{"depot": 7, "scans_1d": 5}, {"depot": 8, "scans_1d": 6}]
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)


def test_rows_written_through_feast_join_the_log_once(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    log = write(tmp_path, BY_DEPOT, depot_rows((7, 10, 1, 5)))
    frame = pd.DataFrame({
        "depot": [7, 9], "event_timestamp": [at(10), at(11)], "scans_1d": [50, 1],
        VALID_UNTIL: [TIME_MAX] * 2, REVISION: [2, 1],
    })  # fmt: skip
    for _ in range(2):
        depots.write_to_offline_store("by_depot", frame)
    assert len(log.files(TIME_MIN, TIME_MAX)) == 2
    rows = pa.table({"depot": [7, 9], "event_timestamp": times(12, 12)})
    assert ask(depots, rows, "by_depot:scans_1d").column("scans_1d").to_pylist() == [50, 1]


@pytest.fixture
def courier_frame() -> pd.DataFrame:
    """Two publications as a pandas frame, in Feast's types."""
    return pd.DataFrame({
        "courier": ["ann", "bob"], "event_timestamp": [at(10), at(11)],
        "scans_1d": [1, 2], "grams_1d": [1, 2], "idle": [1, 2],
        "metres_1d": [0.5, 0.5], "last_metres_0": [0.5, 0.5], "last_metres_1": [0.5, 0.5],
        "signed": [False, None], "due": pd.array([EARLIEST_EVENT, None], "Int64"),
        VALID_UNTIL: [TIME_MAX] * 2, REVISION: [1, 1],
    })  # fmt: skip


@pytest.mark.parametrize("due", ["int64", "float64", "timestamp"])
def test_bools_and_times_written_through_feast_are_those_of_the_log(
    depots: feast.FeatureStore, tmp_path: Path, courier_frame: pd.DataFrame, due: str
) -> None:
    earliest = EARLIEST_EVENT
    if due == "float64":  # what pandas makes of integers with a null
        earliest = 2**52 + 1
        courier_frame["due"] = [float(earliest), None]
    elif due == "timestamp":
        courier_frame["due"] = times(earliest, 0).to_pandas().where([True, False])
    write(tmp_path, parcels.BY_COURIER, parcels.courier_rows({"entity_key": b"eve"}))
    depots.write_to_offline_store("by_courier", courier_frame)
    files = OfflineLog.of(tmp_path / OFFLINE, parcels.BY_COURIER).files(TIME_MIN, TIME_MAX)
    assert len(files) == 2
    for schema in map(pq.read_schema, files):
        assert schema.field("signed").type == pa.bool_()
        assert schema.field("due").type == pa.timestamp("us", "UTC")
    rows = pa.table({"courier": ["ann", "bob", "x"], "event_timestamp": times(12, 12, 12)})
    job = depots.get_historical_features(rows, ["by_courier:signed", "by_courier:due"])
    found = job.to_arrow()
    assert found["signed"].to_pylist() == [False, None, None]
    assert (found["due"].type, found["due"].to_pylist()) == (pa.int64(), [earliest, None, None])
    frame = job.to_df()
    assert (str(frame["signed"].dtype), str(frame["due"].dtype)) == ("boolean", "Int64")
    assert frame["signed"].tolist() == [False, pd.NA, pd.NA]
    assert frame["due"].tolist() == [earliest, pd.NA, pd.NA]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signed": [1, 0]}, "'signed': found int64, expected bool"),
        ({"signed": ["true", "x"]}, "'signed': found .*string, expected bool"),
        ({"due": [1.5, 2.0]}, "'due'.*truncated"),
        ({"due": pd.array([1, 2], "datetime64[ns]")}, "'due'.*would lose data"),
        ({"grams_1d": [at(1), at(2)]}, r"'grams_1d': found timestamp.*, expected int64"),
    ],
)  # fmt: skip
def test_bools_and_times_that_are_not_exact_are_refused(
    depots: feast.FeatureStore,
    tmp_path: Path,
    courier_frame: pd.DataFrame,
    change: dict[str, Any],
    message: str,
) -> None:
    write(tmp_path, parcels.BY_COURIER, parcels.courier_rows({"entity_key": b"eve"}))
    with pytest.raises(InputError, match=message):
        depots.write_to_offline_store("by_courier", courier_frame.assign(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scans_1d": [0.5]}, "'scans_1d'.*truncated"),
        ({"depot": [None]}, "depot is null"),
        ({"depot": [2.0**53]}, "'depot': found 9007199254740992.0 in row 0, and the values are"),
        ({"scans_1d": [-(2.0**53)]}, "'scans_1d': found -9007199254740992.0 in row 0"),
        ({REVISION: [None]}, "tidemill_revision is null"),
    ],
)  # fmt: skip
def test_rows_that_are_no_publications_are_refused(
    depots: feast.FeatureStore, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write(tmp_path, BY_DEPOT, depot_rows((7, 10, 1, 5)))
    row = {
        "depot": [7],
        "event_timestamp": [at(10)],
        "scans_1d": [5],
        VALID_UNTIL: [1],
        REVISION: [1],
    }
    with pytest.raises(InputError, match=message):
        depots.write_to_offline_store("by_depot", pd.DataFrame({**row, **change}))


def test_feature_logging_is_refused(depots: feast.FeatureStore, tmp_path: Path) -> None:
    service = feast.FeatureService(
        name="logged",
        features=[depots.get_feature_view("by_depot")],
        logging_config=LoggingConfig(
            destination=FileLoggingDestination(path=str(tmp_path / "logs"))
        ),
    )
    depots.apply(service)
    with pytest.raises(NotImplementedError, match="takes no feature logs"):
        depots.write_logged_features(pa.table({"n": [1]}), service)


def test_remote_files_are_refused(tmp_path: Path) -> None:
    store = feast.FeatureStore(
        config=repo_config(parcels.PARCELS.name, StorePlaces.below(tmp_path), clock="wall")
    )
    store.apply(feast_objects(parcels.PARCELS, "gs://bucket/offline").all)
    with pytest.raises(
        StoreError, match=r"gs://bucket/offline/by_depot/.*reads local Parquet files"
    ):
        ask(store, pa.table({"depot": [7], "event_timestamp": times(1)}), "by_depot:scans_1d")


def test_materialize_writes_what_is_published(tmp_path: Path) -> None:
    rows = history(seed=1, pings=4_000)
    write_log(
        tmp_path / "build", PROJECT, [Arrived("pings", 0, rows, sorted(row["at"] for row in rows))]
    )
    end = {view.name: END for view in VIEWS}
    log_history(PROJECT.views, Log(tmp_path / "build"), tmp_path / OFFLINE, shards=2, until_us=end)
    until = START + 4 * DAY + 3 * HOUR + 17 * MINUTE
    open_store(PROJECT, StorePlaces.below(tmp_path), clock="replay").materialize(
        at(START - DAY), at(until)
    )
    database = open_database(default_place(tmp_path))
    past = [row for row in rows if row["at"] < until]
    for view in VIEWS:
        plan = make_plan(view)
        kept = list({row["ping"]: row for row in past}.values())
        events = prepare_events(plan, view, to_batch(PINGS.schema, kept))
        published = advance(State(plan), events, None, until, Publish.EVERY).publications
        wanted = online_rows(
            view, named_publications(view, newest_per_entity(published)), None
        ).rows()
        (snapshot,) = database.read([(KeySpace.of("fleet", view), [row.key for row in wanted])])
        assert list(snapshot.rows) == wanted


def test_materializing_again_changes_nothing_and_never_goes_back(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    for part, row in enumerate([(7, 20, 3, 7), (7, 10, 1, 5), (7, 20, 2, 6)]):
        write(tmp_path, BY_DEPOT, depot_rows(row), f"p{part}")
    database = open_database(default_place(tmp_path))

    def stands() -> list[Any]:
        (snapshot,) = database.read(
            [(parcels.DEPOT_SPACE, online_rows(BY_DEPOT, depot_rows((7, 1, 1, 1)), None).keys)]
        )
        return [
            None if row is None else (row.event_timestamp, row.revision) for row in snapshot.rows
        ]

    for last, expected in ((15, (10, 1)), (25, (20, 3)), (25, (20, 3)), (15, (20, 3))):
        depots.materialize(at(0), at(last), feature_views=["by_depot"])
        assert stands() == [expected]


def test_materialize_past_the_end_of_the_log_says_where_it_ends(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    log = write(tmp_path, BY_DEPOT, depot_rows((7, 10, 1, 5)), "p0")
    with pytest.warns(UserWarning, match=r"the offline log does not say how far it is complete"):
        depots.materialize(at(0), at(25), feature_views=["by_depot"])
    log.reach(0, 1, since_us=0, until_us=20)
    with pytest.warns(UserWarning, match=r"'by_depot': .*\.000025.* is complete up to .*\.00002"):
        depots.materialize(at(0), at(25), feature_views=["by_depot"])


def test_materialize_into_a_store_without_frontier_says_that_nobody_reads_it(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    log = write(tmp_path, BY_DEPOT, depot_rows((7, 10, 1, 5)), "p0")
    log.reach(0, 1, since_us=0, until_us=20)
    with pytest.warns(UserWarning, match=r"online.db, view 'by_depot': .*as OUTSIDE_MAX_AGE"):
        depots.materialize(at(0), at(20), feature_views=["by_depot"])
    database = open_database(default_place(tmp_path))
    parcels.publish(database, BY_DEPOT, depot_rows(), frontier_us=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        depots.materialize(at(0), at(20), feature_views=["by_depot"])


def test_materialize_from_another_generation_is_refused(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    write(tmp_path, BY_DEPOT, depot_rows((7, 10, 1, 5)), "p0")
    current = Current(tmp_path, "another", build=1, offline=1, stream=0)
    write_current(current)
    shutil.copytree(tmp_path / OFFLINE, current.offline_root)
    with pytest.raises(StoreError, match=r"of generation none, and .*'by_depot' of another: rows"):
        depots.materialize(at(0), at(25), feature_views=["by_depot"])
    (tmp_path / CURRENT).unlink()
    depots.materialize(at(0), at(25), feature_views=["by_depot"])


def test_materialize_writes_to_stores_of_feast_too_with_every_bit(tmp_path: Path) -> None:
    big = 2**53 + 1
    rows = parcels.courier_rows(
        {"entity_key": b"bea", "event_timestamp": 10, "grams_1d": big, "signed": False},
        {"entity_key": b"cid", "event_timestamp": 10, "grams_1d": None, "due": LATEST_EVENT},
    )
    write(tmp_path, parcels.BY_COURIER, rows)
    ours = repo_config(parcels.PARCELS.name, StorePlaces.below(tmp_path), clock="wall")
    stock = feast.FeatureStore(
        config=feast.RepoConfig(
            project="parcels",
            provider="local",
            repo_path=tmp_path,
            registry=str(tmp_path / "stock.db"),
            online_store={"type": "sqlite", "path": str(tmp_path / "stock_online.db")},
            offline_store=ours.offline_config,
            batch_engine=ours.batch_engine_config,
            entity_key_serialization_version=3,
        )
    )
    stock.apply(feast_objects(parcels.PARCELS, str(tmp_path / OFFLINE)).all)
    stock.materialize(at(0), at(20), feature_views=["by_courier"])
    answer = stock.get_online_features(
        [f"by_courier:{name}" for name in ("grams_1d", "signed", "due", REVISION)],
        [{"courier": c} for c in ("bea", "cid")],
    ).to_dict()
    assert answer["grams_1d"] == [big, None]
    assert answer["signed"] == [False, None]
    assert answer["due"] == [None, LATEST_EVENT]
    assert answer[REVISION] == [1, 1]


def test_materialize_of_a_folder_that_is_no_log_takes_its_files(
    depots: feast.FeatureStore, tmp_path: Path
) -> None:
    table = pa.table({"depot": [7], "event_timestamp": times(1), "n": [1]})
    (tmp_path / "foreign").mkdir()
    pq.write_table(table, tmp_path / "foreign" / "f.parquet")
    foreign = feast.FeatureView(
        name="foreign",
        entities=[depots.get_entity("depot")],
        schema=[feast.Field(name="n", dtype=feast.types.Int64)],
        source=feast.FileSource(path=str(tmp_path / "foreign"), timestamp_field="event_timestamp"),
    )
    depots.apply(foreign)
    depots.materialize(at(0), at(20), feature_views=["foreign"])
    assert depots.get_online_features(["foreign:n"], [{"depot": 7}]).to_dict()["n"] == [1]
