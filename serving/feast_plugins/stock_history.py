"""The history of foreign views: those that Tidemill did not generate, by Feast's own file store.

Values are those of Feast's store (``offline_store: {type: file}``). It loses entity rows without a
value, and all but one of the rows that differ only in columns other than keys and instant. Here a
row is looked up by its keys and its instant, so each row comes back once, in its order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureView, FileSource
from feast.data_source import DataSource
from feast.errors import FeastEntityDFMissingColumnsError
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import RepoConfig

from tidemill.features.contract import Int64Array
from tidemill.features.errors import StoreError
from tidemill.features.feast_objects import EVENT_TIMESTAMP

STOCK: Final = DaskOfflineStore
"""Feast's own store of files."""

_ROW: Final = "tidemill_row"


def stock_config(config: RepoConfig, source: DataSource | None) -> RepoConfig:
    """Return a configuration with Feast's own store of files, which reads a source.

    Raises:
        StoreError: The source is not files.
    """
    if source is not None and not isinstance(source, FileSource):
        raise StoreError(
            f"data source {source.name!r} is {type(source).__name__}; the views that Tidemill did "
            "not generate are read from files here (feast.FileSource)"
        )
    stock = config.model_copy()
    stock._offline_store = DaskOfflineStoreConfig()
    return stock


@dataclass(frozen=True)
class ForeignLookup:
    """The features of a foreign view at the instants of the entity rows.

    Attributes:
        config: The store's configuration.
        registry: Feast's registry.
        view: The view, with its projection.
        names: The names of the features.
        options: What else Feast passes to ``get_historical_features``.
    """

    config: RepoConfig
    registry: BaseRegistry
    view: FeatureView
    names: Sequence[str]
    options: dict[str, Any]

    def columns(self, rows: pa.Table, times_us: Int64Array) -> list[pa.ChunkedArray]:
        """Return a column for each feature, ``(rows,)``, null where the view has no value.

        Args:
            rows: The entity rows.
            times_us: Their instants, int64 microseconds UTC, ``(rows,)``.

        Raises:
            FeastEntityDFMissingColumnsError: A key of the view is not in the rows.
        """
        keys = self._keys(rows)
        asked = rows.select(keys).to_pandas()
        asked[EVENT_TIMESTAMP] = pd.to_datetime(times_us, unit="us", utc=True)
        numbers = asked.groupby(list(asked.columns), dropna=False, sort=False).ngroup().to_numpy()
        different = asked[~asked.duplicated()].reset_index(drop=True)
        different[_ROW] = np.arange(len(different))
        used = self.view.projection.name_to_use()
        found = STOCK.get_historical_features(
            stock_config(self.config, self.view.batch_source),
            [self.view],
            [f"{used}:{name}" for name in self.names],
            different,
            self.registry,
            self.config.project,
            full_feature_names=True,
            **self.options,
        ).to_arrow()
        places = np.full(len(different), -1)
        places[found.column(_ROW).to_numpy()] = np.arange(len(found))
        taken = places[numbers]
        indices = pa.array(taken, pa.int64(), mask=taken < 0)
        return [found.column(f"{used}__{name}").take(indices) for name in self.names]

    def _keys(self, rows: pa.Table) -> list[str]:
        named = self.view.projection.join_key_map
        keys = [
            named.get(column.name, column.name)
            for column in self.view.entity_columns
            if column.name != DUMMY_ENTITY_ID
        ]
        if lacking := set(keys) - set(rows.column_names):
            raise FeastEntityDFMissingColumnsError(lacking, set(rows.column_names))
        return keys
