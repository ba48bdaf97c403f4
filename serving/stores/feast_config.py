"""The Feast configuration of a project: as an object, and as the file that Feast's programs read.

Feast 0.67 reports no usage to anyone, so there is nothing to switch off.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidemill.features.errors import ConfigurationError
from tidemill.serving.files.atomic_write import write_text
from tidemill.serving.stores.class_paths import BATCH_ENGINE
from tidemill.serving.stores.offline_places import check_installed, offline_section
from tidemill.serving.stores.online_places import Clock, expanded, feast_section
from tidemill.serving.stores.places import StorePlaces
from tidemill.serving.stores.registry_places import registry_section

if TYPE_CHECKING:
    import feast

FEATURE_STORE_YAML: Final = "feature_store.yaml"
"""The file below the root that Feast's own programs read (`write_feature_store_yaml`)."""

OBJECTS_MODULE: Final = "tidemill_objects.py"
"""The module beside it that ``feast apply`` finds the generated objects in."""

_OBJECTS: Final = '''"""The Feast objects that Tidemill generated, as the registry holds them.

`feast apply` registers what the Python files of this folder hold, and removes everything else.
This file keeps the generated objects; put your own views into other files, which may import them:

    from tidemill_objects import VIEW, ENTITY_entity, SERVICE_service

`tidemill apply` writes this file, and changes the objects.
"""

from pathlib import Path

from tidemill.serving.registry.repository import registered_objects

globals().update(registered_objects(Path(__file__).parent))
'''


def repo_config(project: str, places: StorePlaces, *, clock: Clock) -> feast.RepoConfig:
    """Return the Feast configuration of a project; its clock judges the age of online reads.

    Raises:
        ConfigurationError: An environment variable that a place names is not set, or a library
            that reads a place is not installed.
    """
    import feast
    from feast.errors import FeastModuleImportError

    check_installed(places.offline)
    sections = _sections(project, places, clock)
    online_store = expanded(sections["online_store"])
    try:
        return feast.RepoConfig(
            **{**sections, "online_store": online_store},
            repo_path=places.root,
            registry=registry_section(places.registry, places.root, expanded=True),
        )
    except FeastModuleImportError as error:
        raise ConfigurationError(
            f"online_store: Feast cannot load its store of type {online_store['type']!r}: "
            f"{error.__cause__}; install what Feast's documentation of that store names "
            "(an extra such as feast[postgres], feast[aws] or feast[gcp])"
        ) from error


def write_feature_store_yaml(project: str, places: StorePlaces, *, clock: Clock) -> Path:
    """Write the ``feature_store.yaml`` that Feast's command line and servers read, below the root.

    With it ``feast --chdir ROOT serve`` and ``FeatureStore(repo_path=ROOT)`` read what the stream
    publishes. Paths start at the root, so it may be moved as a whole. It holds no secret: Feast
    expands ``${NAME}`` from the environment.
    """
    import yaml

    registry = registry_section(places.registry, places.root, expanded=False)
    sections = {**_sections(project, places, clock), "registry": registry}
    target = places.root / FEATURE_STORE_YAML
    write_text(target, yaml.safe_dump(sections, sort_keys=False))
    return target


def write_objects_module(places: StorePlaces) -> Path:
    """Write the module by which ``feast apply`` keeps the generated objects, below the root."""
    target = places.root / OBJECTS_MODULE
    write_text(target, _OBJECTS)
    return target


def _sections(project: str, places: StorePlaces, clock: Clock) -> dict[str, Any]:
    """Return all sections except the registry's; secrets remain ``${NAME}``."""
    return {
        "project": project,
        "provider": "local",
        "online_store": feast_section(places.online, clock, places.root),
        "offline_store": offline_section(places.offline, places.root),
        "batch_engine": {"type": BATCH_ENGINE},
        "entity_key_serialization_version": 3,
    }
