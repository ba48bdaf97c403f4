"""The paths of the classes that Feast loads, and their former paths.

Users' ``feature_store.yaml`` files hold these paths: add a class that moves to `renamed_class`.
"""

from __future__ import annotations

import re
from typing import Final

SQLITE_STORE: Final = "tidemill.serving.feast_plugins.online_store.OrderedSqliteOnlineStore"
REDIS_STORE: Final = "tidemill.serving.feast_plugins.online_store.OrderedRedisOnlineStore"
OFFLINE_STORE: Final = "tidemill.serving.feast_plugins.offline_store.ChangePointOfflineStore"
REGISTRY_FILE: Final = "tidemill.serving.feast_plugins.registry_file.AtomicFileRegistryStore"
BATCH_ENGINE: Final = "tidemill.serving.feast_plugins.materialization.ChangePointComputeEngine"
"""The class that runs ``materialize``."""

_BEFORE: Final = re.compile(
    r"(?<![\w.])serving\.((?:online_store|offline_store|registry_file|materialization)\.\w+)"
)


def renamed_class(path: str) -> str | None:
    """Return the present path of a class for its former path; None for any other text.

    >>> renamed_class("serving.registry_file.AtomicFileRegistryStore")
    'tidemill.serving.feast_plugins.registry_file.AtomicFileRegistryStore'
    """
    found = _BEFORE.fullmatch(path)
    return None if found is None else f"tidemill.serving.feast_plugins.{found[1]}"


def renamed_classes(text: str) -> dict[str, str]:
    """Map each former class path in a text, such as a YAML file, to the present one."""
    return {
        found[0]: f"tidemill.serving.feast_plugins.{found[1]}" for found in _BEFORE.finditer(text)
    }
