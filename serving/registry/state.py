"""The registered definitions of a project, and its key spaces in the online store.

Names in the registry: the Feast view ``VIEW`` is the promoted version of a view, and ``VIEW__vN``
(`features.feast_objects.version_name`) is version N: pending, or promoted and still readable under
the name that it had while pending. Feast views that Tidemill did not generate are left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tidemill.features.definitions.canonical import spec_hash
from tidemill.features.errors import StoreError
from tidemill.features.feast_objects import (
    DEFINITION_TAG,
    DTYPE_TAG,
    ENTITY_TAG,
    MAX_STALENESS_TAG,
    PROJECT_TAG,
    SPEC_TAG,
    VERSION_TAG,
    VIEW_TAG,
)
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.rows import Frontiers, KeySpace

if TYPE_CHECKING:
    import feast

ServicePart = tuple[str, str, tuple[str, ...]]
"""A view of a feature service: its name, its definition, the Feast names of its features."""


@dataclass(frozen=True)
class RegisteredView:
    """A version of a view in the registry.

    Attributes:
        feast_name: Its name in Feast.
        view: The view's name.
        version: Its number.
        definition: The hash of its definition.
        spec: The definition's canonical form; None if it was registered without one.
        max_staleness_us: How far its frontier may lag behind a reader's clock.
        dtypes: Feast type of each feature by its Feast name, in order; ``timestamp`` of one whose
            tag says so.
    """

    feast_name: str
    view: str
    version: int
    definition: str
    spec: Mapping[str, Any] | None
    max_staleness_us: int
    dtypes: Mapping[str, str]

    @property
    def is_promoted(self) -> bool:
        """Whether clients of Feast read this version under the view's name."""
        return self.feast_name == self.view


@dataclass(frozen=True)
class RegisteredEntity:
    """An entity in the registry.

    Attributes:
        feast_name: Its name in Feast.
        entity: The entity's name; None for one that Tidemill did not generate.
        join_key: The name of its key.
        dtype: ``string``, ``int64``, or another type of Feast's in lower case.
    """

    feast_name: str
    entity: str | None
    join_key: str
    dtype: str


@dataclass(frozen=True)
class Registered:
    """The registered definitions of a project.

    Attributes:
        views: The versions of its views, in order of name and version.
        entities: Every entity of the Feast project, by Feast name.
        services: The parts of each feature service that Tidemill generated, by name.
        foreign_views: Names of the Feast views that Tidemill did not generate.
        entities_in_use: Feast names of the entities of the foreign views.
        is_described: Whether owner, tags and description of the Feast project are a definition's.
    """

    views: tuple[RegisteredView, ...] = ()
    entities: Mapping[str, RegisteredEntity] = field(default_factory=dict)
    services: Mapping[str, tuple[ServicePart, ...]] = field(default_factory=dict)
    foreign_views: tuple[str, ...] = ()
    entities_in_use: frozenset[str] = frozenset()
    is_described: bool = False

    def promoted(self, view: str) -> RegisteredView | None:
        """Return the promoted version of a view; None if there is none."""
        return next((v for v in self.views if v.view == view and v.is_promoted), None)

    def version(self, view: str, definition: str) -> RegisteredView | None:
        """Return the version of a view with a definition; if there are two, the promoted one."""
        found = [v for v in self.views if (v.view, v.definition) == (view, definition)]
        return min(found, key=lambda v: (not v.is_promoted, v.version), default=None)


def read_registered(store: feast.FeatureStore) -> Registered:
    """Read the registered definitions of a store's project from the registry, not from a cache.

    Functions that others have stored in their stream and on-demand views are not loaded: Feast
    would run their source or a pickle.

    Raises:
        StoreError: What Tidemill has registered was changed.
    """
    registry, project = store.registry, store.project
    every = [
        *registry.list_feature_views(project, allow_cache=False),
        *registry.list_stream_feature_views(project, allow_cache=False, skip_udf=True),
        *registry.list_on_demand_feature_views(project, allow_cache=False, skip_udf=True),
    ]
    ours = [_registered_view(view) for view in every if DEFINITION_TAG in view.tags]
    foreign = [view for view in every if DEFINITION_TAG not in view.tags]
    by_name = {view.feast_name: view for view in ours}
    return Registered(
        views=tuple(sorted(ours, key=lambda view: (view.view, view.version, view.feast_name))),
        entities={
            entity.name: _registered_entity(entity)
            for entity in registry.list_entities(project, allow_cache=False)
        },
        services={
            service.name: _parts(service, by_name)
            for service in registry.list_feature_services(project, allow_cache=False)
            if DEFINITION_TAG in service.tags
        },
        foreign_views=tuple(sorted(view.name for view in foreign)),
        entities_in_use=frozenset(name for view in foreign for name in view.entities),
        is_described=any(
            found.name == project and PROJECT_TAG in found.tags
            for found in registry.list_projects(allow_cache=False)
        ),
    )


def _registered_view(view: feast.FeatureView) -> RegisteredView:
    tags = view.tags
    try:
        version = int(tags.get(VERSION_TAG, 1))
        max_staleness_us = int(tags[MAX_STALENESS_TAG])
        spec = json.loads(tags[SPEC_TAG]) if SPEC_TAG in tags else None
        if spec is not None and spec_hash(spec) != tags[DEFINITION_TAG]:
            raise ValueError(f"{SPEC_TAG} does not have the hash {tags[DEFINITION_TAG]}")
    except (KeyError, ValueError) as error:
        raise StoreError(
            f"the registry: the tags of feature view {view.name!r} were changed and cannot be read "
            f"({error}); restore the registry from a copy, or remove it and run `tidemill apply`"
        ) from error
    return RegisteredView(
        feast_name=view.name,
        view=tags.get(VIEW_TAG, view.name),
        version=version,
        definition=tags[DEFINITION_TAG],
        spec=spec,
        max_staleness_us=max_staleness_us,
        dtypes={field.name: field.tags.get(DTYPE_TAG, str(field.dtype)) for field in view.features},
    )


def _registered_entity(entity: feast.Entity) -> RegisteredEntity:
    return RegisteredEntity(
        feast_name=entity.name,
        entity=entity.tags.get(ENTITY_TAG),
        join_key=entity.join_key,
        dtype=entity.value_type.name.lower(),
    )


def _parts(
    service: feast.FeatureService, by_name: Mapping[str, RegisteredView]
) -> tuple[ServicePart, ...]:
    def part(projection: Any) -> ServicePart:
        found = by_name.get(projection.name)
        names = tuple(feature.name for feature in projection.features)
        if found is None:
            return projection.name, "", names
        return found.view, found.definition, names

    return tuple(part(projection) for projection in service.feature_view_projections)


def read_spaces(database: OnlineDatabase, project: str) -> dict[str, Frontiers]:
    """Return the frontiers of each key space of a project, by the key space's name.

    Raises:
        StoreError: The database does not exist, or cannot be read.
    """
    found = list(named_spaces(database, project))
    snapshots = database.read([(space, []) for space in found]) if found else []
    return {
        space.name: snapshot.frontiers for space, snapshot in zip(found, snapshots, strict=True)
    }


def named_spaces(database: OnlineDatabase, project: str) -> Iterator[KeySpace]:
    """Yield the key spaces of a project's views that exist.

    Names of projects and views hold no double underscore, so a name splits in one way. The names
    of foreign views' key spaces (`serving.online.feast_rows.FOREIGN`) do not match the pattern.
    """
    pattern = re.compile(rf"{re.escape(project)}__([a-z](?:_?[a-z0-9]+)*_?)__([0-9a-f]{{16}})")
    for name in database.spaces():
        if parts := pattern.fullmatch(name):
            yield KeySpace(project, parts[1], parts[2])
