"""Removing orphans: key spaces that no version in the registry refers to.

The key space of a registered version (promoted, pending or superseded), of a definition in the code
or of another project is never dropped. With an empty registry nothing is dropped, because it cannot
say which key spaces are in use. `find_orphans` changes nothing; `drop_orphans` checks again, under
the lock that registering takes.

A reader or a stream may still use the key space of its own definition (`serving.online.reader`):
the frontier shows whether a stream still writes to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.features.definitions import Project
from tidemill.features.errors import StoreError
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.fills import Fill, FillState
from tidemill.serving.registry.plan import Role, SpacePlan
from tidemill.serving.registry.registration import plan_project
from tidemill.serving.registry.state import named_spaces
from tidemill.serving.stores.online_places import FeastPlace
from tidemill.serving.stores.places import StorePlaces
from tidemill.serving.stores.registry_places import registry_lock


def find_orphans(project: Project, places: StorePlaces) -> list[SpacePlan]:
    """Find the project's key spaces that no version in the registry and no definition refers to.

    Raises:
        StoreError: The registry holds no version of any of the project's views, so it cannot say
            which key spaces are in use; the store keeps no key spaces; or either cannot be read.
    """
    if isinstance(places.online, FeastPlace):
        raise StoreError(
            f"the online store is Feast's own {places.online.type!r}, which keeps rows by the "
            "view's name and not by its definition: there is nothing to clean up"
        )
    plan = plan_project(project, places).plan
    if not any(view.is_registered for view in plan.views) and not plan.superseded:
        raise StoreError(
            f"{places.registry.name} holds no view of project "
            f"{project.name!r}, so it cannot say which key spaces are in use; name the registry "
            "that the project is registered in, or register it: `tidemill apply`"
        )
    return [space for space in plan.spaces or () if space.role is Role.ORPHANED]


def past_fills(project: Project, places: StorePlaces) -> list[Fill]:
    """Find the fills that readers of the project's key spaces were switched away from.

    The last one of a key space stays until the next switch, for readers that had begun before it.

    Raises:
        StoreError: The store keeps no fills, or cannot be read.
    """
    if isinstance(places.online, FeastPlace):
        return []
    database = open_database(places.online)
    try:
        found = database.fills(list(named_spaces(database, project.name)))
    finally:
        database.close()
    return [fill for fill in found if fill.state is FillState.PAST]


def drop_past_fills(project: Project, places: StorePlaces) -> list[str]:
    """Remove the result of `past_fills`, and return the names.

    Raises:
        StoreError: The store cannot be written.
    """
    found = past_fills(project, places)
    if found:
        database = open_database(places.online)
        database.drop_fills(found)
        database.close()
    return [fill.name for fill in found]


def drop_orphans(project: Project, places: StorePlaces, agreed: Sequence[SpacePlan]) -> list[str]:
    """Drop those of the agreed key spaces that are still orphans, and return their names.

    Raises:
        StoreError: As for `find_orphans`, or the store cannot be written.
    """
    names = {orphan.name for orphan in agreed}
    with registry_lock(places.registry):
        still = find_orphans(project, places)
        spaces = [orphan.space for orphan in still if orphan.name in names]
        if spaces:
            database = open_database(places.online)
            database.drop(spaces)
            database.close()
    return [space.name for space in spaces]
