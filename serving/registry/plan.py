"""The plan: what registering a project would do, computed before anything is done.

The rules, which `serving.registry.apply` carries out:

* Registering adds. A new view is promoted at once, because it has no readers yet. A changed view
  becomes a pending version beside the promoted one, in a key space of its own. Nothing that may
  have readers changes: neither the promoted version, nor the project's feature service, nor a view
  that the code no longer has.
* Promotion makes the registry equal to the code: ``VIEW`` and the feature service become the
  code's, all other versions and the removed views are deleted. Key spaces stay.
* In an empty registry everything is promoted at once.

Nothing here reads or writes; Feast is not imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from tidemill.features.contract import TIME_MIN, format_duration
from tidemill.features.definitions import Entity, FeatureView, Project, spec_hash
from tidemill.features.feast_objects import field_name, service_name, version_name
from tidemill.serving.definition_changes import (
    Change,
    FeatureChange,
    feature_changes,
    new_features,
    view_changes,
)
from tidemill.serving.online.rows import Frontiers, KeySpace
from tidemill.serving.registry.state import Registered, RegisteredView, ServicePart


class Role(Enum):
    """Why a key space exists."""

    PROMOTED = "promoted"
    PENDING = "pending"
    REMOVED = "promoted, no longer in the code"
    SUPERSEDED = "superseded"
    ORPHANED = "orphaned"


@dataclass(frozen=True)
class ViewPlan:
    """What happens to a view.

    Attributes:
        view: Its name.
        change: The code's definition compared with the promoted one.
        definition: Hash of the code's definition; of the promoted one if the code has none.
        version: The code's version: its number if it is registered, else the next one.
        feast_name: Feast name of the code's definition once it is registered.
        is_registered: Whether the code's definition is registered already.
        in_service: Whether the project's feature service holds this definition now.
        promoted: The version that is promoted now; None for a new view.
        details: The differences of the view itself.
        features: The differences of its features.
    """

    view: str
    change: Change
    definition: str
    version: int
    feast_name: str
    is_registered: bool
    in_service: bool
    promoted: RegisteredView | None
    details: tuple[str, ...] = ()
    features: tuple[FeatureChange, ...] = ()


@dataclass(frozen=True)
class EntityPlan:
    """What happens to an entity.

    Attributes:
        entity: Its name.
        change: The code's entity compared with the registered one.
        feast_name: Feast name that pending versions use for it.
        details: The differences.
    """

    entity: str
    change: Change
    feast_name: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpacePlan:
    """A key space in the online store.

    Attributes:
        space: The key space, without its columns.
        role: Why it exists.
        exists: Whether it exists already; if not, registering makes it.
        frontiers: The frontiers that were published to it.
    """

    space: KeySpace
    role: Role
    exists: bool
    frontiers: Frontiers

    @property
    def name(self) -> str:
        """The key space's name."""
        return self.space.name

    @property
    def unfilled(self) -> str | None:
        """Why it cannot be read yet; None if every shard has published a frontier."""
        frontiers = self.frontiers
        if not frontiers.shard_count:
            return "nothing was published to it"
        missing = [s for s in range(frontiers.shard_count) if s not in frontiers.by_shard]
        if missing:
            shards = ", ".join(map(str, missing))
            return f"no frontier of shard {shards} of {frontiers.shard_count}"
        return None


@dataclass(frozen=True)
class RegistrationPlan:
    """What registering, and what promoting, would do.

    Attributes:
        project: The project's name.
        views: The code's views in order, then those that it no longer has.
        entities: The code's entities, then those that it no longer has.
        service: What happens to the project's feature service.
        service_details: The differences of the feature service.
        spaces: The project's key spaces; None if the online store keeps none (a store of Feast's
            own).
        superseded: Versions that are neither promoted nor the code's.
    """

    project: str
    views: tuple[ViewPlan, ...]
    entities: tuple[EntityPlan, ...]
    service: Change
    service_details: tuple[str, ...]
    spaces: tuple[SpacePlan, ...] | None
    superseded: tuple[RegisteredView, ...]

    @property
    def to_promote(self) -> tuple[str, ...]:
        """Names of what promotion would change; empty if the code is promoted already."""
        return (
            *(v.view for v in self.views if v.change in (Change.CHANGED, Change.REMOVED)),
            *([f"feature service {self.project}"] if self.service is Change.CHANGED else []),
            *(version.feast_name for version in self.superseded),
        )

    @property
    def unfilled(self) -> tuple[str, ...]:
        """Why readers would get nothing or old numbers after promotion, view by view."""
        return tuple(self._unfilled())

    def _unfilled(self) -> Iterator[str]:
        by_name = {space.name: space for space in self.spaces or ()}
        for view in self.views:
            served = view.change is Change.UNCHANGED and view.in_service
            if view.change is Change.REMOVED or served:
                continue
            if self.spaces is None:
                if view.change is Change.CHANGED:
                    yield (
                        f"view {view.view!r}: this online store keeps rows by the view's name, so "
                        "rows of the old definition would answer for the new one"
                    )
                continue
            space = by_name[KeySpace(self.project, view.view, view.definition).name]
            if lacking := space.unfilled:
                yield f"view {view.view!r}, key space {space.name}: {lacking}"


@dataclass(frozen=True)
class Preview:
    """A plan, and the changes of the registry that it leads to.

    Attributes:
        plan: The plan.
        registers: What registering writes to the registry, a line each.
        promotes: What promoting writes to the registry and removes from it, a line each.
    """

    plan: RegistrationPlan
    registers: tuple[str, ...]
    promotes: tuple[str, ...]

    def same_decisions(self, other: Preview) -> bool:
        """Tell whether another preview has the same effect; frontiers may differ."""
        mine, others = (
            dataclasses.replace(made, plan=dataclasses.replace(made.plan, spaces=None))
            for made in (self, other)
        )
        return mine == others


def make_plan(
    project: Project, registered: Registered, spaces: Mapping[str, Frontiers] | None
) -> RegistrationPlan:
    """Compare a project with the registry and the online store.

    Args:
        project: The code's definitions.
        registered: The content of the registry.
        spaces: The project's key spaces by name (`registry.state.read_spaces`); None if the online
            store keeps none.
    """
    parts = service_parts(project)
    before = registered.services.get(service_name(project))
    served = {(view, definition) for view, definition, _ in before or ()}
    views = [_view_plan(view, registered, served) for view in project.views]
    kept = {view.name for view in project.views}
    views += [
        _removed(version)
        for version in registered.views
        if version.is_promoted and version.view not in kept
    ]
    service = Change.ADDED if before is None else Change.CHANGED
    service = Change.UNCHANGED if before == parts else service
    current = {(view.view, view.definition) for view in views}
    return RegistrationPlan(
        project=project.name,
        views=tuple(views),
        entities=tuple(_entity_plans(project, registered)),
        service=service,
        service_details=tuple(_service_details(before or (), parts)),
        spaces=None if spaces is None else tuple(_space_plans(project, registered, views, spaces)),
        superseded=tuple(
            version
            for version in registered.views
            if not version.is_promoted
            and (version.view, version.definition) not in current
            and not _is_alias(version, registered)
        ),
    )


def service_parts(project: Project) -> tuple[ServicePart, ...]:
    """Return the parts of the project's feature service."""
    return tuple(
        (view.name, view.hash, tuple(field_name(column) for column in view.columns))
        for view in project.views
    )


def entity_name(entity: Entity, registered: Registered) -> str:
    """Return the Feast name that pending versions use for an entity.

    It is the entity's own name unless the registered entity has another key: that entity is kept
    as long as the promoted views use it.
    """
    found = registered.entities.get(entity.name)
    if found is None or (found.join_key, found.dtype) == (entity.join_key, entity.dtype):
        return entity.name
    return f"{entity.name}__{spec_hash(entity.spec())[:8]}"


def _view_plan(
    view: FeatureView, registered: Registered, served: Collection[tuple[str, str]]
) -> ViewPlan:
    promoted = registered.promoted(view.name)
    same = registered.version(view.name, view.hash)
    last = max((v.version for v in registered.views if v.view == view.name), default=0)
    version = last + 1 if same is None else same.version
    details: tuple[str, ...] = ()
    features: tuple[FeatureChange, ...] = ()
    if promoted is None:
        change, features = Change.ADDED, new_features(view)
    elif promoted.definition == view.hash:
        change = Change.UNCHANGED
        if promoted.max_staleness_us != view.max_staleness_us:
            was = format_duration(promoted.max_staleness_us)
            now = format_duration(view.max_staleness_us)
            details = (f"max_staleness {was} -> {now}, at once: it judges reads, not values",)
    else:
        change = Change.CHANGED
        if promoted.spec is None:
            details = ("registered without its canonical form: what differs is not known",)
        else:
            details = view_changes(promoted.spec, view.spec())
            features = feature_changes(promoted.spec, promoted.dtypes, view)
    return ViewPlan(
        view=view.name,
        change=change,
        definition=view.hash,
        version=version,
        feast_name=version_name(view, version) if change is Change.CHANGED else view.name,
        is_registered=same is not None,
        in_service=(view.name, view.hash) in served,
        promoted=promoted,
        details=details,
        features=features,
    )


def _removed(version: RegisteredView) -> ViewPlan:
    return ViewPlan(
        view=version.view,
        change=Change.REMOVED,
        definition=version.definition,
        version=version.version,
        feast_name=version.feast_name,
        is_registered=True,
        in_service=False,
        promoted=version,
    )


def _is_alias(version: RegisteredView, registered: Registered) -> bool:
    """Tell whether a version is the promoted one, under the name that it had while pending."""
    promoted = registered.promoted(version.view)
    return promoted is not None and promoted.definition == version.definition


def _entity_plans(project: Project, registered: Registered) -> Iterator[EntityPlan]:
    entities = {view.entity.name: view.entity for view in project.views}
    for name, entity in entities.items():
        found = registered.entities.get(name)
        feast_name = entity_name(entity, registered)
        if found is None:
            yield EntityPlan(name, Change.ADDED, feast_name)
        elif feast_name == name:
            yield EntityPlan(name, Change.UNCHANGED, feast_name)
        else:
            pairs = {"join_key": (found.join_key, entity.join_key)}
            pairs["dtype"] = (found.dtype, entity.dtype)
            details = (f"{what} {was} -> {now}" for what, (was, now) in pairs.items() if was != now)
            yield EntityPlan(name, Change.CHANGED, feast_name, tuple(details))
    for found in registered.entities.values():
        if found.entity == found.feast_name and found.entity not in entities:
            yield EntityPlan(found.entity, Change.REMOVED, found.feast_name)


def _service_details(
    before: tuple[ServicePart, ...], after: tuple[ServicePart, ...]
) -> Iterator[str]:
    was = {f"{view}:{name}" for view, _, names in before for name in names}
    now = {f"{view}:{name}" for view, _, names in after for name in names}
    if gained := len(now - was):
        yield f"features added: {gained}"
    if lost := len(was - now):
        yield f"features removed: {lost}"
    definitions = {view: definition for view, definition, _ in before}
    other = [view for view, definition, _ in after if definitions.get(view, "") != definition]
    if changed := [view for view in other if view in definitions]:
        yield f"other definitions of {', '.join(changed)}"


def _space_plans(
    project: Project, registered: Registered, views: list[ViewPlan], spaces: Mapping[str, Frontiers]
) -> Iterator[SpacePlan]:
    roles: dict[tuple[str, str], Role] = {}
    for view in views:
        key = (view.view, view.definition)
        roles[key] = Role.PENDING if view.change is Change.CHANGED else Role.PROMOTED
        if view.change is Change.REMOVED:
            roles[key] = Role.REMOVED
    for version in registered.views:
        role = Role.PROMOTED if version.is_promoted else Role.SUPERSEDED
        roles.setdefault((version.view, version.definition), role)
    order = list(Role)
    named = set()
    for key in sorted(roles, key=lambda key: (key[0], order.index(roles[key]), key)):
        space = KeySpace(project.name, *key)
        named.add(space.name)
        exists = space.name in spaces
        yield SpacePlan(space, roles[key], exists, spaces.get(space.name, Frontiers(0, {})))
    for name in sorted(set(spaces) - named):
        _, view_name, definition = name.rsplit("__", 2)
        if view_name not in registered.foreign_views:
            space = KeySpace(project.name, view_name, definition)
            yield SpacePlan(space, Role.ORPHANED, True, spaces[name])


def behind_us(space: SpacePlan, spaces: tuple[SpacePlan, ...]) -> int:
    """Return the lag of a key space's least frontier behind the newest one of its view."""
    of_view = (other for other in spaces if other.space.view == space.space.view)
    newest = max(other.frontiers.highest for other in of_view)
    least = space.frontiers.least
    return 0 if least <= TIME_MIN else newest - least
