"""The change-point log in BigQuery: its tables as DDL. Text only: nothing here connects to a cloud.

A view's log is one table: a row for every publication, partitioned by the day of its
event_timestamp and clustered by the join key. Feast reads an SQL view of it, with one row per
(entity, event_timestamp): the highest revision, and timestamps of features as INT64 microseconds,
which is their type in Feast (`features.feast_objects.DTYPE_TAG`). Both names hold the definition's
hash, so a changed definition begins with an empty table (`features.bigquery_dataset`).
"""

from __future__ import annotations

from typing import Final

from tidemill.features.bigquery_dataset import BigQueryDataset, log_name, newest_name
from tidemill.features.definitions import (
    BOOL,
    FLOAT64,
    INT64,
    STRING,
    TIMESTAMP,
    FeatureView,
    Project,
)
from tidemill.features.feast_objects import EVENT_TIMESTAMP, REVISION, VALID_UNTIL, field_name

_TYPES: Final = {
    INT64: "INT64",
    FLOAT64: "FLOAT64",
    STRING: "STRING",
    BOOL: "BOOL",
    TIMESTAMP: "TIMESTAMP",
}


def log_columns(view: FeatureView) -> dict[str, str]:
    """Return the columns of a view's log and their BigQuery types, in the order of the files.

    They are the columns of the log's Parquet files, so these can be loaded as they are.
    """
    return {
        view.entity.join_key: _TYPES[view.entity.dtype],
        EVENT_TIMESTAMP: "TIMESTAMP",
        **{field_name(column): _TYPES[column.dtype] for column in view.columns},
        VALID_UNTIL: "INT64",
        REVISION: "INT64",
    }


def log_ddl(place: BigQueryDataset, view: FeatureView) -> str:
    """Return the statement that makes a view's log.

    No column is NOT NULL: the schema of the Parquet files allows nulls, and BigQuery refuses to
    load a nullable column into a required one.
    """
    columns = ",\n".join(f"  `{name}` {kind}" for name, kind in log_columns(view).items())
    return (
        f"CREATE TABLE IF NOT EXISTS `{log_name(place, view)}` (\n{columns}\n)\n"
        f"PARTITION BY DATE(`{EVENT_TIMESTAMP}`)\n"
        f"CLUSTER BY `{view.entity.join_key}`"
    )


def newest_ddl(place: BigQueryDataset, view: FeatureView) -> str:
    """Return the statement that makes the SQL view with the highest revision at each instant."""
    times = {field_name(column) for column in view.columns if column.dtype == TIMESTAMP}
    columns = ", ".join(
        f"UNIX_MICROS(`{name}`) AS `{name}`" if name in times else f"`{name}`"
        for name in log_columns(view)
    )
    return (
        f"CREATE OR REPLACE VIEW `{newest_name(place, view)}` AS\n"
        f"SELECT {columns}\n"
        f"FROM `{log_name(place, view)}`\n"
        "WHERE TRUE\n"
        f"QUALIFY ROW_NUMBER() OVER (PARTITION BY `{view.entity.join_key}`, `{EVENT_TIMESTAMP}` "
        f"ORDER BY `{REVISION}` DESC) = 1"
    )


def project_ddl(place: BigQueryDataset, project: Project) -> str:
    """Return the statements that make the tables and SQL views of a project."""
    return (
        "\n\n".join(
            f"{statement(place, view)};"
            for view in project.views
            for statement in (log_ddl, newest_ddl)
        )
        + "\n"
    )
