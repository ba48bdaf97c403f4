"""Where an online store is: the configured place, and Feast's section of it.

An `OnlinePlace` is plain data: it can be compared, pickled and printed, and it holds no secret
(it names the environment variable that holds a password).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tidemill.features.errors import ConfigurationError
from tidemill.serving.files.relative_path import relative_path
from tidemill.serving.stores.class_paths import REDIS_STORE, SQLITE_STORE, renamed_class
from tidemill.serving.stores.redis_place import RedisPlace
from tidemill.serving.stores.registry_places import RegistryPlace

Clock = Literal["wall", "replay"]
"""A reader's clock: the wall clock live, the highest published frontier in a replay."""


@dataclass(frozen=True)
class SqlitePlace:
    """An SQLite file.

    Attributes:
        path: The database's file, absolute.
    """

    path: Path


@dataclass(frozen=True)
class FeastPlace:
    """Any other online store of Feast's, written by its generic path (`online.feast_database`).

    Attributes:
        options: The ``online_store`` section of Feast's documentation, with its ``type``. A secret
            is written as ``${NAME}`` and read from the environment when it is used.
        root: The directory that Feast's relative paths start from.
        registry: Where the registry is; None is a file below the root.
    """

    options: Mapping[str, Any]
    root: Path
    registry: RegistryPlace | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.options.get("type"), str):
            raise ConfigurationError(
                "online_store: the options of a store of Feast's name its type, such as postgres; "
                f"found {', '.join(map(str, self.options)) or 'none'}"
            )
        if (now := renamed_class(self.type)) is not None:
            raise ConfigurationError(
                f"online_store: the class {self.type!r} is now called {now!r}; write that as the "
                "type, or take Tidemill's own types sqlite and redis"
            )
        if named := _secrets("options", self.options):
            raise ConfigurationError(
                f"online_store: {', '.join(named)} holds a secret in plain text; write ${{NAME}} "
                "there and set the environment variable NAME"
            )

    @property
    def type(self) -> str:
        """The type of the store, as Feast calls it."""
        return str(self.options["type"])


OnlinePlace = SqlitePlace | RedisPlace | FeastPlace
"""Any of the places."""

ONLINE: Final = "online.db"
"""The SQLite file below a run's root, unless the configuration names another place."""


def default_place(root: Path | str) -> SqlitePlace:
    """Return the default place of the online store: a file below the root."""
    return SqlitePlace(Path(root).absolute() / ONLINE)


def feast_section(place: OnlinePlace, clock: Clock, repository: Path) -> dict[str, Any]:
    """Return the ``online_store`` section of the Feast configuration for a place.

    Args:
        place: Where the store is. A secret of a `FeastPlace` remains ``${NAME}`` (see `expanded`).
        clock: The clock that online reads judge age by; Feast's own stores judge no age.
        repository: The folder of the ``feature_store.yaml``: paths of files start there.
    """
    if isinstance(place, FeastPlace):
        return dict(place.options)
    if isinstance(place, RedisPlace):
        return {"type": REDIS_STORE, **place.options(repository), "clock": clock}
    path = relative_path(place.path, repository)
    return {"type": SQLITE_STORE, "path": path, "clock": clock}


def expanded(section: Any) -> Any:
    """Replace each ``${NAME}`` of a section by the environment variable, as Feast does.

    Raises:
        ConfigurationError: A variable is not set.
    """
    if isinstance(section, Mapping):
        return {key: expanded(value) for key, value in section.items()}
    if isinstance(section, list):
        return [expanded(value) for value in section]
    if not isinstance(section, str):
        return section
    if lacking := [name for name in _VARIABLE.findall(section) if name not in os.environ]:
        raise ConfigurationError(
            f"online_store: the environment variable {', '.join(lacking)} is not set; it holds a "
            "setting of the online store"
        )
    return _VARIABLE.sub(lambda found: os.environ[found[1]], section)


_VARIABLE: Final = re.compile(r"\$\{(\w+)\}")
_SECRET_KEY: Final = re.compile(r"password|passwd|secret|token|api_key|private_key", re.IGNORECASE)
_SECRET_TEXT: Final = re.compile(r"password=(?!\$\{)|://[^/@\s]*:(?!\$\{)[^/@\s]+@", re.IGNORECASE)


def _secrets(name: str, value: Any) -> list[str]:
    """Return the names of the settings that hold a secret in plain text."""
    if isinstance(value, Mapping):
        return [one for key in value for one in _secrets(f"{name}.{key}", value[key])]
    if not isinstance(value, str):
        return []
    key = name.rpartition(".")[2]
    plain = bool(_SECRET_KEY.search(key)) and not _VARIABLE.search(value)
    return [name] if plain or _SECRET_TEXT.search(value) else []
