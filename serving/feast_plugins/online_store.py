"""Feast's plug-in for the ordered online stores.

Plugged in by class path; Feast's registry, SDK and servers work as they are:

* ``online_store: {type: tidemill.serving.feast_plugins.online_store.OrderedSqliteOnlineStore, path:
  online.db}``
* ``online_store: {type: tidemill.serving.feast_plugins.online_store.OrderedRedisOnlineStore, host:
  localhost}``

`serving.online.database` states the promises of writes: an older publication never overwrites a
newer one, whatever the order of writes and the number of writers.

Reads through Feast's SDK, judged by the declared clock and the frontier that the stream published
for the row's view and shard:

========================  =======================  ===================================
the row                   status                   value
========================  =======================  ===================================
fresh                     ``PRESENT``              the value as of the frontier
fresh, the value is null  ``PRESENT``              null: the feature's value is null
stale, or overrun         ``OUTSIDE_MAX_AGE``      null
absent                    ``NOT_FOUND``            null
========================  =======================  ===================================

* A row is stale if its frontier lags behind the clock by more than the view's ``max_staleness``,
  and overrun if its ``valid_until`` is not past its frontier. A row without a frontier is stale,
  because its age is unknown. Its values are withheld because ``to_dict()`` and ``to_df()`` show no
  statuses; `serving.online.reader` returns values and status.
* With ``clock: replay`` the clock is the highest frontier published for the view, so only a shard
  that trails the others is stale.
* All views of a request are read in one round trip, as of one instant of the store.
* An anchored feature (time since last event) reads as its anchor;
  `serving.online.reader.finish_anchored` computes its value.
* A stock client (plain Feast, such as ``FeatureStore.push``) writes through Feast's generic path.
  Its rows must hold every feature of the view; a row without the two technical fields (absent or
  null) has revision 0 and is valid forever. The shard of such a row is unknown, so it is read as of
  the view's least frontier.
* A view that Tidemill did not generate (`serving.online.feast_rows`: a foreign one) may have fields
  of any Feast type. Its rows are written in order like all others, and have no age: they are
  present or absent.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from feast import Entity, FeatureView, utils
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from pydantic import ConfigDict, StrictInt, StrictStr

from tidemill.features.contract import ReadStatus
from tidemill.serving.feast_plugins.feast_responses import Asked, add_to_response, name_features
from tidemill.serving.feast_plugins.written_frames import accept_frames_without_technical_columns
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.database import OnlineDatabase, Snapshot
from tidemill.serving.online.feast_rows import (
    FeastReading,
    FeastRow,
    StoredView,
    feast_key,
    feast_reading,
    key_space,
    row_batch,
    stored_view,
)
from tidemill.serving.online.rows import Row, clock_us
from tidemill.serving.stores.online_places import Clock, SqlitePlace
from tidemill.serving.stores.redis_place import RedisPlace, RedisTls

accept_frames_without_technical_columns()


class OrderedOnlineStore(OnlineStore):
    """An online store that keeps the order of publications, in the configured database."""

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write publications in Feast's form.

        Raises:
            ConflictingPublication: One contradicts the stored one.
            InputError: A row lacks a feature, or a value does not have the declared type.
        """
        view = stored_view(config, table)
        rows = row_batch(config, view, data)
        database(config).write(view.space, rows)
        if progress is not None:
            progress(len(rows))

    async def online_write_batch_async(self, *arguments: Any, **named: Any) -> None:
        """Do as `online_write_batch`, in a thread."""
        await asyncio.to_thread(self.online_write_batch, *arguments, **named)

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[FeastReading]:
        """Read rows of any age: Feast's contract of this method has no status."""
        view = stored_view(config, table)
        keys = [feast_key(config, key) for key in entity_keys]
        (snapshot,) = database(config).read([(view.space, keys)])
        return [feast_reading(view, row, requested_features) for row in snapshot.rows]

    async def online_read_async(self, *arguments: Any, **named: Any) -> list[FeastReading]:
        """Do as `online_read`, in a thread."""
        return await asyncio.to_thread(self.online_read, *arguments, **named)

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
        # The step of get_online_features that Feast lets stores override: read all views in one
        # snapshot, and return statuses that Feast's own step never returns.
        unique = [
            utils._get_unique_entities(table, join_key_values, entity_name_to_join_key_map)
            for table, _ in grouped_refs
        ]
        views = [stored_view(config, table) for table, _ in grouped_refs]
        wanted = [
            (view.space, [feast_key(config, key) for key in utils._get_entity_key_protos(entities)])
            for view, (entities, _, _) in zip(views, unique, strict=True)
        ]
        snapshots = database(config).read(wanted)
        clock = config.online_store.clock
        for (table, features), (_, places, length), view, snapshot in zip(
            grouped_refs, unique, views, snapshots, strict=True
        ):
            asked = Asked(table, features, places, length)
            name_features(
                online_features_response,
                asked,
                full_feature_names=full_feature_names,
                with_versions=include_feature_view_version_metadata,
            )
            statuses = row_statuses(view, snapshot, clock)
            add_to_response(online_features_response, asked, view, snapshot, statuses)

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
        """Make the key spaces of the views that are kept.

        A changed definition gets a new, empty key space. The rows of a generated view stay, even if
        Feast deletes the view: a reader may use that definition until `tidemill clean-store`
        removes the key spaces that no registered version uses. Those of a foreign view are dropped.

        Raises:
            StoreError: The store cannot hold a view, or cannot be written.
        """
        store = database(config)
        store.create([key_space(config, _as_registered(table)) for table in tables_to_keep])
        deleted = [stored_view(config, _as_registered(table)) for table in tables_to_delete]
        store.drop([view.space for view in deleted if not view.judged])

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]
    ) -> None:
        """Remove the key spaces of these views; the database stays, because others may use it."""
        database(config).drop([key_space(config, _as_registered(table)) for table in tables])


class _Section(FeastConfigBaseModel):
    # Frozen, and so hashable: the caches of places use it as a key.
    model_config = ConfigDict(frozen=True)


class OrderedSqliteOnlineStoreConfig(_Section):
    """The ``online_store`` section of a Feast configuration for an SQLite file.

    Attributes:
        type: The class path.
        path: The database's file; a relative path starts at the repository.
        clock: The clock that age is judged by: ``wall`` live, ``replay`` the published frontier.
    """

    type: Literal["tidemill.serving.feast_plugins.online_store.OrderedSqliteOnlineStore"] = (
        "tidemill.serving.feast_plugins.online_store.OrderedSqliteOnlineStore"
    )
    path: StrictStr = "online.db"
    clock: Clock = "wall"

    def place(self, repository: Path | None) -> SqlitePlace:
        """Return the place that the section names."""
        return _sqlite_place(self, repository)


class OrderedSqliteOnlineStore(OrderedOnlineStore):
    """The ordered online store in an SQLite file."""


class RedisTlsConfig(_Section):
    """TLS to a Redis (`serving.stores.redis_place.RedisTls`): paths of PEM files.

    Attributes:
        ca: The trusted authorities; None trusts the system's.
        cert: Our own certificate, if the server asks for one.
        key: Its key.
    """

    ca: StrictStr | None = None
    cert: StrictStr | None = None
    key: StrictStr | None = None


class OrderedRedisOnlineStoreConfig(_Section):
    """The ``online_store`` section of a Feast configuration for a Redis (`RedisPlace`).

    Attributes:
        type: The class path.
        host: Name or address of the host.
        port: The port.
        db: The number of the database.
        username: The ACL user; None is Redis's default user.
        password_env: The environment variable that holds the password.
        password_file: The file that holds the password.
        tls: How to connect by TLS; None connects without it.
        timeout_us: Longest wait for a connection and for each answer, in microseconds.
        clock: The clock that age is judged by: ``wall`` live, ``replay`` the published frontier.
    """

    type: Literal["tidemill.serving.feast_plugins.online_store.OrderedRedisOnlineStore"] = (
        "tidemill.serving.feast_plugins.online_store.OrderedRedisOnlineStore"
    )
    host: StrictStr = "localhost"
    port: StrictInt = 6379
    db: StrictInt = 0
    username: StrictStr | None = None
    password_env: StrictStr | None = None
    password_file: StrictStr | None = None
    tls: RedisTlsConfig | None = None
    timeout_us: StrictInt = 5_000_000
    clock: Clock = "wall"

    def place(self, repository: Path | None) -> RedisPlace:
        """Return the place that the section names; relative paths are below the repository's."""
        return _redis_place(self, repository)


class OrderedRedisOnlineStore(OrderedOnlineStore):
    """The ordered online store in a Redis."""


# Cached, because every read needs the place, and making a path takes longer than finding a row.
@functools.lru_cache(maxsize=64)
def _sqlite_place(section: OrderedSqliteOnlineStoreConfig, repository: Path | None) -> SqlitePlace:
    return SqlitePlace((repository or Path()) / section.path)


@functools.lru_cache(maxsize=64)
def _redis_place(section: OrderedRedisOnlineStoreConfig, repository: Path | None) -> RedisPlace:
    def path(name: str | None) -> Path | None:
        return None if name is None else (repository or Path()) / name

    plain = section.model_dump(exclude={"type", "clock", "tls", "password_file"})
    tls = section.tls and RedisTls(**{k: path(v) for k, v in section.tls.model_dump().items()})
    return RedisPlace(**plain, password_file=path(section.password_file), tls=tls)


def _as_registered(table: FeatureView) -> FeatureView:
    """Return a declared view as the registry will give it back, which is what reads and writes see.

    The two may differ: a stream feature view loses the key among its features, say.
    """
    return type(table).from_proto(table.to_proto())


def database(config: RepoConfig) -> OnlineDatabase:
    """Return the online database that a Feast configuration names."""
    return open_database(config.online_store.place(config.repo_path))


def row_statuses(view: StoredView, snapshot: Snapshot, clock: Clock) -> list[ReadStatus]:
    """Judge every row of a snapshot by a declared clock; rows of a foreign view have no age."""
    frontiers = snapshot.frontiers
    now_us = clock_us(clock, frontiers)

    def status(row: Row | None) -> ReadStatus:
        if row is None:
            return ReadStatus.NOT_FOUND
        if not view.judged:
            return ReadStatus.PRESENT
        return frontiers.status(
            frontiers.of_row(row), row.valid_until, now_us, view.space.max_staleness_us
        )

    return [status(row) for row in snapshot.rows]
