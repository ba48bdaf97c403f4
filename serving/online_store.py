"""Feast's plug-in for the ordered SQLite online store.

Plugged in by class path, ``online_store: {type: serving.online_store.OrderedSqliteOnlineStore,
path: online.db, clock: wall}``; Feast's registry, SDK and servers work as they are. What is
promised of writes stands at the top of `serving.online_database`: an older
publication never overwrites a newer one, whatever the order of writes and the number of writers.

What a read through Feast's SDK says (DESIGN: "Reading online"), judged by the declared clock and
the frontier that the stream published for the row's view and shard:

========================  =======================  ===================================
the row                   status                   value
========================  =======================  ===================================
fresh                     ``PRESENT``              the value as of the frontier
fresh, the value is null  ``PRESENT``              null: the feature's value is null
stale, or overrun         ``OUTSIDE_MAX_AGE``      null
absent                    ``NOT_FOUND``            null
========================  =======================  ===================================

* A row is stale when its frontier lags behind the clock by more than the view's ``max_staleness``
  and overrun when its ``valid_until`` is not past its frontier. A row whose frontier was never
  written is stale: nobody says as of when it holds. Its numbers are withheld because
  ``to_dict()`` and ``to_df()`` show no statuses; `serving.reader` gives numbers and status both.
* With ``clock: replay`` the clock is the highest frontier published for the view, so only a shard
  that trails the others is stale.
* An anchored feature (time since last event) reads as its anchor; `serving.reader.finish` makes
  the value of it.
* A stock client writes through Feast's generic path. Its row must hold every feature of the view;
  without the two technical fields (absent or null) it counts as revision 0, valid for ever. Its
  shard is unknown, so it is read as of the view's least frontier.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from feast import Entity, FeatureView, utils
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.types import Float64, Int64
from pydantic import StrictStr

from features.contract import TIME_MAX, ReadStatus
from features.errors import InputError, StoreError
from features.expressions import FLOAT64, INT64
from features.feast_objects import DEFINITION_TAG, MAX_STALENESS_TAG, REVISION, VALID_UNTIL
from serving.online_cells import Value, decode_row, encode_row
from serving.online_database import Snapshot
from serving.online_rows import Clock, KeySpace, Row, clock_us
from serving.sqlite_database import SqliteDatabase

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND: Final = datetime.timedelta(microseconds=1)
_PROTO_FIELD: Final = {INT64: "int64_val", FLOAT64: "double_val"}

FeastRow = tuple[EntityKey, dict[str, ValueProto], datetime.datetime, datetime.datetime | None]
"""What Feast's ``online_write_batch`` takes: key, values, event timestamp, created timestamp."""


class OrderedSqliteOnlineStoreConfig(FeastConfigBaseModel):
    """The ``online_store`` section of a Feast configuration.

    Attributes:
        type: The class path.
        path: The database's file; a relative one is below the repository's path.
        clock: What age is judged by: ``wall`` live, ``replay`` for the published frontier.
    """

    type: Literal["serving.online_store.OrderedSqliteOnlineStore"] = (
        "serving.online_store.OrderedSqliteOnlineStore"
    )
    path: StrictStr = "online.db"
    clock: Clock = "wall"


class OrderedSqliteOnlineStore(OnlineStore):
    """An online store that keeps the order of publications; see the top of this module."""

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write publications in Feast's form; all of them or, on an error, none.

        Raises:
            ConflictingPublication: One contradicts the one that stands.
            InputError: A row lacks a feature, or a value is not of the declared type.
        """
        space = key_space(config, table)
        rows = [
            _row(config, space, key, values, event_timestamp)
            for key, values, event_timestamp, _ in data
        ]
        database(config).write(space, rows)
        if progress is not None:
            progress(len(rows))

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Do as `online_write_batch`, in a thread."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime.datetime | None, dict[str, ValueProto] | None]]:
        """Read rows whatever their age, by Feast's contract: it has no place for a status."""
        space = key_space(config, table)
        keys = [_key(config, key) for key in entity_keys]
        (snapshot,) = database(config).read([(space, keys)])
        return [_feast_row(space, row, requested_features) for row in snapshot.rows]

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime.datetime | None, dict[str, ValueProto] | None]]:
        """Do as `online_read`, in a thread."""
        return await asyncio.to_thread(
            self.online_read, config, table, entity_keys, requested_features
        )

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeatureView, list[str]]],
        join_key_values: dict[str, list[ValueProto]],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        # The step of get_online_features that Feast gives to stores to override: all views in
        # one snapshot, and the statuses that the stock step does not know.
        unique = [
            utils._get_unique_entities(table, join_key_values, entity_name_to_join_key_map)
            for table, _ in grouped_refs
        ]
        wanted = []
        for (table, _), (entities, _, _) in zip(grouped_refs, unique, strict=True):
            keys = [_key(config, key) for key in utils._get_entity_key_protos(entities)]
            wanted.append((key_space(config, table), keys))
        snapshots = database(config).read(wanted)
        for (table, features), (_, places, length), (space, _), snapshot in zip(
            grouped_refs, unique, wanted, snapshots, strict=True
        ):
            statuses = judge(space, snapshot, config.online_store.clock)
            before = len(online_features_response.results)
            utils._populate_response_from_feature_data(
                features,
                [_feast_row(space, row, features) for row in snapshot.rows],
                places,
                online_features_response,
                full_feature_names,
                table,
                length,
                include_feature_view_version_metadata,
            )
            stale = [
                place
                for status, destinations in zip(statuses, places, strict=True)
                if status is ReadStatus.OUTSIDE_MAX_AGE
                for place in destinations
            ]
            for vector in online_features_response.results[before:]:
                for place in stale:
                    vector.statuses[place] = FieldStatus.OUTSIDE_MAX_AGE
                    vector.values[place].Clear()

    async def _read_features_per_fv_async(self, *arguments: Any) -> None:
        await asyncio.to_thread(self._read_features_per_fv, *arguments)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Make the key spaces of the views that are kept and remove those of the deleted ones.

        A changed definition gets a new, empty key space; the rows of the old one stay.

        Raises:
            StoreError: A view was not generated by `features.feast_objects`, or the file cannot
                be written.
        """
        store = database(config)
        store.create([key_space(config, table) for table in tables_to_keep])
        store.drop([key_space(config, table) for table in tables_to_delete])

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]
    ) -> None:
        """Remove the key spaces of these views; the file stays, others may live in it."""
        store = database(config)
        if Path(store.path).exists():
            store.drop([key_space(config, table) for table in tables])


def database(config: RepoConfig) -> SqliteDatabase:
    """Return the online database that a Feast configuration names."""
    path = Path(config.online_store.path)
    return SqliteDatabase(str(config.repo_path / path if config.repo_path else path))


def key_space(config: RepoConfig, table: FeatureView) -> KeySpace:
    """Return the key space of a Feast feature view, from its fields and its tags.

    Raises:
        StoreError: The view was not generated by `features.feast_objects`.
    """
    dtypes = {Int64: INT64, Float64: FLOAT64}
    lacking = [tag for tag in (DEFINITION_TAG, MAX_STALENESS_TAG) if tag not in table.tags]
    strange = [
        f"{field.name}: {field.dtype}" for field in table.features if field.dtype not in dtypes
    ]
    if lacking or strange:
        raise StoreError(
            f"online store {config.online_store.path}: feature view {table.name!r} "
            + (f"lacks the tags {', '.join(lacking)}" if lacking else "")
            + (" and " if lacking and strange else "")
            + (
                f"has fields that are not Int64 or Float64 ({', '.join(strange)})"
                if strange
                else ""
            )
            + "; this store takes the views that features.feast_objects generates"
        )
    return KeySpace(
        project=config.project,
        view=table.name,
        definition=table.tags[DEFINITION_TAG],
        columns=tuple(
            (field.name, dtypes[field.dtype])
            for field in table.features
            if field.name not in (VALID_UNTIL, REVISION)
        ),
        max_staleness_us=int(table.tags[MAX_STALENESS_TAG]),
    )


def judge(space: KeySpace, snapshot: Snapshot, clock: Clock) -> list[ReadStatus]:
    """Judge every row of a snapshot by a declared clock.

    Args:
        space: The rows' key space.
        snapshot: What was read of it.
        clock: The declared clock.

    Returns:
        A status for each row, ``NOT_FOUND`` for each that is absent.
    """
    frontiers = snapshot.frontiers
    now_us = clock_us(clock, frontiers)
    return [
        ReadStatus.NOT_FOUND
        if row is None
        else frontiers.status(
            frontiers.of(row.shard), row.valid_until, now_us, space.max_staleness_us
        )
        for row in snapshot.rows
    ]


def _key(config: RepoConfig, key: EntityKey) -> bytes:
    serialized: bytes = serialize_entity_key(
        key, entity_key_serialization_version=config.entity_key_serialization_version
    )
    return serialized


def _row(
    config: RepoConfig,
    space: KeySpace,
    key: EntityKey,
    values: Mapping[str, ValueProto],
    event_timestamp: datetime.datetime,
) -> Row:
    if lacking := [name for name, _ in space.columns if name not in values]:
        raise InputError(
            f"view {space.view!r}: a row for the online store lacks {', '.join(lacking)}; "
            "a publication holds every feature of its view (null where it has no value)"
        )
    revision = _python(space, REVISION, INT64, values.get(REVISION, ValueProto()))
    until = _python(space, VALID_UNTIL, INT64, values.get(VALID_UNTIL, ValueProto()))
    if event_timestamp.tzinfo is None:  # Feast: a naive time is UTC
        event_timestamp = event_timestamp.replace(tzinfo=datetime.UTC)
    return Row(
        key=_key(config, key),
        event_timestamp=(event_timestamp - _EPOCH) // _MICROSECOND,
        revision=0 if revision is None else int(revision),
        valid_until=TIME_MAX if until is None else int(until),
        shard=None,
        cells=encode_row(
            space.dtypes,
            [_python(space, name, dtype, values[name]) for name, dtype in space.columns],
        ),
    )


def _python(space: KeySpace, name: str, dtype: str, value: ValueProto) -> Value:
    kind = value.WhichOneof("val")
    if kind is None:
        return None
    if kind != _PROTO_FIELD[dtype]:
        raise InputError(
            f"view {space.view!r}: {name!r} is {dtype}, so its Feast value must be "
            f"{_PROTO_FIELD[dtype]}, found {kind}"
        )
    number: int | float = getattr(value, kind)
    return number


def _feast_row(
    space: KeySpace, row: Row | None, features: Sequence[str] | None
) -> tuple[datetime.datetime | None, dict[str, ValueProto] | None]:
    if row is None:
        return None, None
    out = {
        name: ValueProto() if value is None else ValueProto(**{_PROTO_FIELD[dtype]: value})
        for (name, dtype), value in zip(
            space.columns, decode_row(space.dtypes, row.cells), strict=True
        )
        if features is None or name in features
    }
    for name, value in ((VALID_UNTIL, row.valid_until), (REVISION, row.revision)):
        if features is None or name in features:
            out[name] = ValueProto(int64_val=value)
    return _EPOCH + row.event_timestamp * _MICROSECOND, out
