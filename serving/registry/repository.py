"""The generated objects of a project, for Feast's own command line.

``feast apply`` registers what the Python files of a repository hold and removes everything else.
So the folder with the ``feature_store.yaml`` also has `serving.stores.feast_config.OBJECTS_MODULE`,
which holds what this module returns. The registry is the one source: what `tidemill apply` has
registered, pending versions included, is what ``feast apply`` finds and keeps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidemill.features.errors import StoreError
from tidemill.features.feast_objects import DEFINITION_TAG, ENTITY_TAG, PROJECT_TAG


def registered_objects(repository: Path | str) -> dict[str, Any]:
    """Return the Feast objects that Tidemill generated, as the registry holds them.

    Args:
        repository: The folder of the ``feature_store.yaml``.

    Returns:
        Each object by a Python name: a view by its Feast name, an entity by ``NAME_entity``, a
        feature service by ``NAME_service``, the project by ``NAME_project`` if definitions describe
        it. Sources are those of the views.

    Raises:
        StoreError: The registry holds no view that Tidemill generated.
    """
    import feast

    store = feast.FeatureStore(repo_path=str(repository))
    registry, project = store.registry, store.project
    views = [
        view
        for view in registry.list_feature_views(project, allow_cache=False)
        if DEFINITION_TAG in view.tags
    ]
    if not views:
        raise StoreError(
            f"{repository}: the registry holds no view that Tidemill generated for project "
            f"{project!r}, so there is nothing that this folder could register; register the "
            "project: `tidemill apply`"
        )
    entities = registry.list_entities(project, allow_cache=False)
    services = registry.list_feature_services(project, allow_cache=False)
    projects = registry.list_projects(allow_cache=False)
    return {
        **{f"{p.name}_project": p for p in projects if p.name == project and PROJECT_TAG in p.tags},
        **{view.name: view for view in views},
        **{f"{e.name}_entity": e for e in entities if ENTITY_TAG in e.tags},
        **{f"{s.name}_service": s for s in services if DEFINITION_TAG in s.tags},
    }
