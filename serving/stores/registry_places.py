"""Where a project's Feast registry is, Feast's section of it, and the lock that writers hold.

A `RegistryPlace` is plain data and holds no secret: it names the environment variable that holds a
URL with a password, and the variable is read when the URL is used.

With two writers at once, the last one wins in Feast's file registry, and Feast's SQL registry is
written object by object. So `serving.registry` holds `registry_lock` from its first read to its
one write. Programs that write with Feast alone (`feast apply`) don't take the lock.
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
from tidemill.serving.files.relative_path import relative_path
from tidemill.serving.stores.class_paths import REGISTRY_FILE

REGISTRY: Final = "registry.db"
"""The registry's file below the root, unless the configuration names another place."""

DIALECTS: Final = ("sqlite", "postgresql")
"""Databases whose SQLAlchemy URLs are accepted; a plus and a driver may follow."""

CACHE_S: Final = 60
"""How long a Feast client caches the registry: a promotion is visible after that."""

_ADVISORY_LOCK: Final = 0x7469_6465_6D69_6C6C
"""Key of the advisory lock in a PostgreSQL database ("tidemill" in ASCII)."""


@dataclass(frozen=True)
class FileRegistry:
    """A registry in a file.

    Attributes:
        path: The file, absolute.
    """

    path: Path

    @property
    def name(self) -> str:
        """Its name in error messages and plans."""
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
        """Its name in error messages and plans: the URL, or the variable that holds it."""
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
    """Return the default place of the registry: a file below the root."""
    return FileRegistry(Path(root).absolute() / REGISTRY)


def url_dialect(url: str) -> str:
    """Return the database of an SQLAlchemy URL, without its driver.

    >>> url_dialect("postgresql+psycopg://registry@db.example/feast")
    'postgresql'
    """
    return urlsplit(url).scheme.partition("+")[0]


def url_password(url: str) -> bool:
    """Tell whether a URL holds a password, as user information or in its query."""
    parts = urlsplit(url)
    return parts.password is not None or "password=" in parts.query.lower()


def registry_section(place: RegistryPlace, repository: Path, *, expanded: bool) -> dict[str, Any]:
    """Return the ``registry`` section of the Feast configuration for a place.

    Args:
        place: Where the registry is.
        repository: The folder of the ``feature_store.yaml``.
        expanded: Whether the section holds a URL from the environment, perhaps with a password:
            for `feast.RepoConfig`, never for a file or a log. Its path of a file is absolute,
            since Feast takes a relative one from the working folder there. Otherwise it holds
            ``${NAME}``, which Feast expands when it reads a ``feature_store.yaml``, and the path
            starts at the repository. An SQLite URL is absolute in both, for the same reason.

    Raises:
        ConfigurationError: The environment variable with the URL is not set.
    """
    if isinstance(place, FileRegistry):
        kind = {"registry_type": "file", "registry_store_type": REGISTRY_FILE}
        path = str(place.path) if expanded else relative_path(place.path, repository)
    else:
        kind = {"registry_type": "sql"}
        named = place.url_env and not expanded
        path = f"${{{place.url_env}}}" if named else _with_driver(place.resolve())
    return {**kind, "path": path, "cache_ttl_seconds": CACHE_S}


def holds_project(place: RegistryPlace, project: str) -> bool:
    """Tell whether a registry exists and knows a project, without creating it.

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
    """Turn errors of a registry's file or database into Tidemill's, with its name and a remedy.

    Raises:
        ConfigurationError: A driver is missing.
        StoreError: The registry cannot be opened, or the file is not a registry.
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
    """Hold the registry's lock; other writers wait. It is freed when the process ends.

    For a file or an SQLite database it locks a file beside it (which must not be on a file system
    without locks), for PostgreSQL it takes an advisory lock of the database.

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
        # A lock of the session outlasts the transactions that Feast opens itself.
        connection.execute(
            sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK}
        )
        yield


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the registry's own file: each write replaces it, and a lock belongs to the inode.
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which also unlocks


def _sqlite_path(url: str) -> Path:
    return Path(urlsplit(url).path.removeprefix("/"))


def _with_driver(url: str) -> str:
    """Add Feast's driver to a URL without one: Feast would do it too, and warn."""
    plain = "postgresql://"
    return f"postgresql+psycopg://{url.removeprefix(plain)}" if url.startswith(plain) else url
