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
from serving.online_database import OnlineDatabase
from serving.online_rows import Clock

if TYPE_CHECKING:
    import feast

REGISTRY: Final = "registry.db"
"""The registry's file below the root."""
OFFLINE: Final = "offline"
"""The directory of offline publications below the root; one directory a view."""
ONLINE: Final = "online.db"
"""The online database's file below the root, unless another is named."""


def repo_config(
    project: Project, root: Path | str, *, clock: Clock, online_path: str = ONLINE
) -> feast.RepoConfig:
    """Return the Feast configuration of a project below a root.

    Args:
        project: The definitions.
        root: Where everything is written.
        clock: What online reads judge age by.
        online_path: The online database's file; a relative one is below the root.

    Returns:
        A configuration with the ordered SQLite store online and Parquet files offline.
    """
    import feast

    root = Path(root).absolute()
    return feast.RepoConfig(
        project=project.name,
        provider="local",
        repo_path=root,
        registry={"registry_type": "file", "path": str(root / REGISTRY)},
        online_store={
            "type": "serving.online_store.OrderedSqliteOnlineStore",
            "path": str(root / online_path),
            "clock": clock,
        },
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
    )


def open_store(
    project: Project, root: Path | str, *, clock: Clock, online_path: str = ONLINE
) -> feast.FeatureStore:
    """Register a project and open its Feast store; doing it again changes nothing.

    Args:
        project: The definitions.
        root: Where everything is written; made where it doesn't exist.
        clock: What online reads judge age by.
        online_path: The online database's file; a relative one is below the root.

    Returns:
        The store, its views registered and their key spaces made.

    Raises:
        DefinitionError: A feature's name cannot stand in a publication.
        StoreError: The online database cannot be written.
    """
    import feast

    root = Path(root).absolute()
    root.mkdir(parents=True, exist_ok=True)
    store = feast.FeatureStore(
        config=repo_config(project, root, clock=clock, online_path=online_path)
    )
    store.apply(feast_objects(project, str(root / OFFLINE)).all)
    return store


def open_database(root: Path | str, online_path: str = ONLINE) -> OnlineDatabase:
    """Return the online database below a root, without Feast; `open_store` makes it.

    Args:
        root: Where everything is written.
        online_path: The online database's file; a relative one is below the root.
    """
    return OnlineDatabase(str(Path(root).absolute() / online_path))
