"""Feast's plug-in for ``materialize``: publications from the offline log to the online store.

Its class path is the ``type`` of ``batch_engine``. Feast's own engine converts every row with
pandas, where an int64 column with a null is float64, so numbers beyond 2**53 change (sums, or the
newest values of a column). Here Arrow columns become rows of the store directly, so the store gets
what was published. The log does not know a row's shard; its age is judged by the view's least
frontier. Rows go to the fill that readers see, if log and fill are of one generation. A warning
says if readers will not see them for want of a frontier, and if the log ends before the span does.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import pyarrow as pa
from feast import FeatureView, FileSource
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig

from tidemill.features.contract import TIME_MIN, time_of, write_instant
from tidemill.features.definitions import ARROW_TYPES
from tidemill.features.errors import StoreError
from tidemill.features.feast_objects import DEFINITION_TAG, REVISION, VALID_UNTIL
from tidemill.serving.feast_plugins.logged_views import (
    OfflineFolders,
    is_log,
    source_log,
    source_path,
)
from tidemill.serving.feast_plugins.online_store import OrderedOnlineStore, database
from tidemill.serving.offline.exact_casts import exact_cast
from tidemill.serving.online.cells import cell_matrix
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.feast_rows import StoredView, feast_rows, stored_view
from tidemill.serving.online.rows import KeySpace, RowBatch, online_keys


class ChangePointComputeEngineConfig(FeastConfigBaseModel):
    """The ``batch_engine`` section of a Feast configuration.

    Attributes:
        type: The class path.
    """

    type: Literal["tidemill.serving.feast_plugins.materialization.ChangePointComputeEngine"] = (
        "tidemill.serving.feast_plugins.materialization.ChangePointComputeEngine"
    )


class ChangePointComputeEngine(LocalComputeEngine):
    """Materializes views that `features.feast_objects` generated; leaves others to Feast."""

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        table = task.feature_view
        if DEFINITION_TAG not in table.tags:
            return super()._materialize_one(registry, task, **kwargs)
        config: RepoConfig = self.repo_config
        view = stored_view(config, table)
        join_key = table.entity_columns[0].name
        time = table.batch_source.timestamp_field
        names = [name for name, _ in view.space.columns]
        job = self.offline_store.pull_latest_from_table_or_query(
            config=config,
            data_source=table.batch_source,
            join_key_columns=[join_key],
            feature_name_columns=[*names, VALID_UNTIL, REVISION],
            timestamp_field=time,
            created_timestamp_column=None,
            start_date=task.start_time,
            end_date=task.end_time,
        )
        rows = _rows(view, join_key, time, job.to_arrow())
        _warn_past_end(config, table, time_of(task.end_time))
        if isinstance(self.online_store, OrderedOnlineStore):
            online = database(config)
            _check_generation(online, view.space, log_generation(config, table))
            online.write(view.space, rows)
            _warn_without_frontier(online, view.space)
        else:
            data = feast_rows(view, rows)
            self.online_store.online_write_batch(config, table, data, lambda _: None)
        return LocalMaterializationJob(
            job_id=f"{table.name}-{task.start_time}-{task.end_time}",
            status=MaterializationJobStatus.SUCCEEDED,
        )


def log_generation(config: RepoConfig, table: FeatureView) -> str:
    """Return the generation of a view's offline log; empty if it belongs to none."""
    source = table.batch_source
    if not isinstance(source, FileSource):
        return ""
    return OfflineFolders().generation(source_path(config, source))


def _warn_past_end(config: RepoConfig, table: FeatureView, until_us: int) -> None:
    """Warn if the offline log does not reach the end of the span that is materialized."""
    source = table.batch_source
    if not is_log(source):
        return
    reached = source_log(config, source).reached()
    if reached is not None and until_us <= reached.last_us:
        return
    complete = "does not say how far it is complete"
    if reached is not None and reached.first_us <= reached.last_us:
        complete = f"is complete up to {write_instant(reached.last_us)}"
    warnings.warn(
        f"view {table.name!r}: materialize was asked for rows up to "
        f"{write_instant(until_us)}, and the offline log {complete}: what changed later is "
        "not in the online store. The stream continues the log, or `tidemill backfill --publish` "
        "writes it from newer events",
        UserWarning,
        stacklevel=2,
    )


def _warn_without_frontier(online: OnlineDatabase, space: KeySpace) -> None:
    """Warn if no reader will see the rows, because their age is not known."""
    (snapshot,) = online.read([(space, [])])
    if snapshot.frontiers.least > TIME_MIN:
        return
    warnings.warn(
        f"{online.name}, view {space.view!r}: materialize wrote rows, but no frontier is published "
        "for all of the view, so Feast reads them as OUTSIDE_MAX_AGE, with nulls. A frontier comes "
        "from `tidemill backfill --publish` or `tidemill stream`",
        UserWarning,
        stacklevel=2,
    )


def _check_generation(online: OnlineDatabase, space: KeySpace, logged: str) -> None:
    """Check that the offline log is of the history that readers of the online store see.

    Raises:
        StoreError: It is of another one.
    """
    for fill in online.fills([space]):
        if fill.is_current and fill.generation != logged:
            raise StoreError(
                f"{online.name}, key space {fill.name}: it is of generation "
                f"{fill.generation or 'none'}, and the offline log of view {space.view!r} of "
                f"{logged or 'none'}: rows of two histories would be mixed; fill the online store "
                "from the same history: `tidemill backfill --publish`"
            )


def _rows(view: StoredView, join_key: str, time: str, found: pa.Table) -> RowBatch:
    columns = {name: found.column(name).combine_chunks() for name in found.column_names}
    for name, dtype in view.space.columns:
        columns[name] = exact_cast(columns[name], ARROW_TYPES[dtype], f"column {name!r} of the log")
    return RowBatch(
        keys=online_keys(join_key, columns[join_key]),
        event_timestamps=columns[time].cast(pa.int64()).to_numpy(),
        revisions=columns[REVISION].to_numpy(),
        valid_until=columns[VALID_UNTIL].to_numpy(),
        shard=None,
        cells=cell_matrix(view.space.dtypes, [columns[name] for name, _ in view.space.columns]),
    )
