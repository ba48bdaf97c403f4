"""The schema registry of a topic in the YAML file.

```yaml
registry:
  url: http://localhost:8081    # speaks the API of Confluent's Schema Registry
  user: tidemill                # optional, with password_env
  password_env: REGISTRY_PASSWORD
  ca: ca.pem                    # optional: certificates that are trusted, PEM
```
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.strict_yaml import Value
from tidemill.pipelines.io.payloads.registry import RegistryPlace

REGISTRY_KEYS: Final = ("url", "user", "password_env", "ca")


@dataclass(frozen=True)
class SchemaRegistry:
    """Where schemas are registered.

    Attributes:
        url: Its address.
        user: The user of basic authentication; None without.
        password_env: The environment variable that holds the password.
        ca: A PEM file of the certificates to trust; None trusts those of the machine.
    """

    url: str
    user: str | None = None
    password_env: str | None = None
    ca: Path | None = None

    @property
    def place(self) -> RegistryPlace:
        """How to reach it, with the password as it is now.

        Raises:
            ConfigurationError: The variable is not set, or the address is not one of a registry.
        """
        name = self.password_env
        password = None if name is None else os.environ.get(name)
        if name is not None and password is None:
            raise ConfigurationError(
                f"the environment variable {name!r} is not set; it holds the password of the "
                f"schema registry at {self.url}"
            )
        return RegistryPlace(self.url, self.user, password, self.ca)


def read_schema_registry(value: Value, folder: Path) -> SchemaRegistry:
    """Read the section of a schema registry; relative paths are below ``folder``.

    Raises:
        ConfigurationError: A value cannot be used.
    """
    section = value.section(REGISTRY_KEYS)
    url = section.required("url")
    try:
        RegistryPlace(url.text())
    except ConfigurationError as error:
        raise url.wrong(str(error)) from None
    return SchemaRegistry(
        url.text(),
        **section.read(
            {
                "user": Value.text,
                "password_env": Value.text,
                "ca": lambda value: folder / value.text(),
            }
        ),
    )
