"""The classes that Feast loads by their path, and the paths that they had before.

The paths stand in users' ``feature_store.yaml``: a class that moves gets a line in `renamed_class`.
"""

from __future__ import annotations

import re
from typing import Final

SQLITE_STORE: Final = "tidemill.serving.feast_plugins.online_store.OrderedSqliteOnlineStore"
REDIS_STORE: Final = "tidemill.serving.feast_plugins.online_store.OrderedRedisOnlineStore"
OFFLINE_STORE: Final = "tidemill.serving.feast_plugins.offline_store.ChangePointOfflineStore"
REGISTRY_FILE: Final = "tidemill.serving.feast_plugins.registry_file.AtomicFileRegistryStore"
BATCH_ENGINE: Final = "tidemill.serving.feast_plugins.materialization.ChangePointComputeEngine"
"""What runs ``materialize``."""

_BEFORE: Final = re.compile(
    r"(?<![\w.])serving\.((?:online_store|offline_store|registry_file|materialization)\.\w+)"
)


def renamed_class(path: str) -> str | None:
    """Return the present path of a class whose path was another one; None for any other text.

    >>> renamed_class("serving.registry_file.AtomicFileRegistryStore")
    'tidemill.serving.feast_plugins.registry_file.AtomicFileRegistryStore'
    """
    found = _BEFORE.fullmatch(path)
    return None if found is None else f"tidemill.serving.feast_plugins.{found[1]}"


def renamed_classes(text: str) -> dict[str, str]:
    """Return the former class paths in a text such as a YAML file, each with its present one."""
    return {
        found[0]: f"tidemill.serving.feast_plugins.{found[1]}" for found in _BEFORE.finditer(text)
    }
