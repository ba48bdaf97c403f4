"""Registration: a project's definitions become a Feast store, in process.

Unless other places are named, everything stands below one root: the registry (``registry.db``),
the online database and the offline publications (``offline/VIEW/DEFINITION``). Nothing is imported
from a generated repository, the working directory stays what it is, and registering again changes
nothing. What a change of a definition becomes stands in `serving.registry.plan`. Feast 0.67
reports no usage to anyone, so there is nothing to switch off.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidemill.features.bigquery_dataset import BigQueryDataset
from tidemill.features.definitions.views import FeatureView, Project
from tidemill.features.errors import ConfigurationError, StoreError
from tidemill.serving.files.atomic_write import write_text
from tidemill.serving.online.rows import Clock, Frontiers
from tidemill.serving.registry.apply import (
    Entries,
    added_entries,
    changed_entries,
    find_version,
    make_spaces,
    promoted_entries,
    write_entries,
)
from tidemill.serving.registry.plan import Preview, make_plan
from tidemill.serving.registry.state import Registered, read_registered, read_spaces
from tidemill.serving.stores.offline_places import (
    OfflinePlace,
    ParquetPlace,
    check_installed,
    offline_section,
)
from tidemill.serving.stores.online_places import (
    FeastPlace,
    OnlinePlace,
    SqlitePlace,
    default_place,
    expanded,
    feast_section,
    open_database,
)
from tidemill.serving.stores.registry_places import (
    RegistryPlace,
    default_registry,
    holds_project,
    named_errors,
    registry_lock,
    registry_section,
    yaml_section,
)

if TYPE_CHECKING:
    import feast

FEATURE_STORE_YAML: Final = "feature_store.yaml"
"""The file below the root that Feast's own programs read (`write_feature_store_yaml`)."""
BATCH_ENGINE: Final = "tidemill.serving.feast_plugins.materialization.ChangePointComputeEngine"
"""What runs ``materialize``, as Feast imports it."""
OFFLINE: Final = "offline"
"""The directory of offline publications below the root; one directory a definition of a view."""


def repo_config(
    project: Project,
    root: Path | str,
    *,
    clock: Clock,
    place: OnlinePlace | None = None,
    registry: RegistryPlace | None = None,
    offline: OfflinePlace | None = None,
) -> feast.RepoConfig:
    """Return the Feast configuration of a project below a root.

    Args:
        project: The definitions.
        root: Where everything is written.
        clock: What online reads judge age by.
        place: Where the online store is; None is an SQLite file below the root.
        registry: Where the registry is; None is a file below the root.
        offline: Where features of the past are read; None is the log below the root.

    Returns:
        A configuration with the places' stores.

    Raises:
        ConfigurationError: An environment variable that a place names is not set, or what a place
            is read with is not installed.
    """
    return feast_config(
        project.name, root, clock=clock, place=place, registry=registry, offline=offline
    )


def feast_config(
    project: str,
    root: Path | str,
    *,
    clock: Clock,
    place: OnlinePlace | None = None,
    registry: RegistryPlace | None = None,
    offline: OfflinePlace | None = None,
) -> feast.RepoConfig:
    """Return what `repo_config` returns for the project of that name."""
    import feast
    from feast.errors import FeastModuleImportError

    root = Path(root).absolute()
    offline = offline or ParquetPlace()
    check_installed(offline)
    sections = _sections(project, root, clock, place, offline)
    online_store = expanded(sections["online_store"])
    try:
        return feast.RepoConfig(
            **{**sections, "online_store": online_store},
            repo_path=root,
            registry=registry_section(registry or default_registry(root)),
        )
    except FeastModuleImportError as error:
        raise ConfigurationError(
            f"online_store: Feast cannot load its store of type {online_store['type']!r}: "
            f"{error.__cause__}; install what Feast's documentation of that store names "
            "(an extra such as feast[postgres], feast[aws] or feast[gcp])"
        ) from error


def write_feature_store_yaml(
    project: Project,
    root: Path | str,
    *,
    clock: Clock,
    place: OnlinePlace | None = None,
    registry: RegistryPlace | None = None,
    offline: OfflinePlace | None = None,
) -> Path:
    """Write the ``feature_store.yaml`` that Feast's command line and servers read below a root.

    With it ``feast --chdir ROOT serve`` and ``FeatureStore(repo_path=ROOT)`` read what the stream
    publishes. It holds no secret: Feast expands ``${NAME}`` from the environment.

    Args:
        project: The definitions.
        root: Where the file is written, and what relative paths are below.
        clock: What online reads judge age by.
        place: Where the online store is; None is an SQLite file below the root.
        registry: Where the registry is; None is a file below the root.
        offline: Where features of the past are read; None is the log below the root.

    Returns:
        The file's path.
    """
    import yaml

    root = Path(root).absolute()
    root.mkdir(parents=True, exist_ok=True)
    sections = _sections(project.name, root, clock, place, offline or ParquetPlace())
    sections["registry"] = yaml_section(registry or default_registry(root))
    target = root / FEATURE_STORE_YAML
    write_text(target, yaml.safe_dump(sections, sort_keys=False))
    return target


def _sections(
    project: str, root: Path, clock: Clock, place: OnlinePlace | None, offline: OfflinePlace
) -> dict[str, Any]:
    """Return every section but the registry's; secrets stand in it as ``${NAME}``."""
    return {
        "project": project,
        "provider": "local",
        "online_store": feast_section(place or default_place(root), clock),
        "offline_store": offline_section(offline),
        "batch_engine": {"type": BATCH_ENGINE},
        "entity_key_serialization_version": 3,
    }


def open_store(
    project: Project,
    root: Path | str,
    *,
    clock: Clock,
    place: OnlinePlace | None = None,
    registry: RegistryPlace | None = None,
    offline: OfflinePlace | None = None,
) -> feast.FeatureStore:
    """Register what is missing of a project and open its Feast store.

    In an empty registry everything is promoted. Where another definition of a view is promoted,
    the code's stands beside it as a pending version (`feast_name`): nothing is promoted over it.
    Doing it again changes nothing.

    Args:
        project: The definitions.
        root: Where everything is written; made where it doesn't exist.
        clock: What online reads judge age by.
        place: Where the online store is; None is an SQLite file below the root.
        registry: Where the registry is; None is a file below the root.
        offline: Where features of the past are read; None is the log below the root.

    Returns:
        The store, its views registered and their key spaces made.

    Raises:
        DefinitionError: A feature's name cannot stand in a publication.
        StoreError: The registry or the online database cannot be written.
    """
    root = Path(root).absolute()
    root.mkdir(parents=True, exist_ok=True)
    registry = registry or default_registry(root)
    with registry_lock(registry):
        store = _opened(project, root, clock, place, registry, offline)
        registered = read_registered(store)
        plan = make_plan(project, registered, {})
        entries = added_entries(project, registered, plan, _source(root, offline))
        _carry_out(store, registered, entries)
    return store


def plan_project(
    project: Project,
    root: Path | str,
    *,
    place: OnlinePlace | None = None,
    registry: RegistryPlace | None = None,
    offline: OfflinePlace | None = None,
) -> Preview:
    """Compare a project with registry and online store, and change nothing.

    Args:
        project: The definitions.
        root: What the default places are below.
        place: Where the online store is; None is an SQLite file below the root.
        registry: Where the registry is; None is a file below the root.
        offline: Where features of the past are read; None is the log below the root.

    Raises:
        DefinitionError: A feature's name cannot stand in a publication.
        StoreError: The registry or the online database cannot be read.
    """
    root = Path(root).absolute()
    registry = registry or default_registry(root)
    check_installed(offline or ParquetPlace())
    source = _source(root, offline)
    spaces = _spaces(project, place or default_place(root))
    if not holds_project(registry, project.name):
        return _preview(project, source, None, spaces)
    # An opened store refers to no key space before it is written to, so any clock will do.
    store = _opened(project, root, "wall", place, registry, offline)
    return _preview(project, source, store, spaces)


def apply_project(
    project: Project,
    root: Path | str,
    *,
    place: OnlinePlace | None = None,
    registry: RegistryPlace | None = None,
    offline: OfflinePlace | None = None,
    promote: bool = False,
    unfilled_too: bool = False,
    shown: Preview | None = None,
) -> Preview:
    """Register what is missing of a project and, where it is asked for, promote its definitions.

    Args:
        project: The definitions.
        root: Where everything is written; made where it doesn't exist.
        place: Where the online store is; None is an SQLite file below the root.
        registry: Where the registry is; None is a file below the root.
        offline: Where features of the past are read; None is the log below the root.
        promote: Whether ``VIEW`` and the feature service become the code's.
        unfilled_too: Whether to promote what has no values to read yet.
        shown: What somebody agreed to; None does whatever is to be done.

    Returns:
        What was done.

    Raises:
        DefinitionError: A feature's name cannot stand in a publication.
        StoreError: A definition that is to be promoted is not filled; what is to be done is not
            what was shown; the registry or the online database cannot be written.
    """
    root = Path(root).absolute()
    root.mkdir(parents=True, exist_ok=True)
    registry = registry or default_registry(root)
    with registry_lock(registry):
        store = _opened(project, root, "wall", place, registry, offline)
        source = _source(root, offline)
        preview = _preview(project, source, store, _spaces(project, place or default_place(root)))
        if shown is not None and not preview.same_decisions(shown):
            raise StoreError(
                f"{registry.name}: somebody else registered project {project.name!r} after this "
                "plan was made; look at the new plan (`tidemill apply --plan`) and apply again"
            )
        plan = preview.plan
        if promote and plan.to_promote and plan.unfilled and not unfilled_too:
            raise StoreError(
                f"project {project.name!r} is not promoted, since readers would get nothing, or "
                f"old numbers: {'; '.join(plan.unfilled)}. Fill the new definitions first: "
                "`tidemill apply`, then `tidemill backfill --publish`"
            )
        registered = read_registered(store)
        make_entries = promoted_entries if promote else added_entries
        entries = make_entries(project, registered, plan, source)
        _carry_out(store, registered, entries)
    return preview


def feast_name(store: feast.FeatureStore, view: FeatureView) -> str:
    """Return the Feast name under which a definition stands: ``VIEW``, or ``VIEW__vN`` if pending.

    Raises:
        StoreError: It is not registered.
    """
    found = find_version(read_registered(store), view.name, view.hash)
    if found is None:
        raise StoreError(
            f"this definition of view {view.name!r} is not registered in project "
            f"{store.project!r}; register it: `tidemill apply`"
        )
    return found.feast_name


def _opened(
    project: Project,
    root: Path,
    clock: Clock,
    place: OnlinePlace | None,
    registry: RegistryPlace,
    offline: OfflinePlace | None,
) -> feast.FeatureStore:
    import feast

    config = repo_config(
        project, root, clock=clock, place=place, registry=registry, offline=offline
    )
    store = feast.FeatureStore(config=config)
    with named_errors(registry):
        store.registry  # noqa: B018 - opens it, so that what is wrong with it shows here
    return store


def _source(root: Path, offline: OfflinePlace | None) -> str | BigQueryDataset:
    return offline if isinstance(offline, BigQueryDataset) else str(root / OFFLINE)


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


def _preview(
    project: Project,
    source: str | BigQueryDataset,
    store: feast.FeatureStore | None,
    spaces: dict[str, Frontiers] | None,
) -> Preview:
    registered = Registered() if store is None else read_registered(store)
    plan = make_plan(project, registered, spaces)
    added, promoted = (
        changed_entries(store, make_entries(project, registered, plan, source))
        for make_entries in (added_entries, promoted_entries)
    )
    return Preview(plan, added.lines(), promoted.lines())


def _carry_out(store: feast.FeatureStore, registered: Registered, entries: Entries) -> None:
    make_spaces(store, entries, registered)
    write_entries(store, changed_entries(store, entries))
