"""The ``online_store`` section of the YAML file: where the newest features are served from.

```yaml
online_store: {type: sqlite, path: online.db}              # the default; below the root
online_store: {type: redis, host: redis.example, port: 6379, db: 0, timeout: 5s}
online_store:
  type: redis
  host: redis.example
  username: tidemill                # an ACL user; without it Redis's default user
  password_env: REDIS_PASSWORD      # the environment variable that holds the password, or
  # password_file: redis-password   # the file that holds it
  tls: {ca: ca.crt, cert: own.crt, key: own.key}   # `tls: {}` trusts the system's authorities
online_store: {type: feast, options: {type: postgres, host: db.example}}   # any other of Feast's
```

The file never holds a password. Paths of a Redis section start in the YAML file's folder. Every
type takes ``give_up_after: 10m``: how long the store may be unavailable before the stream fails
(`pipelines.publish.store_writer`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tidemill.features.contract import MINUTE
from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.strict_yaml import Section, Value, or_null
from tidemill.serving.stores.online_places import (
    ONLINE,
    FeastPlace,
    OnlinePlace,
    SqlitePlace,
    default_place,
)
from tidemill.serving.stores.redis_place import RedisPlace, RedisTls

ONLINE_STORES: Final = ("sqlite", "redis", "feast")

SQLITE_KEYS: Final = ("type", "path", "give_up_after")
REDIS_KEYS: Final = (
    "type", "host", "port", "db", "username", "password_env", "password_file", "tls", "timeout",
    "give_up_after",
)  # fmt: skip
TLS_KEYS: Final = ("ca", "cert", "key")
FEAST_KEYS: Final = ("type", "options", "give_up_after")

GIVE_UP_AFTER_US: Final = 10 * MINUTE
"""How long a store may be unavailable before the run fails."""


def online_place(top: Section, folder: Path, root: Path) -> OnlinePlace:
    """Read the section.

    Raises:
        ConfigurationError: The section is not that of an online store, or holds a password.
    """
    if "online_store" not in top.values:
        return default_place(root)
    value = top.values["online_store"]
    kind = value.section().optional("type", lambda name: name.one_of(ONLINE_STORES), "sqlite")
    if kind == "feast":
        return _feast_place(value.section(FEAST_KEYS), root)
    if kind == "redis":
        return _redis_place(value, folder)
    section = value.section(SQLITE_KEYS)
    return SqlitePlace(root / section.optional("path", Value.text, ONLINE))


def give_up_after_us(top: Section) -> int:
    """Read how long the store may be unavailable.

    Raises:
        ConfigurationError: The value is not a duration above zero.
    """
    if "online_store" not in top.values:
        return GIVE_UP_AFTER_US
    section = top.values["online_store"].section()
    return section.optional("give_up_after", Value.duration_us, GIVE_UP_AFTER_US)


def _feast_place(section: Section, root: Path) -> FeastPlace:
    options = section.required("options")
    options.section()  # raises an error unless it is a mapping
    try:
        return FeastPlace(options.foreign(), root)
    except ConfigurationError as error:
        raise options.wrong(str(error).removeprefix("online_store: ")) from error


def _redis_place(value: Value, folder: Path) -> RedisPlace:
    if password := value.section().values.get("password"):
        raise password.wrong(
            "a password must not be in this file: put it into an environment variable or a "
            "file, and name that under password_env or password_file"
        )

    def file(path: Value) -> Path:
        return folder / path.text()

    def tls(files: Value) -> RedisTls:
        readers = dict.fromkeys(TLS_KEYS, or_null(file))
        return RedisTls(**files.section(readers).read(readers))

    readers = {
        "host": Value.text,
        "port": Value.count,
        "db": Value.whole,
        "username": or_null(Value.text),
        "password_env": or_null(Value.text),
        "password_file": or_null(file),
        "tls": or_null(tls),
        "timeout": Value.duration_us,
    }
    section = value.section(REDIS_KEYS)
    try:
        return RedisPlace(**section.read(readers))
    except ConfigurationError as error:
        if str(error).startswith(f"{value.file}:"):
            raise
        message = str(error).removeprefix("online_store: ").removeprefix("online_store.")
        raise value.wrong(message) from error
