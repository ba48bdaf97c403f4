"""Registration: a project's definitions become a Feast store, in process.

No generated repository is imported, the working directory does not change, and registering again
changes nothing. `serving.registry.plan` states the rules for changed definitions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.features.definitions import FeatureView, Project
from tidemill.features.errors import StoreError
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.rows import Frontiers
from tidemill.serving.registry.apply import (
    Entries,
    changed_entries,
    make_spaces,
    registry_entries,
    write_entries,
)
from tidemill.serving.registry.plan import Preview, make_plan
from tidemill.serving.registry.state import Registered, named_spaces, read_registered, read_spaces
from tidemill.serving.stores.feast_config import repo_config
from tidemill.serving.stores.offline_places import check_installed
from tidemill.serving.stores.online_places import Clock, FeastPlace, OnlinePlace, SqlitePlace
from tidemill.serving.stores.places import StorePlaces
from tidemill.serving.stores.registry_places import holds_project, named_errors, registry_lock

if TYPE_CHECKING:
    import feast


def open_store(project: Project, places: StorePlaces, *, clock: Clock) -> feast.FeatureStore:
    """Register the missing definitions of a project, and open its Feast store.

    In an empty registry everything is promoted. If another definition of a view is promoted, the
    code's becomes a pending version beside it (`feast_name`). Calling it again changes nothing. The
    root is made if it does not exist.

    Returns:
        The store, its views registered and their key spaces made.

    Raises:
        DefinitionError: A feature's name is reserved for publications.
        StoreError: The registry or the online database cannot be written.
    """
    places.root.mkdir(parents=True, exist_ok=True)
    with registry_lock(places.registry):
        store = _opened(project, places, clock)
        registered = read_registered(store)
        plan = make_plan(project, registered, {})
        entries = registry_entries(project, registered, plan, places.source, promote=False)
        _carry_out(store, registered, entries)
    return store


def plan_project(project: Project, places: StorePlaces) -> Preview:
    """Compare a project with registry and online store, and change nothing.

    Raises:
        DefinitionError: A feature's name is reserved for publications.
        StoreError: The registry or the online database cannot be read.
    """
    check_installed(places.offline)
    spaces = _spaces(project, places.online)
    store = None
    if holds_project(places.registry, project.name):
        # The clock judges online reads, and the plan reads only the registry.
        store = _opened(project, places, "wall")
    registered = Registered() if store is None else read_registered(store)
    return _preview(project, places, store, registered, spaces)


def apply_project(
    project: Project,
    places: StorePlaces,
    *,
    promote: bool = False,
    unfilled_too: bool = False,
    shown: Preview | None = None,
) -> Preview:
    """Register the missing definitions of a project and, if asked to, promote its definitions.

    Args:
        project: The definitions.
        places: Where its stores are; the root is made if it does not exist.
        promote: Whether ``VIEW`` and the feature service become the code's.
        unfilled_too: Whether to promote definitions that have no values to read yet.
        shown: The preview that the user agreed to; None applies any plan.

    Returns:
        What was done.

    Raises:
        DefinitionError: A feature's name is reserved for publications.
        StoreError: A definition to be promoted is not filled; the plan is no longer the one that
            was shown; the registry or the online database cannot be written.
    """
    places.root.mkdir(parents=True, exist_ok=True)
    with registry_lock(places.registry):
        store = _opened(project, places, "wall")
        registered = read_registered(store)
        _bring_forward(project, places.online)
        spaces = _spaces(project, places.online)
        preview = _preview(project, places, store, registered, spaces)
        if shown is not None and not preview.same_decisions(shown):
            raise StoreError(
                f"{places.registry.name}: another process registered project {project.name!r} "
                "after this plan was made; look at the new plan (`tidemill apply --plan`) and "
                "apply again"
            )
        plan = preview.plan
        if promote and plan.to_promote and plan.unfilled and not unfilled_too:
            raise StoreError(
                f"project {project.name!r} is not promoted, since readers would get nothing, or "
                f"old numbers: {'; '.join(plan.unfilled)}. Fill the new definitions first: "
                "`tidemill apply`, then `tidemill backfill --publish`"
            )
        entries = registry_entries(project, registered, plan, places.source, promote=promote)
        _carry_out(store, registered, entries)
    return preview


def feast_name(store: feast.FeatureStore, view: FeatureView) -> str:
    """Return the Feast name of a definition: ``VIEW``, or ``VIEW__vN`` if it is pending.

    Raises:
        StoreError: It is not registered.
    """
    found = read_registered(store).version(view.name, view.hash)
    if found is None:
        raise StoreError(
            f"this definition of view {view.name!r} is not registered in project "
            f"{store.project!r}; register it: `tidemill apply`"
        )
    return found.feast_name


def _opened(project: Project, places: StorePlaces, clock: Clock) -> feast.FeatureStore:
    import feast

    store = feast.FeatureStore(config=repo_config(project.name, places, clock=clock))
    with named_errors(places.registry):
        store.registry  # noqa: B018 - opens the registry here, where its errors get a name
    return store


def _spaces(project: Project, place: OnlinePlace) -> dict[str, Frontiers] | None:
    if isinstance(place, FeastPlace):
        return None
    if isinstance(place, SqlitePlace) and not place.path.exists():
        return {}
    database = open_database(place)
    try:
        return read_spaces(database, project.name)
    finally:
        database.close()


def _bring_forward(project: Project, place: OnlinePlace) -> None:
    """Bring the key spaces that an earlier version of Tidemill made to the present layout."""
    if isinstance(place, FeastPlace) or (
        isinstance(place, SqlitePlace) and not place.path.exists()
    ):
        return
    database = open_database(place)
    try:
        database.create(list(named_spaces(database, project.name)))
    finally:
        database.close()


def _preview(
    project: Project,
    places: StorePlaces,
    store: feast.FeatureStore | None,
    registered: Registered,
    spaces: dict[str, Frontiers] | None,
) -> Preview:
    plan = make_plan(project, registered, spaces)
    lines = [
        changed_entries(
            store, registry_entries(project, registered, plan, places.source, promote=promote)
        ).lines()
        for promote in (False, True)
    ]
    return Preview(plan, registers=lines[0], promotes=lines[1])


def _carry_out(store: feast.FeatureStore, registered: Registered, entries: Entries) -> None:
    make_spaces(store, entries, registered)
    write_entries(store, changed_entries(store, entries))
