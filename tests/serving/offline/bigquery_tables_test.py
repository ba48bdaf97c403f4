"""The change-point log in BigQuery, without a cloud.

There is no BigQuery here. Feast's own code makes the SQL that its BigQuery store would run, and
duckdb runs it; the two dialects differ in the spelling of names and types only (`spelt`).
docs/offline-store.md states what this cannot show.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import feast
import pyarrow as pa
import pytest
from feast.infra.offline_stores.bigquery import MULTIPLE_FEATURE_VIEW_POINT_IN_TIME_JOIN
from feast.infra.offline_stores.offline_utils import (
    build_point_in_time_query,
    get_feature_view_query_context,
)

from tests.support.feast_definitions import feast_objects
from tests.support.offline_project import (
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
from tests.support.parcels import BY_COURIER, BY_DEPOT, PARCELS, courier_rows, depot_rows
from tests.support.strategies import to_batch
from tests.support.streaming_project import Arrived, write_log
from tidemill import FeatureView, Project
from tidemill.features.bigquery_dataset import BigQueryDataset, log_name, newest_name
from tidemill.features.errors import ConfigurationError, InputError
from tidemill.features.feast_objects import REVISION, VALID_UNTIL
from tidemill.pipelines.history.point_in_time import columns_of, values_at
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.publish.offline_history import log_history
from tidemill.serving.feast_plugins.offline_store import finish_history
from tidemill.serving.offline.bigquery_tables import log_columns, log_ddl, newest_ddl
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.offline.offline_table import offline_table
from tidemill.serving.stores.places import OFFLINE

PLACE = BigQueryDataset("some-project", "features")


def spelt(sql: str) -> str:
    """Translate BigQuery's SQL to duckdb's: quotes, types, and no layout of tables."""
    for bigquery, here in (
        ("`", '"'),
        ("FLOAT64", "DOUBLE"),
        ('" TIMESTAMP', '" TIMESTAMPTZ'),
        ("CONCAT(", "bigquery_concat("),
        ("UNIX_MICROS(", "epoch_us("),
    ):
        sql = sql.replace(bigquery, here)
    return sql.split("\nPARTITION BY")[0]


def warehouse() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    # duckdb's own function ignores nulls; BigQuery's returns null.
    connection.execute("CREATE MACRO bigquery_concat(a, b) AS a || b")
    return connection


def registered(project: Project, root: Path) -> feast.FeatureStore:
    """The project's Feast store with BigQuery as its offline store; nothing connects to it."""
    store = feast.FeatureStore(
        config=feast.RepoConfig(
            project=project.name,
            provider="local",
            registry=str(root / "registry.db"),
            online_store={"type": "sqlite", "path": str(root / "online.db")},
            offline_store={"type": "bigquery", "dataset": "features"},
            entity_key_serialization_version=3,
        )
    )
    store.apply(feast_objects(project, PLACE).all)
    return store


def test_log_is_partitioned_by_day_and_clustered_by_key() -> None:
    assert log_ddl(PLACE, BY_DEPOT) == (
        f"CREATE TABLE IF NOT EXISTS `some-project.features.by_depot__{BY_DEPOT.hash}__log` (\n"
        "  `depot` INT64,\n"
        "  `event_timestamp` TIMESTAMP,\n"
        "  `scans_1d` INT64,\n"
        "  `tidemill_valid_until` INT64,\n"
        "  `tidemill_revision` INT64\n"
        ")\n"
        "PARTITION BY DATE(`event_timestamp`)\n"
        "CLUSTER BY `depot`"
    )


@pytest.mark.parametrize(("view", "rows"), [(BY_DEPOT, depot_rows()), (BY_COURIER, courier_rows())])
def test_columns_are_those_of_the_files(view: FeatureView, rows: pa.RecordBatch) -> None:
    kinds = {"INT64": pa.int64(), "FLOAT64": pa.float64(), "STRING": pa.string()}
    kinds |= {"BOOL": pa.bool_(), "TIMESTAMP": pa.timestamp("us", tz="UTC")}
    found = {name: kinds[kind] for name, kind in log_columns(view).items()}
    schema = offline_table(view, rows).schema
    assert list(found.items()) == list(zip(schema.names, schema.types, strict=True))


def test_feast_reads_the_view_with_the_highest_revisions(tmp_path: Path) -> None:
    store = registered(PARCELS, tmp_path)
    source = store.get_feature_view("by_depot").batch_source
    assert isinstance(source, feast.BigQuerySource)
    assert (
        source.table
        == newest_name(PLACE, BY_DEPOT)
        == (f"some-project.features.by_depot__{BY_DEPOT.hash}")
    )
    assert source.timestamp_field == "event_timestamp"
    assert source.name == "by_depot_publications"


def test_sql_view_has_the_highest_revision_of_an_instant() -> None:
    connection = warehouse()
    connection.execute(spelt(log_ddl(PLACE, BY_DEPOT)))
    connection.execute(spelt(newest_ddl(PLACE, BY_DEPOT)))
    rows = depot_rows((7, 10, 1, 5), (7, 10, 3, 7), (7, 10, 2, 6), (8, 10, 1, 1), (7, 11, 4, 8))
    connection.register("written", offline_table(BY_DEPOT, rows))
    connection.execute(f'INSERT INTO "{log_name(PLACE, BY_DEPOT)}" SELECT * FROM written')
    found = connection.execute(
        f'SELECT depot, scans_1d FROM "{newest_name(PLACE, BY_DEPOT)}" ORDER BY ALL'
    ).fetchall()
    assert found == [(7, 7), (7, 8), (8, 1)]


def test_what_feast_runs_there_gives_what_batch_computes(tmp_path: Path) -> None:
    rows = history(seed=6, pings=1_500)
    write_log(
        tmp_path / "build", PROJECT, [Arrived("pings", 0, rows, sorted(r["at"] for r in rows))]
    )
    until = {view.name: END for view in VIEWS}
    log_history(
        PROJECT.views, Log(tmp_path / "build"), tmp_path / OFFLINE, shards=1, until_us=until
    )
    connection = warehouse()
    for view in VIEWS:
        connection.execute(spelt(log_ddl(PLACE, view)))
        connection.execute(spelt(newest_ddl(PLACE, view)))
        files = [str(f) for f in OfflineLog.of(tmp_path / OFFLINE, view).files(START - 1, END)]
        connection.execute(
            f'INSERT INTO "{log_name(PLACE, view)}" '
            "SELECT * FROM read_parquet(?, hive_partitioning = false)",
            [files],
        )
    asked = instants(rows, 2_000, seed=7).append_column("row", pa.array(range(2_000)))
    connection.register("asked", asked)
    connection.execute('CREATE TABLE "some-project.features.asked" AS SELECT * FROM asked')

    store = registered(PROJECT, tmp_path)
    views = [store.get_feature_view(view.name) for view in VIEWS]
    refs = [f"{v.name}:{f.name}" for v in views for f in v.features if f.name != VALID_UNTIL]
    times = asked.column("event_timestamp").to_pylist()
    contexts = get_feature_view_query_context(
        refs, views, store.registry, "fleet", (min(times), max(times))
    )
    sql = build_point_in_time_query(
        contexts,
        left_table_query_string="some-project.features.asked",
        entity_df_event_timestamp_col="event_timestamp",
        entity_df_columns=dict.fromkeys(asked.column_names).keys(),
        query_template=MULTIPLE_FEATURE_VIEW_POINT_IN_TIME_JOIN,
        full_feature_names=True,
    )
    *tables, select = [part for part in spelt(sql).split(";") if part.strip()]
    for statement in tables:
        connection.execute(statement)
    joined = connection.sql(select).to_arrow_table().sort_by("row")
    found = finish_history(joined, views)
    for view in VIEWS:
        keys = asked.column("car" if view.entity is CAR else "site").combine_chunks()
        instants_us = asked.column("event_timestamp").cast(pa.int64()).to_numpy()
        values = values_at(view, to_batch(PINGS.schema, rows), keys, instants_us)
        for name, expected in columns_of(view, *values).items():
            for one, other in zip(words(found.column(name)), words(expected), strict=True):
                assert (one == other).all(), name
    unfinished = joined.column("by_car__pings_30m")
    assert unfinished.null_count > 100, "by itself, Feast's join gives null to who has no row"


def test_result_without_the_revision_cannot_be_finished() -> None:
    (view, _) = feast_objects(PARCELS, PLACE).feature_views
    table = pa.table(
        {"event_timestamp": pa.array([1], pa.timestamp("us", "UTC")), "by_courier__idle": [1]}
    )
    with pytest.raises(InputError, match=f"ask for 'by_courier:{REVISION}' too"):
        finish_history(table, [view])


@pytest.mark.parametrize(
    ("project", "dataset"),
    [("Some_Project", "f"), ("p`; DROP", "f"), ("some-project", "a.b"), ("some-project", "")],
)
def test_name_that_bigquery_would_not_take_is_refused(project: str, dataset: str) -> None:
    with pytest.raises(ConfigurationError, match=r"BigQuery (project|dataset)"):
        BigQueryDataset(project, dataset)
