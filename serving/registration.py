"""Registration: a project's definitions become a Feast store, in process.

Everything stands below one root: the registry (``registry.db``), the online database and the
offline publications (``offline/VIEW``). Nothing is imported from a generated repository, the
working directory stays what it is, and registering again changes nothing. Feast 0.67 reports no
usage to anyone, so there is nothing to switch off.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from features.definitions import Project
from features.feast_objects import feast_objects
from serving.online_places import OnlinePlace, default_place, feast_section
from serving.online_rows import Clock

if TYPE_CHECKING:
    import feast

REGISTRY: Final = "registry.db"
"""The registry's file below the root."""
OFFLINE: Final = "offline"
"""The directory of offline publications below the root; one directory a view."""


def repo_config(
    project: Project, root: Path | str, *, clock: Clock, place: OnlinePlace | None = None
) -> feast.RepoConfig:
    """Return the Feast configuration of a project below a root.

    Args:
        project: The definitions.
        root: Where everything is written.
        clock: What online reads judge age by.
        place: Where the online store is; None is an SQLite file below the root.

    Returns:
        A configuration with an ordered store online and Parquet files offline.
    """
    import feast

    root = Path(root).absolute()
    return feast.RepoConfig(
        project=project.name,
        provider="local",
        repo_path=root,
        registry={"registry_type": "file", "path": str(root / REGISTRY)},
        online_store=feast_section(place or default_place(root), clock),
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
    )


def open_store(
    project: Project, root: Path | str, *, clock: Clock, place: OnlinePlace | None = None
) -> feast.FeatureStore:
    """Register a project and open its Feast store; doing it again changes nothing.

    Args:
        project: The definitions.
        root: Where everything is written; made where it doesn't exist.
        clock: What online reads judge age by.
        place: Where the online store is; None is an SQLite file below the root.

    Returns:
        The store, its views registered and their key spaces made.

    Raises:
        DefinitionError: A feature's name cannot stand in a publication.
        StoreError: The online database cannot be written.
    """
    import feast

    root = Path(root).absolute()
    root.mkdir(parents=True, exist_ok=True)
    store = feast.FeatureStore(config=repo_config(project, root, clock=clock, place=place))
    store.apply(feast_objects(project, str(root / OFFLINE)).all)
    return store
