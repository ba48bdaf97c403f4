"""The ``registry`` section of the YAML file: where the project's Feast registry is.

```yaml
registry: {type: file, path: registry.db}                  # the default; below the root
registry: {type: sql, path: "sqlite:///registry-sql.db"}   # an SQLAlchemy URL; also below it
registry: {type: sql, path: "postgresql+psycopg://feast@db.example/feast"}
registry: {type: sql, path_env: REGISTRY_URL}              # a URL with a password
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tidemill.pipelines.config.strict_yaml import Section, Value
from tidemill.serving.stores.registry_places import (
    DIALECTS,
    REGISTRY,
    FileRegistry,
    RegistryPlace,
    SqlRegistry,
    default_registry,
    url_dialect,
    url_password,
)

REGISTRIES: Final = ("file", "sql")
REGISTRY_KEYS: Final = ("type", "path", "path_env")


def registry_place(top: Section, root: Path) -> RegistryPlace:
    """Read the section.

    Raises:
        ConfigurationError: The section is not that of a registry, or holds a password.
    """
    if "registry" not in top.values:
        return default_registry(root)
    section = top.values["registry"].section(REGISTRY_KEYS)
    kind = section.optional("type", lambda value: value.one_of(REGISTRIES), "file")
    if kind == "file":
        if "path_env" in section.values:
            raise section.values["path_env"].wrong(
                "a registry in a file has no URL to keep secret; write path, or type: sql"
            )
        return FileRegistry(root / section.optional("path", Value.text, REGISTRY))
    if len({"path", "path_env"} & section.values.keys()) != 1:
        raise section.value.wrong(
            "a registry of type sql has either path, an SQLAlchemy URL, or path_env, the name of "
            "the environment variable that holds one"
        )
    if "path_env" in section.values:
        return SqlRegistry(url_env=section.values["path_env"].text())
    return SqlRegistry(url=_url(section.values["path"], root))


def _url(value: Value, root: Path) -> str:
    url = value.text()
    # Check for a password first: the other messages show the URL.
    if url_password(url):
        raise value.wrong(
            "the URL holds a password; put the URL into an environment variable, and its name "
            "under path_env instead of path"
        )
    dialect = url_dialect(url)
    if dialect not in DIALECTS:
        raise value.wrong(
            f"found {url!r}, expected an SQLAlchemy URL of {' or '.join(DIALECTS)}, such as "
            "sqlite:///registry-sql.db"
        )
    if dialect != "sqlite":
        return url
    scheme, _, rest = url.partition("://")
    file = urlsplit(url).path.removeprefix("/")
    if not file or not rest.startswith("/"):
        raise value.wrong(f"found {url!r}, expected the path of a file after sqlite:///")
    return f"{scheme}:///{root / file}"
