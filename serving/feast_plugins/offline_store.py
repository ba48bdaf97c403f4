"""Feast's plug-in for the change-point log: point-in-time joins that give the values of batch.

Plugged in by class path: ``offline_store: {type:
tidemill.serving.feast_plugins.offline_store.ChangePointOfflineStore}``. It reads the views that
`features.feast_objects` generated, with files as their source; it needs only the registry. The
sources of all other views go to Feast's own store of files (`stock_history`), in the same result.
`serving.offline.join` states the promises of a join. In addition:

* ``get_historical_features``: entity rows are a pandas frame, an Arrow table, or an SQL query for
  duckdb that returns them. Their own columns are returned unchanged. A time without a zone is UTC,
  and one between two microseconds is rounded down. Entity rows are required: a span of time alone
  (``start_date``, ``end_date``) names no instants.
* A timestamp feature is an int64 of microseconds UTC, its type in Feast
  (`features.feast_objects.DTYPE_TAG`), whatever is asked of a log.
* ``to_df`` keeps the bits of int64 columns with nulls, as pandas' ``Int64`` (Feast would make
  them float64, and lose those beyond 2**53). A bool column with nulls has pandas' ``boolean``.
* ``materialize`` (`pull_latest`, ``pull_all``) takes publications as they are stored: anchors are
  not finished, as in the online store.
* ``write_to_offline_store`` and ``push`` add a part to the log; the same rows again replace it.
  They do not change how far the log reaches.
* Feature logging is refused: every prediction holds the values that it used.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureView, OnDemandFeatureView
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import _get_requested_feature_views_to_features_dict

from tidemill.features.contract import EARLIEST_EVENT, LATEST_EVENT, moment_of, time_of
from tidemill.features.errors import InputError
from tidemill.features.feast_objects import (
    DEFINITION_TAG,
    EVENT_TIMESTAMP,
    REVISION,
    VALID_UNTIL,
)
from tidemill.serving.feast_plugins.entity_rows import (
    EntityRows,
    entity_table,
    keys_of,
    microseconds,
    time_column,
)
from tidemill.serving.feast_plugins.logged_views import (
    OfflineFolders,
    is_local,
    is_log,
    key_type,
    log_rows,
    logged_features,
    logged_view,
    source_log,
    source_path,
)
from tidemill.serving.feast_plugins.stock_history import STOCK, ForeignLookup, stock_config
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.offline.exact_casts import exact_cast
from tidemill.serving.offline.join import JoinEngine, between, join
from tidemill.serving.offline.log import Span, rows_digest

if TYPE_CHECKING:
    from feast.saved_dataset import ValidationReference


Column: TypeAlias = pa.Array | pa.ChunkedArray


class ChangePointOfflineStoreConfig(FeastConfigBaseModel):
    """The ``offline_store`` section of a Feast configuration.

    Attributes:
        type: The class path.
        memory_limit: Memory limit of duckdb, in its words (``2GB``); more data spills to disk. The
            default is four fifths of the machine's memory.
        threads: Threads of duckdb; one per core by default.
        spill: Directory for data beyond the limit; by default the machine's temporary directory. A
            relative path starts at the repository.
        root: Where the relative paths of logs start: the folder that Tidemill wrote the
            ``feature_store.yaml`` into. A copy of that file in another folder names it here.
    """

    type: Literal["tidemill.serving.feast_plugins.offline_store.ChangePointOfflineStore"] = (
        "tidemill.serving.feast_plugins.offline_store.ChangePointOfflineStore"
    )
    memory_limit: str | None = None
    threads: int | None = None
    spill: str | None = None
    root: str = ""

    def engine(self, repository: Path | None) -> JoinEngine:
        """Return the settings of duckdb."""
        spill = None if not self.spill else (repository or Path()) / self.spill
        return JoinEngine(self.memory_limit, self.threads, spill)


class ChangePointRetrievalJob(RetrievalJob):
    """A query that runs when its result is needed."""

    def __init__(
        self,
        run: Callable[[], pa.Table],
        *,
        config: RepoConfig,
        full_feature_names: bool = False,
        on_demand_feature_views: list[OnDemandFeatureView] | None = None,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._run = run
        self._config = config
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = on_demand_feature_views or []
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        """Whether features are called ``view__feature``."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """The views that Feast computes from the result."""
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """The request; None for the rows of a log."""
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._run()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return _exact_frame(self._run())

    def to_df(
        self, validation_reference: ValidationReference | None = None, timeout: int | None = None
    ) -> pd.DataFrame:
        """Return the result as a frame; integers and bools with nulls have types that hold them."""
        return _exact_frame(self.to_arrow(validation_reference, timeout))

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,
    ) -> None:
        """Write the result as one Parquet file, to the place of a saved dataset.

        Raises:
            SavedDatasetLocationAlreadyExists: The file exists, and may not be overwritten.
        """
        target = source_path(self._config, storage.to_data_source())
        if target.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(target))
        with atomic_write(target) as unfinished:
            pq.write_table(self.to_arrow(timeout=timeout), unfinished)


class ChangePointOfflineStore(OfflineStore):
    """The offline store of change-point logs; see the top of this module."""

    # For foreign views. Rows of a log have no such time: the revision orders them.
    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: EntityRows | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **options: Any,
    ) -> RetrievalJob:
        """Join features to entity rows, each as of its own instant.

        Raises:
            InputError: There are no entity rows, and a view is Tidemill's; one of their columns is
                missing or does not have the type of the key, or it has the name of a feature.
            StoreError: A view was generated before it had tags for the offline log.
        """
        if entity_df is None:
            if ours := [view.name for view in feature_views if DEFINITION_TAG in view.tags]:
                raise InputError(
                    f"view {ours[0]!r}: get_historical_features needs entity rows: a span of time "
                    f"alone ({', '.join(sorted(options))}) does not say at which instants values "
                    "are wanted"
                )
            return STOCK.get_historical_features(
                stock_config(config, None),
                feature_views,
                feature_refs,
                None,
                registry,
                project,
                full_feature_names,
                **options,
            )
        engine = config.offline_store.engine(config.repo_path)
        rows = entity_table(engine, entity_df)
        time_name = time_column(rows)
        times_us = microseconds(rows, time_name)
        odfvs = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        by_view, _ = _get_requested_feature_views_to_features_dict(
            feature_refs, feature_views, odfvs
        )
        lookups: list[tuple[list[str], Callable[[], Sequence[Column]]]] = []
        folders = OfflineFolders()
        for feature_view, names in by_view.items():
            if DEFINITION_TAG in feature_view.tags:
                view = logged_view(config, feature_view, names, folders)
                key_column = feature_view.projection.join_key_map.get(view.join_key, view.join_key)
                keys = keys_of(rows, key_column, key_type(feature_view))
                look_up = functools.partial(join, engine, view, keys, times_us)
            else:
                foreign = ForeignLookup(config, registry, feature_view, names, options)
                look_up = functools.partial(foreign.columns, rows, times_us)
            prefix = feature_view.projection.name_alias or feature_view.name
            outputs = [f"{prefix}__{name}" if full_feature_names else name for name in names]
            if clash := set(outputs) & set(rows.column_names):
                raise InputError(
                    f"the entity rows have a column {sorted(clash)[0]!r}, and so has the result; "
                    "rename it, or ask with full_feature_names"
                )
            lookups.append((outputs, look_up))

        def run() -> pa.Table:
            table = rows
            for outputs, look_up in lookups:
                for output, column in zip(outputs, look_up(), strict=True):
                    table = table.append_column(output, column)
            return table

        return ChangePointRetrievalJob(
            run,
            config=config,
            full_feature_names=full_feature_names,
            on_demand_feature_views=odfvs,
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in rows.column_names if name != time_name],
                min_event_timestamp=moment_of(int(times_us.min())) if len(times_us) else None,
                max_event_timestamp=moment_of(int(times_us.max())) if len(times_us) else None,
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime.datetime,
        end_date: datetime.datetime,
    ) -> RetrievalJob:
        """Return the newest publication of each entity, highest revision, with a time in a span."""
        if not is_log(data_source):
            return STOCK.pull_latest_from_table_or_query(
                stock_config(config, data_source),
                data_source,
                join_key_columns,
                feature_name_columns,
                timestamp_field,
                created_timestamp_column,
                start_date,
                end_date,
            )
        log = source_log(config, data_source)
        columns = [*join_key_columns, *feature_name_columns, timestamp_field]
        span = Span(time_of(start_date), time_of(end_date))
        engine = config.offline_store.engine(config.repo_path)
        return ChangePointRetrievalJob(
            lambda: _in_feast_types(
                between(engine, log, columns, span, newest_of=join_key_columns),
                feature_name_columns,
            ),
            config=config,
        )

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime.datetime | None = None,
        end_date: datetime.datetime | None = None,
    ) -> RetrievalJob:
        """Return every row with a time in a span, of a log or of a saved dataset's one file."""
        plain = bool(join_key_columns) and not created_timestamp_column
        exact = plain and is_local(data_source) and source_path(config, data_source).is_file()
        if not (is_log(data_source) or exact):
            return STOCK.pull_all_from_table_or_query(
                stock_config(config, data_source),
                data_source,
                join_key_columns,
                feature_name_columns,
                timestamp_field,
                created_timestamp_column,
                start_date,
                end_date,
            )
        path = source_path(config, data_source)
        columns = [*join_key_columns, *feature_name_columns, timestamp_field]
        span = Span(
            EARLIEST_EVENT if start_date is None else time_of(start_date),
            LATEST_EVENT if end_date is None else time_of(end_date),
        )
        engine = config.offline_store.engine(config.repo_path)

        def run() -> pa.Table:
            if not path.is_file():
                found = between(engine, source_log(config, data_source), columns, span)
                return _in_feast_types(found, feature_name_columns)
            times = pc.field(timestamp_field)
            within = (times >= moment_of(span.first_us)) & (times <= moment_of(span.last_us))
            return pq.read_table(path, columns=columns, filters=within)

        return ChangePointRetrievalJob(run, config=config)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Add rows to a view's log, as one part; the same rows replace it.

        Raises:
            InputError: The columns are not those of the log, or a value does not have its type.
            StoreError: The view was generated before it had tags for the offline log, or the source
                of a foreign view is not files.
        """
        if DEFINITION_TAG not in feature_view.tags:
            stock = stock_config(config, feature_view.batch_source)
            STOCK.offline_write_batch(stock, feature_view, table, progress)
            return
        names = [field.name for field in feature_view.features]
        view = logged_view(config, feature_view, names)
        rows = log_rows(view, key_type(feature_view), table)
        view.log.write_table(view.join_key, rows, f"written-{rows_digest(rows)}")
        if progress is not None:
            progress(len(table))

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Refuse: the predictions hold the features that were served.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "ChangePointOfflineStore takes no feature logs: every prediction carries the values "
            "that it used, and `tidemill verify` recomputes them"
        )

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Leave a log alone, which may be empty yet; Feast looks at any other source."""
        if not is_log(data_source):
            super().validate_data_source(config, data_source)

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """Return the columns of a source's files."""
        if not is_log(data_source):
            columns: Iterable[tuple[str, str]] = data_source.get_table_column_names_and_types(
                config
            )
            return columns
        schema = source_log(config, data_source).schema()
        return [(field.name, str(field.type)) for field in schema]


def finish_history(
    found: pa.Table, feature_views: Sequence[FeatureView], event_timestamp: str = EVENT_TIMESTAMP
) -> pa.Table:
    """Finish the result of another offline store of Feast's (BigQuery) that joined change points.

    Such a store returns null for an entity without a publication, and anchors as they are stored.
    The revision tells which nulls are values.

    Args:
        found: The result of ``get_historical_features(..., full_feature_names=True)``, ``(rows,)``,
            with the `REVISION` of every view.
        feature_views: The views, as the registry has them.
        event_timestamp: The column of the rows' instants.

    Returns:
        The same columns, with the values that batch computes, ``(rows,)``.

    Raises:
        InputError: The revision of a view is not in the result, or a value of it is not exact.
    """
    times = pa.array(microseconds(found, event_timestamp), pa.int64())
    for view in feature_views:
        prefix = f"{view.projection.name_alias or view.name}__"
        if f"{prefix}{REVISION}" not in found.column_names:
            raise InputError(
                f"view {view.name!r}: the result has no column {prefix}{REVISION}; ask for "
                f"'{view.name}:{REVISION}' too, with full_feature_names, since without it a null "
                "that was published looks like no publication"
            )
        absent = pc.is_null(found.column(f"{prefix}{REVISION}")).combine_chunks()
        names = [field.name for field in view.features if field.name not in (REVISION, VALID_UNTIL)]
        for feature in logged_features(view, names):
            place = found.schema.get_field_index(f"{prefix}{feature.name}")
            if place >= 0:
                stored = exact_cast(
                    found.column(place).combine_chunks(),
                    feature.dtype,
                    f"column {prefix}{feature.name} of the result",
                )
                column = feature.finish(stored, absent, times)
                found = found.set_column(place, f"{prefix}{feature.name}", column)
    return found


_NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}


def _in_feast_types(table: pa.Table, features: Sequence[str]) -> pa.Table:
    """Return rows of a log with the features' timestamps as int64 microseconds UTC."""
    for name in features:
        place = table.schema.get_field_index(name)
        if pa.types.is_timestamp(table.schema.field(place).type):
            table = table.set_column(place, name, table.column(place).cast(pa.int64()))
    return table


def _exact_frame(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas(integer_object_nulls=False)
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.type in _NULLABLE and column.null_count:
            frame[name] = column.to_pandas(types_mapper=_NULLABLE.get)
    return frame
