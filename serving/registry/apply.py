"""Apply a registration plan with one write of the registry.

Key spaces are made first, then the registry is written. A process that is killed in between leaves
empty key spaces that no version refers to, and the next run continues from there. The registry is
written atomically: a file is replaced (`serving.feast_plugins.registry_file`), an SQL registry
changes in one transaction, so no reader sees a feature service whose views are missing.

`FeatureStore.apply` is not used: it keeps the old order of features if only the order changed,
writes an SQL registry object by object, and cannot remove one object and add another at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tidemill.features.bigquery_dataset import BigQueryDataset
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.errors import StoreError
from tidemill.features.feast_objects import (
    feast_entity,
    feast_project,
    feast_service,
    feast_view,
    service_name,
    source_name,
    version_name,
)
from tidemill.serving.definition_changes import Change
from tidemill.serving.registry.plan import RegistrationPlan, entity_name
from tidemill.serving.registry.state import Registered

if TYPE_CHECKING:
    import feast

_KINDS: Final = ("project", "entity", "data_source", "feature_view", "feature_service")
_UNIMPORTANT: Final = ("createdTimestamp", "lastUpdatedTimestamp", "dataSourceClassType", "meta")


@dataclass
class Entries:
    """The objects to write to the registry and those to remove, by kind and name."""

    wanted: dict[tuple[str, str], Any] = field(default_factory=dict)
    unwanted: set[tuple[str, str]] = field(default_factory=set)

    def want(self, kind: str, thing: Any) -> None:
        """Add one of Feast's objects."""
        self.wanted[kind, thing.name] = thing

    def lines(self) -> tuple[str, ...]:
        """Describe each write and each removal, except those of data sources, in a line."""
        written = [("write", *key) for key in self.wanted]
        removed = [("remove", *key) for key in sorted(self.unwanted)]
        return tuple(
            f"{what} {kind.replace('_', ' ')} {name}"
            for what, kind, name in (*written, *removed)
            if kind != "data_source"
        )


def registry_entries(
    project: Project,
    registered: Registered,
    plan: RegistrationPlan,
    offline: str | BigQueryDataset,
    *,
    promote: bool,
) -> Entries:
    """Return the objects to write to the registry and those to remove.

    Registering adds all of the code's definitions and removes nothing. Promotion removes all other
    versions. A promoted version that was pending also keeps its name ``VIEW__vN``, for readers of
    that name, until another version is promoted. A store that keeps rows by name is the exception:
    there the two names would be two tables, of which only one would be written.
    """
    entries = Entries()
    if registered.is_described or any(project.described().values()):
        entries.want("project", feast_project(project))
    planned = {view.view: view for view in plan.views}
    names = {version.feast_name for version in registered.views}
    entities = {}
    for view in project.views:
        name = view.entity.name if promote else entity_name(view.entity, registered)
        entities[view.entity.name] = feast_entity(view.entity, name)
    for entity in entities.values():
        entries.want("entity", entity)

    def want_view(view: FeatureView, name: str) -> feast.FeatureView:
        entity, version = entities[view.entity.name], planned[view.name].version
        made = feast_view(view, entity, offline, name=name, version=version)
        entries.want("data_source", made.batch_source)
        entries.want("feature_view", made)
        return made

    views = {}
    for view in project.views:
        views[view] = want_view(view, view.name if promote else planned[view.name].feast_name)
        alias = version_name(view, planned[view.name].version)
        if promote and alias in names and plan.spaces is not None:
            want_view(view, alias)
    if promote or plan.service is not Change.CHANGED:
        entries.want("feature_service", feast_service(project, views))
    next_service = f"{service_name(project)}__next"
    differs = plan.service is Change.CHANGED or plan.to_promote
    if next_service in registered.services or (differs and not promote):
        entries.want("feature_service", feast_service(project, views, next_service))
    if promote:
        for name in names:
            if ("feature_view", name) not in entries.wanted:
                entries.unwanted |= {("feature_view", name), ("data_source", source_name(name))}
        for found in registered.entities.values():
            key = ("entity", found.feast_name)
            in_use = found.feast_name in registered.entities_in_use
            if found.entity and not in_use and key not in entries.wanted:
                entries.unwanted.add(key)
    return entries


def changed_entries(store: feast.FeatureStore | None, entries: Entries) -> Entries:
    """Leave out objects that the registry holds already, and removals of objects that it lacks.

    Feast refuses a feature service whose features differ from those of its views, tags included. So
    the feature services of others are written again together with the views that they use.
    """
    registered = {} if store is None else _registered_objects(store)
    changed = Entries(
        wanted={
            key: thing
            for key, thing in entries.wanted.items()
            if key not in registered or _content(registered[key]) != _content(thing)
        },
        unwanted=entries.unwanted & registered.keys(),
    )
    for (kind, name), thing in registered.items():
        if kind == "feature_service" and (kind, name) not in {*entries.wanted, *entries.unwanted}:
            followed = _followed(thing, changed)
            if _content(followed) != _content(thing):
                changed.want(kind, followed)
    return changed


def _followed(service: feast.FeatureService, entries: Entries) -> feast.FeatureService:
    """Return a feature service with the features of the views that will be written."""
    followed = type(service).from_proto(service.to_proto())
    for projection in followed.feature_view_projections:
        if view := entries.wanted.get(("feature_view", projection.name)):
            fields = {field.name: field for field in view.features}
            projection.features = [fields.get(f.name, f) for f in projection.features]
    return followed


def make_spaces(store: feast.FeatureStore, entries: Entries, registered: Registered) -> None:
    """Make the key spaces (tables) of every version that is or will be registered.

    Raises:
        StoreError: The online store cannot be written.
    """
    registry = store.registry
    kept: dict[str, Any] = {
        version.feast_name: registry.get_feature_view(version.feast_name, store.project)
        for version in registered.views
        if ("feature_view", version.feast_name) not in entries.unwanted
    }
    kept |= {name: view for (kind, name), view in entries.wanted.items() if kind == "feature_view"}
    store._get_provider().update_infra(
        project=store.project,
        tables_to_delete=[],
        tables_to_keep=list(kept.values()),
        entities_to_delete=[],
        entities_to_keep=[thing for (kind, _), thing in entries.wanted.items() if kind == "entity"],
        partial=True,
    )


def write_entries(store: feast.FeatureStore, entries: Entries) -> None:
    """Write the result of `changed_entries` to the registry, all of it or nothing.

    Raises:
        StoreError: The registry cannot be written.
    """
    if not entries.wanted and not entries.unwanted:
        return
    project = store.project
    with _one_write(store) as registry:
        before = _registered_objects(store)
        for kind in _KINDS:
            for (of, name), thing in entries.wanted.items():
                if of != kind:
                    continue
                if kind == "feature_view" and (kind, name) in before:
                    # Feast would update it in place, and keep the old order of its features.
                    thing.created_timestamp = before[kind, name].created_timestamp
                    registry.delete_feature_view(name, project, commit=False)
                if kind == "project":
                    registry.apply_project(thing, commit=False)
                else:
                    getattr(registry, f"apply_{kind}")(thing, project, commit=False)
        for kind in reversed(_KINDS):
            for of, name in sorted(entries.unwanted):
                if of == kind:
                    getattr(registry, f"delete_{kind}")(name, project, commit=False)
        registry.commit()
    store.refresh_registry()


def _registered_objects(store: feast.FeatureStore) -> dict[tuple[str, str], Any]:
    registry, project = store.registry, store.project
    lists = {
        "entity": registry.list_entities,
        "data_source": registry.list_data_sources,
        "feature_view": registry.list_feature_views,
        "feature_service": registry.list_feature_services,
    }
    found = {
        (kind, thing.name): thing
        for kind, listed in lists.items()
        for thing in listed(project, allow_cache=False)
    }
    projects = registry.list_projects(allow_cache=False)
    return found | {("project", thing.name): thing for thing in projects if thing.name == project}


def _content(thing: Any) -> Any:
    """Return an object's content, without write times and the registry's own fields."""
    from google.protobuf.json_format import MessageToDict

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: plain(v) for k, v in node.items() if k not in (*_UNIMPORTANT, "project")}
        return [plain(item) for item in node] if isinstance(node, list) else node

    # Converted by Feast once, so that both sides have the same defaults.
    return plain(MessageToDict(type(thing).from_proto(thing.to_proto()).to_proto()))


@contextlib.contextmanager
def _one_write(store: feast.FeatureStore) -> Iterator[Any]:
    """Yield a registry whose changes become visible together, at its ``commit()`` or at the end."""
    from feast.infra.registry.sql import SqlRegistry

    registry = store.registry
    if not isinstance(registry, SqlRegistry):
        yield registry
        return
    import sqlalchemy

    engines = registry.write_engine, registry.read_engine
    try:
        with engines[0].connect() as connection:
            if connection.dialect.name == "sqlite":
                # The driver begins late, and would end the transaction at the first savepoint.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            registry.write_engine = registry.read_engine = _OneTransaction(connection)
            yield registry
            connection.commit()
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise StoreError(f"the registry cannot be written: {error}") from error
    finally:
        registry.write_engine, registry.read_engine = engines


@dataclass(frozen=True)
class _OneTransaction:
    """Replaces SQLAlchemy's engine: a transaction begun on it joins that of its one connection.

    Feast's SQL registry opens a transaction for each object, and offers no way to join several.
    """

    connection: Any

    @contextlib.contextmanager
    def begin(self) -> Iterator[Any]:
        """Yield the connection; its opener commits, or rolls back on an error."""
        yield self.connection
