"""Convert Feast's sources, views, features and rows to those of the change-point log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pyarrow as pa
from feast import FeatureView, FileSource
from feast.data_source import DataSource
from feast.repo_config import RepoConfig
from feast.types import Bool, Float64, Int64, String

from tidemill.features.definitions import ARROW_TYPES
from tidemill.features.errors import InputError, StoreError
from tidemill.features.feast_objects import (
    ANCHORED_TAG,
    DEFINITION_TAG,
    DTYPE_TAG,
    EMPTY_TAG,
    EVENT_TIMESTAMP,
    REACH_TAG,
    REVISION,
    VALID_UNTIL,
    source_name,
)
from tidemill.serving.generations.current import Current, find_current
from tidemill.serving.offline.exact_casts import exact_cast
from tidemill.serving.offline.join import LoggedFeature, LoggedView
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.stores.places import OFFLINE

_DEFINITION: Final = re.compile("[0-9a-f]{16}")
_ARROW: Final = {
    Int64: pa.int64(),
    Float64: pa.float64(),
    Bool: pa.bool_(),
    String: pa.string(),
}


def source_path(config: RepoConfig, source: DataSource) -> Path:
    """Return the path of a source's files.

    A relative path starts at the Feast repository; that of a log at the ``root`` of the
    ``offline_store`` section, if there is one.

    Raises:
        StoreError: The source is not files on this machine.
    """
    if not is_local(source):
        raise StoreError(
            f"data source {source.name!r} is {type(source).__name__} {getattr(source, 'path', '')}"
            "; ChangePointOfflineStore reads local Parquet files (feast.FileSource)"
        )
    path: str = source.path
    repository = Path(config.repo_path or "")
    if is_log(source):
        repository /= getattr(config.offline_store, "root", "")
    return repository / path


def is_local(source: DataSource) -> bool:
    """Tell whether a source is files on this machine."""
    return isinstance(source, FileSource) and "://" not in source.path


def is_log(source: DataSource) -> bool:
    """Tell whether a source is an offline log: files in ``VIEW/DEFINITION`` (`offline_path`)."""
    generated = is_local(source) and source.name.endswith(source_name(""))
    return generated and _DEFINITION.fullmatch(Path(source.path).name) is not None


class OfflineFolders:
    """Finds the folder of a registered log; each root's record is read once.

    The registry names ``ROOT/offline/VIEW/HASH``, which stays the same; ``ROOT/CURRENT`` says in
    which folder the logs are now (`serving.generations`). A join uses one instance for all views,
    so their logs belong together. A root without the record has its logs where the registry says.
    """

    def __init__(self) -> None:
        self._known: dict[Path, Current | None] = {}

    def find(self, registered: Path) -> Path:
        """Return the folder of a log."""
        current = self._current(registered)
        if current is None:
            return registered
        return current.offline_root / registered.parent.name / registered.name

    def generation(self, registered: Path) -> str:
        """Return the generation of a log; empty if it belongs to none."""
        current = self._current(registered)
        return "" if current is None else current.generation

    def _current(self, registered: Path) -> Current | None:
        offline = registered.parent.parent
        if offline.name != OFFLINE:
            return None
        root = offline.parent
        if root not in self._known:
            self._known[root] = find_current(root)
        return self._known[root]


def source_log(config: RepoConfig, source: DataSource) -> OfflineLog:
    """Return the log that a source names, where it is now."""
    return OfflineLog(OfflineFolders().find(source_path(config, source)))


def logged_view(
    config: RepoConfig,
    feature_view: FeatureView,
    names: list[str],
    folders: OfflineFolders | None = None,
) -> LoggedView:
    """Describe features of a Feast feature view, from its fields, its tags and its source.

    Args:
        config: The store's configuration.
        feature_view: The view.
        names: The features.
        folders: Where the logs are; give the same to all views of a join.

    Raises:
        StoreError: The view lacks tags: it was generated before it had tags for the offline log.
    """
    lacking = [tag for tag in (DEFINITION_TAG, REACH_TAG) if tag not in feature_view.tags]
    if lacking:
        raise StoreError(
            f"feature view {feature_view.name!r} lacks the tags {', '.join(lacking)}; "
            "ChangePointOfflineStore needs them to read a view that Tidemill generated. Register "
            "the project again with `tidemill apply`"
        )
    return LoggedView(
        name=feature_view.name,
        log=OfflineLog(
            (folders or OfflineFolders()).find(source_path(config, feature_view.batch_source))
        ),
        join_key=feature_view.entity_columns[0].name,
        features=tuple(logged_features(feature_view, names)),
        reach_us=int(feature_view.tags[REACH_TAG]),
    )


def logged_features(feature_view: FeatureView, names: list[str]) -> list[LoggedFeature]:
    """Describe features of a Feast feature view, from its fields and their tags."""
    fields = {field.name: field for field in feature_view.features}
    features = []
    for name in names:
        tags, kind = fields[name].tags, _ARROW[fields[name].dtype]
        if DTYPE_TAG in tags:
            kind = ARROW_TYPES[tags[DTYPE_TAG]]
        empty = pa.scalar(tags[EMPTY_TAG]).cast(kind).as_py() if EMPTY_TAG in tags else None
        features.append(LoggedFeature(name, kind, empty, ANCHORED_TAG in tags))
    return features


def key_type(feature_view: FeatureView) -> pa.DataType:
    """Return the type of the entity keys in a view's log, string or int64."""
    return _ARROW[feature_view.entity_columns[0].dtype]


def log_rows(view: LoggedView, key: pa.DataType, table: pa.Table) -> pa.Table:
    """Return rows with the columns and types of a view's log.

    Raises:
        InputError: The columns are not those of the log, a value does not have its type, or a key
            or a technical column is null.
    """
    wanted = {
        view.join_key: key,
        EVENT_TIMESTAMP: pa.timestamp("us", tz="UTC"),
        **{feature.name: feature.dtype for feature in view.features},
    }
    if set(table.column_names) != set(wanted):
        raise InputError(
            f"view {view.name!r}: rows for the offline log must have the columns "
            f"{', '.join(wanted)}, found {', '.join(table.column_names)}"
        )
    columns = {}
    for name, kind in wanted.items():
        column = table.column(name)
        if pa.types.is_timestamp(column.type) and column.type.tz is None:  # Feast: UTC
            column = column.cast(pa.timestamp(column.type.unit, tz="UTC"))
        columns[name] = exact_cast(column, kind, f"view {view.name!r}: column {name!r}")
    for name in (view.join_key, EVENT_TIMESTAMP, VALID_UNTIL, REVISION):
        if columns[name].null_count:
            raise InputError(f"view {view.name!r}: {name} is null in a row for the offline log")
    return pa.table(columns)
