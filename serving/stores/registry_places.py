"""Where a project's Feast registry is: what the configuration says, and who may write it now.

A `RegistryPlace` is plain data and holds no secret: a URL with a password is named by the
environment variable that has it, and is read from there when it is used.

Two writers at once: Feast's registry in a file is last-writer-wins, and its SQL registry writes
object by object. So whoever registers here holds `registry_lock` from the first read to the one
write. Programs that write with Feast alone (`feast apply`) don't ask for it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tidemill.features.errors import ConfigurationError, StoreError
from tidemill.serving.stores.class_paths import REGISTRY_FILE

REGISTRY: Final = "registry.db"
"""The registry's file below the root, where no other place is named."""

DIALECTS: Final = ("sqlite", "postgresql")
"""The databases whose SQLAlchemy URLs a registry takes; a driver may follow after a plus."""

CACHE_S: Final = 60
"""How long a Feast client goes on with the registry that it read; then it sees a promotion."""

_ADVISORY_LOCK: Final = 0x7469_6465_6D69_6C6C
"""The key of the lock that appliers of one PostgreSQL database share ("tidemill" in ASCII)."""


@dataclass(frozen=True)
class FileRegistry:
    """A registry in a file.

    Attributes:
        path: The file, absolute.
    """

    path: Path

    @property
    def name(self) -> str:
        """What error messages and plans call it."""
        return f"registry {self.path}"


@dataclass(frozen=True)
class SqlRegistry:
    """A registry in an SQL database; exactly one of the two attributes is set.

    Attributes:
        url: An SQLAlchemy URL without a password.
        url_env: The environment variable that holds the URL.
    """

    url: str | None = None
    url_env: str | None = None

    @property
    def name(self) -> str:
        """What error messages and plans call it; of a URL in the environment the variable."""
        return f"registry {self.url}" if self.url_env is None else f"registry ${self.url_env}"

    def resolve(self) -> str:
        """Return the URL; it may hold a password, so it is neither kept nor shown.

        Raises:
            ConfigurationError: The environment variable is not set, or holds no such URL.
        """
        if self.url_env is None:
            assert self.url is not None
            return self.url
        found = os.environ.get(self.url_env, "")
        if not found:
            raise ConfigurationError(
                f"registry: the environment variable {self.url_env} is not set; it must hold the "
                "SQLAlchemy URL of the registry, such as postgresql+psycopg://USER:PASSWORD@HOST/DB"
            )
        if (dialect := url_dialect(found)) not in DIALECTS:
            raise ConfigurationError(
                f"registry: the environment variable {self.url_env} holds a URL of "
                f"{dialect or 'no database'}, expected one of {', '.join(DIALECTS)}"
            )
        return found


RegistryPlace = FileRegistry | SqlRegistry
"""Any of the places."""


def default_registry(root: Path | str) -> FileRegistry:
    """Return the place of the registry where none is named: a file below the root."""
    return FileRegistry(Path(root).absolute() / REGISTRY)


def url_dialect(url: str) -> str:
    """Return the database that an SQLAlchemy URL is of, without its driver.

    >>> url_dialect("postgresql+psycopg://registry@db.example/feast")
    'postgresql'
    """
    return urlsplit(url).scheme.partition("+")[0]


def url_password(url: str) -> bool:
    """Tell whether a URL holds a password, as user information or in its query."""
    parts = urlsplit(url)
    return parts.password is not None or "password=" in parts.query.lower()


def registry_section(place: RegistryPlace, *, expanded: bool) -> dict[str, Any]:
    """Return the ``registry`` section of the Feast configuration for a place.

    Args:
        place: Where the registry is.
        expanded: Whether a URL from the environment is put in, perhaps with a password: for
            `feast.RepoConfig`, never for a file or a log. Otherwise it is written as ``${NAME}``,
            which Feast expands when it reads a ``feature_store.yaml``.

    Raises:
        ConfigurationError: The environment variable with the URL is not set.
    """
    if isinstance(place, FileRegistry):
        kind = {"registry_type": "file", "registry_store_type": REGISTRY_FILE}
        path = str(place.path)
    else:
        kind = {"registry_type": "sql"}
        named = place.url_env and not expanded
        path = f"${{{place.url_env}}}" if named else _with_driver(place.resolve())
    return {**kind, "path": path, "cache_ttl_seconds": CACHE_S}


def holds_project(place: RegistryPlace, project: str) -> bool:
    """Tell whether a registry is there and knows a project; asking makes neither.

    Raises:
        ConfigurationError: The environment variable with the URL is not set, or a driver is
            missing.
        StoreError: The database cannot be opened.
    """
    if isinstance(place, FileRegistry):
        return place.path.exists()
    url = place.resolve()
    if url_dialect(url) == "sqlite" and not _sqlite_path(url).exists():
        return False
    import sqlalchemy

    with named_errors(place):
        engine = sqlalchemy.create_engine(_with_driver(url), poolclass=sqlalchemy.NullPool)
        if not sqlalchemy.inspect(engine).has_table("projects"):
            return False
        asked = sqlalchemy.text("SELECT 1 FROM projects WHERE project_id = :project")
        with engine.connect() as connection:
            return connection.execute(asked, {"project": project}).first() is not None


@contextmanager
def named_errors(place: RegistryPlace) -> Iterator[None]:
    """Give the errors of a registry's file or database its name and the mend.

    Raises:
        ConfigurationError: A driver is missing.
        StoreError: The registry cannot be opened, or what is there is none.
    """
    import sqlalchemy
    from google.protobuf.message import DecodeError

    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{place.name}: its driver {error.name!r} is not installed; install it, such as "
            "psycopg[binary] for postgresql"
        ) from error
    except DecodeError as error:
        raise StoreError(
            f"{place.name} is no registry of Feast's ({error}); put the right file there, or "
            "remove it and apply again"
        ) from error
    except (OSError, sqlalchemy.exc.SQLAlchemyError) as error:
        raise StoreError(f"{place.name} cannot be opened: {error}") from error


@contextmanager
def registry_lock(place: RegistryPlace) -> Iterator[None]:
    """Hold the registry against other appliers; they wait. The death of a process frees it.

    A file, and an SQLite database, are held by a lock on a file beside them (which must not be on
    a file system without locks), PostgreSQL by an advisory lock of the database.

    Raises:
        ConfigurationError: The environment variable with the URL is not set, or a driver is
            missing.
        StoreError: The database cannot be opened.
    """
    if isinstance(place, FileRegistry):
        lock = _file_lock(place.path)
    elif url_dialect(url := place.resolve()) == "sqlite":
        lock = _file_lock(_sqlite_path(url))
    else:
        lock = _advisory_lock(place, url)
    with lock:
        yield


@contextmanager
def _advisory_lock(place: SqlRegistry, url: str) -> Iterator[None]:
    import sqlalchemy

    with named_errors(place):
        engine = sqlalchemy.create_engine(
            _with_driver(url), poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT"
        )
        connection = engine.connect()
    with connection:
        # Of the session, so that it lasts over the transactions that Feast opens for itself.
        connection.execute(
            sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK}
        )
        yield


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file of its own: the registry's is replaced by each write, and a lock goes with the inode.
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which also unlocks


def _sqlite_path(url: str) -> Path:
    return Path(urlsplit(url).path.removeprefix("/"))


def _with_driver(url: str) -> str:
    """Name Feast's driver where a URL names none: Feast would do it too, and warn."""
    plain = "postgresql://"
    return f"postgresql+psycopg://{url.removeprefix(plain)}" if url.startswith(plain) else url
