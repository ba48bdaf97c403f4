"""Where a Redis is, how to connect to it, and where its password is found.

Plain data without a secret in it: a place names the environment variable or the file that holds the
password. It is read anew for each connection, so a changed password takes effect.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tidemill.features.errors import ConfigurationError, StoreError
from tidemill.serving.files.relative_path import relative_path


@dataclass(frozen=True)
class RedisTls:
    """How to connect to a Redis by TLS; the server's certificate must be for its host name.

    Attributes:
        ca: PEM file of the trusted authorities; None trusts the system's.
        cert: File of our own certificate, if the server asks for one.
        key: File of our certificate's key.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigurationError(
                "online_store.tls: a certificate goes with its key: name both cert and key, or "
                "neither"
            )


@dataclass(frozen=True)
class RedisPlace:
    """A Redis, and one of its databases.

    Attributes:
        host: Name or address of the host.
        port: The port.
        db: The number of the database.
        username: The ACL user; None is Redis's default user.
        password_env: The environment variable that holds the password.
        password_file: The file that holds the password; line breaks at its end are ignored.
        tls: How to connect by TLS; None connects without it.
        timeout_us: Longest wait for a connection and for each answer, in microseconds.
    """

    host: str = "localhost"
    port: int = 6379
    db: int = 0
    username: str | None = None
    password_env: str | None = None
    password_file: Path | None = None
    tls: RedisTls | None = None
    timeout_us: int = 5_000_000

    def __post_init__(self) -> None:
        if self.password_env is not None and self.password_file is not None:
            raise ConfigurationError(
                "online_store: found password_env and password_file, expected one of the two"
            )
        if self.username is not None and self.password_env is None and self.password_file is None:
            raise ConfigurationError(
                f"online_store: user {self.username!r} has no password; name the environment "
                "variable or the file that holds it: password_env or password_file"
            )
        if not 0 < self.port < 65536:
            raise ConfigurationError(f"online_store: found port {self.port}, expected 1 to 65535")
        if self.timeout_us <= 0:
            raise ConfigurationError("online_store: the timeout must be above zero")

    @property
    def name(self) -> str:
        """Its name in error messages."""
        scheme = "redis" if self.tls is None else "rediss"
        return f"online store {scheme}://{self.host}:{self.port}/{self.db}"

    def options(self, repository: Path) -> dict[str, Any]:
        """Return the settings as plain values, without those that are None.

        Args:
            repository: The folder that the paths of files start from.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.tls is not None:
            files = {field.name: getattr(self.tls, field.name) for field in fields(self.tls)}
            values["tls"] = {
                name: relative_path(path, repository)
                for name, path in files.items()
                if path is not None
            }
        if self.password_file is not None:
            values["password_file"] = relative_path(self.password_file, repository)
        return {name: value for name, value in values.items() if value is not None}

    def password(self) -> str | None:
        """Return the password; None if the place names none.

        Raises:
            StoreError: The variable or the file that should hold it cannot be read.
        """
        if self.password_file is not None:
            try:
                return self.password_file.read_text().rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not UTF-8"
                raise StoreError(
                    f"{self.name}: the password cannot be read from {self.password_file}: "
                    f"{reason}; put it there, or correct password_file"
                ) from None
        if self.password_env is None:
            return None
        if self.password_env not in os.environ:
            raise StoreError(
                f"{self.name}: the environment variable {self.password_env}, which should hold "
                "the password, is not set; set it, or correct password_env"
            )
        return os.environ[self.password_env]
